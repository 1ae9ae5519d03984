"""What a resumed run takes from its checkpoint where the device or the precision is another one."""

import copy

import pytest
import torch
from torch import nn

from vheatir.backbone.training.update import Update


def updated(dtype: torch.dtype | None = None, **how) -> Update:
    """A linear layer after one step of AdamW."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    update = Update(network, torch.optim.AdamW(network.parameters(), lr=0.1, **how), dtype=dtype)
    step(update)
    return update


def step(update: Update) -> None:
    with torch.no_grad():
        for parameter in update.bare.parameters():
            parameter.grad = torch.ones_like(parameter)
    update.optimizer.step()


FUSED = {"fused": True}


@pytest.mark.parametrize("before, now", [(FUSED, {}), ({}, FUSED), ({}, {"foreach": True})], ids=str)
def test_how_a_device_computes_the_steps_may_differ_in_a_resumed_run(before, now):
    straight = updated(**before)
    resumed = updated(**now)
    resumed.load_state(straight.state())
    (group,) = resumed.optimizer.param_groups
    assert {name: group[name] for name in ("fused", "foreach")} == {"fused": None, "foreach": None} | now
    for one in (straight, resumed):
        step(one)
    torch.testing.assert_close(resumed.bare.weight, straight.bare.weight)


@pytest.mark.parametrize("name", ["lamb", "adan", "lookahead_sgd"])
def test_optimizers_that_count_their_steps_go_on(name):
    """They keep the number beside their options, where it is no option that changed."""
    optim = pytest.importorskip("timm.optim", reason="timm's optimizers")
    updates = []
    for _ in range(2):
        torch.manual_seed(0)
        network = nn.Linear(3, 2)
        updates.append(Update(network, optim.create_optimizer_v2(network, name, lr=0.1, weight_decay=0.01)))
    straight, resumed = updates
    for _ in range(3):
        step(straight)
    resumed.load_state(copy.deepcopy(straight.state()))
    for _ in range(4):  # among them one in which Lookahead looks back
        step(straight)
        step(resumed)
    assert torch.equal(resumed.bare.weight, straight.bare.weight)


class WithAnIdleWeight(nn.Linear):
    """As the networks with a fixed diffusivity have."""

    def __init__(self, asks: bool):
        super().__init__(3, 2)
        self.register_parameter("idle", nn.Parameter(torch.ones(4), requires_grad=asks))


def test_checkpoints_of_before_list_weights_that_never_moved():
    def learn(update: Update) -> None:
        update.bare(torch.ones(1, 3)).square().sum().backward()
        update.optimizer.step()
        update.optimizer.zero_grad()

    updates = []
    for asks in (True, False):
        torch.manual_seed(0)
        network = WithAnIdleWeight(asks)
        asking = [one for one in network.parameters() if one.requires_grad]
        updates.append(Update(network, torch.optim.AdamW(asking[::-1], lr=0.1)))  # the idle one is the first
    straight, resumed = updates
    learn(straight)
    resumed.load_state(copy.deepcopy(straight.state()))
    learn(straight)
    learn(resumed)
    torch.testing.assert_close(resumed.bare.state_dict(), straight.bare.state_dict(), rtol=0, atol=0)


def test_another_rate_is_still_refused():
    other = updated(fused=True)
    other.optimizer.param_groups[0]["weight_decay"] = 0.5
    with pytest.raises(ValueError, match=r"weight_decay was 0\.5"):
        updated().load_state(other.state())


@pytest.mark.parametrize("before, now", [(None, torch.float16), (torch.bfloat16, torch.float16), (torch.float16, None)])
def test_precision_may_differ_in_a_resumed_run(before, now):
    straight = updated(before)
    resumed = updated(now)
    resumed.load_state(straight.state())
    assert torch.equal(resumed.bare.weight, straight.bare.weight)
    assert resumed.scaler.is_enabled() == (now is torch.float16)


@pytest.mark.parametrize("check_each", [False, True])
def test_batches_of_a_step_are_averaged_and_the_parts_of_one_add_up(check_each):
    """Two batches of two parts each: half of the sum of all four losses is descended."""
    network = nn.Linear(3, 1)
    before = network.weight.detach().clone()
    bias = network.bias.detach().clone()[0]
    parts = torch.randn(4, 1, 3)
    update = Update(network, torch.optim.SGD(network.parameters(), lr=1.0), check_each=check_each)
    marked = ((part, number == 3) for number, part in enumerate(parts))
    noted = update.step(marked, lambda net, part: (net(part).sum(), {}), 1, batches=2)
    torch.testing.assert_close(network.weight, before - parts.sum(0) / 2)
    if check_each:
        assert len(noted["loss"]) == len(noted["grad_norm"]) == 1
        torch.testing.assert_close(noted["loss"][0], (nn.functional.linear(parts.sum(0), before) / 2).sum() + 2 * bias)
