"""Data sets that give images in a row: WebDataset, TensorFlow Datasets and Hugging Face streams, by timm's readers.

The order of an epoch is a function of seed, epoch and number of loader processes. A run resumed within an epoch
reads that epoch from its beginning and leaves out what it has seen.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vheatir.backbone.classification.dataset import Samples
from vheatir.backbone.classification.readers import open_timm_reader
from vheatir.backbone.classification.recipe import ClassificationData
from vheatir.backbone.data.pixels import ImageError, as_pixels
from vheatir.backbone.errors import DataError
from vheatir.backbone.training.batches import EpochPlan, Streamed, mixed, seed_all
from vheatir.backbone.training.signals import ignore_signals

_BROKEN = (OSError, ValueError, RuntimeError, KeyError, TypeError)


class Stream(Streamed):
    """A split of a streamed data set through a transform; `len` is the number of its images.

    Args:
        data: where the set is.
        split: its name.
        transform: an image to a tensor.
        num_classes: of the network; targets must lie below.

    Raises:
        ValueError: a missing library, a split that does not exist, or one whose size nothing states.
    """

    collate = staticmethod(Samples.collate)

    def __init__(
        self, data: ClassificationData, split: str, transform: Callable[[Image.Image], Tensor], num_classes: int
    ):
        self.data = data
        self.split = split
        self.transform = transform
        self.num_classes = num_classes
        self.name = f"{data.reader} {split} in {data.root}"
        self.size = self.open(False).num_samples
        if not self.size:
            raise ValueError(
                f"{self.name}: nothing states how many images it holds; for wds write the split with their number, "
                "as in part-{0000..0009}.tar|12345, or add an _info.json"
            )

    def __len__(self) -> int:
        return self.size

    def open(self, training: bool, seed: int = 0, batch: int = 1, rank: int = 0, world: int = 1) -> Any:
        """A reader at its beginning; in training it gives this process's share of the shards, shuffled.

        Args:
            training: shuffle, and give this process's share alone.
            seed: of the order.
            batch: images of a batch of this process.
            rank: of this process, where it gets a share.
            world: how many processes there are.
        """
        how: dict[str, Any] = {"is_training": training, "seed": seed % 2**31, "batch_size": batch}
        reader = open_timm_reader(self.data, self.split, **how)
        # In evaluation each process picks its images itself: shares of shards would be uneven. The reader asks
        # torch.distributed for its own share, of which loader processes that are not forked know nothing.
        reader.dist_rank = rank
        reader.dist_num_replicas = world
        return reader

    def sample(self, image: Image.Image, target: int, seed: int | None = None) -> tuple[Tensor, int] | DataError:
        """An image through the transform, which draws from `seed`, and its class.

        Args:
            image: as the reader gives it.
            target: its class.
            seed: of the transform; None draws on.
        """
        if not 0 <= target < self.num_classes:
            return DataError(f"{self.name}: class {target}, but the model has {self.num_classes} (model.num_classes)")
        try:
            pixels = as_pixels(image)
        except ImageError as error:
            return DataError(f"{self.name}: {error}")
        if seed is not None:
            seed_all(seed)
        return self.transform(pixels), int(target)

    def train_batches(self, plan: EpochPlan, start: int, stop: int, workers: int, pin: bool) -> Iterator:
        """Batches of this process for steps `start` to `stop`.

        Args:
            plan: order and size of the steps.
            start: first step, counted from 0 through all epochs.
            stop: the step before which they end.
            workers: loader processes.
            pin: put batches into pinned memory.
        """
        batches = StreamedTraining(self, plan, start, stop)
        how = {"num_workers": workers, "pin_memory": pin, "generator": torch.Generator()}
        loader = DataLoader(batches, batch_size=None, worker_init_fn=ignore_signals, **how)
        return islice(loader, batches.start - _aligned(batches.start, max(workers, 1)), None)

    def val_batches(self, batch: int, rank: int, world: int, workers: int, pin: bool) -> DataLoader:
        """Each image once: images rank, rank + world, ..., read by one process, so that none comes twice.

        Args:
            batch: images of a batch.
            rank: of this process.
            world: how many processes there are.
            workers: loader processes.
            pin: put batches into pinned memory.
        """
        how = {"num_workers": min(workers, 1), "pin_memory": pin, "generator": torch.Generator()}
        how |= {"collate_fn": self.collate, "worker_init_fn": ignore_signals}
        return DataLoader(StreamedEvaluation(self, rank, world), batch, **how)


class StreamedTraining(IterableDataset):
    """Whole batches of this process, numbered through all epochs; loader process w of W gives w, w + W, ...

    The first ones may come before `start`, so that each loader process keeps its share of the shards in a resumed run.

    Args:
        stream: the split.
        plan: order and size of the steps.
        start, stop: steps, counted from 0 through all epochs; `stop` is not taken.
    """

    def __init__(self, stream: Stream, plan: EpochPlan, start: int, stop: int):
        self.stream = stream
        self.plan = plan
        self.start = start * plan.accumulate
        self.stop = stop * plan.accumulate

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | DataError]:
        plan = self.plan
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        length = plan.steps_per_epoch * plan.accumulate
        epoch = -1
        source = iter(())
        for number in range(_aligned(self.start, workers) + worker, self.stop, workers):
            if number // length != epoch:
                epoch = number // length
                first = epoch * length + (worker - epoch * length) % workers
                seen = (number - first) // workers * plan.batch
                source = islice(self._epoch(epoch), seen, None)
            try:
                drawn = list(islice(source, plan.batch))
            except _BROKEN as error:
                yield DataError(f"{self.stream.name}: {type(error).__name__}: {error}")
                return
            seeds = (mixed(plan.seed, number, place, plan.rank) for place in range(plan.batch))
            samples = [self.stream.sample(*one, seed) for one, seed in zip(drawn, seeds, strict=True)]
            yield self.stream.collate(samples)

    def _epoch(self, epoch: int) -> Iterator[tuple[Image.Image, int]]:
        """Images of an epoch without an end: shards may hold less than a process's share."""
        plan = self.plan
        reader = self.stream.open(True, mixed(plan.seed, epoch), plan.batch, plan.rank, plan.world)
        while True:
            count = 0
            for count, one in enumerate(reader, 1):  # noqa: B007 (counted to see that there is one)
                yield one
            if not count:
                raise ValueError("fewer shards than processes x data.workers, one of which gets no images")


def _aligned(number: int, workers: int) -> int:
    """The last number, not above this one, that the first loader process gives."""
    return number - number % workers


class StreamedEvaluation(IterableDataset):
    """Each image once: this process gets images rank, rank + world, ... of the whole stream, which it reads.

    Args:
        stream: the split.
        rank, world: this process and how many there are.
    """

    def __init__(self, stream: Stream, rank: int, world: int):
        self.stream = stream
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[tuple[Tensor, int] | DataError]:
        try:
            for image, target in islice(self.stream.open(False), self.rank, None, self.world):
                yield self.stream.sample(image, target)
        except _BROKEN as error:
            yield DataError(f"{self.stream.name}: {type(error).__name__}: {error}")
