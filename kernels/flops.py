"""Floating-point operations of the operators, as `torch.utils.flop_counter` counts them: two for a multiply-accumulate.

By the definition, whatever path computes it: four products with cosine matrices, and half a product with the decay.
"""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import register_flop_formula


def transformed(shape: Sequence[int]) -> int:
    """Of one transform of (B, H, W, C) maps, there or back."""
    batch, height, width, channels = shape
    return 2 * batch * channels * height * width * (height + width)


def conducted(shape: Sequence[int], *args, out_shape=None, **kwargs) -> int:
    """Of the operator on (B, H, W, C) maps."""
    return 2 * transformed(shape) + torch.Size(shape).numel()


def _gradients(shape: Sequence[int], *args, out_shape=None, **kwargs) -> int:
    return conducted(shape) + 2 * torch.Size(shape).numel()  # and the product of two spectra, summed over the batch


def _one_transform(shape: Sequence[int], *args, out_shape=None, **kwargs) -> int:
    return transformed(shape)


def register() -> None:
    """Tell PyTorch's counter what the operators cost."""
    operators = torch.ops.vheatir
    register_flop_formula([operators.conduct, operators.conduct_with_spectrum, operators.conduct_prepared])(conducted)
    register_flop_formula(operators.conduct_gradients)(_gradients)
    register_flop_formula(operators.cosine_transform)(_one_transform)
