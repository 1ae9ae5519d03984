"""Loads the CUDA kernels on a device and starts them, through the driver's C interface. Nothing runs at import.

By ctypes, not by cuda.bindings.driver: cuda-bindings comes with torch's wheels for Linux only, and kernels that were
built at installation run beside any torch, with nothing but the driver.
"""

import ctypes
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vheatir.kernels.cpu.build import BuildError
from vheatir.kernels.cuda import build as cuda_build
from vheatir.kernels.cuda.launch_plan import Launch, Machine

# Of CUdevice_attribute in cuda.h; a test compares them with cuda.bindings.
ATTRIBUTES = {
    "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": 16,
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": 75,
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": 76,
    "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 97,
}
# Of CUfunction_attribute: lets a function share more than 48 KiB.
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
_OLDEST = 80
_log = logging.getLogger("vheatir")
_lock = threading.Lock()
_devices: "dict[int, Device | str]" = {}  # the device by its number, or why it has no kernels


class DriverError(Exception):
    """The CUDA driver is missing or reports an error; the text says which."""


class Device:
    """The kernels, loaded on one device.

    Attributes:
        machine: what launches depend on.
        path: the file they come from.
        capability: compute capability, 90 for 9.0.
    """

    def __init__(self, number: int):
        self._driver = _open_driver()
        self._context = ctypes.c_void_p()
        self._module = ctypes.c_void_p()
        self._functions: dict[str, ctypes.c_void_p] = {}
        handle = ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(handle), number)
        major = self._attribute(handle, "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR")
        minor = self._attribute(handle, "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR")
        self.capability = major * 10 + minor
        self.machine = Machine(
            shared_memory=self._attribute(handle, "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
            multiprocessors=self._attribute(handle, "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT"),
        )
        if self.capability < _OLDEST:
            raise DriverError(f"compute capability {self.capability / 10} is below {_OLDEST / 10}")
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), handle)
        with self._current():
            self.path = self._load()

    def _call(self, name: str, *arguments) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(status, ctypes.byref(text))
            raise DriverError(f"{name} failed: {text.value.decode() if text.value else status}")

    def _attribute(self, handle: ctypes.c_int, name: str) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), ATTRIBUTES[name], handle)
        return value.value

    @contextmanager
    def _current(self) -> Iterator[None]:
        """The device's context is the thread's: autograd calls from threads that may have none."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _load(self) -> Path:
        installed = Path(__file__).resolve().parent / cuda_build.library_name()
        if installed.exists():
            try:
                self._load_file(installed)
                return installed
            except DriverError as error:  # built for other devices
                _log.info("%s does not serve this device (%s): compiling with NVRTC", installed, error)
        path = cuda_build.compiled(self.capability)
        self._load_file(path)
        return path

    def _load_file(self, path: Path) -> None:
        self._call("cuModuleLoadData", ctypes.byref(self._module), path.read_bytes() + b"\0")  # PTX ends with a zero
        for name in ("vheatir_sum_products", "vheatir_lines_floats_4"):
            self._function(name)

    def _function(self, name: str) -> ctypes.c_void_p:
        if name not in self._functions:
            function = ctypes.c_void_p()
            self._call("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
            self._call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, self.machine.shared_memory)
            self._functions[name] = function
        return self._functions[name]

    def launch(self, plan: Launch, job: ctypes.Structure, stream: int) -> None:
        """Start a kernel; the job is copied before this returns.

        Args:
            plan: the kernel and its blocks.
            job: a structure of csrc/cuda_api.h.
            stream: handle of the stream.
        """
        with self._current():
            function = self._function(plan.kernel)
            parameters = (ctypes.c_void_p * 1)(ctypes.addressof(job))
            size = (plan.blocks, 1, 1, plan.threads, 1, 1, plan.shared_memory)
            self._call("cuLaunchKernel", function, *size, ctypes.c_void_p(stream), parameters, None)


def _open_driver() -> ctypes.CDLL:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise DriverError(f"there is no NVIDIA driver: {error}") from error


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _loaded(number: int) -> "Device | str":
    if number not in _devices:
        with _lock:
            if number not in _devices:
                try:
                    _devices[number] = Device(number)
                except (DriverError, BuildError, OSError) as error:
                    _devices[number] = f"the CUDA kernels could not be built or loaded: {error}"
                    warnings.warn(f"{_devices[number]}. The PyTorch path runs instead.", stacklevel=2)
    return _devices[number]


def refusal(device: torch.device) -> str | None:
    """Why there are no CUDA kernels for the device; None where there are. The first call may compile them."""
    if os.environ.get(cuda_build.SWITCH) == "0":
        return f"the CUDA kernels are switched off by {cuda_build.SWITCH}=0"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device" if torch.version.cuda else "this torch is built without CUDA"
    loaded = _loaded(_number(device))
    return loaded if isinstance(loaded, str) else None


def device(device: torch.device) -> Device:
    """The kernels on a device that `refusal` has no objection to.

    Raises:
        RuntimeError: it has one.
    """
    loaded = _loaded(_number(device))
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded
