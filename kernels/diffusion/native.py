"""Heat conduction of maps of one to three dimensions by the native CPU kernel, which does one or two axes at a time."""

import torch
from torch import Tensor

from vheatir.kernels import dispatch
from vheatir.kernels.cpu import separable
from vheatir.kernels.diffusion.boundaries import PERIODIC, ZERO, alternating


def refusal(x: Tensor, boundary: str) -> str | None:
    """Why the CPU kernel cannot take these maps; None when it can."""
    if boundary == PERIODIC:
        return "the CPU kernel has no periodic boundary"
    sides = x.shape[1:-1]
    return dispatch.cpu_kernel_refusal(max(sides), sides[-1], x.device, x.dtype) or next(
        (why for side in sides if (why := dispatch.cpu_kernel_refusal(side, side, x.device, x.dtype))), None
    )


def _signs(x: Tensor) -> Tensor:
    """What maps of ends at zero are multiplied with before and after: 1 and -1 by turns along every axis."""
    signs = torch.ones((), dtype=x.dtype, device=x.device)
    for side in x.shape[1:-1]:
        signs = signs[..., None] * alternating(side, x.dtype, x.device)
    return signs[..., None]


def _planes(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, H, W, C) as (B * T, H, W, C), and the diffusivities along H and W of each."""
    if k.shape[1] > 1:
        k = k.repeat_interleave(x.shape[1], 1)
    return x.flatten(0, 1), k[1].contiguous(), k[2].contiguous()


def _lines(x: Tensor) -> Tensor:
    """(B, T, H, W, C) as (B, T, H * W, C): the first axis by itself."""
    return x.flatten(2, 3)


def _conduct(x: Tensor, k: Tensor, held: bool, dtype: torch.dtype) -> Tensor:
    if x.ndim == 3:
        return separable.conduct(x[:, :, None], k[0], None, held=held, dtype=dtype)[:, :, 0]
    if x.ndim == 4:
        return separable.conduct(x, k[0], k[1], held=held, dtype=dtype)
    between = separable.conduct(_lines(x), k[0], None, held=held, dtype=torch.float32).view(x.shape)
    return separable.conduct(*_planes(between, k), held=held, dtype=dtype).view(x.shape)


def conduct(x: Tensor, k: Tensor, boundary: str, dtype: torch.dtype | None = None) -> Tensor:
    """Heat conduction along all axes.

    Args:
        x: (B, ..., C), float32, bfloat16 or float16.
        k: (D, 1 or B, C), float32.
        boundary: "insulated" or "zero".
        dtype: of the result; None takes that of x.
    """
    held = boundary == ZERO
    k = k.contiguous()
    if not held:
        return _conduct(x, k, held, dtype or x.dtype)
    signs = _signs(x)
    return _conduct(x * signs, k, held, dtype or x.dtype).mul_(signs)


def _gradients(grad: Tensor, x: Tensor, y: Tensor, k: Tensor, held: bool) -> tuple[Tensor, list[Tensor]]:
    if x.ndim == 3:
        grad_x, grad_k, _ = separable.gradients(grad[:, :, None], x[:, :, None], y[:, :, None], k[0], None, held=held)
        return grad_x[:, :, 0], [grad_k]
    if x.ndim == 4:
        grad_x, grad_h, grad_w = separable.gradients(grad, x, y, k[0], k[1], held=held)
        assert grad_w is not None, "k is given for the width"
        return grad_x, [grad_h, grad_w]
    batch = len(x)
    between = separable.conduct(_lines(x), k[0], None, held=held, dtype=torch.float32)
    grad, grad_h, grad_w = separable.gradients(
        grad.float().flatten(0, 1), between.view(x.shape).flatten(0, 1), y.flatten(0, 1), *_planes(x, k)[1:], held=held
    )
    assert grad_w is not None, "k is given for the width"
    grad = grad.view(batch, x.shape[1], -1, x.shape[-1])
    grad_x, grad_t, _ = separable.gradients(grad, _lines(x), between, k[0], None, held=held)
    return grad_x.view(x.shape), [grad_t, *(one.unflatten(0, (batch, -1)).sum(1) for one in (grad_h, grad_w))]


def gradients(grad: Tensor, x: Tensor, y: Tensor, k: Tensor, boundary: str) -> tuple[Tensor, Tensor]:
    """Gradients of x, in its type, and of k for each image: (D, B, C) in float32.

    Args:
        grad: of the result.
        x: what was conducted, (B, ..., C).
        y: the result, in float32.
        k: (D, 1 or B, C) in float32.
        boundary: "insulated" or "zero".
    """
    held = boundary == ZERO
    k = k.contiguous()
    if held:
        signs = _signs(x)
        grad, x, y = grad * signs, x * signs, y * signs
    grad_x, grad_k = _gradients(grad, x, y, k, held)
    grad_x = grad_x.to(grad.dtype)
    return grad_x.mul_(signs) if held else grad_x, torch.stack(grad_k)
