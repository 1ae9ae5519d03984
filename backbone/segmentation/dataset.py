"""Training and evaluation samples of images with label maps."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vheatir.backbone.dense.image_files import read_label_map, read_rgb
from vheatir.backbone.errors import DataError
from vheatir.backbone.models.feature_maps import MEAN
from vheatir.backbone.segmentation.label_maps import IGNORED, Pair
from vheatir.backbone.segmentation.recipe import SegmentationAugment
from vheatir.backbone.training.batches import first_error, seed_all

_TRIES = 10


def scaled_size(height: int, width: int, scale: Sequence[float]) -> tuple[int, int]:
    """Height and width that fit into `scale`, given as the most for the longer and for the shorter side.

    Args:
        height: in pixels.
        width: in pixels.
        scale: the two limits, in any order.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


class TrainingViews:
    """Resizing by a drawn factor, a crop without too much of one class, flip, colors; padded to the crop's size."""

    def __init__(self, augment: SegmentationAugment):
        self.augment = augment
        # Each for half of the images, as published: brightness by up to 32 of 255, hue by up to 18 of the 180 steps in
        # which 8-bit HSV images count the circle: 36 degrees.
        changes = ({"brightness": 32 / 255}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 18 / 180})
        self.color = v2.Compose([v2.RandomApply([v2.ColorJitter(**change)], 0.5) for change in changes])

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        augment = self.augment
        low, high = augment.ratio
        ratio = low + (high - low) * torch.rand(()).item()
        height, width = labels.shape[-2:]
        size = list(scaled_size(height, width, [side * ratio for side in augment.scale]))
        image, labels = F.resize(image, size, antialias=True), F.resize(labels, size)
        image, labels = self._crop(image, labels)
        if torch.rand(()) < augment.hflip:
            image, labels = F.horizontal_flip(image), F.horizontal_flip(labels)
        if augment.color:
            image = self.color(image)
        height, width = labels.shape[-2:]
        around = [0, 0, max(0, augment.crop - width), max(0, augment.crop - height)]
        return F.pad(image, around, [round(255 * mean) for mean in MEAN]), F.pad(labels, around, IGNORED)

    def _crop(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        side = self.augment.crop
        height, width = labels.shape[-2:]
        kept = (min(side, height), min(side, width))
        for _ in range(_TRIES):
            top, left = (int(torch.randint(0, whole - part + 1, ())) for whole, part in zip((height, width), kept))
            cropped = F.crop(labels, top, left, *kept)
            counts = torch.bincount(cropped.flatten().long(), minlength=256)[:IGNORED]
            if (counts > 0).sum() > 1 and counts.max() < self.augment.cat_max * counts.sum():
                break
        return F.crop(image, top, left, *kept), cropped


class LabelledImages(Dataset):
    """Images with label maps; a sample is asked for by index, or in training by (index, seed).

    A sample is the image, (3, H, W) float32 RGB in [0, 1], and (H, W) int64 classes, 255 for none. A file that cannot
    be read gives a `DataError` in place of the sample.

    Args:
        pairs: files.
        class_of: what `class_table` gives.
        views: of training; None for the images as they are.
    """

    def __init__(self, pairs: list[Pair], class_of: Tensor, views: TrainingViews | None = None):
        self.pairs = pairs
        self.class_of = class_of
        self.views = views

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor] | DataError:
        index, seed = key if isinstance(key, tuple) else (key, None)
        pair = self.pairs[index]
        image: Tensor | DataError = read_rgb(pair.image, pair.turned)
        stored = read_label_map(pair.labels)
        if isinstance(image, DataError):
            return image
        if isinstance(stored, DataError):
            return stored
        labels: Tensor = tv_tensors.Mask(self.class_of[stored.long()][None])
        if self.views is not None:
            if seed is not None:
                seed_all(seed)
            image, labels = self.views(image, labels)
        image = F.to_dtype(image, torch.float32, scale=True)
        return image.as_subclass(Tensor), labels.as_subclass(Tensor)[0].long()

    @staticmethod
    def collate(samples: list) -> tuple[Tensor, Tensor] | DataError:
        """Images (B, 3, H, W) and classes (B, H, W), or the first error."""
        failed = first_error(samples)
        if failed is not None:
            return failed
        images, classes = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(classes)
