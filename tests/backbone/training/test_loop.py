"""What the loop keeps of a run that several processes train."""

import pytest
import torch
from torch import nn

from vheatir.backbone.training.batches import EpochPlan
from vheatir.backbone.training.dataset_task import DatasetTask
from vheatir.backbone.training.loop import Loop, LoopSettings
from vheatir.backbone.training.processes import Processes
from vheatir.backbone.training.task import Task
from vheatir.backbone.training.until import Epochs, Steps
from vheatir.backbone.training.update import Update

WINDOWS = [{"loss": [3.0, 2]}, {"loss": [5.0, 2]}]


class Nothing(Task):
    """Learns nothing."""

    def batches(self, step):
        return []

    def loss(self, network, part):
        raise AssertionError

    def set_lr(self, step):
        raise AssertionError

    def evaluate(self, network):
        return {}


class Together(Processes):
    """Says what the two processes of `WINDOWS` would say to each other."""

    def gather(self, value):
        assert value == WINDOWS[self.rank]
        return WINDOWS


def loop_of(processes: Processes, task: Task | None = None, until: Epochs | None = None) -> Loop:
    network = nn.Linear(2, 2)
    update = Update(network, torch.optim.SGD(network.parameters(), lr=0.1), processes=processes)
    return Loop(task or Nothing(), update, until or Steps(9, 9, 9), LoopSettings(), None)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_goes_on_with_its_own_losses(rank):
    """The next line of the log has the means over all processes of all steps since the line before it."""
    loop = loop_of(Together(0, 2))  # the first one writes the checkpoint
    loop.window = WINDOWS[0]
    other = loop_of(Together(rank, 2))
    other.restore(loop.state())
    assert other.window == WINDOWS[rank]


@pytest.mark.parametrize("world", [1, 3])
def test_another_number_of_processes_goes_on_with_the_mean(world):
    loop = loop_of(Together(0, 2))
    loop.window = WINDOWS[0]
    other = loop_of(Processes(world - 1, world))
    other.restore(loop.state())
    assert other.window == {"loss": [4.0, 2]}
    assert other.window["loss"][0] / other.window["loss"][1] == 2.0


def test_checkpoints_of_before_have_the_losses_of_the_first_process():
    loop = loop_of(Processes())
    state = loop.state()
    del state["windows"]
    loop_of(Processes()).restore({**state, "window": {}})
    other = loop_of(Processes(1, 2))
    other.restore({**state, "window": {"loss": [3.0, 2]}})
    assert other.window == {"loss": [3.0, 2]}


class InEpochs(DatasetTask):
    """Ten images in batches of some size; learns nothing."""

    best = "score"

    def __init__(self, batch: int):
        super().__init__(Processes(), torch.device("cpu"))
        self.training_set = None
        self.plan = EpochPlan(10, batch)

    def batches(self, step):
        return []

    def loss(self, network, part):
        raise AssertionError

    def evaluate(self, network):
        return {"score": 1.0}


@pytest.mark.parametrize(("done", "every", "evaluated"), [(4, 1, True), (4, 2, False), (5, 1, False)])
def test_the_end_of_an_epoch_with_less_than_a_batch_left_is_evaluated_on_resume(done, every, evaluated):
    """Of ten images eight, or all, were seen in batches of 2; now they come in batches of 4."""
    loop = loop_of(Processes(), InEpochs(2), Epochs(2, 5))
    loop.step = done
    other = loop_of(Processes(), InEpochs(4), Epochs(2, 2, every))
    other.restore(loop.state())
    assert other.step == 2 and other.awaited == evaluated


def test_the_last_epoch_is_evaluated_though_less_than_a_batch_is_left_of_it():
    loop = loop_of(Processes(), InEpochs(2), Epochs(1, 5))
    loop.step = 4
    other = loop_of(Processes(), InEpochs(4), Epochs(1, 2))
    other.restore(loop.state())
    assert other.run()
    assert other.best == {"best": {"metric": "score", "value": 1.0, "iteration": 2, "epoch": 1}}
