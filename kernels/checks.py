"""What the operator accepts, and the wording when it does not."""

from functools import lru_cache

import torch
from torch import Tensor

from vheatir.kernels.dispatch import BACKENDS, compute_dtype
from vheatir.kernels.prepared import PreparedDecay

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")


def _check_float(name: str, dtype: torch.dtype) -> None:
    if dtype not in _FLOATS:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {dtype}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise unless it is a floating tensor."""
    _check_tensor(name, tensor)
    _check_float(name, tensor.dtype)


def check_backend(backend: str) -> None:
    """Raise unless it is one of `BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")


def check_decay(decay: Tensor) -> None:
    """Raise unless decay is a floating (H, W, C) or (H, W, 1) tensor with no empty side."""
    _check_tensor("decay", decay)
    _check_float("decay", decay.dtype)
    if decay.ndim != 3 or 0 in decay.shape:
        raise ValueError(f"decay must be (H, W, C) or (H, W, 1) with no empty side, got {tuple(decay.shape)}")


def _check_maps(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    _check_float("x", dtype)
    if len(shape) != 4 or 0 in shape[1:]:
        raise ValueError(f"x must be channels-last (B, H, W, C) with H, W, C >= 1, got {tuple(shape)}")


def _check_pair(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    decay_shape: tuple[int, ...],
    decay_dtype: torch.dtype,
    decay_device: torch.device,
    prepared: bool,
) -> None:
    """Raise unless maps and a decay of these kinds are accepted, each by itself and together."""
    _check_maps(shape, dtype)
    if not prepared:
        _check_float("decay", decay_dtype)
    batch, height, width, channels = shape
    own = len(decay_shape) == 4  # each image has its own
    fits = (
        len(decay_shape) in (3, 4) and tuple(decay_shape[-3:-1]) == (height, width) and decay_shape[-1] in (1, channels)
    )
    if not fits or (own and decay_shape[0] != batch):
        if tuple(decay_shape[-3:-1]) == (width, channels) and decay_shape[-1] in (1, height):
            raise ValueError(
                f"x must be channels-last (B, H, W, C), got {tuple(shape)}, which beside a decay of "
                f"{tuple(decay_shape)} is channels-first; give x.permute(0, 2, 3, 1)"
            )
        raise ValueError(
            f"decay must be ({height}, {width}, {channels}) or ({height}, {width}, 1), or one of them for each of the "
            f"{batch} images, for x of shape {tuple(shape)}, got {tuple(decay_shape)}; make it for maps of this size "
            "(resize a frequency embedding first)"
        )
    if decay_device != device:
        raise ValueError(f"x is on {device}, decay on {decay_device}; move one of them")
    wanted = compute_dtype(dtype)
    narrow = dtype in (torch.bfloat16, torch.float16)
    if prepared:
        if decay_dtype != wanted:
            raise TypeError(f"decay was prepared in {decay_dtype}, maps of {dtype} need {wanted}: prepare it again")
    elif decay_dtype != dtype and not (narrow and decay_dtype == torch.float32):
        raise TypeError(
            f"decay must be {dtype} like x{' or float32' if narrow else ''}, got {decay_dtype}; give decay.to({wanted})"
        )


_check_known_pair = lru_cache(maxsize=512)(_check_pair)


def check_pair(x: Tensor, decay: Tensor | PreparedDecay, *, plain: bool) -> None:
    """Raise unless maps and decay are accepted, each by itself and together.

    Args:
        x: what should be a floating (B, H, W, C) tensor with H, W, C >= 1.
        decay: what should be a floating (H, W, C) or (H, W, 1) tensor, one of them for each image, (B, ...), or a
            prepared decay, that fits x in size, device and type.
        plain: both are plain tensors. Kinds that have passed are then not looked at again: on small maps the checks
            would take longer than the kernel.
    """
    if plain:
        check = _check_known_pair
    else:  # sizes may be symbols of a traced graph, which no cache can hold
        check = _check_pair
        _check_tensor("x", x)
        if not isinstance(decay, PreparedDecay):
            _check_tensor("decay", decay)
    prepared = isinstance(decay, PreparedDecay)
    check(x.shape, x.dtype, x.device, decay.shape, decay.dtype, decay.device, prepared)
