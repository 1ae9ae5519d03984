"""Calls of the native CPU kernel: when it can run, and the jobs it gets. The kernel itself checks nothing."""

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from vheatir.kernels.cpu import library as native
from vheatir.kernels.cpu.plan import LONG_LEAF, SHORT_LEAF, axis_plan
from vheatir.kernels.cpu.plan_steps import Plan

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_MAPS, _SHARED, _TILES = 1, 2, 3  # orders of a decay, as in csrc/api.h
_TILE = 16
_LEAST_ELEMENTS_PER_THREAD = 1 << 15  # less work than this is not worth waking a thread, as in torch


class _Plan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("length", "slots", "step_count")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("steps", "rows", "table")),
    )


class _Job(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels")),
        ("along_height", _Plan),
        ("along_width", _Plan),
        ("source", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("source_image", "source_row", "source_pixel")),
        ("target", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("source_type", "target_type", "decay_order", "threads")),
        *(
            (name, ctypes.c_void_p)
            for name in ("decay", "keep_spectrum", "other_spectrum", "decay_gradient", "workspace")
        ),
    )


@lru_cache(maxsize=64)
def _plan(length: int, instructions: str) -> tuple[_Plan, Plan]:
    """The plan's addresses, and the plan, which owns the memory."""
    plan = axis_plan(length, LONG_LEAF if instructions == "avx512" else SHORT_LEAF)
    addresses = (array.ctypes.data for array in (plan.steps, plan.rows, plan.table))
    return _Plan(plan.length, plan.slots, len(plan.steps), plan.scale, *addresses), plan


def prepare(decay: Tensor) -> Tensor:
    """A float32 copy of an (H, W, C) decay in the order in which the kernel reads it; (H, W, 1) keeps its order."""
    height, width, channels = decay.shape
    decay = decay.to(torch.float32, copy=True).contiguous()
    if channels == 1:
        return decay
    lines = decay.reshape(height, width * channels)
    whole = width * channels // _TILE * _TILE
    tiles = lines[:, :whole].reshape(height, whole // _TILE, _TILE).transpose(0, 1)
    return torch.cat((tiles.reshape(-1), lines[:, whole:].reshape(-1))).view(decay.shape)


def unprepare(prepared: Tensor) -> Tensor:
    """The decay that `prepare` was given, in float32."""
    height, width, channels = prepared.shape
    if channels == 1:
        return prepared
    whole = width * channels // _TILE * _TILE
    flat = prepared.reshape(-1)
    tiles = flat[: height * whole].view(whole // _TILE, height, _TILE).transpose(0, 1).reshape(height, whole)
    return torch.cat((tiles, flat[height * whole :].view(height, -1)), 1).view(prepared.shape)


@lru_cache(maxsize=512)
def _unbound(
    sizes: tuple[int, ...], strides: tuple[int, ...], types: tuple[int, int], decay_order: int, instructions: str
) -> tuple[_Job, tuple[Plan, Plan]]:
    """A job without addresses and threads, and the plans that it points into. Kept: small maps would wait for it."""
    batch, height, width, channels = sizes
    (along_height, plan_h), (along_width, plan_w) = (_plan(side, instructions) for side in (height, width))
    job = _Job(batch, height, width, channels, along_height, along_width)
    job.source_image, job.source_row, job.source_pixel = strides[:3]
    job.source_type, job.target_type = types
    job.decay_order = decay_order
    return job, (plan_h, plan_w)


def _like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _run(
    x: Tensor,
    *,
    y: Tensor | None = None,
    decay: Tensor | None = None,
    in_tiles: bool = False,
    spectrum: Tensor | None = None,
    other_spectrum: Tensor | None = None,
    decay_gradient: Tensor | None = None,
) -> None:
    count = x.numel()
    if count == 0:
        return
    sizes = x.shape
    if x.stride(3) != 1 and sizes[3] > 1:
        x = x.contiguous()
    order = 0
    if decay is not None:
        decay = (decay if decay.dtype == torch.float32 else decay.float()).contiguous()
        order = _TILES if in_tiles else _MAPS if decay.shape[2] == sizes[3] else _SHARED
    result = y if y is not None else spectrum
    types = _TYPES[x.dtype], _TYPES[result.dtype]
    # With its plans it is held until the call returns: another thread may push it out of the cache.
    unbound = _unbound(sizes, x.stride(), types, order, native.instructions())
    job = _Job.from_buffer_copy(unbound[0])
    job.threads = max(1, min(torch.get_num_threads(), count // _LEAST_ELEMENTS_PER_THREAD))
    job.source = x.data_ptr()
    if y is not None:
        job.target = y.data_ptr()
    if decay is not None:
        job.decay = decay.data_ptr()
    if spectrum is not None:
        job.keep_spectrum = spectrum.data_ptr()
    if decay_gradient is not None:
        job.other_spectrum, job.decay_gradient = other_spectrum.data_ptr(), decay_gradient.data_ptr()
    if types[1] != _TYPES[torch.float32]:
        workspace = x.new_empty(sizes[1:], dtype=torch.float32)
        job.workspace = workspace.data_ptr()
    native.run(job)


def conduct(x: Tensor, decay: Tensor, *, prepared: bool = False) -> Tensor:
    """The operator; `prepared`: the decay is what `prepare` made of it."""
    y = _like(x)
    _run(x, y=y, decay=decay, in_tiles=prepared and decay.shape[2] > 1)
    return y


def conduct_with_spectrum(x: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """The operator's output, and the spectrum of x in float32."""
    y, spectrum = _like(x), _like(x, torch.float32)
    _run(x, y=y, decay=decay, spectrum=spectrum)
    return y, spectrum


def transform(x: Tensor) -> Tensor:
    """The spectrum of x in float32."""
    spectrum = _like(x, torch.float32)
    _run(x, spectrum=spectrum)
    return spectrum


def gradients(grad: Tensor, spectrum: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of an (H, W, C) decay, from the output's gradient and the spectrum of x."""
    grad_x = _like(grad)
    make = grad.new_empty if len(grad) else grad.new_zeros
    grad_decay = make(grad.shape[1:], dtype=torch.float32)
    _run(grad, y=grad_x, decay=decay, other_spectrum=spectrum.contiguous(), decay_gradient=grad_decay)
    return grad_x, grad_decay
