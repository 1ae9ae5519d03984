"""Tables of the heat operator: the orthonormal DCT-II matrix and the heat kernel's decay map."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_VANISHED = -1e4  # its exponential is 0 in every type


def _build_table64(n: int) -> Tensor:
    """DCT-II matrix in float64 on the CPU, built outside inference mode so that autograd may save it later."""
    with torch.inference_mode(False), torch.no_grad():
        # The angle in units of pi/(2n), reduced to one period in integers: exact for any n.
        index = torch.arange(n, device="cpu")
        angle = index[:, None] * (2 * index[None] + 1) % (4 * n)
        table = math.sqrt(2.0 / n) * torch.cos(angle.double() * (math.pi / (2 * n)))
        table[0] *= math.sqrt(0.5)
        return table


_cached_table64 = lru_cache(maxsize=16)(_build_table64)


def may_cache() -> bool:
    """Whether tables made now are tensors with data that outlive the call.

    What a compiler, an exporter or a mode such as `FakeTensorMode` makes is a stand-in without data; what a transform
    of torch.func sees is wrapped, and the wrapper ends with the transform.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    )


def _table64(n: int) -> Tensor:
    return _cached_table64(n) if may_cache() else _build_table64(n)


def dct_matrix(n: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """Orthonormal DCT-II matrix: `dct_matrix(n) @ signal` is its spectrum, the transpose is the inverse.

    Entry [k, x] = sqrt(2/n) cos(pi k (x + 1/2) / n), row 0 divided by sqrt(2). Computed in float64, then rounded once.

    Args:
        n: length of the signal, at least 1.
        dtype: of the result.
        device: of the result.

    Returns:
        (n, n) tensor of `dtype` on `device`, a copy that the caller may change.

    Raises:
        ValueError: n < 1.

    Source: DCT-II/DCT-III, Ahmed, Natarajan, Rao (1974).
    """
    if n < 1:
        raise ValueError(f"dct_matrix needs n >= 1, got {n}")
    return _table64(n).to(device=device, dtype=dtype, copy=True)


def squared_frequencies(
    height: int, width: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """Laplacian eigenvalues w_h^2 + w_w^2 of the DCT basis, w = pi n / N for n = 0 .. N-1, as (height, width).

    Args:
        height: of the maps.
        width: of the maps.
        dtype: of the result.
        device: of the result.
    """
    # Devices other than CUDA may have no float64; a CUDA graph that is captured cannot wait for a copy from the CPU.
    where = device if torch.device(device).type == "cuda" else "cpu"
    rows = torch.arange(height, dtype=torch.float64, device=where) * (math.pi / height)
    columns = torch.arange(width, dtype=torch.float64, device=where) * (math.pi / width)
    return (rows.square()[:, None] + columns.square()[None]).to(device, dtype)


def decay_map(diffusivity: Tensor) -> Tensor:
    """The heat kernel in the DCT domain: exp(-k (w_h^2 + w_w^2)).

    Args:
        diffusivity: k, (H, W, C) or (H, W, 1), or one of them for each image, (B, ...), in squared pixels (a
            channel blurs over about sqrt(2k) pixels); k >= 0 conducts heat, k < 0 would amplify. Differentiable.

    Returns:
        Decay of the same shape, dtype and device; at frequency (0, 0) exactly 1. Below the smallest normal number
        (1.2e-38; of float64 2.2e-308) exactly 0, with gradient 0: whatever handles smaller numbers is slow.

    Raises:
        TypeError: no floating tensor.
        ValueError: neither three- nor four-dimensional, or no frequencies.

    Source: vHeat, arXiv 2405.16555.
    """
    if not isinstance(diffusivity, Tensor):
        raise TypeError(
            f"decay_map needs k as a torch.Tensor, got {type(diffusivity).__name__}; for one number k give "
            "torch.full((H, W, 1), float(k)), or call vheatir.diffuse(x, k)"
        )
    if not diffusivity.is_floating_point():  # the frequencies would be rounded to that type as well
        raise TypeError(f"decay_map needs k in floating point, got {diffusivity.dtype}; convert it with k.float()")
    if diffusivity.ndim not in (3, 4):
        raise ValueError(f"decay_map needs k of shape (H, W, C) or (B, H, W, C), got {tuple(diffusivity.shape)}")
    height, width = diffusivity.shape[-3:-1]
    if height < 1 or width < 1:
        raise ValueError(f"decay_map needs k with H, W >= 1, got {tuple(diffusivity.shape)}")
    omega2 = squared_frequencies(height, width, dtype=diffusivity.dtype, device=diffusivity.device)
    exponent = -diffusivity * omega2[..., None]
    arithmetic = torch.float64 if diffusivity.dtype == torch.float64 else torch.float32
    # Before the exponential, which is as slow where it makes such numbers.
    return F.threshold(exponent, math.log(torch.finfo(arithmetic).tiny), _VANISHED).exp()
