"""PyTorch's own tools see the operator: the counter of operations and the profiler."""

import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.kernels.reference import hco_reference

B, H, W, C = 2, 9, 14, 3
CONDUCTED = 2 * 2 * B * C * H * W * (H + W) + B * H * W * C


def counted(act) -> int:
    with FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_flops_of_each_form(backend, dtype, device):
    x, decay = torch.randn(B, H, W, C, device=device, dtype=dtype), torch.rand(H, W, C, device=device).to(dtype)
    assert counted(lambda: heat_conduction(x, decay, backend=backend)) == CONDUCTED
    prepared = prepare_decay(decay, backend=backend)
    assert counted(lambda: heat_conduction(x, prepared)) == CONDUCTED
    assert counted(lambda: heat_conduction(x, decay[..., :1], backend=backend)) == CONDUCTED


def test_the_four_products_of_the_definition_are_counted_alike(device):
    x, decay = torch.randn(B, H, W, C, device=device), torch.rand(H, W, C, device=device)
    assert counted(lambda: hco_reference(x, decay)) == CONDUCTED - B * H * W * C


LOOKED_FOR = """
import importlib.util, sys, torch
from vheatir.kernels.ops import heat_conduction
from vheatir.kernels.diffusion.ops import diffuse
assert "torch.utils.flop_counter" not in sys.modules
assert importlib.util.find_spec("torch.utils.flop_counter")  # as a look for an optional module
from torch.utils.flop_counter import FlopCounterMode
for call in (lambda x: heat_conduction(x, x[0]), lambda x: diffuse(x, 1.0)):
    with FlopCounterMode(display=False) as counter:
        call(torch.rand(1, 4, 5, 2))
    assert counter.get_total_flops() > 0
assert "vheatir.kernels.flops" not in [type(finder).__module__ for finder in sys.meta_path]
"""


def test_a_counter_that_was_looked_for_before_it_is_loaded_counts():
    done = subprocess.run([sys.executable, "-c", LOOKED_FOR], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_flops_of_a_backward(device):
    x, decay = torch.randn(B, H, W, C, device=device), torch.rand(H, W, C, device=device)
    x.requires_grad_()
    decay.requires_grad_()

    def step():
        heat_conduction(x, decay).sum().backward()

    assert counted(step) == 2 * CONDUCTED + 2 * B * H * W * C


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("prepared", [False, True])
def test_the_profiler_names_the_operator(gradients, prepared, device):
    x, decay = torch.randn(B, H, W, C, device=device), torch.rand(H, W, C, device=device)
    x.requires_grad_(gradients)
    given = prepare_decay(decay) if prepared else decay
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            heat_conduction(x, given)
    found = {event.key: event.count for event in profiler.key_averages()}
    assert found["vheatir::heat_conduction"] == 3
