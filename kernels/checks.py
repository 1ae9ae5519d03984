"""What the operator accepts, and the wording when it does not."""

from functools import lru_cache, reduce
from operator import or_
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from vheatir.kernels.dispatch import compute_dtype
from vheatir.kernels.prepared import PreparedDecay

_KEYS = ("CPU", "AutogradCPU", "AutocastCPU", "CUDA", "AutogradCUDA", "AutocastCUDA", "ADInplaceOrView")
_PLAIN_KEYS = reduce(or_, (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)).raw_repr() for key in _KEYS))
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")


def _check_float(name: str, dtype: torch.dtype) -> None:
    if dtype not in _FLOATS:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {dtype}")


def check_decay(decay: Tensor) -> None:
    """Raise unless decay is a floating (H, W, C) or (H, W, 1) tensor with no empty side."""
    _check_tensor("decay", decay)
    _check_decay(decay.shape, decay.dtype)


def _check_decay(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    _check_float("decay", dtype)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"decay must be (H, W, C) or (H, W, 1) with no empty side, got {tuple(shape)}")


def check_maps(x: Tensor) -> None:
    """Raise unless x is a floating (B, H, W, C) tensor with H, W, C >= 1."""
    _check_tensor("x", x)
    _check_maps(x.shape, x.dtype)


def _check_maps(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    _check_float("x", dtype)
    if len(shape) != 4 or 0 in shape[1:]:
        raise ValueError(f"x must be channels-last (B, H, W, C) with H, W, C >= 1, got {tuple(shape)}")


class _Kind(NamedTuple):
    """All that the checks want to know of a tensor or a prepared decay."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    prepared: bool

    @classmethod
    def of(cls, tensor: Tensor | PreparedDecay) -> "_Kind":
        return cls(tensor.shape, tensor.dtype, tensor.device, isinstance(tensor, PreparedDecay))


def check_pair(x: Tensor, decay: Tensor | PreparedDecay) -> None:
    """Raise unless the decay fits the maps in size, device and type."""
    _check_fit(_Kind.of(x), _Kind.of(decay))


def check_plain(x: Tensor, decay: Tensor | PreparedDecay) -> None:
    """All of the above for tensors that `are_plain`; a pair of a kind that has passed is not looked at again."""
    _check_plain(_Kind.of(x), _Kind.of(decay))


@lru_cache(maxsize=512)  # small maps would wait longer for the checks than for the kernel
def _check_plain(x: _Kind, decay: _Kind) -> None:
    _check_maps(x.shape, x.dtype)
    if not decay.prepared:
        _check_decay(decay.shape, decay.dtype)
    _check_fit(x, decay)


def _check_fit(x: _Kind, decay: _Kind) -> None:
    height, width, channels = x.shape[1:]
    if tuple(decay.shape[:2]) != (height, width) or decay.shape[2] not in (1, channels):
        raise ValueError(
            f"decay must be ({height}, {width}, {channels}) or ({height}, {width}, 1) for x of shape "
            f"{tuple(x.shape)}, got {tuple(decay.shape)}; resize the frequency embedding to the map first"
        )
    if decay.device != x.device:
        raise ValueError(f"x is on {x.device}, decay on {decay.device}; move one of them")
    wanted = compute_dtype(x.dtype)
    if decay.prepared:
        if decay.dtype != wanted:
            raise TypeError(f"decay was prepared in {decay.dtype}, maps of {x.dtype} need {wanted}: prepare it again")
    elif decay.dtype != x.dtype and not (decay.dtype == torch.float32 and x.dtype in _FLOATS[2:]):
        raise TypeError(
            f"decay must be {x.dtype} like x{' or float32' if x.dtype in _FLOATS[2:] else ''}, got {decay.dtype}"
        )


def runs_plainly() -> bool:
    """Whether operators compute values at once and nothing else.

    False while a graph is traced, operators are counted or faked, `vmap` and the like transform them, or values carry
    tangents: of operators that PyTorch knows little of these make an error or, without a word, something wrong.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def are_plain(*tensors: Tensor | None) -> bool:
    """Whether these are tensors or parameters with values of their own in memory, and `runs_plainly`.

    False for subclasses and fakes, batches of `vmap` of both kinds, and views with a pending sign or conjugation.
    """
    if not runs_plainly():  # first: what traces a graph cannot look at keys
        return False
    return all(
        type(tensor) in (Tensor, Parameter) and not torch._C._dispatch_keys(tensor).raw_repr() & ~_PLAIN_KEYS
        for tensor in tensors
    )
