"""Heat conduction axis by axis in plain PyTorch: dense products, or Fourier transforms (periodic ends, long axes)."""

import torch
from torch import Tensor

from vheatir.kernels.diffusion.boundaries import PERIODIC, ZERO, basis_of, squares_of
from vheatir.kernels.plain import full_precision

_LONGEST_DENSE = 2048  # the basis of a longer axis would take more than 32 MiB in float64, and grows with the square


def _in_lines(x: Tensor, axis: int) -> Tensor:
    """(B, ..., N, ..., C) as (B, before, N, after * C)."""
    before = after = 1
    for side in x.shape[1 : axis + 1]:
        before *= side
    for side in x.shape[axis + 2 :]:
        after *= side
    return x.reshape(x.shape[0], before, x.shape[axis + 1], after)


def _weighted_waves(lines: Tensor, weights: Tensor) -> Tensor:
    """Product with weights (1 or B, N // 2 + 1, C) in the Fourier spectrum of lines (B, before, N, after * C)."""
    length, inner = lines.shape[2:]
    channels = weights.shape[-1]
    spectrum = torch.fft.rfft(lines, dim=2)
    spectrum = spectrum.unflatten(3, (inner // channels, channels)) * weights[:, None, :, None]
    return torch.fft.irfft(spectrum.flatten(3), n=length, dim=2)


def _mirrored(lines: Tensor, weights: Tensor, boundary: str) -> tuple[Tensor, Tensor]:
    """Lines with their mirror images behind them, whose waves are those of both ends, and the weights of these waves.

    Cosines fit an even continuation, sines an odd one; each leaves out one wave of twice the length.
    """
    image = lines.flip(2)
    missing = weights.new_zeros(weights.shape[0], 1, weights.shape[2])
    if boundary == ZERO:
        return torch.cat((lines, -image), 2), torch.cat((missing, weights), 1)
    return torch.cat((lines, image), 2), torch.cat((weights, missing), 1)


def _weighted(x: Tensor, axis: int, weights: Tensor, boundary: str) -> Tensor:
    """Product with weights (1 or B, N, C) in the spectrum of one axis; periodic ends have N // 2 + 1 places."""
    if not x.numel():
        return x  # MKL refuses transforms of nothing
    lines = _in_lines(x, axis)
    length, inner = lines.shape[2:]
    channels = x.shape[-1]
    if boundary == PERIODIC:
        return _weighted_waves(lines, weights).reshape(x.shape)
    if length > _LONGEST_DENSE:
        return _weighted_waves(*_mirrored(lines, weights, boundary))[:, :, :length].reshape(x.shape)
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
