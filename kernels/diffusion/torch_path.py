"""Heat conduction axis by axis in plain PyTorch: dense products, or Fourier transforms for periodic ends."""

import torch
from torch import Tensor

from vheatir.kernels.diffusion.boundaries import PERIODIC, basis_of, squares_of
from vheatir.kernels.plain import full_precision


def _in_lines(x: Tensor, axis: int) -> Tensor:
    """(B, ..., N, ..., C) as (B, before, N, after * C)."""
    before = after = 1
    for side in x.shape[1 : axis + 1]:
        before *= side
    for side in x.shape[axis + 2 :]:
        after *= side
    return x.reshape(x.shape[0], before, x.shape[axis + 1], after)


def _weighted(x: Tensor, axis: int, weights: Tensor, boundary: str) -> Tensor:
    """Product with weights (1 or B, N, C) in the spectrum of one axis; periodic ends have N // 2 + 1 places."""
    lines = _in_lines(x, axis)
    length, inner = lines.shape[2:]
    channels = x.shape[-1]
    if boundary == PERIODIC:
        spectrum = torch.fft.rfft(lines, dim=2)
        spectrum = spectrum.unflatten(3, (inner // channels, channels)) * weights[:, None, :, None]
        return torch.fft.irfft(spectrum.flatten(3), n=length, dim=2).reshape(x.shape)
    basis, _ = basis_of(length, boundary, x.dtype, x.device)
    spectrum = (basis @ lines).unflatten(3, (inner // channels, channels)) * weights[:, None, :, None]
    return (basis.T @ spectrum.flatten(3)).reshape(x.shape)


def _squares(x: Tensor, axis: int, boundary: str) -> Tensor:
    """w^2 of the places of `_weighted`."""
    squares = squares_of(x.shape[axis + 1], boundary, x.dtype, x.device)
    if boundary != PERIODIC:
        return squares
    # Constant, then cosine and sine by turns: the cosines are one for each place of the half spectrum.
    return torch.cat((squares[:1], squares[1::2]))


def conduct(x: Tensor, k: Tensor, boundary: str) -> Tensor:
    """Heat conduction along all axes.

    Args:
        x: (B, ..., C), float64 or float32.
        k: (D, 1 or B, C), in the type of x.
        boundary: one of `BOUNDARIES`.
    """
    with full_precision(x):
        for axis in range(x.ndim - 2):
            weights = torch.exp(-_squares(x, axis, boundary)[:, None] * k[axis][:, None])
            x = _weighted(x, axis, weights, boundary)
    return x


def second_derivative(x: Tensor, axis: int, boundary: str) -> Tensor:
    """The derivative of `conduct` to k of one axis, from its result: -w^2 in the spectrum.

    Args:
        x: the result, (B, ..., C).
        axis: which one, from 0 on.
        boundary: one of `BOUNDARIES`.
    """
    weights = -_squares(x, axis, boundary)[None, :, None].expand(1, -1, x.shape[-1])
    with full_precision(x):
        return _weighted(x, axis, weights, boundary)
