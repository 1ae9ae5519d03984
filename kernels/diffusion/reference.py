"""The definition of heat conduction in one to three dimensions. Faster paths are judged by this file, in float64."""

import torch
from torch import Tensor

from vheatir.kernels.diffusion.boundaries import INSULATED, basis_of
from vheatir.kernels.plain import full_precision


def diffuse_reference(x: Tensor, k: Tensor, boundary: str = INSULATED) -> Tensor:
    """Heat conduction axis by axis: into the basis of the boundary condition, product with exp(-k w^2), and back.

    Args:
        x: (B, L, C), (B, H, W, C) or (B, T, H, W, C), float64 or float32.
        k: (D, 1, C) or (D, B, C): diffusivity of each axis, image and channel, in squared pixels.
        boundary: "insulated", "zero" or "periodic".

    Returns:
        Shape and dtype of x. Differentiable by ordinary autograd. Not narrowed under autocast.

    Source: Fourier's heat equation u_t = k u_xx for unit time; for insulated ends vHeat, arXiv 2405.16555.
    """
    with full_precision(x):
        for axis in range(x.ndim - 2):
            basis, squares = basis_of(x.shape[axis + 1], boundary, x.dtype, x.device)
            lines = x.movedim(axis + 1, -2)  # (B, ..., N, C)
            middle = [1] * (lines.ndim - 3)
            decay = torch.exp(-squares[:, None] * k[axis][:, None]).unflatten(0, (-1, *middle))
            x = (basis.T @ (decay * (basis @ lines))).movedim(-2, axis + 1)
    return x
