"""Heat conduction along rotated axes: a symmetric diffusivity tensor instead of one diffusivity for each channel."""

import itertools
import math
from functools import lru_cache

import torch
from torch import Tensor

from vheatir.kernels.checks import check_floating
from vheatir.kernels.diffusion.boundaries import INSULATED, PERIODIC, check_boundary
from vheatir.kernels.diffusion.ops import diffuse
from vheatir.kernels.dispatch import compute_dtype
from vheatir.kernels.plain import are_plain


def _check(x: Tensor, tensor: Tensor, steps: int) -> None:
    check_floating("x", x)
    check_floating("tensor", tensor)
    axes = x.ndim - 2
    if axes not in (2, 3) or 0 in x.shape[1:]:
        raise ValueError(f"x must be (B, H, W, C) or (B, T, H, W, C) with no empty side, got {tuple(x.shape)}")
    batch = x.shape[0]
    channels = x.shape[-1]
    own = (axes, axes)
    if tuple(tensor.shape) not in [own, (channels, *own), (1, channels, *own), (batch, channels, *own)]:
        raise ValueError(
            f"tensor must be {own}, {(channels, *own)} or {(batch, channels, *own)} for x of shape "
            f"{tuple(x.shape)}, got {tuple(tensor.shape)}"
        )
    wanted = compute_dtype(x.dtype)
    if tensor.dtype != wanted:
        raise TypeError(f"tensor must be {wanted} beside maps of {x.dtype}, got {tensor.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"x is on {x.device}, tensor on {tensor.device}; move one of them")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of 1 or more, got {steps!r}")


def _check_values(straight: Tensor, tensor: Tensor, boundary: str) -> None:
    if not tensor.isfinite().all():
        raise ValueError("tensor must be finite: it holds NaN or infinity")
    if not torch.equal(tensor, tensor.mT):
        raise ValueError("tensor must be symmetric: its values on both sides of the diagonal differ")
    if boundary != PERIODIC and (straight < 0).any():
        if tensor.shape[-1] == 2:
            limit = (
                "the off-diagonal value may be no larger than either diagonal one (any rotation up to a ratio of 5.8 "
                "between both axes)"
            )
        else:
            limit = "no diagonal value may be smaller than the sizes of the other two in its row together"
        raise ValueError(f"with ends that are not periodic {limit}; take less anisotropy or boundary='periodic'")


def _pairs(axes: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(axes), 2))


def _periodic(x: Tensor, tensor: Tensor) -> Tensor:
    """Exactly, in the Fourier basis; tensor (1 or B, C, D, D)."""
    sides = x.shape[1:-1]
    axes = len(sides)
    places = tuple(range(1, axes + 1))
    waves = []
    for axis, side in enumerate(sides):
        build = torch.fft.rfftfreq if axis == axes - 1 else torch.fft.fftfreq
        wave = 2 * math.pi * build(side, dtype=tensor.dtype, device=x.device)
        waves.append(wave.view([-1 if place == axis else 1 for place in range(axes + 1)]))
    # A wave of two samples has no direction: both of its signs, half and half.
    signs = list(itertools.product(*((1, -1) if side % 2 == 0 else (1,) for side in sides)))
    decay = sum(torch.exp(-_quadratic(tensor, waves, pattern)) for pattern in signs) / len(signs)
    spectrum = torch.fft.rfftn(x, dim=places) * decay
    return torch.fft.irfftn(spectrum, s=sides, dim=places)


def _quadratic(tensor: Tensor, waves: list[Tensor], signs: tuple[int, ...]) -> Tensor:
    """w' D w of every wave, (1 or B, ..., C), those of two samples with these signs."""
    turned = [
        torch.where(wave.abs() > math.pi * (1 - 1e-6), sign * wave.abs(), wave)
        for wave, sign in zip(waves, signs, strict=True)
    ]
    total = torch.zeros((), dtype=tensor.dtype, device=tensor.device)
    for one, other in itertools.product(range(len(waves)), repeat=2):
        entry = tensor[..., one, other].view(-1, *(1 for _ in waves), tensor.shape[1])
        total = total + entry * (turned[one] * turned[other])
    return total


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


def _along_pair(x: Tensor, k: Tensor, pair: tuple[int, int], boundary: str, both: bool) -> Tensor:
    """Heat along both diagonals of the planes of two axes.

    Args:
        x: (B, H, W, C) or (B, T, H, W, C).
        k: (1 or B, C): along the falling diagonals where positive, along the rising ones where negative.
        pair: the two axes, from 0 on.
        boundary: see `diffuse`.
        both: without a look at the values, which may be unknown or asked for a gradient.
    """
    if x.ndim == 5:
        (other,) = {0, 1, 2} - set(pair)
        planes = x.movedim(other + 1, 1)
        count = planes.shape[1]
        own = k.repeat_interleave(count, 0) if len(k) > 1 else k
        y = _along_pair(planes.flatten(0, 1), own, (0, 1), boundary, both)
        return y.view(planes.shape).movedim(1, other + 1)
    # Not ReLU: at 0 both must have half a gradient, or a tensor without off-diagonal values never gets any.
    falling = (k.abs() + k) / 2
    rising = (k.abs() - k) / 2
    if both or falling.any():
        x = _along_diagonals(x, falling, boundary)
    if both or rising.any():
        x = _along_diagonals(x.flip(2), rising, boundary).flip(2)
    return x


def diffuse_tensor(x: Tensor, tensor: Tensor, *, boundary: str = INSULATED, steps: int = 1) -> Tensor:
    """Let heat flow for unit time along rotated axes: u_t = div(D grad u) with a symmetric D for each channel.

    With periodic ends exact: the spectrum times exp(-w' D w). Elsewhere D is split into heat along the diagonals of
    each two axes, |D_ij|, and along each axis, D_ii less the sizes of the others in its row; each is exact and positive
    by itself. Their order is the symmetric one of Strang: half of the axes, the diagonals, half of the axes; in three
    dimensions the diagonals likewise, half of the first two pairs, the third, and back. Inside the map all of these
    commute; the error comes from the rim and falls with the square of `steps` (docs/operator_forms.md).

    Args:
        x: (B, H, W, C) or (B, T, H, W, C), channels-last; float64, float32, bfloat16 or float16.
        tensor: D, (2, 2), (C, 2, 2) or (B, C, 2, 2), rows first, in squared pixels; for clips 3 x 3, time first;
            float64 beside float64 maps, else float32.
        boundary: "insulated", "zero" or "periodic", as in `diffuse`.
        steps: how many times the split is done, each for a part of the time; not looked at with periodic ends.

    Returns:
        Shape and dtype of x. Differentiable in x and tensor.

    Raises:
        TypeError, ValueError: inputs do not fit; the tensor is not symmetric; or, where ends are not periodic, a
            diagonal value is smaller than the sizes of the others in its row together.

    Source: splitting, Strang, SIAM J. Numer. Anal. 5 (1968); decomposition along lattice directions, Weickert,
        Anisotropic Diffusion in Image Processing (1998).
    """
    check_boundary(boundary)
    _check(x, tensor, steps)
    axes = x.ndim - 2
    flat = tensor.reshape(-1, tensor.shape[-3] if tensor.ndim > 2 else 1, axes, axes).expand(-1, x.shape[-1], -1, -1)
    flat = (flat + flat.mT) / 2
    # Not the sum of all less the diagonal: rounded, that refuses tensors which are just allowed.
    others = flat.abs().masked_fill(torch.eye(axes, dtype=torch.bool, device=x.device), 0)
    straight = flat.diagonal(dim1=-2, dim2=-1) - others.sum(-1)  # (1 or B, C, D)
    plain = are_plain(x, tensor)
    if plain:
        _check_values(straight, tensor, boundary)
    wide = x.to(compute_dtype(x.dtype))
    if not x.numel():
        return (wide * flat.sum()).to(x.dtype)  # MKL refuses transforms of nothing; gradients are zeros
    if boundary == PERIODIC:
        return _periodic(wide, flat).to(x.dtype)
    along = tuple(k / steps for k in straight.unbind(-1))
    half = tuple(k / 2 for k in along)
    *first, last = _pairs(axes)
    order = [*((pair, 0.5) for pair in first), (last, 1.0), *((pair, 0.5) for pair in reversed(first))]
    both = not plain or tensor.requires_grad
    y = diffuse(wide, half, boundary=boundary)
    for step in range(steps):
        for pair, share in order:
            y = _along_pair(y, flat[..., pair[0], pair[1]] * (share / steps), pair, boundary, both)
        y = diffuse(y, half if step == steps - 1 else along, boundary=boundary)
    return y.to(x.dtype)
