"""Training and evaluation samples of annotated images."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from vheatir.backbone.dense.image_files import read_rgb
from vheatir.backbone.detection.recipe import DetectionAugment
from vheatir.backbone.detection.records import Record, decode
from vheatir.backbone.errors import DataError
from vheatir.backbone.training.batches import first_error, seed_all


class CropBetween(v2.Transform):
    """A crop at a random place, of `least` to `most` pixels each way, or the whole side where that is shorter."""

    def __init__(self, least: int, most: int):
        super().__init__()
        self.least = least
        self.most = most

    def make_params(self, flat_inputs: list) -> dict[str, int]:
        height, width = v2.functional.get_size(next(one for one in flat_inputs if isinstance(one, tv_tensors.Image)))
        sides = [int(torch.randint(min(self.least, side), min(self.most, side) + 1, ())) for side in (height, width)]
        top, left = (int(torch.randint(0, side - kept + 1, ())) for side, kept in zip((height, width), sides))
        return {"top": top, "left": left, "height": sides[0], "width": sides[1]}

    def transform(self, inpt, params: dict[str, int]):
        return self._call_kernel(v2.functional.crop, inpt, **params)


def _kept(sample: tuple) -> tuple[Tensor, ...]:
    """What goes with a box that is dropped."""
    _, target = sample
    return tuple(target[key] for key in ("labels", "masks") if key in target)


def training_views(augment: DetectionAugment) -> Callable:
    """Resizing to a drawn size, crop, flip; boxes that nothing is left of are dropped."""
    plain = {"antialias": False}  # as the detector's own resizing in evaluation
    resize = v2.RandomShortestSize(list(augment.short_sides), augment.long_side, **plain)
    if augment.crop:
        cropped = v2.Compose([v2.RandomShortestSize([400, 500, 600], 4200, **plain), CropBetween(384, 600), resize])
        resize = v2.RandomChoice([resize, cropped])
    steps = [resize, v2.RandomHorizontalFlip(augment.hflip), v2.ClampBoundingBoxes()]
    return v2.Compose([*steps, v2.SanitizeBoundingBoxes(labels_getter=_kept), v2.ToDtype(torch.float32, scale=True)])


class DetectionImages(Dataset):
    """Images with their annotations; a sample is asked for by index, or in training by (index, seed).

    A sample is the image, (3, H, W) float32 RGB in [0, 1], and its target: `boxes` (N, 4) x0, y0, x1, y1 in pixels,
    `labels` (N), `masks` (N, H, W) where `masks`; `number` of the image alone without `views`. A file that cannot be
    read gives a `DataError` in place of the sample.

    Args:
        records: the images.
        masks: targets have masks.
        views: image and target to those that are trained on; None for evaluation.
    """

    def __init__(self, records: list[Record], masks: bool, views: Callable | None = None):
        self.records = records
        self.masks = masks
        self.views = views

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]] | DataError:
        index, seed = key if isinstance(key, tuple) else (key, None)
        record = self.records[index]
        image = read_rgb(record.file, record.turned)
        if isinstance(image, DataError):
            return image
        if self.views is None:
            return v2.functional.to_dtype(image, torch.float32, scale=True), {"number": torch.tensor(record.number)}
        if seed is not None:
            seed_all(seed)
        image, target = self.views(image, self._target(record))
        return image.as_subclass(Tensor), {name: value.as_subclass(Tensor) for name, value in target.items()}

    def _target(self, record: Record) -> dict[str, Tensor]:
        size = (record.height, record.width)
        instances = [instance for instance in record.instances if not instance.crowd]
        boxes = torch.tensor([instance.box for instance in instances], dtype=torch.float32).reshape(-1, 4)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([instance.label for instance in instances], dtype=torch.int64),
        }
        if self.masks:
            shapes = [decode(instance.segmentation, record.width, record.height) for instance in instances]
            target["masks"] = tv_tensors.Mask(torch.from_numpy(np.stack(shapes)))
        return target

    @staticmethod
    def collate(samples: list) -> tuple[list[Tensor], list[dict[str, Tensor]]] | DataError:
        """Images and targets as lists, since sizes differ; or the first error."""
        failed = first_error(samples)
        return failed if failed is not None else ([image for image, _ in samples], [target for _, target in samples])
