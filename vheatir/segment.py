"""`vheatir segment`: UPerNet on every backbone, from a YAML file: training, evaluation, colored overlays."""

from pathlib import Path
from typing import Any

from vheatir.backbone.errors import as_user_error
from vheatir.tasks.dense import DenseSession, save_drawing
from vheatir.tasks.dense_command import parser_for, run


class SegmentSession(DenseSession):
    """A segmentation recipe."""

    command = "segment"
    task_name = "segmentation"
    sections = ("backbone", "data", "head", "augment", "train", "val", "path", "logger")

    @staticmethod
    def read(options: dict[str, Any]) -> Any:
        from vheatir.backbone.segmentation.recipe import read_recipe

        return read_recipe(options)

    def build(self, weights: str | None) -> Any:
        from vheatir.backbone.models.checkpoint_files import stored_model
        from vheatir.backbone.segmentation.upernet import Segmenter
        from vheatir.backbone.training.dataset_task import check_same_classes

        data = self.recipe.data
        self.classes = data.classes or tuple(map(str, range(data.num_classes)))
        if weights and data.classes and (stored := stored_model(weights).get("classes")):
            check_same_classes(stored, data.classes, weights)
        self.network = {"backbone": self.recipe.backbone, "classes": self.classes}
        return Segmenter(self.body, self.recipe.head, data.num_classes)

    def _labelled(self, training: bool):
        from vheatir.backbone.dense.image_files import decodable, report_problems
        from vheatir.backbone.segmentation.dataset import LabelledImages, TrainingViews
        from vheatir.backbone.segmentation.label_maps import class_table, find_pairs

        data = self.recipe.data
        pairs, problems = find_pairs(data, training)
        report_problems(problems, data.invalid)
        # A broken image shows before the run, not after an epoch; one that a run has skipped is skipped again.
        if not training and (self.mode == "train" or data.invalid == "skip"):
            whole = decodable([pair.image for pair in pairs], data.invalid)
            pairs = [pair for pair in pairs if pair.image in whole]
        return LabelledImages(pairs, class_table(data), TrainingViews(self.recipe.augment) if training else None)

    def samples(self):
        return self._labelled(True)

    def task(self, tta: bool = False):
        from vheatir.backbone.segmentation.task import Segmentation

        return Segmentation(self.recipe, self._labelled(False), self.processes, self.device, tta)

    def evaluate(self, tta: bool) -> dict[str, Any]:
        """Scores on the evaluation set, and each class's."""
        from vheatir.backbone.segmentation.task import class_ious, segmentation_scores

        with as_user_error(str(self.path)):
            counts = self.task(tta).count(self.model.to(self.device))
        ious = dict(zip(self.classes, class_ious(counts), strict=True))
        return {"tta": tta, "scores": segmentation_scores(counts), "iou": ious}

    def at_size(self, size: tuple[int, int]):
        import torch

        image = torch.rand(1, 3, *size, device=self.device)
        return lambda: self.model(image)

    def draw(self, file: Path, *, tta: bool = False, label_map: Path | None = None) -> tuple[Any, dict]:
        """Image (3, H, W) uint8 colored by class, and the share of each class.

        Args:
            file: an image.
            tta: average sizes and mirrored views.
            label_map: a PNG to write with the numbers of the classes.
        """
        import torch

        from vheatir.backbone.dense.drawing import draw_classes
        from vheatir.backbone.segmentation.task import predicted_classes

        image = self.read_image(file)
        with torch.no_grad():
            classes = predicted_classes(self.model, image.to(self.device) / 255, self.recipe.val, tta)
        classes = classes.cpu().to(torch.uint8)
        if label_map is not None:
            save_drawing(label_map, classes[None])
        counts = torch.bincount(classes.flatten().long(), minlength=len(self.classes)) / classes.numel()
        shares = dict(zip(self.classes, counts.tolist(), strict=True))
        return draw_classes(image, classes, len(self.classes)), {"shares": shares}


def main(argv: list[str]) -> int:
    parser = parser_for("segment", "Train UPerNet on a backbone, evaluate it, or color images by class.")
    parser.add_argument("--tta", action="store_true", help="--eval, --predict: average sizes and mirrored views")
    parser.add_argument("--label-maps", type=Path, metavar="FOLDER", help="--predict: write the classes' numbers too")
    return run(SegmentSession, parser, argv, ["tta", "label_maps"])
