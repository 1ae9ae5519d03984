"""The heat conduction operator as torch.library operators, and the two public functions around them.

Plain tensors reach the native kernels past these operators; traced graphs, transforms and all else need them.

Five operators: conduct (y), conduct_with_spectrum (y and the spectrum of x, both differentiable), conduct_prepared
(decay folded beforehand, no gradient to it), cosine_transform, and conduct_gradients, which does a whole backward in
one call where nobody differentiates it again. In x the operator is its own adjoint, so each
backward is one more call of the operator, and the gradient of the decay is the product of two spectra; second
derivatives follow because the backward consists of the same operators.
"""

from functools import reduce
from operator import or_
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from vheatir.kernels import checks, dispatch, flops
from vheatir.kernels.cpu import kernel as cpu_kernel
from vheatir.kernels.cuda import kernel as cuda_kernel
from vheatir.kernels.plain import are_plain
from vheatir.kernels.prepared import PreparedDecay
from vheatir.kernels.reference import hco_reference
from vheatir.kernels.torch_path import Transform

_FORMULA = "formula"
PROFILED = "vheatir::heat_conduction"  # the range in PyTorch's profiler, which does not see the native kernels
_NATIVE = {dispatch.CPU_KERNEL: cpu_kernel, dispatch.CUDA: cuda_kernel}


def _choose(x: Tensor, path: str) -> dispatch.Path:
    """The path of that name, or what the backend of that name means for x."""
    if path.startswith("torch:"):
        return dispatch.Path.parse(path)
    return dispatch.choose(x.shape[1], x.shape[2], x.device, path, x.dtype)


def _transform(x: Tensor, path: dispatch.Path) -> Transform:
    dtype = dispatch.compute_dtype(x.dtype)
    return Transform(x.shape[1], x.shape[2], (path.halvings_h, path.halvings_w), dtype, x.device)


def _one_by_one(x: Tensor, decay: Tensor, path: dispatch.Path) -> bool:
    """Whether every image has a decay of its own, and the path takes one decay at a time."""
    return decay.ndim == 4 and path.kernel != dispatch.CPU_KERNEL and len(x) > 0


@torch.library.custom_op("vheatir::conduct", mutates_args=())
def _conduct(x: Tensor, decay: Tensor, backend: str) -> Tensor:
    path = _choose(x, backend)
    if _one_by_one(x, decay, path):
        return torch.cat([_conduct(one[None], own, backend) for one, own in zip(x, decay, strict=True)])
    if path.kernel:
        return _NATIVE[path.kernel].conduct(x, decay)
    transform = _transform(x, path)
    wide = x.to(dispatch.compute_dtype(x.dtype))
    return transform.conduct(wide, transform.fold(decay)).to(x.dtype)


@torch.library.custom_op("vheatir::conduct_with_spectrum", mutates_args=())
def _conduct_with_spectrum(x: Tensor, decay: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    path = _choose(x, backend)
    if _one_by_one(x, decay, path):
        pairs = [_conduct_with_spectrum(one[None], own, backend) for one, own in zip(x, decay, strict=True)]
        return torch.cat([y for y, _ in pairs]), torch.cat([spectrum for _, spectrum in pairs])
    if path.kernel:
        return _NATIVE[path.kernel].conduct_with_spectrum(x, decay)
    transform = _transform(x, path)
    wide = x.to(dispatch.compute_dtype(x.dtype))
    y, spectrum = transform.conduct_with_spectrum(wide, transform.fold(decay))
    return y.to(x.dtype), transform.to_natural_order(spectrum)


def _prepared_now(x: Tensor, folded: Tensor, path: str) -> Tensor:
    if native := _NATIVE.get(path):
        refuse = dispatch.cpu_kernel_refusal if path == dispatch.CPU_KERNEL else dispatch.cuda_refusal
        if refuse(x.shape[1], x.shape[2], x.device, x.dtype) is None:
            return native.conduct(x, folded, prepared=True)
        # Prepared where there is a kernel and brought to where there is none.
        return _conduct(x, native.unprepare(folded), "torch")
    return _transform(x, _choose(x, path)).conduct(x.to(folded.dtype), folded).to(x.dtype)


@torch.library.custom_op("vheatir::conduct_prepared", mutates_args=())
def _conduct_prepared(x: Tensor, folded: Tensor, path: str) -> Tensor:
    return _prepared_now(x, folded, path)


@torch.library.custom_op("vheatir::cosine_transform", mutates_args=())
def _cosine_transform(x: Tensor, inverse: bool, backend: str = "auto") -> Tensor:
    path = _choose(x, "torch" if inverse else backend)
    if path.kernel:
        return _NATIVE[path.kernel].transform(x)
    transform = _transform(x, path)
    wide = x.to(dispatch.compute_dtype(x.dtype))
    if inverse:
        spectrum = transform.to_path_order(wide)
        fresh = spectrum is not x and spectrum.is_contiguous()  # inverse() works in place
        return transform.inverse(spectrum if fresh else spectrum.clone(memory_format=torch.contiguous_format))
    return transform.to_natural_order(transform.forward(wide))


def _native_gradients(grad: Tensor, spectrum: Tensor, decay: Tensor, kernel: str) -> tuple[Tensor, Tensor]:
    grad_x, grad_decay = _NATIVE[kernel].gradients(grad, spectrum, decay)
    return grad_x, _sum_to(grad_decay, decay)


@torch.library.custom_op("vheatir::conduct_gradients", mutates_args=())
def _conduct_gradients(grad: Tensor, spectrum: Tensor, decay: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    path = _choose(grad, backend)
    if path.kernel and not _one_by_one(grad, decay, path):
        return _native_gradients(grad, spectrum, decay, path.kernel)
    grad_x, grad_spectrum = _conduct_with_spectrum(grad, decay, backend)
    if decay.ndim == 4:
        return grad_x, _sum_to(spectrum * grad_spectrum, decay)
    total = spectrum[0] * grad_spectrum[0] if len(spectrum) else spectrum.new_zeros(spectrum.shape[1:])
    for one, other in zip(spectrum[1:], grad_spectrum[1:], strict=True):
        total.addcmul_(one, other)
    return grad_x, _sum_to(total, decay)


@_conduct.register_fake
def _(x, decay, backend):
    return x.new_empty(x.shape)


@_conduct_with_spectrum.register_fake
def _(x, decay, backend):
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=dispatch.compute_dtype(x.dtype))


@_conduct_prepared.register_fake
def _(x, folded, path):
    return x.new_empty(x.shape)


@_cosine_transform.register_fake
def _(x, inverse, backend="auto"):
    return x.new_empty(x.shape, dtype=dispatch.compute_dtype(x.dtype))


@_conduct_gradients.register_fake
def _(grad, spectrum, decay, backend):
    return grad.new_empty(grad.shape), decay.new_empty(decay.shape)


def _sum_to(total: Tensor, decay: Tensor) -> Tensor:
    """A (B, H, W, C) or (H, W, C) gradient for a decay of that shape, without B, or with C = 1, in its type."""
    if total.ndim > decay.ndim:
        total = total.sum(0)
    if decay.shape[-1] == 1 and total.shape[-1] != 1:
        total = total.sum(-1, keepdim=True)
    return total.to(decay.dtype)


def _gradients(ctx, grad: Tensor, spectrum: Tensor, decay: Tensor) -> tuple[Tensor | None, Tensor]:
    """Gradients of x, where x needs one, and of the decay: the product of both spectra, summed over the batch."""
    if not ctx.needs_input_grad[0]:
        return None, _sum_to(spectrum * _cosine_transform(grad, False, ctx.backend), decay)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():  # made of what can be differentiated again
        grad_x, grad_spectrum = _conduct_with_spectrum(grad, decay, ctx.backend)
        return grad_x, _sum_to(spectrum * grad_spectrum, decay)
    kernel = getattr(ctx, "kernel", "")
    if kernel and are_plain(grad, spectrum, decay) and (decay.ndim == 3 or kernel == dispatch.CPU_KERNEL):
        return _native_gradients(grad, spectrum, decay, kernel)
    return _conduct_gradients(grad, spectrum, decay, ctx.backend)


def _save_conduct(ctx, inputs, output):
    x, decay, ctx.backend = inputs
    # x serves only the decay's gradient; kept in 16 bits it is half the spectrum's size.
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, decay)


def _backward_conduct(ctx, grad):
    x, decay = ctx.saved_tensors
    if x is None:
        return _conduct(grad, decay, ctx.backend), None, None
    return *_gradients(ctx, grad, _cosine_transform(x, False, ctx.backend), decay), None


def _save_conduct_with_spectrum(ctx, inputs, output):
    _, decay, ctx.backend = inputs
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(decay, output[1] if ctx.needs_input_grad[1] else None)


def _backward_conduct_with_spectrum(ctx, grad, grad_of_spectrum):
    decay, spectrum = ctx.saved_tensors
    grad_x = grad_decay = None
    if grad is not None and spectrum is not None:
        grad_x, grad_decay = _gradients(ctx, grad, spectrum, decay)
    elif grad is not None:
        grad_x = _conduct(grad, decay, ctx.backend)
    if grad_of_spectrum is not None and ctx.needs_input_grad[0]:
        through_spectrum = _cosine_transform(grad_of_spectrum, True, ctx.backend).to(ctx.dtype)
        grad_x = through_spectrum if grad_x is None else grad_x + through_spectrum
    return grad_x, grad_decay, None


def _save_conduct_prepared(ctx, inputs, output):
    _, folded, ctx.path = inputs
    ctx.save_for_backward(folded)


def _backward_conduct_prepared(ctx, grad):
    if ctx.needs_input_grad[1]:
        raise RuntimeError("a prepared decay has no gradient: pass the decay itself to heat_conduction")
    (folded,) = ctx.saved_tensors
    at_once = ctx.path in _NATIVE and not torch.is_grad_enabled() and are_plain(grad, folded)
    return (_prepared_now if at_once else _conduct_prepared)(grad, folded, ctx.path), None, None


def _save_cosine_transform(ctx, inputs, output):
    x, ctx.inverse, ctx.backend = inputs
    ctx.dtype = x.dtype


def _backward_cosine_transform(ctx, grad):
    return _cosine_transform(grad, not ctx.inverse, ctx.backend).to(ctx.dtype), None, None


_conduct.register_autograd(_backward_conduct, setup_context=_save_conduct)
_conduct_with_spectrum.register_autograd(_backward_conduct_with_spectrum, setup_context=_save_conduct_with_spectrum)
_conduct_prepared.register_autograd(_backward_conduct_prepared, setup_context=_save_conduct_prepared)
_cosine_transform.register_autograd(_backward_cosine_transform, setup_context=_save_cosine_transform)

_AUTOCAST_KEYS = [name for name in torch._C.DispatchKey.__members__ if name.startswith("Autocast")]  # one for a device
_library = torch.library.Library("vheatir", "FRAGMENT")


def register_autocast_rule(name: str) -> None:
    """Under autocast the operator keeps its input's type and none of its products is narrowed."""
    operator = getattr(torch.ops.vheatir, name).default
    keys = reduce(or_, (torch._C.DispatchKeySet(torch._C.DispatchKey.__members__[key]) for key in _AUTOCAST_KEYS))

    def rule(*args):
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*args)

    for key in _AUTOCAST_KEYS:
        _library.impl(name, rule, key)


for _name in ("conduct", "conduct_with_spectrum", "conduct_prepared", "cosine_transform", "conduct_gradients"):
    register_autocast_rule(_name)
flops.register()


class Call(NamedTuple):
    """How a call of the operator runs, decided once it is checked.

    Attributes:
        path: argument of the operators: the path's name, or the backend where they choose themselves, on the machine
            and with the sizes that a traced graph then runs with. `_FORMULA` where no operator can run.
        kernel: the native kernels that are called past the operators, or "" for none. On small maps PyTorch's
            dispatcher of custom operators would take longer than the kernel.
    """

    path: str
    kernel: str


def is_differentiated_as_a_function() -> bool:
    """Whether values carry tangents, or torch.func differentiates: PyTorch's custom operators support neither."""
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    stack = get_interpreter_stack() if torch._C._are_functorch_transforms_active() else ()
    return any(one.key() in (TransformType.Grad, TransformType.Jvp) for one in stack or ())


def _check_and_choose(x: Tensor, decay: Tensor | PreparedDecay, backend: str) -> Call:
    if isinstance(decay, PreparedDecay):
        plain = are_plain(x, decay.folded)
        checks.check_pair(x, decay, plain=plain)
        if not plain and is_differentiated_as_a_function():
            return Call(_FORMULA, "")
        return Call(decay.path, decay.path if plain and decay.path in _NATIVE else "")
    checks.check_backend(backend)
    plain = are_plain(x, decay)
    checks.check_pair(x, decay, plain=plain)
    if plain:
        path = _choose(x, backend)
        return Call(backend if path.kernel else path.name, path.kernel)
    by_formula = is_differentiated_as_a_function()
    if by_formula and backend in _NATIVE:
        raise ValueError(
            f"backend {backend!r} runs neither under torch.func's transforms nor with forward-mode tangents; take "
            "'auto' or 'torch'"
        )
    if by_formula:
        return Call(_FORMULA, "")
    if backend in _NATIVE and not torch.compiler.is_compiling():
        _choose(x, backend)  # raises before anything runs; a traced graph raises in the operator
    return Call(backend, "")


class _WithSpectrumAtOnce(torch.autograd.Function):
    """conduct_with_spectrum past the dispatcher."""

    @staticmethod
    def forward(ctx, x: Tensor, decay: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        outputs = _NATIVE[call.kernel].conduct_with_spectrum(x, decay)
        _save_conduct_with_spectrum(ctx, (x, decay, call.path), outputs)
        ctx.kernel = call.kernel
        return outputs

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _backward_conduct_with_spectrum(ctx, *grads)


class _PreparedAtOnce(torch.autograd.Function):
    """conduct_prepared past the dispatcher."""

    @staticmethod
    def forward(ctx, x: Tensor, folded: Tensor, kernel: str) -> Tensor:
        _save_conduct_prepared(ctx, (x, folded, kernel), None)
        return _prepared_now(x, folded, kernel)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _backward_conduct_prepared(ctx, *grads)


def _conduct_folded(x: Tensor, folded: Tensor, call: Call) -> Tensor:
    if not call.kernel:
        return _conduct_prepared(x, folded, call.path)
    if x.requires_grad and torch.is_grad_enabled():
        return _PreparedAtOnce.apply(x, folded, call.kernel)
    return _prepared_now(x, folded, call.kernel)


def _conduct_checked(x: Tensor, decay: Tensor, call: Call) -> Tensor:
    # torch.jit.trace checks its graph by a second pass without gradients, which must call the same operators.
    traced = not torch.compiler.is_compiling() and torch._C._is_tracing()
    differentiable = torch.is_grad_enabled() and not traced
    at_once = call.kernel and (decay.ndim == 3 or call.kernel == dispatch.CPU_KERNEL)
    # For 16-bit maps x itself is the cheaper thing to keep: it is half the size of a float32 spectrum.
    if differentiable and decay.requires_grad and x.dtype == dispatch.compute_dtype(x.dtype):
        if at_once:
            return _WithSpectrumAtOnce.apply(x, decay, call)[0]
        return _conduct_with_spectrum(x, decay, call.path)[0]
    if at_once and not (differentiable and (x.requires_grad or decay.requires_grad)):
        return _NATIVE[call.kernel].conduct(x, decay)
    return _conduct(x, decay, call.path)


def _by_formula(x: Tensor, decay: Tensor | PreparedDecay) -> Tensor:
    """The definition itself, made of what every transform of PyTorch knows."""
    if isinstance(decay, PreparedDecay):
        if native := _NATIVE.get(decay.path):
            natural = native.unprepare(decay.folded)
        else:
            natural = _transform(x, _choose(x, decay.path)).to_natural_order(decay.folded)
    else:
        natural = decay
    wide = dispatch.compute_dtype(x.dtype)
    return hco_reference(x.to(wide), natural.to(wide)).to(x.dtype)


def heat_conduction(x: Tensor, decay: Tensor | PreparedDecay, *, backend: str = "auto") -> Tensor:
    """Conduct heat through feature maps: DCT-II over H and W, product with `decay`, inverse DCT.

    Equals `hco_reference(x, decay)`; 16-bit maps are computed in float32 and rounded once at the end.

    Args:
        x: (B, H, W, C), channels-last; float64, float32, bfloat16 or float16; any strides.
        decay: (H, W, C) or (H, W, 1), or one of them for each image, (B, ...); any real values, dtype of x or float32
            beside 16-bit x; or what `prepare_decay` made of it, where the decay needs no gradient. On a CPU, subnormal
            numbers of the arithmetic (below 1.2e-38; of float64, 2.2e-308) are zero; gradients of the decay are the
            same there as elsewhere.
        backend: "auto", or "torch" for the PyTorch path, or "cpu_kernel" or "cuda" for native ones, which then may not
            be replaced. Ignored for a prepared decay, which holds its own path.

    Returns:
        (B, H, W, C), contiguous, dtype of x. Differentiable twice in x and decay; each gradient has its input's dtype.
        Counted by `torch.utils.flop_counter`, and named `vheatir::heat_conduction` in PyTorch's profiler.
        With forward-mode tangents and under torch.func's derivatives the formula itself is computed, without kernels.

    Raises:
        TypeError: an input is no floating tensor, or the types do not fit each other.
        ValueError: the shapes or devices do not fit each other, or the backend is unknown or cannot run.

    Source: vHeat, arXiv 2405.16555.
    """
    if not torch.compiler.is_compiling() and _profiler_enabled():
        with torch.profiler.record_function(PROFILED):
            return _conduct_any(x, decay, backend)
    return _conduct_any(x, decay, backend)


def _conduct_any(x: Tensor, decay: Tensor | PreparedDecay, backend: str) -> Tensor:
    call = _check_and_choose(x, decay, backend)
    if call.path == _FORMULA:
        return _by_formula(x, decay)
    if isinstance(decay, PreparedDecay):
        return _conduct_folded(x, decay.folded, call)
    return _conduct_checked(x, decay, call)


def prepare_decay(decay: Tensor, *, backend: str = "auto") -> PreparedDecay:
    """Fold a decay once for the path that will run, for use in place of the decay where it needs no gradient.

    Args:
        decay: (H, W, C) or (H, W, 1); float64 serves float64 maps, any other type all other maps. Detached and copied.
        backend: as in `heat_conduction`.

    Raises:
        TypeError, ValueError: as in `heat_conduction`.
    """
    checks.check_decay(decay)
    height, width, channels = decay.shape
    shape = (height, width, channels)
    dtype = dispatch.compute_dtype(decay.dtype)
    path = dispatch.choose(height, width, decay.device, backend, dtype)
    # A normal tensor even when made in inference mode: a later training step may save it for its backward.
    with torch.inference_mode(False), torch.no_grad():
        if path.kernel:
            return PreparedDecay(_NATIVE[path.kernel].prepare(decay), path.name, shape)
        transform = Transform(height, width, (path.halvings_h, path.halvings_w), dtype, decay.device)
        folded = transform.fold(decay)
    return PreparedDecay(folded, path.name, shape)
