"""Floating-point operations of `diffuse`, by its definition: for each axis two products with a basis and a decay."""

from collections.abc import Sequence
from types import ModuleType

import torch

from vheatir.kernels.flops import when_counting


def diffused(shape: Sequence[int], *args, out_shape=None, **kwargs) -> int:
    """Of the operator.

    Args:
        shape: of the maps, (B, ..., C).
        *args: not looked at.
        out_shape: likewise.
        **kwargs: likewise.
    """
    sides = shape[1:-1]
    return torch.Size(shape).numel() * sum(4 * side + 1 for side in sides)


def _gradients(shape: Sequence[int], *args, out_shape=None, **kwargs) -> int:
    sides = shape[1:-1]
    return torch.Size(shape).numel() * sum(6 * side + 4 for side in sides)


def register() -> None:
    """Tell PyTorch's counter what the operators cost, now or as soon as it is loaded."""
    when_counting(_register)


def _register(counter: ModuleType) -> None:
    counter.register_flop_formula(torch.ops.vheatir.diffuse)(diffused)
    counter.register_flop_formula(torch.ops.vheatir.diffuse_gradients)(_gradients)
