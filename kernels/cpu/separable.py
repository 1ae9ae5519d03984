"""Calls of the native CPU kernel for heat conduction with one diffusivity for each channel."""

import ctypes

import torch
from torch import Tensor

from vheatir.kernels.cpu import kernel
from vheatir.kernels.cpu import library as native


# Fields in the order of csrc/api.h.
class _Job(ctypes.Structure):
    """vheatir_separable_job."""

    _fields_ = (
        ("maps", kernel.ConductionJob),
        ("k_height", ctypes.c_void_p),
        ("k_width", ctypes.c_void_p),
        ("held", ctypes.c_int64),
        ("k_image", ctypes.c_int64),
        ("forward_result", ctypes.c_void_p),
        ("forward_source", ctypes.c_void_p),
        ("result_type", ctypes.c_int32),
        ("source_type", ctypes.c_int32),
        ("gradient_height", ctypes.c_void_p),
        ("gradient_width", ctypes.c_void_p),
    )


def _bound(x: Tensor, y: Tensor, k_height: Tensor, k_width: Tensor | None) -> tuple[_Job, tuple]:
    """A job for x and y, and what must be held until it is done: the job has only addresses."""
    sizes = x.shape
    strides = x.stride()
    if (strides[3] != 1 and sizes[3] > 1) or (k_width is None and (strides[2] != sizes[3] and sizes[2] > 1)):
        x = x.contiguous()
    types = kernel.TYPES[x.dtype], kernel.TYPES[y.dtype]
    # With its plans it is held until the call returns: another thread may push it out of the cache.
    unbound = kernel.unbound_job(sizes, x.stride(), types, 0, native.instructions(), k_width is not None)
    job = _Job(maps=unbound[0])
    job.maps.threads = kernel.threads_for(x.numel())
    job.maps.source = x.data_ptr()
    job.maps.target = y.data_ptr()
    job.k_height = k_height.data_ptr()
    job.k_image = sizes[3] if len(k_height) > 1 else 0
    workspace = None
    if k_width is not None:
        job.k_width = k_width.data_ptr()
        if y.dtype != torch.float32:
            workspace = x.new_empty(sizes[1:], dtype=torch.float32)
            job.maps.workspace = workspace.data_ptr()
    return job, (unbound, x, y, k_height, k_width, workspace)


def _run(job: _Job) -> None:
    if native.functions().vheatir_separable(ctypes.byref(job)) != 0:
        raise MemoryError("the CPU kernel got no memory for its work space")


def conduct(
    x: Tensor, k_height: Tensor, k_width: Tensor | None, *, held: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Heat conduction along H and W, or along H only.

    Args:
        x: (B, H, W, C), any strides; float32, bfloat16 or float16.
        k_height: (1, C) or (B, C), float32, contiguous.
        k_width: likewise, with as many rows; or None.
        held: the ends are held at zero, and x and the result have alternating signs along each axis.
        dtype: of the result; None takes that of x.
    """
    y = x.new_empty(x.shape, dtype=dtype or x.dtype)
    if x.numel():
        job, kept = _bound(x, y, k_height, k_width)
        job.held = held
        _run(job)
        del kept
    return y


def gradients(
    grad: Tensor, x: Tensor, y: Tensor, k_height: Tensor, k_width: Tensor | None, *, held: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, and of k for each image, (B, C) in float32.

    Args:
        grad: (B, H, W, C), of the result.
        x: what was conducted.
        y: the result, in float32 also beside maps of 16 bits.
        k_height: as in `conduct`.
        k_width: likewise.
        held: likewise.
    """
    grad_x = grad.new_empty(grad.shape)
    shape = (grad.shape[0], grad.shape[3])
    grad_h = grad.new_empty(shape, dtype=torch.float32)
    grad_w = None if k_width is None else grad.new_empty(shape, dtype=torch.float32)
    if not grad.numel():
        return grad_x, grad_h, grad_w
    job, kept = _bound(grad, grad_x, k_height, k_width)
    x = x.contiguous()
    y = y.contiguous()
    job.forward_source = x.data_ptr()
    job.forward_result = y.data_ptr()
    job.source_type = kernel.TYPES[x.dtype]
    job.result_type = kernel.TYPES[y.dtype]
    job.gradient_height = grad_h.data_ptr()
    if grad_w is not None:
        job.gradient_width = grad_w.data_ptr()
    job.held = held
    _run(job)
    del kept
    return grad_x, grad_h, grad_w
