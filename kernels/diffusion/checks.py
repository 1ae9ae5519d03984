"""What `diffuse` accepts, and the wording when it does not."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vheatir.kernels.checks import check_floating
from vheatir.kernels.dispatch import compute_dtype

_AXES = {1: "(B, L, C)", 2: "(B, H, W, C)", 3: "(B, T, H, W, C)"}
Diffusivity = float | Tensor | Sequence[float | Tensor]


def check_maps(x: Tensor) -> None:
    """Raise unless x is a floating channels-last tensor of one to three dimensions with no empty side."""
    check_floating("x", x)
    if x.ndim - 2 not in _AXES or 0 in x.shape[1:]:
        raise ValueError(
            f"x must be {', '.join(list(_AXES.values())[:-1])} or {_AXES[3]} with no empty side, got {tuple(x.shape)}"
        )


def _of_axis(k: float | Tensor, x: Tensor) -> Tensor:
    """k as (1 or B, C) in the type that x is computed in."""
    batch = x.shape[0]
    channels = x.shape[-1]
    rank = x.ndim
    # torch.compile of 2.9 can read neither `int | float` here nor `in` of an open size below.
    if not isinstance(k, (int, float, Tensor)):
        raise TypeError(f"k must be a number or a torch.Tensor, or one of these for each axis, got {type(k).__name__}")
    if isinstance(k, (int, float)):
        if not -math.inf < k < math.inf:  # 0 times infinity, of the constant part, would be no number
            raise ValueError(f"k must be a finite number, in squared pixels, got {k}; for the mean take x.mean((1, 2))")
        return torch.full((1, channels), float(k), dtype=compute_dtype(x.dtype), device=x.device)
    check_floating("k", k)
    narrow = x.dtype in (torch.bfloat16, torch.float16)
    if k.dtype != x.dtype and not (narrow and k.dtype == torch.float32):
        raise TypeError(
            f"k must be {x.dtype} like x{' or float32' if narrow else ''}, got {k.dtype}; give "
            f"k.to({compute_dtype(x.dtype)})"
        )
    if k.device != x.device:
        raise ValueError(f"x is on {x.device}, k on {k.device}; move one of them")
    flat = k
    if k.ndim == rank and all(side == 1 for side in k.shape[1:-1]):
        flat = k.flatten(0, -2)
    elif k.ndim < 2:
        flat = k.reshape(1, -1)
    sides = zip(flat.shape, (batch, channels), strict=False)
    if flat.ndim != 2 or not all(side == 1 or side == full for side, full in sides):
        ones = ", ".join("1" for _ in range(rank - 2))
        raise ValueError(
            f"k must be a number, ({channels},), ({batch}, {channels}) or ({batch}, {ones}, {channels}) for x of shape "
            f"{tuple(x.shape)}, or one of these for each axis, got {tuple(k.shape)}"
        )
    return flat.to(compute_dtype(x.dtype)).expand(-1, channels)


def per_axis(k: Diffusivity, x: Tensor) -> Tensor:
    """k as (D, 1 or B, C) in the type that x is computed in, differentiable.

    Raises:
        TypeError: k is neither a number nor a floating tensor, or its type does not fit x.
        ValueError: its shape or device does not fit x, it has another number of axes, or it is a number that is not
            finite.
    """
    axes = x.ndim - 2
    if isinstance(k, Tensor) or not isinstance(k, Sequence):
        one = _of_axis(k, x)
        return one.expand(axes, *one.shape)
    if len(k) != axes:
        raise ValueError(f"k must have one diffusivity for each of the {axes} axes of x, got {len(k)}")
    parts = [_of_axis(one, x) for one in k]
    rows = 1
    for one in parts:
        rows = rows if len(one) == 1 else len(one)  # not the largest: of no images there are none
    return torch.stack([one.expand(rows, -1) for one in parts])
