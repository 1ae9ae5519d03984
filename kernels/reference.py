"""The definition of the operator. Every faster path is tested against this file, in float64."""

import torch
from torch import Tensor

from vheatir.kernels.dct import dct_matrix
from vheatir.kernels.plain import full_precision


def hco_reference(x: Tensor, decay: Tensor) -> Tensor:
    """Heat conduction: orthonormal DCT-II over H and W, product with `decay`, inverse DCT.

    Args:
        x: (B, H, W, C), float64 or float32.
        decay: (H, W, C) or (H, W, 1), or one of them for each image, any real values; the heat kernel's
            lie in (0, 1] with decay[0, 0] = 1.

    Returns:
        (B, H, W, C), dtype of x. Differentiable by ordinary autograd. Not narrowed under autocast.

    Source: vHeat, arXiv 2405.16555; decay = exp(-((n pi/H)^2 + (m pi/W)^2) k).
    """
    cos_h = dct_matrix(x.shape[1], dtype=x.dtype, device=x.device)
    cos_w = dct_matrix(x.shape[2], dtype=x.dtype, device=x.device)
    with full_precision(x):
        spectrum = torch.einsum("nh,bhwc,mw->bnmc", cos_h, x, cos_w)
        return torch.einsum("nh,bnmc,mw->bhwc", cos_h, spectrum * decay, cos_w)
