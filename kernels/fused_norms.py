"""Layer norm with its neighbours in a heat block, in one pass over memory: the sum before it, what follows it.

`norm_gate`, `add_norm` and `norm_add` are what their formulas say. Where the native CPU kernel takes the tensors it
does them at once; elsewhere, and while a graph is traced, they are plain PyTorch, which compilers fuse themselves.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vheatir.kernels.checks import are_plain
from vheatir.kernels.cpu import library as native

_CHUNK = 256  # rows that are summed to one row of a weight's gradient, as in csrc/api.h
_LEAST_ELEMENTS_PER_THREAD = 1 << 15
_SIZES = tuple((name, ctypes.c_int64) for name in ("rows", "channels", "x_row", "gate_row", "threads"))


def _pointers(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, ctypes.c_void_p) for name in names)


class _Job(ctypes.Structure):
    _fields_ = (
        *_SIZES,
        *_pointers("x", "addend", "weight", "bias", "gate", "residual", "sum", "result"),
        ("epsilon", ctypes.c_double),
    )


class _GradientJob(ctypes.Structure):
    _fields_ = (
        *_SIZES,
        *_pointers("x", "weight", "bias", "gate", "grad", "grad_sum"),
        *_pointers("grad_x", "grad_gate", "grad_weight", "grad_bias"),
        ("epsilon", ctypes.c_double),
    )


def _kernel_takes(x: Tensor, other: Tensor, norm: nn.LayerNorm) -> bool:
    return (
        are_plain(x, other, norm.weight, norm.bias)
        and not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)
        and x.shape == other.shape
        and x.numel() > 0
        and all(t.dtype == torch.float32 and t.is_cpu for t in (x, other, norm.weight, norm.bias))
        and native.refusal() is None
    )


def _rows(x: Tensor) -> Tensor:
    """(..., C) as (rows, C) with adjacent channels: a view where the rows lie evenly apart."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _sizes(x: Tensor, gate: Tensor | None) -> tuple[int, ...]:
    threads = max(1, min(torch.get_num_threads(), x.numel() // _LEAST_ELEMENTS_PER_THREAD))
    return *x.shape, x.stride(0), 0 if gate is None else gate.stride(0), threads


def _addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    result: Tensor,
    *,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    addend: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    rows, gate = _rows(x), None if gate is None else _rows(gate)
    # Held until the call returns: the job has only addresses.
    held = [None if t is None else t.contiguous() for t in (addend, weight, bias, gate, residual)]
    held[3] = gate
    job = _Job(*_sizes(rows, gate), *_addresses(rows, *held, total, result), epsilon)
    native.library().functions.vheatir_norm(ctypes.byref(job))


def _gradients(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight, bias and the gate, None without one."""
    rows, gate = _rows(x), None if gate is None else _rows(gate)
    held = [None if t is None else t.contiguous() for t in (weight, bias, grad, grad_sum)]
    grad_x, grad_gate = x.new_empty(x.shape), None if gate is None else x.new_empty(x.shape)
    sums = x.new_empty(2, -(-len(rows) // _CHUNK), rows.shape[1])
    inputs = _addresses(rows, *held[:2], gate, *held[2:])
    job = _GradientJob(*_sizes(rows, gate), *inputs, *_addresses(grad_x, grad_gate, sums[0], sums[1]), epsilon)
    native.library().functions.vheatir_norm_gradient(ctypes.byref(job))
    return grad_x, *sums.sum(1), grad_gate


@torch.library.custom_op("vheatir::norm", mutates_args=())
def _norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, gate: Tensor | None, residual: Tensor | None
) -> Tensor:
    result = x.new_empty(x.shape)
    _run(x, weight, bias, epsilon, result, gate=gate, residual=residual)
    return result


@torch.library.custom_op("vheatir::add_norm", mutates_args=())
def _add_norm(x: Tensor, addend: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total, result = x.new_empty(x.shape), x.new_empty(x.shape)
    _run(x, weight, bias, epsilon, result, addend=addend, total=total)
    return total, result


@_norm.register_fake
def _(x, weight, bias, epsilon, gate, residual):
    return x.new_empty(x.shape)


@_add_norm.register_fake
def _(x, addend, weight, bias, epsilon):
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _differentiable(grad: Tensor, epsilon: float, *inputs: Tensor | None) -> list[Tensor | None]:
    """Gradients of x, weight, bias and gate that can be differentiated again, None for those that need none."""
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    if not wanted:  # only what is added needs one
        return [None] * len(inputs)
    x, weight, bias, gate = inputs
    y = F.layer_norm(x, weight.shape, weight, bias, epsilon)
    y = y if gate is None else y * F.silu(gate)
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs]


def _save_norm(ctx, inputs, output):
    x, weight, bias, ctx.epsilon, gate, _ = inputs
    ctx.save_for_backward(x, weight, bias, gate)


def _backward_norm(ctx, grad):
    x, weight, bias, gate = ctx.saved_tensors
    if torch.is_grad_enabled():
        grads = _differentiable(grad, ctx.epsilon, x, weight, bias, gate)
    else:
        grads = _gradients(grad, None, x, gate, weight, bias, ctx.epsilon)
    return *grads[:3], None, grads[3], grad if ctx.needs_input_grad[5] else None


def _save_add_norm(ctx, inputs, output):
    _, _, weight, bias, ctx.epsilon = inputs
    ctx.save_for_backward(output[0], weight, bias)
    ctx.set_materialize_grads(False)


def _backward_add_norm(ctx, grad_sum, grad):
    total, weight, bias = ctx.saved_tensors
    if grad is None:
        return grad_sum, grad_sum, None, None, None
    if torch.is_grad_enabled():
        grad_x, grad_weight, grad_bias, _ = _differentiable(grad, ctx.epsilon, total, weight, bias, None)
        grad_x = grad_sum if grad_x is None else grad_x if grad_sum is None else grad_x + grad_sum
    else:
        grad_x, grad_weight, grad_bias, _ = _gradients(grad, grad_sum, total, None, weight, bias, ctx.epsilon)
    return grad_x, grad_x, grad_weight, grad_bias, None


_norm.register_autograd(_backward_norm, setup_context=_save_norm)
_add_norm.register_autograd(_backward_add_norm, setup_context=_save_add_norm)


def _overwritten(x: Tensor) -> Tensor:
    """Where a result of the shape of x goes: x itself, whose change torch is told, or something new."""
    if not x.is_contiguous():
        return x.new_empty(x.shape)
    if not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return x


def _norm_fused(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, gate: Tensor | None, residual: Tensor | None
) -> Tensor:
    if torch.is_grad_enabled():
        return _norm(x, weight, bias, epsilon, gate, residual)
    # Past the dispatcher, for which small maps would wait longer than for the kernel.
    result = _overwritten(x)
    _run(x, weight, bias, epsilon, result, gate=gate, residual=residual)
    return result


def norm_gate(x: Tensor, gate: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm(x) * silu(gate)`, (..., C) both. Without gradients x may be overwritten. Differentiable twice."""
    if _kernel_takes(x, gate, norm):
        return _norm_fused(x, norm.weight, norm.bias, norm.eps, gate, None)
    return norm(x) * F.silu(gate)


def norm_add(x: Tensor, residual: Tensor, norm: nn.LayerNorm, scale: Tensor | None = None) -> Tensor:
    """`residual + norm(x) * scale`, (..., C) all but the scale (C,).

    Without gradients x may be overwritten. Differentiable twice.
    """
    if not _kernel_takes(x, residual, norm):
        return residual + (norm(x) if scale is None else norm(x) * scale)
    weight, bias = (norm.weight, norm.bias) if scale is None else (norm.weight * scale, norm.bias * scale)
    return _norm_fused(x, weight, bias, norm.eps, None, residual)


def add_norm(x: Tensor, addend: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """`x + addend` and its norm, (..., C). Without gradients the addend may be overwritten. Differentiable twice."""
    if not _kernel_takes(x, addend, norm):
        total = x + addend
        return total, norm(total)
    if torch.is_grad_enabled():
        return _add_norm(x, addend, norm.weight, norm.bias, norm.eps)
    total, result = _overwritten(addend), x.new_empty(x.shape)
    _run(x, norm.weight, norm.bias, norm.eps, result, addend=addend, total=total)
    return total, result
