"""The iteration sampler: iteration number in, sample numbers out."""

import pytest

from vheatir.data.progressive import CropStage
from vheatir.data.sampling import IterationSampler
from vheatir.errors import UserError


def test_iterations_cover_consecutive_numbers():
    sampler = IterationSampler(batch_size=4, total_iterations=3)
    assert list(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert len(sampler) == 3


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_resumed_sampler_continues_where_the_first_one_would(start):
    whole = list(IterationSampler(6, 5))
    resumed = IterationSampler(6, 5, start_iteration=start)
    assert list(resumed) == whole[start:]
    assert len(resumed) == 5 - start


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_share_out_the_same_global_batch(world_size):
    ranks = [list(IterationSampler(6, 4, rank=rank, world_size=world_size)) for rank in range(world_size)]
    joined = [[number for part in parts for number in part] for parts in zip(*ranks)]
    assert joined == list(IterationSampler(6, 4))


def test_iterating_twice_gives_the_same():
    sampler = IterationSampler(2, 3)
    assert list(sampler) == list(sampler)


def test_start_beyond_the_end_is_empty():
    sampler = IterationSampler(2, 3, start_iteration=7)
    assert len(sampler) == 0 and list(sampler) == []


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"batch_size": 5, "world_size": 2}])
def test_batch_that_cannot_be_shared_out_is_the_users_error(settings):
    with pytest.raises(UserError, match="batch size"):
        IterationSampler(total_iterations=1, **settings)


@pytest.mark.parametrize("settings", [{"rank": 2, "world_size": 2}, {"rank": -1}, {"start_iteration": -1}])
def test_impossible_place_is_refused(settings):
    with pytest.raises(ValueError, match=r"rank|iterations"):
        IterationSampler(4, 1, **settings)


STAGES = (CropStage(0, 2, 16), CropStage(3, 1, 24), CropStage(5, 3, 32))


def test_stages_change_size_and_number_and_leave_no_sample_out():
    batches = list(IterationSampler(2, 7, stages=STAGES))
    assert [[place.number for place in batch] for batch in batches] == [
        *([0, 1], [2, 3], [4, 5]),
        *([6], [7]),
        *([8, 9, 10], [11, 12, 13]),
    ]
    assert [{place.gt_size for place in batch} for batch in batches] == [{16}] * 3 + [{24}] * 2 + [{32}] * 2


@pytest.mark.parametrize("start", range(8))
def test_resumed_stages_continue_where_the_first_run_would(start):
    whole = list(IterationSampler(2, 7, stages=STAGES))
    assert list(IterationSampler(2, 7, start_iteration=start, stages=STAGES)) == whole[start:]


def test_ranks_share_out_the_batches_of_every_stage():
    ranks = [list(IterationSampler(4, 7, rank=rank, world_size=2, stages=STAGES)) for rank in (0, 1)]
    joined = [place.number for parts in zip(*ranks) for part in parts for place in part]
    assert joined == list(range(4 * 3 + 2 * 2 + 6 * 2))


def test_one_stage_yields_plain_numbers():
    assert list(IterationSampler(2, 1, stages=STAGES[:1])) == [[0, 1]]
