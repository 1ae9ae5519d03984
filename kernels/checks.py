"""What the operator accepts, and the wording when it does not."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vheatir.kernels.paths import compute_dtype
from vheatir.kernels.prepared import PreparedDecay

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _check_float(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")


def check_decay(decay: Tensor) -> None:
    """Raise unless decay is a floating (H, W, C) or (H, W, 1) tensor with no empty side."""
    _check_float("decay", decay)
    if decay.ndim != 3 or 0 in decay.shape:
        raise ValueError(f"decay must be (H, W, C) or (H, W, 1) with no empty side, got {tuple(decay.shape)}")


def check_maps(x: Tensor) -> None:
    """Raise unless x is a floating (B, H, W, C) tensor with H, W, C >= 1."""
    _check_float("x", x)
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must be channels-last (B, H, W, C) with H, W, C >= 1, got {tuple(x.shape)}")


def check_pair(x: Tensor, decay: Tensor | PreparedDecay) -> None:
    """Raise unless the decay fits the maps in size, device and type."""
    height, width, channels = x.shape[1:]
    fits = tuple(decay.shape[:2]) == (height, width) and decay.shape[2] in (1, channels)
    if not fits:
        raise ValueError(
            f"decay must be ({height}, {width}, {channels}) or ({height}, {width}, 1) for x of shape "
            f"{tuple(x.shape)}, got {tuple(decay.shape)}; resize the frequency embedding to the map first"
        )
    if decay.device != x.device:
        raise ValueError(f"x is on {x.device}, decay on {decay.device}; move one of them")
    wanted = compute_dtype(x.dtype)
    if isinstance(decay, PreparedDecay):
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
