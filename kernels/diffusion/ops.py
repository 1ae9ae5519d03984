"""Heat conduction with diffusivities instead of decay maps, as a torch.library operator, and the function around it."""

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled

from vheatir.kernels import dispatch
from vheatir.kernels.checks import check_backend
from vheatir.kernels.diffusion import native, torch_path
from vheatir.kernels.diffusion.boundaries import INSULATED, check_boundary
from vheatir.kernels.diffusion.checks import Diffusivity, check_maps, per_axis
from vheatir.kernels.diffusion.flops import register as register_flops
from vheatir.kernels.diffusion.reference import diffuse_reference
from vheatir.kernels.ops import is_differentiated_as_a_function, register_autocast_rule
from vheatir.kernels.plain import are_plain

PROFILED = "vheatir::diffuse"


def _runs_natively(x: Tensor, boundary: str, backend: str) -> bool:
    """Whether the CPU kernel runs.

    Raises:
        ValueError: it is asked for by name and cannot.
    """
    if backend == "torch":
        return False
    why = native.refusal(x, boundary)
    if why is not None and backend == dispatch.CPU_KERNEL:
        raise ValueError(f"backend 'cpu_kernel' cannot run: {why}; backend='auto' falls back to PyTorch")
    return why is None


def _now(x: Tensor, k: Tensor, boundary: str, backend: str) -> Tensor:
    if not x.numel():
        return x.new_empty(x.shape)
    if _runs_natively(x, boundary, backend):
        return native.conduct(x, k, boundary)
    return torch_path.conduct(x.to(k.dtype), k, boundary).to(x.dtype).contiguous()


def _gradients_now(grad: Tensor, x: Tensor, y: Tensor, k: Tensor, boundary: str, backend: str) -> tuple[Tensor, Tensor]:
    rows = k.shape[1]
    if not x.numel():
        return grad.new_empty(grad.shape), k.new_zeros(k.shape)
    if _runs_natively(x, boundary, backend):
        if y.dtype != torch.float32:  # rounded: what it lost would show in the gradient of k
            y = native.conduct(x, k, boundary, torch.float32)
        grad_x, grad_k = native.gradients(grad, x, y, k, boundary)
    else:
        wide = grad.to(k.dtype)
        grad_x = torch_path.conduct(wide, k, boundary).to(grad.dtype).contiguous()
        y = y if y.dtype == k.dtype else torch_path.conduct(x.to(k.dtype), k, boundary)
        grad_k = _products(wide, y, boundary)
    return grad_x, grad_k.sum(1, keepdim=True) if rows == 1 else grad_k


def _products(grad: Tensor, y: Tensor, boundary: str) -> Tensor:
    """Gradient of k for each image, (D, B, C): that of the result times the result's second derivatives, summed."""
    inner = tuple(range(1, y.ndim - 1))
    axes = range(y.ndim - 2)
    return torch.stack([(grad * torch_path.second_derivative(y, axis, boundary)).sum(inner) for axis in axes])


@torch.library.custom_op("vheatir::diffuse", mutates_args=())
def _diffuse(x: Tensor, k: Tensor, boundary: str, backend: str) -> Tensor:
    return _now(x, k, boundary, backend)


@torch.library.custom_op("vheatir::diffuse_gradients", mutates_args=())
def _diffuse_gradients(
    grad: Tensor, x: Tensor, y: Tensor, k: Tensor, boundary: str, backend: str
) -> tuple[Tensor, Tensor]:
    return _gradients_now(grad, x, y, k, boundary, backend)


@_diffuse.register_fake
def _(x, k, boundary, backend):
    return x.new_empty(x.shape)


@_diffuse_gradients.register_fake
def _(grad, x, y, k, boundary, backend):
    return grad.new_empty(grad.shape), k.new_empty(k.shape)


def _save(ctx, inputs, output):
    x, k, ctx.boundary, ctx.backend = inputs
    if ctx.needs_input_grad[1]:
        ctx.save_for_backward(k, x, output)
    else:
        ctx.save_for_backward(k, None, None)


def _backward(ctx, grad):
    k, x, y = ctx.saved_tensors
    where = (ctx.boundary, ctx.backend)
    if x is None:
        at_once = not torch.is_grad_enabled() and are_plain(grad, k)
        return (_now if at_once else _diffuse)(grad, k, *where), None, None, None
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # made of what can be differentiated again
        if y.dtype != k.dtype:
            y = _diffuse(x.to(k.dtype), k, *where)
        grad_k = _products(grad.to(k.dtype), y, ctx.boundary)
        grad_k = grad_k.sum(1, keepdim=True) if k.shape[1] == 1 else grad_k
        return _diffuse(grad, k, *where), grad_k, None, None
    at_once = are_plain(grad, x, y, k)
    return *(_gradients_now if at_once else _diffuse_gradients)(grad, x, y, k, *where), None, None


_diffuse.register_autograd(_backward, setup_context=_save)
for _name in ("diffuse", "diffuse_gradients"):
    register_autocast_rule(_name)
register_flops()


class _AtOnce(torch.autograd.Function):
    """The operator past PyTorch's dispatcher, which takes longer than the kernel on small maps."""

    @staticmethod
    def forward(ctx, x: Tensor, k: Tensor, boundary: str, backend: str) -> Tensor:
        y = _now(x, k, boundary, backend)
        _save(ctx, (x, k, boundary, backend), y)
        return y

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, *grads)


def diffuse(x: Tensor, k: Diffusivity, *, boundary: str = INSULATED, backend: str = "auto") -> Tensor:
    """Let heat flow through maps of one, two or three dimensions for unit time: each axis's spectrum times exp(-k w^2).

    The decay is a product of one factor for each axis, made where it is used: no decay map is stored or read. Of
    `heat_conduction` it is the case `decay = decay_map(k)` with k alike at all frequencies; equals `diffuse_reference`.
    16-bit maps are computed in float32 and rounded once at the end.

    Args:
        x: (B, L, C), (B, H, W, C) or (B, T, H, W, C), channels-last; float64, float32, bfloat16 or float16; any
            strides.
        k: diffusivity in squared pixels (a channel blurs over about sqrt(2 k) pixels), k >= 0: a number, (C,), (B, C)
            or (B, 1, ..., 1, C), or a tuple of one of these for each axis in the order of x; dtype of x or float32
            beside 16-bit x.
        boundary: "insulated" (no heat passes the ends), "zero" (they are held at 0) or "periodic" (the end is joined to
            the beginning).
        backend: "auto", "torch", or "cpu_kernel", which then may not be replaced.

    Returns:
        Shape and dtype of x, contiguous. Differentiable twice in x and k; each gradient has its input's dtype. With
        forward-mode tangents and under torch.func's derivatives the formula itself is computed, without kernels.

    Raises:
        TypeError: an input is no floating tensor, or the types do not fit each other.
        ValueError: shapes or devices do not fit, a number k is not finite, or the boundary or backend is
            unknown or cannot run.

    Source: vHeat, arXiv 2405.16555, with a separable decay.
    """
    if not torch.compiler.is_compiling() and _profiler_enabled():
        with torch.profiler.record_function(PROFILED):
            return _diffuse_any(x, k, boundary, backend)
    return _diffuse_any(x, k, boundary, backend)


def _diffuse_any(x: Tensor, k: Diffusivity, boundary: str, backend: str) -> Tensor:
    check_boundary(boundary)
    check_backend(backend)
    if backend == dispatch.CUDA:
        raise ValueError("backend 'cuda' has no kernel of this operator; take 'auto', 'torch' or 'cpu_kernel'")
    check_maps(x)
    kept = per_axis(k, x)
    if are_plain(x, kept):
        if torch.is_grad_enabled() and (x.requires_grad or kept.requires_grad):
            return _AtOnce.apply(x, kept, boundary, backend)
        return _now(x, kept, boundary, backend)
    if is_differentiated_as_a_function():
        if backend == dispatch.CPU_KERNEL:
            raise ValueError(
                "backend 'cpu_kernel' runs neither under torch.func's transforms nor with forward-mode tangents; take "
                "'auto' or 'torch'"
            )
        return diffuse_reference(x.to(kept.dtype), kept, boundary).to(x.dtype)
    return _diffuse(x, kept, boundary, backend)
