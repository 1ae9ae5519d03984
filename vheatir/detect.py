"""`vheatir detect`: Faster and Mask R-CNN on every backbone: training, evaluation, drawn detections."""

import argparse
from functools import cached_property
from pathlib import Path
from typing import Any

from vheatir.tasks.dense import DenseSession
from vheatir.tasks.dense_command import parser_for, run


def _stored_classes(weights: str) -> tuple[str, ...] | None:
    """Names of the classes in the metadata of this command's weights; None for other files."""
    from vheatir.backbone.models.checkpoint_files import stored_model

    stored = stored_model(weights)
    return tuple(stored["classes"]) if stored.get("classes") else None


class DetectSession(DenseSession):
    """A detection recipe. The classes are those of the weights, of the recipe or of the data, in this order."""

    command = "detect"
    task_name = "detection"
    sections = ("backbone", "data", "detector", "augment", "train", "val", "path", "logger")
    needs = (*DenseSession.needs, "pycocotools")
    classes: tuple[str, ...] | None

    @staticmethod
    def read(options: dict[str, Any]) -> Any:
        from vheatir.backbone.detection.recipe import read_recipe

        return read_recipe(options)

    def build(self, weights: str | None) -> Any:
        from vheatir.backbone.detection.model import build_detector

        data = self.recipe.data
        self.classes = (_stored_classes(weights) if weights else None) or data.classes
        count = data.num_classes
        if self.mode != "cost" or (self.classes is None and count is None):
            self.classes = self.classes or self._training.classes
        if self.classes is not None:
            if count not in (None, len(self.classes)):
                raise ValueError(f"data.num_classes is {count}, but there are {len(self.classes)} classes")
            count = len(self.classes)
        self.network = {"backbone": self.recipe.backbone, "classes": self.classes}
        return build_detector(self.body, self.recipe.detector, count)

    def _annotations(self, training: bool):
        from vheatir.backbone.dense.image_files import report_problems
        from vheatir.backbone.detection.annotations import read_annotations

        recipe = self.recipe
        annotations = read_annotations(recipe.data, training, recipe.detector.masks, self.classes)
        report_problems(annotations.problems, recipe.data.invalid)
        return annotations

    @cached_property
    def _training(self):
        return self._annotations(training=True)

    def samples(self):
        from vheatir.backbone.detection.dataset import DetectionImages, training_views

        return DetectionImages(
            self._training.for_training(), self.recipe.detector.masks, training_views(self.recipe.augment)
        )

    def task(self):
        from vheatir.backbone.dense.image_files import decodable
        from vheatir.backbone.detection.task import Detection

        recipe = self.recipe
        annotations = self._annotations(training=False)
        # A broken image shows before the run, not after an epoch; one that a run has skipped is skipped again.
        if self.mode == "train" or recipe.data.invalid == "skip":
            whole = decodable([record.file for record in annotations.records], recipe.data.invalid)
            annotations.records = [record for record in annotations.records if record.file in whole]
        return Detection(annotations, recipe.detector.masks, recipe.data.workers, self.processes, self.device)

    def at_size(self, size: tuple[int, int]):
        import torch

        image = torch.rand(3, *size, device=self.device)
        self.model.transform.min_size = (min(size),)
        self.model.transform.max_size = max(size)
        return lambda: self.model([image])

    def draw(self, file: Path, *, threshold: float = 0.5) -> tuple[Any, dict]:
        """Image (3, H, W) uint8 with the detections in a file of a score of at least `threshold`, and their table."""
        import numpy as np
        import torch

        from vheatir.backbone.dense.drawing import draw_detections
        from vheatir.backbone.detection.average_precision import as_results

        image = self.read_image(file)
        # Masks are made at the size of the image, all at once: those that nobody sees may fill the memory.
        heads = self.model.roi_heads
        heads.score_thresh = max(self.recipe.detector.score, float(np.nextafter(np.float32(threshold), np.float32(0))))
        with torch.no_grad():
            found = self.model([image.to(self.device) / 255])[0]
        found = {key: value.cpu() for key, value in found.items()}
        entries = [one for one in as_results(found, 0) if one["score"] >= threshold]
        for one in entries:
            one["class"] = self.classes[one.pop("category_id") - 1]
            del one["image_id"]
        return draw_detections(image, found, self.classes, threshold), {"detections": entries}


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:  # nor where it is NaN
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def main(argv: list[str]) -> int:
    parser = parser_for("detect", "Train Faster or Mask R-CNN on a backbone, evaluate it, or draw what it detects.")
    parser.add_argument(
        "--threshold", type=_threshold, metavar="S", help="least score of what --predict draws; default: 0.5"
    )
    return run(DetectSession, parser, argv, ["threshold"])
