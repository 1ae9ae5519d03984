"""Calls of the native CPU kernel: when it can run, and the jobs it gets. The kernel itself checks nothing."""

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from vheatir.kernels.cpu import library as native
from vheatir.kernels.cpu.plan import LONG_LEAF, SHORT_LEAF, transform_plan
from vheatir.kernels.cpu.plan_steps import TransformPlan

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_MAPS = 1  # orders of a decay, as in csrc/api.h
_SHARED = 2
_TILES = 3
_TILE = 16
_LONGEST_KEPT = 256  # side: a kept job holds its plans, whose tables take up to 4 bytes times the square of the side
_LEAST_ELEMENTS_PER_THREAD = 1 << 15  # less work than this is not worth waking a thread, as in torch


# Fields in the order of csrc/api.h.
class _Plan(ctypes.Structure):
    """vheatir_plan."""

    _fields_ = (
        ("length", ctypes.c_int64),
        ("slots", ctypes.c_int64),
        ("step_count", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("steps", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
    )


class ConductionJob(ctypes.Structure):
    """vheatir_job."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("along_height", _Plan),
        ("along_width", _Plan),
        ("source", ctypes.c_void_p),
        ("source_image", ctypes.c_int64),
        ("source_row", ctypes.c_int64),
        ("source_pixel", ctypes.c_int64),
        ("target", ctypes.c_void_p),
        ("source_type", ctypes.c_int32),
        ("target_type", ctypes.c_int32),
        ("decay_order", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("decay", ctypes.c_void_p),
        ("decay_image", ctypes.c_int64),
        ("keep_spectrum", ctypes.c_void_p),
        ("other_spectrum", ctypes.c_void_p),
        ("decay_gradient", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
    )


@lru_cache(maxsize=64)
def plan_of(length: int, instructions: str) -> tuple[_Plan, TransformPlan]:
    """The plan's addresses, and the plan, which owns the memory."""
    plan = transform_plan(length, LONG_LEAF if instructions == "avx512" else SHORT_LEAF)
    addresses = _Plan(
        length=plan.length,
        slots=plan.slots,
        step_count=len(plan.steps),
        scale=plan.scale,
        steps=plan.steps.ctypes.data,
        rows=plan.rows.ctypes.data,
        table=plan.table.ctypes.data,
    )
    return addresses, plan


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


def unbound_job(
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    types: tuple[int, int],
    decay_order: int,
    instructions: str,
    rows: bool = True,
) -> tuple[ConductionJob, tuple[TransformPlan, TransformPlan]]:
    """A job without addresses and threads, and the plans that it points into. Cached on small inputs: it costs most.

    Args:
        sizes: (B, H, W, C).
        strides: of the source, in elements.
        types: of source and target, values of `TYPES`.
        decay_order: as in csrc/api.h; 0 without a decay.
        instructions: those that the kernel uses.
        rows: the rows are transformed too, not only the columns.
    """
    build = _kept_job if max(sizes[1 : 3 if rows else 2]) <= _LONGEST_KEPT else _new_job
    return build(sizes, strides, types, decay_order, instructions, rows)


def _new_job(
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    types: tuple[int, int],
    decay_order: int,
    instructions: str,
    rows: bool,
) -> tuple[ConductionJob, tuple[TransformPlan, TransformPlan]]:
    batch, height, width, channels = sizes
    along_height, plan_h = plan_of(height, instructions)
    along_width, plan_w = plan_of(width if rows else 1, instructions)
    job = ConductionJob(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        along_height=along_height,
        along_width=along_width,
        source_image=strides[0],
        source_row=strides[1],
        source_pixel=strides[2],
        source_type=types[0],
        target_type=types[1],
        decay_order=decay_order,
    )
    return job, (plan_h, plan_w)


_kept_job = lru_cache(maxsize=512)(_new_job)


def threads_for(elements: int) -> int:
    """How many threads share work on so many elements."""
    return max(1, min(torch.get_num_threads(), elements // _LEAST_ELEMENTS_PER_THREAD))


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
        order = _MAPS if decay.shape[-1] == sizes[3] else _SHARED
        if in_tiles:
            order = _TILES
    types = TYPES[x.dtype], TYPES[torch.float32 if y is None else y.dtype]
    # With its plans it is held until the call returns: another thread may push it out of the cache.
    unbound = unbound_job(sizes, x.stride(), types, order, native.instructions())
    job = ConductionJob.from_buffer_copy(unbound[0])
    job.threads = threads_for(count)
    job.source = x.data_ptr()
    if y is not None:
        job.target = y.data_ptr()
    if decay is not None:
        job.decay = decay.data_ptr()
        job.decay_image = decay[0].numel() if decay.ndim == 4 else 0
    if spectrum is not None:
        job.keep_spectrum = spectrum.data_ptr()
    if other_spectrum is not None and decay_gradient is not None:
        job.other_spectrum = other_spectrum.data_ptr()
        job.decay_gradient = decay_gradient.data_ptr()
    if types[1] != TYPES[torch.float32]:
        workspace = x.new_empty(sizes[1:], dtype=torch.float32)
        job.workspace = workspace.data_ptr()
    native.run(job)


def conduct(x: Tensor, decay: Tensor, *, prepared: bool = False) -> Tensor:
    """The operator.

    Args:
        x: (B, H, W, C); float32, bfloat16 or float16.
        decay: (H, W, C) or (H, W, 1), or one for each image.
        prepared: the decay is what `prepare` made of it.
    """
    y = _like(x)
    _run(x, y=y, decay=decay, in_tiles=prepared and decay.shape[2] > 1)
    return y


def conduct_with_spectrum(x: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """The operator's output, and the spectrum of x in float32."""
    y = _like(x)
    spectrum = _like(x, torch.float32)
    _run(x, y=y, decay=decay, spectrum=spectrum)
    return y, spectrum


def transform(x: Tensor) -> Tensor:
    """The spectrum of x in float32."""
    spectrum = _like(x, torch.float32)
    _run(x, spectrum=spectrum)
    return spectrum


def gradients(grad: Tensor, spectrum: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the decay.

    Args:
        grad: of the output, (B, H, W, C).
        spectrum: of x, float32.
        decay: (H, W, C) or (B, H, W, C).
    """
    grad_x = _like(grad)
    make = grad.new_empty if len(grad) else grad.new_zeros
    grad_decay = make(grad.shape[4 - decay.ndim :], dtype=torch.float32)
    _run(grad, y=grad_x, decay=decay, other_spectrum=spectrum.contiguous(), decay_gradient=grad_decay)
    return grad_x, grad_decay
