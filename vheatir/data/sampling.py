"""Which samples an iteration trains on: a function of the iteration number, not of what ran before."""

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from vheatir.data.progressive import CropStage, SampleIndex
from vheatir.errors import UserError


class IterationSampler(Sampler[list[int] | list[SampleIndex]]):
    """Batch sampler of global sample numbers, for `DataLoader(dataset, batch_sampler=...)`.

    Iteration i (from 0) trains on the numbers i*B .. i*B + B - 1, where B is the batch size of all processes together;
    rank r of R takes the r-th of R equal slices. Neither the number of workers nor that of processes, nor where a run
    was resumed, changes what an iteration sees. The dataset turns a number into a sample (see vheatir.data.datasets).

    Args:
        batch_size: B, samples per iteration over all processes; a multiple of `world_size`.
        total_iterations: iteration at which to stop.
        start_iteration: iterations already done; 0 for a new run.
        rank: this process.
        world_size: number of processes.
        stages: of progressive training, the first with `batch_size`; sample numbers go on from stage to stage. With
            two or more, batches consist of `SampleIndex`s instead of numbers.
        first_sample: number of the first sample of `start_iteration`, for a run that was begun with another B: so each
            sample comes once. By default that of a run with the same B.
    """

    def __init__(
        self,
        batch_size: int,
        total_iterations: int,
        start_iteration: int = 0,
        rank: int = 0,
        world_size: int = 1,
        stages: Sequence[CropStage] = (),
        first_sample: int | None = None,
    ):
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise UserError(
                f"the batch size of all processes ({batch_size}) must be a positive multiple of their number "
                f"({world_size}); change batch_size_per_gpu or the number of processes"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0 .. {world_size - 1}, got {rank}")
        if start_iteration < 0 or total_iterations < 0:
            raise ValueError(f"iterations must be >= 0, got start {start_iteration}, total {total_iterations}")
        self.batch_size = batch_size
        self.total_iterations = total_iterations
        self.start_iteration = start_iteration
        self.rank = rank
        self.world_size = world_size
        self.later = tuple(stages[1:])
        self.first_size = stages[0].gt_size if self.later else None
        self.shift = 0 if first_sample is None else first_sample - self._batch(start_iteration)[0]

    def __len__(self) -> int:
        return max(0, self.total_iterations - self.start_iteration)

    def __iter__(self) -> Iterator[list[int] | list[SampleIndex]]:
        for iteration in range(self.start_iteration, self.total_iterations):
            _, batch_size, gt_size = self._batch(iteration)
            share = batch_size // self.world_size
            first = self.position(iteration) + self.rank * share
            numbers = range(first, first + share)
            yield list(numbers) if gt_size is None else [SampleIndex(number, gt_size) for number in numbers]

    def position(self, iteration: int) -> int:
        """Number of the first sample of an iteration: of so many samples all processes together are done before it."""
        return self._batch(iteration)[0] + self.shift

    def _batch(self, iteration: int) -> tuple[int, int, int | None]:
        """First number of an iteration, samples of all processes, and the crop's side where there are stages."""
        first = 0
        begun = 0
        batch_size = self.batch_size
        gt_size = self.first_size
        for stage in self.later:
            if iteration < stage.start:
                break
            first += (stage.start - begun) * batch_size
            begun = stage.start
            batch_size = stage.batch * self.world_size
            gt_size = stage.gt_size
        return first + (iteration - begun) * batch_size, batch_size, gt_size
