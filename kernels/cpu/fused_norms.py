"""Layer norm with its neighbors in a heat block, in one pass over memory: the sum before it, what follows it.

`norm_gate`, `add_norm` and `norm_add` are what their formulas say. Where the native CPU kernel takes the tensors it
does them at once; elsewhere, and while a graph is traced, they are plain PyTorch, which compilers fuse themselves.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vheatir.kernels.cpu import library as native
from vheatir.kernels.cpu.formulas import by_formula, formula_gradients
from vheatir.kernels.cpu.kernel import threads_for
from vheatir.kernels.plain import are_plain, has_hooks, normalizes_channels

_CHUNK = 256  # rows that are summed to one row of a weight's gradient, as in csrc/api.h


# Fields in the order of csrc/api.h.
class _RowsJob(ctypes.Structure):
    """What both jobs begin with."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("x_row", ctypes.c_int64),
        ("gate_row", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("x", ctypes.c_void_p),
    )


class _Job(_RowsJob):
    """vheatir_norm_job."""

    _fields_ = (
        ("addend", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("gate", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("sum", ctypes.c_void_p),
        ("result", ctypes.c_void_p),
        ("epsilon", ctypes.c_double),
    )


class _GradientJob(_RowsJob):
    """vheatir_norm_gradient_job."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("gate", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("grad_sum", ctypes.c_void_p),
        ("grad_x", ctypes.c_void_p),
        ("grad_gate", ctypes.c_void_p),
        ("grad_weight", ctypes.c_void_p),
        ("grad_bias", ctypes.c_void_p),
        ("epsilon", ctypes.c_double),
    )


def _kernel_takes(x: Tensor, other: Tensor, norm: nn.LayerNorm) -> bool:
    return (
        type(norm) is nn.LayerNorm  # what stands in its place is called
        and are_plain(x, other, norm.weight, norm.bias)
        and not has_hooks(norm)
        and normalizes_channels(norm, x)
        and x.shape == other.shape
        and x.numel() > 0
        and all(t.dtype == torch.float32 and t.is_cpu for t in (x, other, norm.weight, norm.bias))
        and native.refusal() is None
    )


def _scales(scale: Tensor | None, x: Tensor) -> bool:
    """Whether the kernel's weight and bias can be multiplied with it."""
    return scale is None or (
        are_plain(scale) and scale.dtype == torch.float32 and scale.is_cpu and scale.shape == x.shape[-1:]
    )


def _rows(x: Tensor) -> Tensor:
    """(..., C) as (rows, C) with adjacent channels: a view where the rows lie evenly apart."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _packed(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


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
    # Named here, so that they are held until the call returns: the job has only addresses.
    rows = _rows(x)
    gates = None if gate is None else _rows(gate)
    weights = weight.contiguous()
    biases = bias.contiguous()
    addends = _packed(addend)
    residuals = _packed(residual)
    job = _Job(
        rows=rows.shape[0],
        channels=rows.shape[1],
        x_row=rows.stride(0),
        gate_row=0 if gates is None else gates.stride(0),
        threads=threads_for(rows.numel()),
        x=rows.data_ptr(),
        addend=_address(addends),
        weight=weights.data_ptr(),
        bias=biases.data_ptr(),
        gate=_address(gates),
        residual=_address(residuals),
        sum=_address(total),
        result=result.data_ptr(),
        epsilon=epsilon,
    )
    native.functions().vheatir_norm(ctypes.byref(job))


def _gradients(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight, bias and the gate, None without one."""
    rows = _rows(x)
    gates = None if gate is None else _rows(gate)
    weights = weight.contiguous()
    biases = bias.contiguous()
    grads = grad.contiguous()
    grads_of_sum = _packed(grad_sum)
    grad_x = x.new_empty(x.shape)
    grad_gate = None if gate is None else x.new_empty(x.shape)
    chunks = -(-len(rows) // _CHUNK)
    sums = x.new_empty(2, chunks, rows.shape[1])
    job = _GradientJob(
        rows=rows.shape[0],
        channels=rows.shape[1],
        x_row=rows.stride(0),
        gate_row=0 if gates is None else gates.stride(0),
        threads=threads_for(rows.numel()),
        x=rows.data_ptr(),
        weight=weights.data_ptr(),
        bias=biases.data_ptr(),
        gate=_address(gates),
        grad=grads.data_ptr(),
        grad_sum=_address(grads_of_sum),
        grad_x=grad_x.data_ptr(),
        grad_gate=_address(grad_gate),
        grad_weight=sums[0].data_ptr(),
        grad_bias=sums[1].data_ptr(),
        epsilon=epsilon,
    )
    native.functions().vheatir_norm_gradient(ctypes.byref(job))
    grad_weight, grad_bias = sums.sum(1)
    return grad_x, grad_weight, grad_bias, grad_gate


@torch.library.custom_op("vheatir::norm", mutates_args=())
def _norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, gate: Tensor | None, residual: Tensor | None
) -> Tensor:
    result = x.new_empty(x.shape)
    _run(x, weight, bias, epsilon, result, gate=gate, residual=residual)
    return result


@torch.library.custom_op("vheatir::add_norm", mutates_args=())
def _add_norm(x: Tensor, addend: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total = x.new_empty(x.shape)
    result = x.new_empty(x.shape)
    _run(x, weight, bias, epsilon, result, addend=addend, total=total)
    return total, result


@_norm.register_fake
def _(x, weight, bias, epsilon, gate, residual):
    return x.new_empty(x.shape)


@_add_norm.register_fake
def _(x, addend, weight, bias, epsilon):
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _differentiable(
    grad: Tensor, epsilon: float, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias and gate by their formula, None for those that need none."""

    def formula(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None) -> Tensor:
        y = F.layer_norm(x, list(weight.shape), weight, bias, epsilon)
        return y if gate is None else y * F.silu(gate)

    return formula_gradients(formula, (x, weight, bias, gate), grad)


def _save_norm(ctx, inputs, output):
    x, weight, bias, ctx.epsilon, gate, _ = inputs
    ctx.save_for_backward(x, weight, bias, gate)


def _backward_norm(ctx, grad):
    x, weight, bias, gate = ctx.saved_tensors
    if by_formula(grad):
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
    if by_formula(grad, grad_sum):
        grad_x, grad_weight, grad_bias, _ = _differentiable(grad, ctx.epsilon, total, weight, bias, None)
        if grad_x is None:
            grad_x = grad_sum
        elif grad_sum is not None:
            grad_x = grad_x + grad_sum
    else:
        grad_x, grad_weight, grad_bias, _ = _gradients(grad, grad_sum, total, None, weight, bias, ctx.epsilon)
    return grad_x, grad_x, grad_weight, grad_bias, None


_norm.register_autograd(_backward_norm, setup_context=_save_norm)
_add_norm.register_autograd(_backward_add_norm, setup_context=_save_add_norm)


def _overwritten(x: Tensor) -> Tensor:
    """Where a result of the shape of x goes: x itself, marked as changed, or a new tensor."""
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
    """`norm(x) * silu(gate)`. Without gradients x may be overwritten. Differentiable twice.

    Args:
        x: (..., C).
        gate: likewise.
        norm: over the C channels, with weight and bias.
    """
    if _kernel_takes(x, gate, norm):
        return _norm_fused(x, norm.weight, norm.bias, norm.eps, gate, None)
    return norm(x) * F.silu(gate)


def norm_add(x: Tensor, residual: Tensor, norm: nn.LayerNorm, scale: Tensor | None = None) -> Tensor:
    """`residual + norm(x) * scale`. Without gradients x may be overwritten. Differentiable twice.

    Args:
        x: (..., C).
        residual: likewise.
        norm: over the C channels, with weight and bias.
        scale: (C,); None for 1.
    """
    if not _kernel_takes(x, residual, norm) or not _scales(scale, x):
        return residual + (norm(x) if scale is None else norm(x) * scale)
    weight = norm.weight
    bias = norm.bias
    if scale is not None:
        weight = weight * scale
        bias = bias * scale
    return _norm_fused(x, weight, bias, norm.eps, None, residual)


def add_norm(x: Tensor, addend: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """`x + addend` and its norm. Without gradients the addend may be overwritten. Differentiable twice.

    Args:
        x: (..., C).
        addend: likewise.
        norm: over the C channels, with weight and bias.
    """
    if not _kernel_takes(x, addend, norm):
        total = x + addend
        return total, norm(total)
    if torch.is_grad_enabled():
        return _add_norm(x, addend, norm.weight, norm.bias, norm.eps)
    total = _overwritten(addend)
    result = x.new_empty(x.shape)
    _run(x, norm.weight, norm.bias, norm.eps, result, addend=addend, total=total)
    return total, result
