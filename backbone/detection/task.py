"""The task of detection for the loop: losses of a batch, average precision on the evaluation set."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vheatir.backbone.detection.average_precision import as_results, average_precision
from vheatir.backbone.detection.dataset import DetectionImages
from vheatir.backbone.detection.records import Annotations
from vheatir.backbone.layers.freezing import frozen
from vheatir.backbone.training.batches import checked, val_loader
from vheatir.backbone.training.dataset_task import DatasetTask
from vheatir.backbone.training.processes import Processes
from vheatir.backbone.training.task import to_device


class Detection(DatasetTask):
    """Losses of torchvision's R-CNNs, and COCO's metrics on annotations.

    Args:
        annotations: the evaluation set.
        masks: objects have masks.
        workers: loader processes.
        processes: those that train, or evaluate, together.
        device: of the network.
    """

    best = "box_ap"
    weights_key = "path.pretrained"

    def __init__(self, annotations: Annotations, masks: bool, workers: int, processes: Processes, device: torch.device):
        super().__init__(processes, device)
        instances = [instance for record in annotations.records for instance in record.instances]
        if all(instance.crowd for instance in instances):
            what = "no objects but crowds and difficult ones, which do not count" if instances else "no objects"
            raise ValueError(f"the evaluation set has {what}; name another one in data.val")
        self.annotations = annotations
        self.masks = masks
        self.workers = workers
        self.truth = annotations.as_coco()
        self.samples = DetectionImages(annotations.records, masks)

    def loss(self, model: nn.Module, batch: tuple[list, list]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the losses, and each by name: classes, boxes, masks, objectness and proposals."""
        losses = model(*batch)
        return sum(losses.values()), losses

    def class_names(self) -> list[str]:
        return list(self.annotations.classes)

    def loader(self) -> Iterable[Any]:
        """This process's part of the evaluation set, image by image."""
        place = (self.processes.rank, self.processes.world)
        return val_loader(self.samples, 1, *place, self.workers, self.device.type == "cuda")

    def detect(self, model: nn.Module) -> list[dict]:
        """COCO's result entries of this process's part."""
        device = self.device
        results = []
        hidden = None if self.processes.writes else True
        with frozen(model), torch.no_grad():
            for images, targets in tqdm(checked(self.loader()), "evaluation", leave=False, disable=hidden):
                for output, target in zip(model(to_device(images, device)), targets, strict=True):
                    results += as_results(output, int(target["number"]))
        return results

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Average precision in percent, see `average_precision`, and the number of `images`."""
        results = [entry for part in self.processes.gather(self.detect(model)) for entry in part]
        scores = self.processes.from_first(lambda: average_precision(self.truth, results, self.masks))
        return {**scores, "images": float(len(self.samples))}
