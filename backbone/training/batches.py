"""Training batches as a function of seed and step, so that a resumed run sees what an unbroken one would have seen.

Each sample carries a number of its own, the only source of its augmentation, which depends neither on the loader's
processes nor on how many processes train.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from vheatir.backbone.errors import DataError, UserError
from vheatir.backbone.training.signals import ignore_signals

_MASK = (1 << 63) - 1


def mixed(*numbers: int) -> int:
    """One number below 2^63 from several; neighbors come out unrelated."""
    return int.from_bytes(np.random.SeedSequence(numbers).generate_state(2, np.uint32).tobytes(), "little") & _MASK


def seed_all(seed: int) -> None:
    """Seed every generator that augmentations draw from; torch's for the CPU alone."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (timm's augmentations draw from the global state)
    torch.default_generator.manual_seed(seed)


@dataclass(frozen=True)
class EpochPlan:
    """The order of samples in a training run.

    Attributes:
        size: images in the data set.
        batch: images of a process in one forward pass.
        accumulate: forward passes for a step.
        rank, world: this process, and how many there are.
        seed: changes the order and all augmentation.
        repeats: times that each image comes in a row, with other augmentation; an epoch stays as long.
        parted: each process draws images rank, rank + world, ... alone, which it keeps in memory.
        begun: an epoch that a run with other batches began, and how many of its images that run has seen.
        keeps_steps: the run is counted in steps, of which it has as many left when it goes on with other batches.
        shift: steps of such a run beyond those that its images would have taken in these batches.
    """

    size: int
    batch: int
    accumulate: int = 1
    rank: int = 0
    world: int = 1
    seed: int = 0
    repeats: int = 1
    parted: bool = False
    begun: tuple[int, int] = (-1, 0)
    keeps_steps: bool = False
    shift: int = 0

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

    def place(self, step: int) -> tuple[int, int]:
        """Epoch, and step within it, of a step of the run, counted from 0."""
        return divmod(step - self.shift, self.steps_per_epoch)

    def order(self, epoch: int) -> np.ndarray:
        """Indices of an epoch, (steps, images of a step)."""
        count = self.steps_per_epoch * self.images_per_step
        if self.parted:  # column by column, so that process r finds its own images at r, r + world, ...
            shares = [np.arange(rank, self.size, self.world) for rank in range(self.world)]
            drawn = [self._shuffled(share, epoch, rank)[: count // self.world] for rank, share in enumerate(shares)]
            return np.stack(drawn, 1).reshape(self.steps_per_epoch, -1)
        if epoch == self.begun[0]:
            left = self._left(self.begun[1])
            seen = np.zeros((self.steps_per_epoch - left) * self.images_per_step, np.int64)  # nobody asks for them
            rest = self._shuffled(np.arange(self.size), epoch)[self.begun[1] :][: left * self.images_per_step]
            return np.concatenate([seen, rest]).reshape(self.steps_per_epoch, -1)
        return self._shuffled(np.arange(self.size), epoch)[:count].reshape(self.steps_per_epoch, -1)

    def _left(self, seen: int) -> int:
        """Whole steps for an epoch of which so many images have been seen."""
        return min(self.steps_per_epoch, max(0, self.size - seen) // self.images_per_step)

    def images_seen(self, epoch: int, steps: int) -> int:
        """Images of an epoch that have been seen after so many of its steps."""
        if epoch != self.begun[0]:
            return steps * self.images_per_step
        return self.begun[1] + (steps - self.steps_per_epoch + self._left(self.begun[1])) * self.images_per_step

    def resumed(self, epoch: int, images: int, step: int = 0) -> tuple["EpochPlan", int]:
        """The plan that goes on within an epoch with the next image, and the number of steps that count as done.

        Where each process has images of its own, whose order depends on their number, it goes on about there.

        Args:
            epoch: that was begun, counted from 0.
            images: of it that have been seen, by all processes together.
            step: steps that were made; they count as done where the plan `keeps_steps`.
        """
        done = (epoch + 1) * self.steps_per_epoch - self._left(images)
        plan = self if self.parted else replace(self, begun=(epoch, images))
        return (replace(plan, shift=step - done), step) if self.keeps_steps else (plan, done)

    def _shuffled(self, indices: np.ndarray, *key: int) -> np.ndarray:
        return np.random.default_rng((self.seed, *key)).permutation(indices).repeat(self.repeats)


class StepSampler(Sampler):
    """Batches of (index, seed of the sample) for this process, from step `start` to `stop`, through all epochs.

    Args:
        plan: order and size of the steps.
        start, stop: steps, counted from 0; `stop` is not taken.
    """

    def __init__(self, plan: EpochPlan, start: int, stop: int):
        self.plan = plan
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.plan.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        plan = self.plan
        epoch = -1
        order = np.empty(0, np.int64)
        for step in range(self.start, self.stop):
            begun, within = plan.place(step)
            if begun != epoch:
                epoch = begun
                order = plan.order(epoch)
            places = np.arange(plan.rank, plan.images_per_step, plan.world)
            indices = order[within]
            for part in places.reshape(plan.accumulate, plan.batch):
                yield [(int(indices[k]), mixed(plan.seed, step, int(k))) for k in part]


class Streamed(ABC):
    """A data set that gives its images in a row and makes its batches itself; see `train_loader` and `val_loader`."""

    @abstractmethod
    def train_batches(self, plan: EpochPlan, start: int, stop: int, workers: int, pin: bool) -> Iterable: ...

    @abstractmethod
    def val_batches(self, batch: int, rank: int, world: int, workers: int, pin: bool) -> Iterable: ...


def first_error(samples: list) -> DataError | None:
    """The first error among samples; None where there is none."""
    return next((one for one in samples if isinstance(one, DataError)), None)


def fetched(batches: Iterator) -> Any:
    """The next batch.

    Raises:
        UserError: a sample cannot be used; without the traceback of the worker that said so.
    """
    try:
        return next(batches)
    except DataError as error:
        raise UserError(str(error)) from error
    except UserError as error:
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from error


def checked(loader: Iterable) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches; raises the error where there is one.

    Raises:
        DataError: an image cannot be read, or its class is none of the model's.
    """
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _loader(samples: Any, workers: int, pin: bool, **how) -> DataLoader:
    # A loader draws a number when it starts; from a generator of its own, so that nothing else shifts.
    how |= {"num_workers": workers, "pin_memory": pin, "generator": torch.Generator()}
    return DataLoader(samples, collate_fn=samples.collate, worker_init_fn=ignore_signals, **how)


def train_loader(samples: Any, plan: EpochPlan, start: int, stop: int, workers: int, pin: bool) -> Iterable:
    """Batches of this process for steps `start` to `stop`; its processes live as long as the run.

    Args:
        samples: the training set, asked by (index, seed).
        plan: order and size of the steps.
        start: first step, counted from 0.
        stop: the step before which they end.
        workers: loader processes.
        pin: put batches into pinned memory.
    """
    if isinstance(samples, Streamed):
        return samples.train_batches(plan, start, stop, workers, pin)
    return _loader(samples, workers, pin, batch_sampler=StepSampler(plan, start, stop))


def val_loader(samples: Any, batch: int, rank: int, world: int, workers: int, pin: bool) -> Iterable:
    """Each image once: this process gets images rank, rank + world, ... in order.

    Args:
        samples: the evaluation set, asked by index.
        batch: images of a batch.
        rank: of this process.
        world: how many processes there are.
        workers: loader processes.
        pin: put batches into pinned memory.
    """
    if isinstance(samples, Streamed):
        return samples.val_batches(batch, rank, world, workers, pin)
    return _loader(samples, workers, pin, batch_size=batch, sampler=range(rank, len(samples), world))
