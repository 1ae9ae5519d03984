"""Heat conduction along rotated axes: a symmetric 2 x 2 diffusivity for each channel."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vheatir.kernels.checks import check_floating
from vheatir.kernels.diffusion.boundaries import INSULATED, PERIODIC, check_boundary
from vheatir.kernels.diffusion.ops import diffuse
from vheatir.kernels.dispatch import compute_dtype
from vheatir.kernels.plain import are_plain


def _check(x: Tensor, tensor: Tensor, steps: int) -> None:
    check_floating("x", x)
    check_floating("tensor", tensor)
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must be (B, H, W, C) with H, W, C >= 1, got {tuple(x.shape)}")
    batch, _, _, channels = x.shape
    fitting = [(2, 2), (channels, 2, 2), (1, channels, 2, 2), (batch, channels, 2, 2)]
    if tuple(tensor.shape) not in fitting:
        raise ValueError(
            f"tensor must be (2, 2), ({channels}, 2, 2) or ({batch}, {channels}, 2, 2) for x of shape "
            f"{tuple(x.shape)}, got {tuple(tensor.shape)}"
        )
    wanted = compute_dtype(x.dtype)
    if tensor.dtype != wanted:
        raise TypeError(f"tensor must be {wanted} beside maps of {x.dtype}, got {tensor.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"x is on {x.device}, tensor on {tensor.device}; move one of them")
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")


def _check_values(vertical: Tensor, horizontal: Tensor, mixed: Tensor, tensor: Tensor, boundary: str) -> None:
    if not torch.equal(tensor, tensor.mT):
        raise ValueError("tensor must be symmetric: tensor[..., 0, 1] and tensor[..., 1, 0] differ")
    if boundary != PERIODIC and (mixed.abs() > torch.minimum(vertical, horizontal)).any():
        raise ValueError(
            "with ends that are not periodic the off-diagonal value may be no larger than either diagonal one (any "
            "rotation up to a ratio of 5.8 between both axes); take less anisotropy or boundary='periodic'"
        )


def _periodic(x: Tensor, vertical: Tensor, horizontal: Tensor, mixed: Tensor) -> Tensor:
    """Exactly, in the Fourier basis; parts (1 or B, C)."""
    height, width = x.shape[1:3]
    rows = 2 * math.pi * torch.fft.fftfreq(height, dtype=vertical.dtype, device=x.device)[:, None, None]
    columns = 2 * math.pi * torch.fft.rfftfreq(width, dtype=vertical.dtype, device=x.device)[None, :, None]
    straight = vertical[:, None, None] * rows.square() + horizontal[:, None, None] * columns.square()
    cross = 2 * mixed[:, None, None] * rows * columns
    decay = torch.exp(-straight - cross)
    # A wave of two samples has no direction: both of its signs, half and half.
    alone = (rows.abs() > math.pi * (1 - 1e-6)) | (columns > math.pi * (1 - 1e-6))
    decay = torch.where(alone, (decay + torch.exp(-straight + cross)) / 2, decay)
    spectrum = torch.fft.rfft2(x, dim=(1, 2)) * decay
    return torch.fft.irfft2(spectrum, s=(height, width), dim=(1, 2))


def _build_diagonals(height: int, width: int) -> list[list[list[int]]]:
    starts = [(h, 0) for h in range(height)] + [(0, w) for w in range(1, width)]
    lines: dict[int, list[list[int]]] = {}
    for h, w in starts:
        length = min(height - h, width - w)
        lines.setdefault(length, []).append([(h + i) * width + w + i for i in range(length)])
    return list(lines.values())


_diagonals = lru_cache(maxsize=16)(_build_diagonals)


def _along_diagonals(x: Tensor, k: Tensor, boundary: str) -> Tensor:
    """Heat along the lines (h + i, w + i), all of one length together; k (1 or B, C)."""
    height, width, channels = x.shape[1:]
    flat = x.flatten(1, 2)
    parts = []
    places = []
    for lines in _diagonals(height, width):
        index = torch.tensor(lines, device=x.device)
        count, length = index.shape
        maps = flat[:, index].flatten(0, 1)
        own = k.repeat_interleave(count, 0) if len(k) > 1 else k
        parts.append(diffuse(maps, own, boundary=boundary).view(-1, count * length, channels))
        places.append(index.flatten())
    order = torch.argsort(torch.cat(places))
    return torch.cat(parts, 1)[:, order].view(x.shape)


def diffuse_tensor(x: Tensor, tensor: Tensor, *, boundary: str = INSULATED, steps: int = 1) -> Tensor:
    """Let heat flow for unit time along rotated axes: u_t = div(D grad u) with a symmetric D for each channel.

    With periodic ends exact: the spectrum times exp(-w' D w). Elsewhere D = [[a, b], [b, c]] is split into heat along
    rows (c - |b|), along columns (a - |b|) and along diagonals (|b|), each exact and positive by itself, in the
    symmetric order of Strang: half of the axes, the diagonals, half of the axes. Inside the map these commute; the
    error comes from the rim and falls with the square of `steps` (docs/operator_forms.md).

    Args:
        x: (B, H, W, C), channels-last; float64, float32, bfloat16 or float16.
        tensor: D, (2, 2), (C, 2, 2) or (B, C, 2, 2), rows first, in squared pixels; float64 beside float64 maps, else
            float32.
        boundary: "insulated", "zero" or "periodic", as in `diffuse`.
        steps: how many times the split is done, each for a part of the time; not looked at with periodic ends.

    Returns:
        Shape and dtype of x. Differentiable in x and tensor.

    Raises:
        TypeError, ValueError: inputs do not fit; the tensor is not symmetric; or, where ends are not periodic, |b| is
            larger than a or c.

    Source: splitting, Strang, SIAM J. Numer. Anal. 5 (1968); decomposition along lattice directions, Weickert,
        Anisotropic Diffusion in Image Processing (1998).
    """
    check_boundary(boundary)
    _check(x, tensor, steps)
    channels = x.shape[3]
    flat = tensor.reshape(-1, tensor.shape[-3] if tensor.ndim > 2 else 1, 2, 2).expand(-1, channels, 2, 2)
    vertical = flat[..., 0, 0]
    horizontal = flat[..., 1, 1]
    mixed = (flat[..., 0, 1] + flat[..., 1, 0]) / 2
    plain = are_plain(x, tensor)
    if plain:
        _check_values(vertical, horizontal, mixed, tensor, boundary)
    wide = x.to(compute_dtype(x.dtype))
    if boundary == PERIODIC:
        return _periodic(wide, vertical, horizontal, mixed).to(x.dtype)
    size = mixed.abs()
    axes = ((vertical - size) / steps, (horizontal - size) / steps)
    half = tuple(k / 2 for k in axes)
    y = diffuse(wide, half, boundary=boundary)
    for step in range(steps):
        falling = F.relu(mixed) / steps
        rising = F.relu(-mixed) / steps
        if not plain or tensor.requires_grad or falling.any():
            y = _along_diagonals(y, falling, boundary)
        if not plain or tensor.requires_grad or rising.any():
            y = _along_diagonals(y.flip(2), rising, boundary).flip(2)
        y = diffuse(y, half if step == steps - 1 else axes, boundary=boundary)
    return y.to(x.dtype)
