"""What a resumed run takes from its checkpoint where the device or the precision is another one."""

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
