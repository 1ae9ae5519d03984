"""Which arithmetic runs for which map: decided here and nowhere else."""

import os
from functools import lru_cache
from typing import NamedTuple

import torch

from vheatir.kernels.cpu import library as native
from vheatir.kernels.cpu.plan import longest_product
from vheatir.kernels.cuda import build as cuda_build
from vheatir.kernels.cuda import driver as cuda_driver
from vheatir.kernels.cuda import launch_plan as cuda_plan

CPU_KERNEL = "cpu_kernel"
CUDA = "cuda"
BACKENDS = ("auto", "torch", CPU_KERNEL, CUDA)
_SPLIT_FROM = 96  # below this side a dense matrix product is as fast or faster on two threads (docs/operator.md)
_LONGEST_PRODUCT = 2048  # a dense product of this length has tables of 16 MiB
_MAX_HALVINGS = 2  # a third one gains less than it costs in passes over the data, up to 1280 points


class Path(NamedTuple):
    """A way to run the operator on maps of one size: native kernels, which `kernel` names, or PyTorch.

    For PyTorch `halvings_h` and `halvings_w` count even/odd splits of the transform along each axis; 0 is dense.
    """

    halvings_h: int
    halvings_w: int
    reason: str
    kernel: str = ""

    @property
    def name(self) -> str:
        return self.kernel or f"torch:{self.halvings_h},{self.halvings_w}"

    @classmethod
    def parse(cls, name: str) -> "Path":
        """The path that `name` denotes (custom operators carry strings, not objects)."""
        halvings = name.removeprefix("torch:").split(",")
        return cls(int(halvings[0]), int(halvings[1]), "named")


def count_halvings(n: int) -> int:
    """How often the DCT of length n is halved into even and odd parts; an odd length can be split once, as the last."""
    halvings = 0
    while n >= _SPLIT_FROM >> halvings and halvings < _MAX_HALVINGS:
        halvings += 1
        if n % 2:
            break
        n //= 2
    return halvings


def cpu_kernel_refusal(height: int, width: int, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the CPU kernel cannot take maps of this kind; None when it can.

    Args:
        height: of the maps.
        width: of the maps.
        device: where they are.
        dtype: of the maps.
    """
    return _cpu_kernel_refusal_of(height, width, device, dtype) or native.refusal()


@lru_cache(maxsize=512)  # it takes longer than the kernel on small inputs
def _cpu_kernel_refusal_of(height: int, width: int, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"the maps are on {device}, the CPU kernel needs them on the CPU"
    if dtype == torch.float64:
        return "the CPU kernel computes in float32, the maps are float64"
    for side in (height, width):
        if longest_product(side) > _LONGEST_PRODUCT:
            return f"the side {side} has an odd prime power above {_LONGEST_PRODUCT}, whose tables would be too large"
    return None


def cuda_refusal(height: int, width: int, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the CUDA kernels cannot take maps of this kind; None when they can.

    Args:
        height: of the maps.
        width: of the maps.
        device: where they are.
        dtype: of the maps.
    """
    if device.type != "cuda":
        return f"the maps are on {device}, the CUDA kernels need them on a CUDA device"
    if dtype == torch.float64:
        return "the CUDA kernels compute in float32 and less, the maps are float64"
    if max(height, width) > cuda_plan.LONGEST_LINE:
        return f"the side {max(height, width)} is above {cuda_plan.LONGEST_LINE}, its tables would be too large"
    return cuda_driver.refusal(device)


@lru_cache
def _native_path(name: str, instructions: str) -> Path:
    return Path(0, 0, f"native kernel, {instructions} instructions" if instructions else "CUDA kernels", kernel=name)


def _kernel(height: int, width: int, device: torch.device, backend: str, dtype: torch.dtype) -> Path | None:
    """The native kernels that run for a backend; None where they decline and PyTorch may take over."""
    wants_cuda = backend == CUDA or (device.type == "cuda" and os.environ.get(cuda_build.SWITCH) == "1")
    name, refuse = (CUDA, cuda_refusal) if wants_cuda and backend != CPU_KERNEL else (CPU_KERNEL, cpu_kernel_refusal)
    refusal = refuse(height, width, device, dtype)
    if refusal is None:
        return _native_path(name, "" if name == CUDA else native.instructions())
    if backend == name:
        raise ValueError(f"backend '{name}' cannot run: {refusal}; backend='auto' falls back to PyTorch")
    return None


def choose(
    height: int, width: int, device: torch.device, backend: str = "auto", dtype: torch.dtype = torch.float32
) -> Path:
    """The path for maps of one kind.

    Args:
        height: of the maps.
        width: of the maps.
        device: where they are.
        backend: one of `BACKENDS`.
        dtype: of the maps.

    Raises:
        ValueError: unknown backend, or a native kernel is asked for and cannot run; the message says why.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    # A decay that is prepared inside a traced graph has no data yet, and the graph may run on another machine.
    if backend in (CPU_KERNEL, CUDA) or (backend == "auto" and not torch.compiler.is_compiling()):
        path = _kernel(height, width, device, backend, dtype)
        if path is not None:
            return path
    halvings_h = count_halvings(height)
    halvings_w = count_halvings(width)
    if device.type != "cpu" and max(halvings_h, halvings_w):
        return Path(min(halvings_h, 1), min(halvings_w, 1), "large side: one even/odd split, few launches")
    if max(halvings_h, halvings_w) == 0:
        return Path(0, 0, f"sides below {_SPLIT_FROM}: dense matrix products")
    return Path(halvings_h, halvings_w, f"a side of {_SPLIT_FROM} or more: even/odd split, in cache-sized chunks")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Arithmetic type for maps of `dtype`: 16-bit maps are widened, or their transform would lose 2 to 3 digits."""
    return torch.float64 if dtype == torch.float64 else torch.float32
