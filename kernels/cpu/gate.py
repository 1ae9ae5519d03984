"""Layers of gated blocks in one pass over memory, forward and backward.

A depthwise 3x3 convolution with its gate, the product of two halves, a layer norm that narrows. All are what their
formulas say. Where the native CPU kernel takes the tensors it does each at once; elsewhere, and while a graph is
traced, they are plain PyTorch.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from vheatir.kernels.cpu import library as native
from vheatir.kernels.cpu.formulas import by_formula, formula_gradients
from vheatir.kernels.cpu.kernel import threads_for
from vheatir.kernels.plain import are_plain, has_hooks, is_autocast_on, normalizes_channels

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_STRIP = 8  # rows of an image that are summed to one row of a weight's gradient, as in csrc/api.h
_CHUNK = 256  # likewise, rows of a norm


# Fields in the order of csrc/api.h.
class _MapsJob(ctypes.Structure):
    """What jobs on maps begin with."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("type", ctypes.c_int64),
    )


class _RowsJob(ctypes.Structure):
    """What jobs on rows begin with."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("type", ctypes.c_int64),
    )


class _GateJob(_MapsJob):
    """vheatir_gate_job."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
    )


class _GateGradientJob(_MapsJob):
    """vheatir_gate_gradient_job."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("grad_source", ctypes.c_void_p),
        ("grad_weight", ctypes.c_void_p),
        ("grad_bias", ctypes.c_void_p),
    )


class _ProductJob(_RowsJob):
    """vheatir_product_job."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
    )


class _NormJob(_RowsJob):
    """vheatir_rescale_job."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("branch", ctypes.c_void_p),
        ("sum", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("epsilon", ctypes.c_double),
    )


class _NormGradientJob(_RowsJob):
    """vheatir_rescale_gradient_job."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("grad_sum", ctypes.c_void_p),
        ("grad_source", ctypes.c_void_p),
        ("grad_branch", ctypes.c_void_p),
        ("grad_weight", ctypes.c_void_p),
        ("grad_bias", ctypes.c_void_p),
        ("epsilon", ctypes.c_double),
    )


def _kernel_takes(x: Tensor, *parameters: Tensor) -> bool:
    return (
        are_plain(x, *parameters)
        and x.is_cpu
        and x.dtype in _TYPES
        and x.numel() > 0
        and all(one.is_cpu and one.dtype == torch.float32 for one in parameters)
        and native.refusal() is None
    )


def _wants_gradients(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(one.requires_grad for one in tensors)


def _taps(weight: Tensor) -> Tensor:
    """(2 C, 1, 3, 3) as (9, 2 C), contiguous."""
    return weight.detach().reshape(len(weight), 9).t().contiguous()


def _gate_formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    image = x.permute(0, 3, 1, 2)
    narrows = is_autocast_on(x)
    if x.dtype == torch.bfloat16 and weight.dtype == torch.float32 and not narrows:
        image = image.float()
    one, other = F.conv2d(image, weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1).chunk(2, dim=-1)
    y = one * other
    return y if narrows else y.to(x.dtype)


def _native_gate(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = x.new_empty(*x.shape[:3], x.shape[3] // 2)
    # Held until the call returns: the job has only addresses.
    x = x.contiguous()
    taps = _taps(weight)
    bias = bias.contiguous()
    batch, height, width, channels = y.shape
    job = _GateJob(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        threads=threads_for(x.numel()),
        type=_TYPES[x.dtype],
        source=x.data_ptr(),
        weight=taps.data_ptr(),
        bias=bias.data_ptr(),
        target=y.data_ptr(),
    )
    native.functions().vheatir_gate(ctypes.byref(job))
    return y


class _Gate(torch.autograd.Function):
    """`_native_gate` with its backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return _native_gate(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Any, ...]:
        x, weight, bias = ctx.saved_tensors
        if by_formula(grad):
            return formula_gradients(_gate_formula, (x, weight, bias), grad)
        batch, height, width, channels = grad.shape
        grad_x = x.new_empty(x.shape)
        units = batch * -(-height // _STRIP)
        grad_weight = bias.new_empty(units, 9, 2 * channels)
        grad_bias = bias.new_empty(units, 2 * channels)
        # Held until the call returns: the job has only addresses.
        x = x.contiguous()
        grad = grad.contiguous()
        taps = _taps(weight)
        bias = bias.contiguous()
        job = _GateGradientJob(
            batch=batch,
            height=height,
            width=width,
            channels=channels,
            threads=threads_for(x.numel()),
            type=_TYPES[x.dtype],
            source=x.data_ptr(),
            grad=grad.data_ptr(),
            weight=taps.data_ptr(),
            bias=bias.data_ptr(),
            grad_source=grad_x.data_ptr(),
            grad_weight=grad_weight.data_ptr(),
            grad_bias=grad_bias.data_ptr(),
        )
        if native.functions().vheatir_gate_gradient(ctypes.byref(job)) != 0:
            raise MemoryError("the CPU kernel got no memory for its work space")
        return grad_x, grad_weight.sum(0).t().reshape(weight.shape), grad_bias.sum(0)


def depthwise_gate(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`a * b`, where a and b are the halves of the channels of a depthwise 3x3 convolution with zeros outside.

    Args:
        x: (B, H, W, 2 C), channels-last; float32, or bfloat16 with sums in float32 (any type where PyTorch runs).
        weight: (2 C, 1, 3, 3), as that of `nn.Conv2d` with 2 C groups; float32 beside bfloat16 maps.
        bias: (2 C,), of the weight's type.

    Returns:
        (B, H, W, C) of the type of x. Differentiable as often as wanted.

    Raises:
        ValueError: the shapes do not fit each other.
        MemoryError: there is no memory for the work space of the backward.
    """
    channels = x.shape[-1] // 2
    if x.ndim != 4 or x.shape[-1] % 2 or weight.shape != (2 * channels, 1, 3, 3) or bias.shape != (2 * channels,):
        raise ValueError(
            "expected maps (B, H, W, 2 C), a weight (2 C, 1, 3, 3) and a bias (2 C,), "
            f"got {tuple(x.shape)}, {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if not _kernel_takes(x, weight, bias):
        return _gate_formula(x, weight, bias)
    return (_Gate.apply if _wants_gradients(x, weight, bias) else _native_gate)(x, weight, bias)


def _product_formula(x: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=-1)
    return one * other


def _native_product(x: Tensor, grad: Tensor | None = None) -> Tensor:
    """The product, or with the gradient of the product that of x."""
    x = x.contiguous()
    channels = x.shape[-1] // 2
    target = x.new_empty(*x.shape[:-1], channels if grad is None else 2 * channels)
    grad = None if grad is None else grad.contiguous()
    job = _ProductJob(
        rows=x.numel() // (2 * channels),
        channels=channels,
        threads=threads_for(x.numel()),
        type=_TYPES[x.dtype],
        source=x.data_ptr(),
        grad=None if grad is None else grad.data_ptr(),
        target=target.data_ptr(),
    )
    native.functions().vheatir_product(ctypes.byref(job))
    return target


class _Product(torch.autograd.Function):
    """`_native_product` with its backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _native_product(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return formula_gradients(_product_formula, (x,), grad)[0] if by_formula(grad) else _native_product(x, grad)


def halves_product(x: Tensor) -> Tensor:
    """The product of both halves of the channels: (..., 2 C) to (..., C) of the same type.

    Raises:
        ValueError: the number of channels is odd.
    """
    if x.ndim == 0 or x.shape[-1] % 2:
        raise ValueError(f"expected an even number of channels (..., 2 C), got {tuple(x.shape)}")
    if not _kernel_takes(x):
        return _product_formula(x)
    return _Product.apply(x) if _wants_gradients(x) else _native_product(x)


def _native_norm(
    x: Tensor, norm: tuple[Tensor, Tensor, float] | None, dtype: torch.dtype, branch: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(x + branch, its norm); without a branch the first is x, without a norm the second is None.

    Args:
        x: (..., C), float32.
        norm: weight, bias and epsilon.
        dtype: of the norm and the branch.
        branch: as x.
    """
    x = x.contiguous()
    branch = None if branch is None else branch.contiguous()
    total = x if branch is None else torch.empty_like(x)
    weight = bias = y = None
    epsilon = 0.0
    if norm is not None:
        weight = norm[0].contiguous()
        bias = norm[1].contiguous()
        epsilon = norm[2]
        y = x.new_empty(x.shape, dtype=dtype)
    job = _NormJob(
        rows=x.numel() // x.shape[-1],
        channels=x.shape[-1],
        threads=threads_for(x.numel()),
        type=_TYPES[dtype],
        source=x.data_ptr(),
        weight=None if weight is None else weight.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        branch=None if branch is None else branch.data_ptr(),
        sum=None if branch is None else total.data_ptr(),
        target=None if y is None else y.data_ptr(),
        epsilon=epsilon,
    )
    native.functions().vheatir_rescale(ctypes.byref(job))
    return total, y


class _ForkNorm(torch.autograd.Function):
    """(x + branch, its norm); the backward adds both gradients of the sum in the pass that computes one of them."""

    @staticmethod
    def forward(ctx, x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float, dtype):
        total, y = _native_norm(x, (weight, bias, epsilon), dtype, branch)
        ctx.save_for_backward(x if branch is None else total, weight, bias)  # an input or output: differentiable again
        ctx.epsilon = epsilon
        ctx.branch_dtype = None if branch is None else branch.dtype
        ctx.set_materialize_grads(False)
        return (x.view_as(x) if branch is None else total), y

    @staticmethod
    def backward(ctx, grad_sum: Tensor | None, grad: Tensor | None):
        total, weight, bias = ctx.saved_tensors
        forks = ctx.branch_dtype is not None

        def with_branch(grad_total: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            return grad_total, grad_total.to(ctx.branch_dtype) if forks and grad_total is not None else None

        if grad is None:
            return *with_branch(grad_sum), None, None, None, None
        if by_formula(grad, grad_sum):
            epsilon = ctx.epsilon
            grads = formula_gradients(
                lambda x, weight, bias: F.layer_norm(x, x.shape[-1:], weight, bias, epsilon),
                (total, weight, bias),
                grad.to(total.dtype),
            )
            grad_total = grads[0] if grad_sum is None or grads[0] is None else grads[0] + grad_sum
            return *with_branch(grad_total), *grads[1:], None, None
        total = total.contiguous()
        grad = grad.contiguous()
        grad_sum = None if grad_sum is None else grad_sum.contiguous()
        weight = weight.contiguous()
        rows = total.numel() // total.shape[-1]
        grad_total = total.new_empty(total.shape)
        # In float32 the sum hands its gradient to both.
        grad_branch = grad.new_empty(grad.shape) if forks and grad.dtype != torch.float32 else None
        sums = total.new_empty(2, -(-rows // _CHUNK), total.shape[-1])
        job = _NormGradientJob(
            rows=rows,
            channels=total.shape[-1],
            threads=threads_for(total.numel()),
            type=_TYPES[grad.dtype],
            source=total.data_ptr(),
            weight=weight.data_ptr(),
            grad=grad.data_ptr(),
            grad_sum=None if grad_sum is None else grad_sum.data_ptr(),
            grad_source=grad_total.data_ptr(),
            grad_branch=None if grad_branch is None else grad_branch.data_ptr(),
            grad_weight=sums[0].data_ptr(),
            grad_bias=sums[1].data_ptr(),
            epsilon=ctx.epsilon,
        )
        native.functions().vheatir_rescale_gradient(ctypes.byref(job))
        if forks and grad_branch is None:
            grad_branch = grad_total
        return grad_total, grad_branch, *sums.sum(1), None, None


class _Sum(torch.autograd.Function):
    """float32 + bfloat16 without a widened copy."""

    @staticmethod
    def forward(ctx, x: Tensor, branch: Tensor) -> Tensor:
        return _native_norm(x, None, branch.dtype, branch)[0]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.to(torch.bfloat16)


def residual_sum(x: Tensor, branch: Tensor) -> Tensor:
    """x + branch; a bfloat16 branch is added to a float32 map in one pass over memory.

    Args:
        x: (..., C).
        branch: of the same shape.
    """
    mixed = x.dtype == torch.float32 and branch.dtype == torch.bfloat16 and x.shape == branch.shape
    if not mixed or not _kernel_takes(x) or not _kernel_takes(branch):
        return x + branch
    return _Sum.apply(x, branch) if _wants_gradients(x, branch) else _native_norm(x, None, branch.dtype, branch)[0]


def fork_norm(x: Tensor, norm: nn.LayerNorm, dtype: torch.dtype, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x + branch for a residual connection, and `norm(x + branch).to(dtype)` for the layers beside it.

    The same values as those of PyTorch. The sum is made in the pass that normalizes it, and the backward adds what
    comes from both in one pass over memory.

    Args:
        x: (..., C), float32.
        norm: over the C channels, with weight and bias.
        dtype: float32 or bfloat16.
        branch: of the shape of x, of `dtype`; None adds nothing.
    """
    if not _norm_fits(x, norm, dtype):
        x = x if branch is None else x + branch
        return x, norm(x).to(dtype)
    if branch is not None and (branch.dtype != dtype or branch.shape != x.shape or not _kernel_takes(branch)):
        x = residual_sum(x, branch)
        branch = None
    if _wants_gradients(x, norm.weight, norm.bias) or (branch is not None and _wants_gradients(branch)):
        return _ForkNorm.apply(x, branch, norm.weight, norm.bias, norm.eps, dtype)
    total, y = _native_norm(x, (norm.weight, norm.bias, norm.eps), dtype, branch)
    assert y is not None, "there is a norm"
    return total, y


def _norm_fits(x: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> bool:
    return (
        type(norm) is nn.LayerNorm  # what stands in its place is called
        and x.dtype == torch.float32
        and dtype in _TYPES
        and _kernel_takes(x, norm.weight, norm.bias)
        and not has_hooks(norm)
        and normalizes_channels(norm, x)
    )
