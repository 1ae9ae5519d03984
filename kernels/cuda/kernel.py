"""Calls of the CUDA kernels: when they can run, and the jobs they get. The kernels themselves check nothing."""

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from vheatir.kernels.cuda import driver as cuda_driver
from vheatir.kernels.cuda import launch_plan
from vheatir.kernels.cuda.launch_plan import Launch, Machine

_SCRATCH_BYTES = 24 << 20  # maps go through all passes in pieces of this size, which stay in the L2 cache
_LEAST_CHANNELS = 16  # of a piece: 32 bytes of 16-bit maps, what memory moves at once


class _PlaneJob(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("batch", "height", "width", "channels")),
        ("source", ctypes.c_void_p),
        *((name, ctypes.c_longlong) for name in ("source_image", "source_row", "source_pixel")),
        *((name, ctypes.c_void_p) for name in ("target", "spectrum", "decay")),
        *((name, ctypes.c_int) for name in ("decay_pixel", "decay_channel", "bfloat", "vectors")),
        *((name, ctypes.c_void_p) for name in ("height_forward", "height_inverse", "width_forward", "width_inverse")),
    )


class _Lines(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_longlong) for name in ("image", "outer", "step")))


class _LinesJob(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("length", "bfloat", "pairs")),
        *((name, ctypes.c_longlong) for name in ("count", "run", "outer")),
        *((name, _Lines) for name in ("source", "target", "spectrum")),
        ("decay", ctypes.c_void_p),
        *((name, ctypes.c_longlong) for name in ("decay_outer", "decay_step")),
        ("decay_inner", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("forward", "inverse")),
    )


class _SumJob(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in ("batch", "accumulate")),
        *((name, ctypes.c_void_p) for name in ("one", "other", "total")),
    )


def machine_of(device: torch.device) -> Machine:
    """What launches on `device` depend on."""
    return cuda_driver.device(device).machine


def launch(device: torch.device, plan: Launch, job: ctypes.Structure) -> None:
    """Start a kernel on the device's current stream."""
    cuda_driver.device(device).launch(plan, job, torch.cuda.current_stream(device).cuda_stream)


def prepare(decay: Tensor) -> Tensor:
    """A float32 copy of a decay; the kernels read it as it is."""
    return decay.to(torch.float32, copy=True).contiguous()


def unprepare(prepared: Tensor) -> Tensor:
    """The decay that `prepare` was given, in float32."""
    return prepared


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _aligned(tensor: Tensor | None, elements: int) -> bool:
    """Whether groups of so many channels can be moved at once: address, strides and channels are multiples of them."""
    if tensor is None:
        return True
    strides = [stride for size, stride in zip(tensor.shape[:-1], tensor.stride()) if size > 1]
    numbers = [tensor.shape[-1], *strides, tensor.data_ptr() // tensor.element_size()]
    return all(number % elements == 0 for number in numbers)


def _conduct_planes(x: Tensor, y: Tensor | None, decay: Tensor | None, spectrum: Tensor | None) -> None:
    batch, height, width, channels = x.shape
    plan = launch_plan.plane_launch(batch, height, width, channels, machine_of(x.device))
    size = 16 if max(height, width) <= 32 else 32
    tables = [launch_plan.fragments(n, size, inverse, x.device) for n in (height, width) for inverse in (False, True)]
    shared = decay is not None and decay.shape[2] != channels
    job = _PlaneJob(
        *(batch, height, width, channels, x.data_ptr(), *x.stride()[:3]),
        *map(_pointer, (y, spectrum, decay)),
        *(1 if shared else channels, 0 if shared else 1),
        *(x.dtype == torch.bfloat16, _aligned(x, 8) and _aligned(y, 8)),
        *map(_pointer, tables),
    )
    launch(x.device, plan, job)


def _along_width(maps: Tensor) -> tuple[int, _Lines]:
    return maps.shape[1], _Lines(maps.data_ptr(), *maps.stride()[:3])


def _along_height(maps: Tensor) -> tuple[int, _Lines]:
    image, row, pixel, _ = maps.stride()
    return maps.shape[2], _Lines(maps.data_ptr(), image, pixel, row)


def _lines(
    kind: str,
    source: Tensor,
    target: Tensor,
    *,
    along_width: bool,
    forward: bool = False,
    inverse: bool = False,
    decay: Tensor | None = None,
    spectrum: Tensor | None = None,
) -> None:
    """One pass over maps of the same shape, (b, H, W, c)."""
    axis = _along_width if along_width else _along_height
    batch, channels, length = source.shape[0], source.shape[3], source.shape[2 if along_width else 1]
    outer, source_lines = axis(source)
    count = batch * outer * channels
    plan = launch_plan.lines_launch(kind, length, count, machine_of(source.device))
    if kind == "floats":
        tables = [launch_plan.matrices(length, way, source.device) for way in (False, True)]
    else:
        size = launch_plan.padded_half(length, 16)
        tables = [launch_plan.fragments(length, size, way, source.device) for way in (False, True)]
    decay_strides = (0, 0, 0)
    if decay is not None:
        shared = decay.shape[2] == 1
        decay_strides = (decay.stride(1), decay.stride(0), 0 if shared else 1)
    sixteen = source.dtype if source.dtype != torch.float32 else target.dtype
    job = _LinesJob(
        *(length, sixteen == torch.bfloat16, _aligned(target, 2) and _aligned(spectrum, 2)),
        *(count, channels, outer, source_lines, axis(target)[1], _Lines() if spectrum is None else axis(spectrum)[1]),
        *(_pointer(decay), *decay_strides),
        *(_pointer(table) if asked else None for table, asked in zip(tables, (forward, inverse))),
    )
    launch(source.device, plan, job)


def _pieces(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Ranges of images and channels whose maps in float32 take about `_SCRATCH_BYTES`."""
    batch, height, width, channels = x.shape
    pixels = max(1, _SCRATCH_BYTES // (4 * height * width))
    images = max(1, pixels // channels)
    step = channels if images > 1 else max(_LEAST_CHANNELS, min(channels, pixels // 16 * 16))
    for first in range(0, batch, images):
        for channel in range(0, channels, step):
            yield slice(first, first + images), slice(channel, channel + step)


def _kinds(x: Tensor) -> tuple[str, str, str] | None:
    """Kernels of the three passes: on tensor cores for 16-bit maps; None where a side is too long for these."""
    if x.dtype == torch.float32:
        return ("floats",) * 3
    machine = machine_of(x.device)
    fits = all(launch_plan.lines_at_once(side, 1, False, machine) for side in x.shape[1:3])
    return ("read", "halves", "write") if fits else None


def _conduct_lines(x: Tensor, y: Tensor | None, decay: Tensor | None, spectrum: Tensor | None) -> None:
    kinds = _kinds(x)
    if kinds is None:
        wide = x.float()
        _conduct_lines(wide, wide if y is not None else None, decay, spectrum)
        if y is not None:
            y.copy_(wide)
        return
    for images, channels in _pieces(x):
        part = x[images, ..., channels]
        kept = None if spectrum is None else spectrum[images, ..., channels]
        if y is None:
            _lines(kinds[0], part, kept, along_width=True, forward=True)
            _lines(kinds[1], kept, kept, along_width=False, forward=True)
            continue
        out = y[images, ..., channels]
        scratch = out if y.dtype == torch.float32 else torch.empty(part.shape, dtype=torch.float32, device=x.device)
        weights = decay if decay.shape[2] == 1 else decay[..., channels]
        _lines(kinds[0], part, scratch, along_width=True, forward=True)
        _lines(kinds[1], scratch, scratch, along_width=False, forward=True, inverse=True, decay=weights, spectrum=kept)
        _lines(kinds[2], scratch, out, along_width=True, inverse=True)


def _run(x: Tensor, *, y: Tensor | None = None, decay: Tensor | None = None, spectrum: Tensor | None = None) -> None:
    if x.numel() == 0:
        return
    if x.stride(3) != 1 and x.shape[3] > 1:
        x = x.contiguous()
    if decay is not None:
        decay = decay.to(torch.float32).contiguous()
    small = max(x.shape[1:3]) <= launch_plan.LARGEST_PLANE and x.dtype != torch.float32
    (_conduct_planes if small else _conduct_lines)(x, y, decay, spectrum)


def conduct(x: Tensor, decay: Tensor, *, prepared: bool = False) -> Tensor:
    """The operator; a decay that was prepared is no different here."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run(x, y=y, decay=decay)
    return y


def conduct_with_spectrum(x: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """The operator's output, and the spectrum of x in float32."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    spectrum = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _run(x, y=y, decay=decay, spectrum=spectrum)
    return y, spectrum


def transform(x: Tensor) -> Tensor:
    """The spectrum of x in float32."""
    spectrum = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _run(x, spectrum=spectrum)
    return spectrum


def _add_products(one: Tensor, other: Tensor, total: Tensor, accumulate: bool) -> None:
    plan = Launch("vheatir_sum_products", -(-total.numel() // launch_plan.THREADS), 0)
    job = _SumJob(total.numel(), len(one), accumulate, *map(_pointer, (one, other, total)))
    launch(one.device, plan, job)


def gradients(grad: Tensor, spectrum: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of an (H, W, C) decay, from the output's gradient and the spectrum of x.

    The gradient's spectrum is kept for some images at a time; their products are added in the order of the images.
    """
    grad_x = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
    total = torch.empty(grad.shape[1:], dtype=torch.float32, device=grad.device)
    if grad.numel() == 0:
        return grad_x, total.zero_()
    spectrum = spectrum.contiguous()
    images = _images_at_once(grad)
    kept = torch.empty(images, *grad.shape[1:], dtype=torch.float32, device=grad.device)
    for first in range(0, len(grad), images):
        piece = slice(first, min(first + images, len(grad)))
        here = kept[: piece.stop - first]
        _run(grad[piece], y=grad_x[piece], decay=decay, spectrum=here)
        _add_products(spectrum[piece], here, total, first > 0)
    return grad_x, total


def _images_at_once(grad: Tensor) -> int:
    """So many that their blocks occupy the device twice over, and at least those that fit into the L2 cache."""
    batch, height, width, channels = grad.shape
    in_cache = _SCRATCH_BYTES // (4 * height * width * channels)
    occupying = -(-2 * machine_of(grad.device).multiprocessors // -(-channels // 16))
    return max(1, min(batch, max(in_cache, occupying if height * width <= 4096 else 1)))
