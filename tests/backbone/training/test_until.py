"""When runs end, are evaluated and saved, and how the average of the weights follows them."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from vheatir.backbone.training.average import Average
from vheatir.backbone.training.batches import EpochPlan, StepSampler
from vheatir.backbone.training.loop import Loop, LoopSettings
from vheatir.backbone.training.until import Epochs, Seconds, Steps, TrainingClock


def happens(until, steps):
    """Steps after which a run is evaluated, and those after which it is saved."""
    evaluated = [step for step in steps if until.evaluates(step)]
    return evaluated, [step for step in steps if until.saves(step, step in evaluated)]


def test_steps_are_evaluated_and_saved_at_multiples_and_at_the_end():
    assert happens(Steps(10, 4, 3), range(1, 11)) == ([4, 8, 10], [3, 6, 9, 10])


def test_epochs_are_saved_each_and_evaluated_every_so_many_and_at_the_end():
    assert happens(Epochs(5, 2, 2, save_every=3), range(1, 11)) == ([4, 8, 10], [2, 3, 4, 6, 8, 9, 10])
    assert Epochs(5, 2).total == 10 and Epochs(5, 2, period="evaluation").marks(4) == {"evaluation": 2}


def test_seconds_are_those_of_the_clock_and_the_last_point_is_the_end():
    clock = TrainingClock(torch.device("cpu"))
    until, evaluated = Seconds(10, 3, clock), []
    for second in range(1, 12):
        clock.used = float(second)
        if until.evaluates(second):
            evaluated.append(second)
        if until.done(second):
            break
    assert evaluated == [3, 6, 10]  # one at 9 would only repeat that at 10
    other = Seconds(10, 3, TrainingClock(torch.device("cpu")))
    other.load_state(until.state())
    assert other.done(0) and other.state() == until.state()


def test_the_clock_adds_up_its_blocks(monkeypatch):
    monkeypatch.setattr("time.process_time", iter([1.0, 3.0, 10.0, 11.0]).__next__)
    monkeypatch.setattr("time.perf_counter", iter([0.0, 8.0, 20.0, 24.0]).__next__)
    clock = TrainingClock(torch.device("cpu"), used=100, wall=1000)
    for _ in range(2):
        with clock:
            pass
    assert (clock.used, clock.wall) == (103, 1012)


@pytest.mark.parametrize("lower, kept", [(False, [3.0, 4.0]), (True, [3.0, 2.0])])
def test_the_best_score_is_better_than_all_before_and_a_number(lower, kept):
    task = SimpleNamespace(best="score", lower_is_better=lower)
    loop = Loop(task, SimpleNamespace(processes=None), Steps(9, 1, 1), LoopSettings(), None)
    scores = [math.nan, 3.0, 3.0, 2.0, None, 4.0, math.inf, -math.inf]
    assert [one for one in scores if loop._keep_if_best("best", nn.Identity(), one)] == kept
    assert loop.best["best"]["value"] == kept[-1]


def stepped(average, network, steps):
    torch.manual_seed(1)
    for step in range(1, steps + 1):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.add_(torch.randn(value.shape).to(value.dtype) if value.is_floating_point() else 1)
        average(network, step)


@pytest.mark.parametrize("young", ["power", None])
def test_the_average_of_backbones_is_timms(young):
    """So that published recipes and results on record hold."""
    utils = pytest.importorskip("timm.utils", reason="compares with timm")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    other = copy.deepcopy(network)
    ours = Average(network, 0.9, young=young, average_buffers=True)
    theirs = utils.ModelEmaV3(other, decay=0.9, use_warmup=young is not None)
    stepped(ours.update, network, 40)
    stepped(lambda net, step: theirs.update(net, step=step), other, 40)
    want = theirs.module.state_dict()
    for key, value in ours.network.state_dict().items():
        assert torch.equal(value, want[key]), key


def test_a_young_average_follows_quickly_and_copies_buffers():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    average = Average(network, 0.999)
    assert average.decay_at(1) == pytest.approx(2 / 11) and average.decay_at(10**6) == 0.999
    stepped(average.update, network, 3)
    assert torch.equal(average.network[1].running_mean, network[1].running_mean)
    assert not torch.equal(average.network[0].weight, network[0].weight)


@pytest.mark.parametrize("old, new", [((2, 2), (4, 1)), ((2, 2), (3, 1)), ((5, 1), (2, 2)), ((3, 1), (4, 2))], ids=str)
@pytest.mark.parametrize("done", [1, 2, 3, 5])
def test_a_run_goes_on_with_other_batches_at_the_next_image(old, new, done):
    """`old` and `new`: images of a process, processes. None of the epoch's images comes twice, none is left out."""
    before, after = (EpochPlan(23, batch, world=world) for batch, world in (old, new))
    epoch, within = divmod(done, before.steps_per_epoch)
    seen = before.order(epoch)[:within].ravel().tolist()
    plan, step = after.resumed(epoch, before.images_seen(epoch, within))
    assert step // plan.steps_per_epoch in (epoch, epoch + 1)
    rest = plan.order(epoch)[step - epoch * plan.steps_per_epoch :].ravel().tolist()
    assert rest == before._shuffled(range(23), epoch)[len(seen) :][: len(rest)].tolist()
    assert len(set(seen + rest)) == len(seen + rest) > 23 - max(before.images_per_step, plan.images_per_step) - 1
    later = plan.resumed(*plan_position(plan, step))
    assert later == (plan, step) or later[1] == step
    assert (plan.order(epoch + 1) == after.order(epoch + 1)).all()
    if before.images_per_step == after.images_per_step:
        assert step == done


def plan_position(plan, step):
    epoch, within = plan.place(step)
    return epoch, plan.images_seen(epoch, within)


@pytest.mark.parametrize("old, new", [(2, 4), (4, 2), (4, 3)])
@pytest.mark.parametrize("done", [1, 7, 12])
def test_a_run_counted_in_steps_keeps_their_number_with_other_batches(old, new, done):
    """With batches half as large, a run half done would be at its end; its images go on where they were."""
    before, after = (EpochPlan(23, batch, keeps_steps=True) for batch in (old, new))
    epoch, within = before.place(done)
    seen = before.order(epoch)[:within].ravel().tolist()
    plan, step = after.resumed(*plan_position(before, done), done)
    assert step == done
    drawn = [[index for index, _ in batch] for batch in StepSampler(plan, done, done + 16)]
    rest = before._shuffled(range(23), epoch)[len(seen) :].tolist()
    whole = len(rest) // new
    assert drawn[:whole] == np.reshape(rest[: whole * new], (whole, new)).tolist()
    assert drawn[whole] == after.order(epoch + 1)[0].tolist()
    for later in (done + 1, done + 9):
        again, step = after.resumed(*plan_position(plan, later), later)
        assert step == later
        assert list(StepSampler(again, later, done + 16)) == list(StepSampler(plan, later, done + 16))
