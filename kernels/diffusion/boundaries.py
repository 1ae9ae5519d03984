"""Boundary conditions: the basis in which heat along one axis is a product, and its frequencies.

    insulated   no heat passes the ends (DCT-II)            w = pi n / N,         n = 0 .. N-1
    zero        the ends are held at temperature 0 (DST-II)  w = pi (n + 1) / N,   n = 0 .. N-1
    periodic    the end is joined to the beginning (Fourier) w = 2 pi n / N,       each with a cosine and a sine

The ends lie half a pixel outside the first and the last sample.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from vheatir.kernels.dct import dct_matrix, may_cache

INSULATED = "insulated"
ZERO = "zero"
PERIODIC = "periodic"
BOUNDARIES = (INSULATED, ZERO, PERIODIC)


def check_boundary(boundary: str) -> None:
    """Raise unless it is one of `BOUNDARIES`."""
    if boundary not in BOUNDARIES:
        raise ValueError(f"unknown boundary {boundary!r}; known: {', '.join(BOUNDARIES)}")


def alternating(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1, -1, 1, ...

    Args:
        n: how many.
        dtype: of the result.
        device: likewise.
    """
    return (1 - 2 * (torch.arange(n, device=device) % 2)).to(dtype)


def _orders(n: int, boundary: str) -> Tensor:
    """Half-waves of each basis function over the length."""
    index = torch.arange(n, dtype=torch.float64, device="cpu")
    if boundary == PERIODIC:
        return 2 * torch.div(index + 1, 2, rounding_mode="floor")  # 0, 2, 2, 4, 4, ...
    return index + (boundary == ZERO)


def _build_squares(n: int, boundary: str) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return (_orders(n, boundary) * (math.pi / n)).square()


def _build_basis(n: int, boundary: str) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        if boundary == INSULATED:
            return dct_matrix(n)
        if boundary == ZERO:
            # sin(pi (n + 1) (i + 1/2) / N) = (-1)^i cos(pi (N - n - 1) (i + 1/2) / N)
            return dct_matrix(n).flip(0) * alternating(n, torch.float64, torch.device("cpu"))
        index = torch.arange(n, device="cpu")
        order = torch.div(index + 1, 2, rounding_mode="floor")
        angle = (order[:, None] * index[None] % n).double() * (2 * math.pi / n)
        basis = math.sqrt(2 / n) * torch.where((index % 2 == 1)[:, None], angle.cos(), angle.sin())
        alone = (order == 0) | (2 * order == n)  # constant and alternating signs have no sine beside them
        basis[alone] = math.sqrt(1 / n) * angle[alone].cos()
        return basis


_cached_squares = lru_cache(maxsize=32)(_build_squares)
_cached_basis = lru_cache(maxsize=32)(_build_basis)


def squares_of(n: int, boundary: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """w^2 of each function of `basis_of`, (n,), without the basis, which takes n times as much memory.

    Args:
        n: samples of the axis.
        boundary: one of `BOUNDARIES`.
        dtype: of the result.
        device: likewise.
    """
    build = _cached_squares if may_cache() else _build_squares
    return build(n, boundary).to(device, dtype)


def basis_of(n: int, boundary: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Orthonormal basis (n, n), one function to a row, and w^2 of each, (n,). Computed in float64, rounded once.

    Args:
        n: samples of the axis.
        boundary: one of `BOUNDARIES`.
        dtype: of the results.
        device: likewise.
    """
    build = _cached_basis if may_cache() else _build_basis
    return build(n, boundary).to(device, dtype), squares_of(n, boundary, dtype, device)
