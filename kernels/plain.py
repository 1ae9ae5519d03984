"""Whether tensors hold values that kernels may read past PyTorch's dispatcher."""

from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import or_

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import LayerNorm, Module, Parameter
from torch.nn.modules.module import _has_any_global_hook

_KEYS = ("CPU", "AutogradCPU", "AutocastCPU", "CUDA", "AutogradCUDA", "AutocastCUDA", "ADInplaceOrView")
_PLAIN_KEYS = reduce(or_, (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)).raw_repr() for key in _KEYS))


def runs_plainly() -> bool:
    """Whether operators compute values at once and nothing else.

    False while a graph is traced, operators are counted or faked, `vmap` and the like transform them, or values carry
    tangents: custom operators raise, or silently return wrong values, under these modes.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def are_plain(*tensors: Tensor | None) -> bool:
    """Whether these are tensors or parameters with values of their own in memory, and `runs_plainly`.

    False for None, subclasses and fakes, batches of `vmap` of both kinds, and views with a pending sign or conjugation.
    """
    if not runs_plainly():  # first: what traces a graph cannot look at keys
        return False
    for tensor in tensors:
        if tensor is None or type(tensor) not in (Tensor, Parameter):
            return False
        if torch._C._dispatch_keys(tensor).raw_repr() & ~_PLAIN_KEYS:
            return False
    return True


def full_precision(like: Tensor) -> AbstractContextManager:
    """Autocast off for the device of a tensor; on "meta", which has none, nothing to do."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def is_autocast_on(like: Tensor) -> bool:
    """Whether autocast is on for the device of a tensor; never on "meta", which has none."""
    return not like.is_meta and torch.is_autocast_enabled(like.device.type)


def has_hooks(module: Module) -> bool:
    """Whether something asks to be called with the module or with every one, which a fused pass would leave out."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _has_any_global_hook()
    )


def normalizes_channels(norm: LayerNorm, x: Tensor) -> bool:
    """Whether a norm is one of the last axis of x, with weight and bias: a kernel reads as many of them as channels."""
    channels = x.shape[-1:]
    return norm.normalized_shape == channels and all(
        one is not None and one.shape == channels for one in (norm.weight, norm.bias)
    )
