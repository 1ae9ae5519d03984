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


# Fields in the order of csrc/cuda_api.h.
class _PlaneJob(ctypes.Structure):
    """vheatir_plane_job."""

    _fields_ = (
        ("batch", ctypes.c_int),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("source", ctypes.c_void_p),
        ("source_image", ctypes.c_longlong),
        ("source_row", ctypes.c_longlong),
        ("source_pixel", ctypes.c_longlong),
        ("target", ctypes.c_void_p),
        ("spectrum", ctypes.c_void_p),
        ("decay", ctypes.c_void_p),
        ("decay_pixel", ctypes.c_int),
        ("decay_channel", ctypes.c_int),
        ("bfloat", ctypes.c_int),
        ("vectors", ctypes.c_int),
        ("height_forward", ctypes.c_void_p),
        ("height_inverse", ctypes.c_void_p),
        ("width_forward", ctypes.c_void_p),
        ("width_inverse", ctypes.c_void_p),
    )


class _Lines(ctypes.Structure):
    """vheatir_lines."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("image", ctypes.c_longlong),
        ("outer_stride", ctypes.c_longlong),
        ("step", ctypes.c_longlong),
    )


class _LinesJob(ctypes.Structure):
    """vheatir_lines_job."""

    _fields_ = (
        ("length", ctypes.c_int),
        ("bfloat", ctypes.c_int),
        ("pairs", ctypes.c_int),
        ("count", ctypes.c_longlong),
        ("run", ctypes.c_longlong),
        ("outer", ctypes.c_longlong),
        ("source", _Lines),
        ("target", _Lines),
        ("spectrum", _Lines),
        ("decay", ctypes.c_void_p),
        ("decay_outer", ctypes.c_longlong),
        ("decay_step", ctypes.c_longlong),
        ("decay_inner", ctypes.c_int),
        ("forward", ctypes.c_void_p),
        ("inverse", ctypes.c_void_p),
    )


class _SumJob(ctypes.Structure):
    """vheatir_sum_job."""

    _fields_ = (
        ("size", ctypes.c_longlong),
        ("batch", ctypes.c_int),
        ("accumulate", ctypes.c_int),
        ("one", ctypes.c_void_p),
        ("other", ctypes.c_void_p),
        ("total", ctypes.c_void_p),
    )


def machine_of(device: torch.device) -> Machine:
    """What launches on `device` depend on."""
    return cuda_driver.device(device).machine


def launch(device: torch.device, plan: Launch, job: ctypes.Structure) -> None:
    """Start a kernel on the device's current stream.

    Args:
        device: of the tensors.
        plan: the kernel and its blocks.
        job: one of the structures above.
    """
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
    # Held until the launch: the job has only addresses.
    height_forward = launch_plan.fragments(height, size, False, x.device)
    height_inverse = launch_plan.fragments(height, size, True, x.device)
    width_forward = launch_plan.fragments(width, size, False, x.device)
    width_inverse = launch_plan.fragments(width, size, True, x.device)
    shared = decay is not None and decay.shape[2] != channels
    job = _PlaneJob(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        source=x.data_ptr(),
        source_image=x.stride(0),
        source_row=x.stride(1),
        source_pixel=x.stride(2),
        target=_pointer(y),
        spectrum=_pointer(spectrum),
        decay=_pointer(decay),
        decay_pixel=1 if shared else channels,
        decay_channel=0 if shared else 1,
        bfloat=x.dtype == torch.bfloat16,
        vectors=_aligned(x, 8) and _aligned(y, 8),
        height_forward=height_forward.data_ptr(),
        height_inverse=height_inverse.data_ptr(),
        width_forward=width_forward.data_ptr(),
        width_inverse=width_inverse.data_ptr(),
    )
    launch(x.device, plan, job)


def _along_width(maps: Tensor) -> tuple[int, _Lines]:
    """How many lines along the width an image has of each channel, and where they are."""
    image, row, pixel, _ = maps.stride()
    return maps.shape[1], _Lines(data=maps.data_ptr(), image=image, outer_stride=row, step=pixel)


def _along_height(maps: Tensor) -> tuple[int, _Lines]:
    """The same along the height."""
    image, row, pixel, _ = maps.stride()
    return maps.shape[2], _Lines(data=maps.data_ptr(), image=image, outer_stride=pixel, step=row)


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
    batch, height, width, channels = source.shape
    length = width if along_width else height
    outer, source_lines = axis(source)
    _, target_lines = axis(target)
    spectrum_lines = _Lines() if spectrum is None else axis(spectrum)[1]
    count = batch * outer * channels
    plan = launch_plan.lines_launch(kind, length, count, machine_of(source.device))
    forward_table = _line_table(kind, length, False, source.device) if forward else None
    inverse_table = _line_table(kind, length, True, source.device) if inverse else None
    sixteen = source.dtype if source.dtype != torch.float32 else target.dtype
    job = _LinesJob(
        length=length,
        bfloat=sixteen == torch.bfloat16,
        pairs=_aligned(target, 2) and _aligned(spectrum, 2),
        count=count,
        run=channels,
        outer=outer,
        source=source_lines,
        target=target_lines,
        spectrum=spectrum_lines,
        decay=_pointer(decay),
        decay_outer=0 if decay is None else decay.stride(1),
        decay_step=0 if decay is None else decay.stride(0),
        decay_inner=0 if decay is None or decay.shape[2] == 1 else 1,
        forward=_pointer(forward_table),
        inverse=_pointer(inverse_table),
    )
    launch(source.device, plan, job)


def _line_table(kind: str, length: int, inverse: bool, device: torch.device) -> Tensor:
    if kind == "floats":
        return launch_plan.matrices(length, inverse, device)
    return launch_plan.fragments(length, launch_plan.padded_half(length, 16), inverse, device)


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
        return "floats", "floats", "floats"
    machine = machine_of(x.device)
    fits = all(launch_plan.lines_at_once(side, 1, False, machine) for side in x.shape[1:3])
    return ("read", "halves", "write") if fits else None


def _conduct_lines(x: Tensor, y: Tensor, decay: Tensor, spectrum: Tensor | None) -> None:
    kinds = _kinds(x)
    if kinds is None:
        wide = x.float()
        _conduct_lines(wide, wide, decay, spectrum)
        y.copy_(wide)
        return
    for images, channels in _pieces(x):
        part = x[images, ..., channels]
        kept = None if spectrum is None else spectrum[images, ..., channels]
        out = y[images, ..., channels]
        scratch = out if y.dtype == torch.float32 else torch.empty(part.shape, dtype=torch.float32, device=x.device)
        weights = decay if decay.shape[2] == 1 else decay[..., channels]
        _lines(kinds[0], part, scratch, along_width=True, forward=True)
        _lines(kinds[1], scratch, scratch, along_width=False, forward=True, inverse=True, decay=weights, spectrum=kept)
        _lines(kinds[2], scratch, out, along_width=True, inverse=True)


def _transform_lines(x: Tensor, spectrum: Tensor) -> None:
    kinds = _kinds(x)
    if kinds is None:
        _transform_lines(x.float(), spectrum)
        return
    for images, channels in _pieces(x):
        kept = spectrum[images, ..., channels]
        _lines(kinds[0], x[images, ..., channels], kept, along_width=True, forward=True)
        _lines(kinds[1], kept, kept, along_width=False, forward=True)


def _adjacent(x: Tensor) -> Tensor:
    """Maps whose channels are adjacent in memory, as the kernels read them."""
    return x.contiguous() if x.stride(3) != 1 and x.shape[3] > 1 else x


def _fits_planes(x: Tensor) -> bool:
    return max(x.shape[1:3]) <= launch_plan.LARGEST_PLANE and x.dtype != torch.float32


def _run(x: Tensor, y: Tensor, decay: Tensor, spectrum: Tensor | None = None) -> None:
    if x.numel() == 0:
        return
    x = _adjacent(x)
    decay = decay.to(torch.float32).contiguous()
    if _fits_planes(x):
        _conduct_planes(x, y, decay, spectrum)
    else:
        _conduct_lines(x, y, decay, spectrum)


def conduct(x: Tensor, decay: Tensor, *, prepared: bool = False) -> Tensor:
    """The operator.

    Args:
        x: (B, H, W, C); float32, bfloat16 or float16.
        decay: (H, W, C) or (H, W, 1).
        prepared: the decay is what `prepare` made of it, which is no different here.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run(x, y, decay)
    return y


def conduct_with_spectrum(x: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """The operator's output, and the spectrum of x in float32."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    spectrum = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _run(x, y, decay, spectrum)
    return y, spectrum


def transform(x: Tensor) -> Tensor:
    """The spectrum of x in float32."""
    spectrum = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return spectrum
    x = _adjacent(x)
    if _fits_planes(x):
        _conduct_planes(x, None, None, spectrum)
    else:
        _transform_lines(x, spectrum)
    return spectrum


def _add_products(one: Tensor, other: Tensor, total: Tensor, accumulate: bool) -> None:
    plan = Launch("vheatir_sum_products", -(-total.numel() // launch_plan.THREADS), 0)
    job = _SumJob(
        size=total.numel(),
        batch=len(one),
        accumulate=accumulate,
        one=one.data_ptr(),
        other=other.data_ptr(),
        total=total.data_ptr(),
    )
    launch(one.device, plan, job)


def gradients(grad: Tensor, spectrum: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the decay.

    The gradient's spectrum is kept for some images at a time; their products are added in the order of the images.

    Args:
        grad: of the output, (B, H, W, C).
        spectrum: of x, float32.
        decay: (H, W, C).
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
        _run(grad[piece], grad_x[piece], decay, here)
        _add_products(spectrum[piece], here, total, first > 0)
    return grad_x, total


def _images_at_once(grad: Tensor) -> int:
    """So many that their blocks occupy the device twice over, and at least those that fit into the L2 cache."""
    batch, height, width, channels = grad.shape
    in_cache = _SCRATCH_BYTES // (4 * height * width * channels)
    occupying = -(-2 * machine_of(grad.device).multiprocessors // -(-channels // 16))
    return max(1, min(batch, max(in_cache, occupying if height * width <= 4096 else 1)))
