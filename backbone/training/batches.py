"""Training batches as a function of seed and step, so that a resumed run sees what an unbroken one would have seen.

Each sample carries a number of its own, the only source of its augmentation, which depends neither on the loader's
processes nor on how many processes train.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.readers.reader import Reader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import RandomCrop

from vheatir.backbone.classification.recipe import Augment, Val
from vheatir.backbone.errors import DataError
from vheatir.backbone.pixels import PictureError, as_pixels, read_pixels
from vheatir.backbone.training.signals import ignore_signals

_MASK = (1 << 63) - 1


def mixed(*numbers: int) -> int:
    """One number below 2^63 from several; neighbours come out unrelated."""
    return int.from_bytes(np.random.SeedSequence(numbers).generate_state(2, np.uint32).tobytes(), "little") & _MASK


def seed_all(seed: int) -> None:
    """Seed every generator that augmentations draw from; torch's for the CPU alone."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (timm's augmentations draw from the global state)
    torch.default_generator.manual_seed(seed)


@dataclass(frozen=True)
class Plan:
    """The order of samples in a training run.

    Attributes:
        size: images in the data set.
        batch: images of a process in one forward pass.
        accumulate: forward passes for a step.
        rank, world: this process, and how many there are.
        seed: changes the order and all augmentation.
        repeats: times that each image comes in a row, with other augmentation; an epoch stays as long.
        parted: each process draws images rank, rank + world, ... alone, which it keeps in memory.
    """

    size: int
    batch: int
    accumulate: int = 1
    rank: int = 0
    world: int = 1
    seed: int = 0
    repeats: int = 1
    parted: bool = False

    @property
    def images_per_step(self) -> int:
        return self.batch * self.accumulate * self.world

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps; what is left over of an epoch is dropped.

        Raises:
            ValueError: there are fewer images than a step takes.
        """
        steps = self.size // self.images_per_step
        if steps == 0:
            raise ValueError(
                f"{self.size} training images are fewer than the {self.images_per_step} of a step (data.batch_size "
                f"{self.batch} x {self.world} processes x train.accumulate {self.accumulate}); take smaller batches"
            )
        return steps

    def order(self, epoch: int) -> np.ndarray:
        """Indices of an epoch, (steps, images of a step)."""
        count = self.steps_per_epoch * self.images_per_step
        if self.parted:  # column by column, so that process r finds its own images at r, r + world, ...
            shares = [np.arange(rank, self.size, self.world) for rank in range(self.world)]
            drawn = [self._shuffled(share, epoch, rank)[: count // self.world] for rank, share in enumerate(shares)]
            return np.stack(drawn, 1).reshape(self.steps_per_epoch, -1)
        return self._shuffled(np.arange(self.size), epoch)[:count].reshape(self.steps_per_epoch, -1)

    def _shuffled(self, indices: np.ndarray, *key: int) -> np.ndarray:
        return np.random.default_rng((self.seed, *key)).permutation(indices).repeat(self.repeats)


class StepSampler(Sampler):
    """Batches of (index, seed of the sample) for this process, from step `start` to `stop`, through all epochs."""

    def __init__(self, plan: Plan, start: int, stop: int):
        self.plan, self.start, self.stop = plan, start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.plan.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        plan, epoch, order = self.plan, -1, None
        for step in range(self.start, self.stop):
            if step // plan.steps_per_epoch != epoch:
                epoch = step // plan.steps_per_epoch
                order = plan.order(epoch)
            places = np.arange(plan.rank, plan.images_per_step, plan.world)
            indices = order[step % plan.steps_per_epoch]
            for part in places.reshape(plan.accumulate, plan.batch):
                yield [(int(indices[k]), mixed(plan.seed, step, int(k))) for k in part]


class Samples(Dataset):
    """Images of a reader through a transform; a sample is asked for by index, or by (index, seed).

    A file that cannot be used gives a `DataError` in place of the sample: raised in a loader process it would lose its
    form, and taking the next file instead, as timm does, would hide it.
    """

    def __init__(self, reader: Reader, transform: Callable[[Image.Image], Tensor], num_classes: int):
        self.reader, self.transform, self.num_classes = reader, transform, num_classes

    def __len__(self) -> int:
        return len(self.reader)

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
            told = str(error) if isinstance(error, PictureError) else f"cannot be read as an image: {error}"
            return DataError(f"{self.reader.filename(index, absolute=True)}: {told}")
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


class Streamed(ABC):
    """A data set that gives its images in a row and makes its batches itself; see `train_loader` and `val_loader`."""

    @abstractmethod
    def train_batches(self, plan: Plan, start: int, stop: int, workers: int, pin: bool) -> Iterable: ...

    @abstractmethod
    def val_batches(self, batch: int, rank: int, world: int, workers: int, pin: bool) -> Iterable: ...


def first_error(samples: list) -> DataError | None:
    """The first error among samples; None where there is none."""
    return next((one for one in samples if isinstance(one, DataError)), None)


def checked(loader: Iterable) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches; raises the error where there is one.

    Raises:
        DataError: an image cannot be read, or its class is none of the model's.
    """
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def train_transform(augment: Augment, size: tuple[int, int], mean, std):
    """timm's training transform, with random erasing; ends in a normalised tensor."""
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
        mean=mean,
        std=std,
        re_prob=augment.erase,
        re_mode=augment.erase_mode,
        re_count=augment.erase_count,
    )
    if augment.crop == "padded":
        transform.transforms[0] = RandomCrop(size, padding=4, pad_if_needed=True)
    return transform


def val_transform(val: Val, size: tuple[int, int], mean, std):
    """timm's evaluation transform: resize to size / crop_pct, centre crop, normalise."""
    return create_transform(
        (3, *size),
        interpolation=val.interpolation,
        crop_pct=val.crop_pct,
        crop_mode=val.crop_mode,
        mean=mean,
        std=std,
    )


def _loader(samples: Samples, workers: int, pin: bool, **how) -> DataLoader:
    # A loader draws a number when it starts; from a generator of its own, so that nothing else shifts.
    how |= {"num_workers": workers, "pin_memory": pin, "generator": torch.Generator()}
    return DataLoader(samples, collate_fn=samples.collate, worker_init_fn=ignore_signals, **how)


def train_loader(samples: Samples | Streamed, plan: Plan, start: int, stop: int, workers: int, pin: bool) -> Iterable:
    """Batches of this process for steps `start` to `stop`; its processes live as long as the run."""
    if isinstance(samples, Streamed):
        return samples.train_batches(plan, start, stop, workers, pin)
    return _loader(samples, workers, pin, batch_sampler=StepSampler(plan, start, stop))


def val_loader(samples: Samples | Streamed, batch: int, rank: int, world: int, workers: int, pin: bool) -> Iterable:
    """Each image once: this process gets images rank, rank + world, ... in order."""
    if isinstance(samples, Streamed):
        return samples.val_batches(batch, rank, world, workers, pin)
    return _loader(samples, workers, pin, batch_size=batch, sampler=range(rank, len(samples), world))
