"""Labeled images as samples of classification, and the transforms of training and evaluation."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.readers.reader import Reader
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Compose, RandomCrop

from vheatir.backbone.classification.recipe import ClassificationAugment, ClassificationVal
from vheatir.backbone.data.pixels import ImageError, as_pixels, read_pixels
from vheatir.backbone.errors import DataError
from vheatir.backbone.training.batches import first_error, seed_all


class Samples(Dataset):
    """Images of a reader through a transform; a sample is asked for by index, or by (index, seed).

    A file that cannot be used gives a `DataError` in place of the sample: raised in a loader process it would lose its
    form, and taking the next file instead, as timm does, would hide it.

    Args:
        reader: gives files, or images, with their classes.
        transform: an image to a tensor.
        num_classes: of the network; targets must lie below.
    """

    def __init__(self, reader: Reader, transform: Callable[[Image.Image], Tensor], num_classes: int):
        self.reader = reader
        self.transform = transform
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes in the order of their numbers; None where the reader does not know them."""
        numbers = getattr(self.reader, "class_to_idx", None) or {}
        names = sorted(numbers, key=numbers.__getitem__)
        known = all(isinstance(name, str) for name in names)
        return names if names and known and [numbers[name] for name in names] == list(range(len(names))) else None

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int] | DataError:
        index = key
        if isinstance(key, tuple):
            index, seed = key
            seed_all(seed)
        try:
            content, target, *_ = self.reader[index]
            with content:
                pixels = as_pixels(content) if isinstance(content, Image.Image) else read_pixels(content)
        except (OSError, ValueError) as error:
            reason = str(error) if isinstance(error, ImageError) else f"cannot be read as an image: {error}"
            return DataError(f"{self.reader.filename(index, absolute=True)}: {reason}")
        if not 0 <= target < self.num_classes:
            name = self.reader.filename(index, absolute=True)
            return DataError(f"{name}: class {target}, but the model has {self.num_classes} (model.num_classes)")
        return self.transform(pixels), target

    @staticmethod
    def collate(samples: list) -> tuple[Tensor, Tensor] | DataError:
        """Images (B, C, H, W) and classes (B,), or the first error."""
        failed = first_error(samples)
        if failed is not None:
            return failed
        return torch.stack([image for image, _ in samples]), torch.tensor([target for _, target in samples])


def train_transform(augment: ClassificationAugment, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]):
    """timm's training transform, with random erasing; ends in a normalized tensor.

    Args:
        augment: the recipe's section.
        size: height and width in pixels.
        mean: of the three channels, for values in [0, 1].
        std: of the three channels, for values in [0, 1].

    Raises:
        ValueError: an unknown policy of augmentation.
    """
    try:
        transform = create_transform(
            (3, *size),
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            vflip=augment.vflip,
            color_jitter=augment.color_jitter,
            auto_augment=augment.auto_augment,
            interpolation=augment.interpolation,
            mean=tuple(mean),
            std=tuple(std),
            re_prob=augment.erase,
            re_mode=augment.erase_mode,
            re_count=augment.erase_count,
        )
    except (AssertionError, ValueError, LookupError) as error:  # timm asserts what it knows of policies
        raise ValueError(
            f"augment.auto_augment {augment.auto_augment}: {error}; expected a policy of timm, such as "
            "rand-m9-mstd0.5-inc1, augmix-m3-w3 or original, or ~ for none"
        ) from error
    assert isinstance(transform, Compose)  # what timm makes unless it is asked for the parts
    if augment.crop == "padded":
        transform.transforms[0] = RandomCrop(size, padding=4, pad_if_needed=True)
    return transform


def val_transform(val: ClassificationVal, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]):
    """timm's evaluation transform: resize to size / crop_pct, center crop, normalize.

    Args:
        val: the recipe's section.
        size: height and width in pixels.
        mean: of the three channels, for values in [0, 1].
        std: of the three channels, for values in [0, 1].
    """
    return create_transform(
        (3, *size),
        interpolation=val.interpolation,
        crop_pct=val.crop_pct,
        crop_mode=val.crop_mode,
        mean=tuple(mean),
        std=tuple(std),
    )
