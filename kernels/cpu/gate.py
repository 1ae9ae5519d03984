"""Layers of gated blocks in one pass over memory: a depthwise 3x3 convolution with its gate, and a narrowing norm.

Both are what their formulas say. Where the native CPU kernel takes the tensors it does all at once; elsewhere, with
gradients and while a graph is traced, they are plain PyTorch.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from vheatir.kernels.cpu import library as native
from vheatir.kernels.plain import are_plain

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_LEAST_ELEMENTS_PER_THREAD = 1 << 15


class _Job(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("type", ctypes.c_int64),
        ("source", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
    )


def _kernel_takes(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and are_plain(x, weight, bias)
        and x.is_cpu
        and weight.is_cpu
        and bias.is_cpu
        and x.dtype in _TYPES
        and weight.dtype == bias.dtype == torch.float32
        and x.numel() > 0
        and native.refusal() is None
    )


def depthwise_gate(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`a * b`, where a and b are the halves of the channels of a depthwise 3x3 convolution with zeros outside.

    Args:
        x: (B, H, W, 2 C), channels-last; float32, or bfloat16 with sums in float32 (any type where PyTorch runs).
        weight: (2 C, 1, 3, 3), as that of `nn.Conv2d` with 2 C groups; float32 beside bfloat16 maps.
        bias: (2 C,), of the weight's type.

    Returns:
        (B, H, W, C) of the type of x. Differentiable.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    channels = x.shape[-1] // 2
    if x.ndim != 4 or x.shape[-1] % 2 or weight.shape != (2 * channels, 1, 3, 3) or bias.shape != (2 * channels,):
        raise ValueError(
            "expected maps (B, H, W, 2 C), a weight (2 C, 1, 3, 3) and a bias (2 C,), "
            f"got {tuple(x.shape)}, {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if not _kernel_takes(x, weight, bias):
        image = x.permute(0, 3, 1, 2)
        if x.dtype == torch.bfloat16 and weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
            image = image.float()
        one, other = F.conv2d(image, weight, bias, padding=1, groups=2 * channels).permute(0, 2, 3, 1).chunk(2, dim=-1)
        y = one * other
        return y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)
    y = x.new_empty(*x.shape[:3], channels)
    # Held until the call returns: the job has only addresses.
    x, taps, bias = x.contiguous(), weight.detach().view(2 * channels, 9).t().contiguous(), bias.contiguous()
    job = _Job(*y.shape, type=_TYPES[x.dtype])
    job.threads = max(1, min(torch.get_num_threads(), x.numel() // _LEAST_ELEMENTS_PER_THREAD))
    job.source = x.data_ptr()
    job.weight = taps.data_ptr()
    job.bias = bias.data_ptr()
    job.target = y.data_ptr()
    native.functions().vheatir_gate(ctypes.byref(job))
    return y


class _NormJob(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("type", ctypes.c_int64),
        ("source", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("epsilon", ctypes.c_double),
    )


def norm_to(x: Tensor, norm: torch.nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    """`norm(x).to(dtype)` in one pass over memory, without gradients.

    Args:
        x: (..., C), float32.
        norm: over the C channels, with weight and bias.
        dtype: float32 or bfloat16.
    """
    if not _kernel_takes(x, norm.weight, norm.bias) or x.dtype != torch.float32 or dtype not in _TYPES:
        return norm(x).to(dtype)
    x, weight, bias = x.contiguous(), norm.weight.contiguous(), norm.bias.contiguous()
    y = x.new_empty(x.shape, dtype=dtype)
    job = _NormJob(x.numel() // x.shape[-1], x.shape[-1], type=_TYPES[dtype], epsilon=norm.eps)
    job.threads = max(1, min(torch.get_num_threads(), x.numel() // _LEAST_ELEMENTS_PER_THREAD))
    job.source, job.weight, job.bias, job.target = (one.data_ptr() for one in (x, weight, bias, y))
    native.functions().vheatir_rescale(ctypes.byref(job))
    return y
