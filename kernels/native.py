"""Loads the native CPU library: the one that was installed, or one compiled at first use and kept in a cache folder."""

import contextlib
import ctypes
import hashlib
import logging
import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vheatir.kernels import cpu_build

SWITCH = "VHEATIR_CPU_KERNEL"  # 0 switches the kernel off
_ABI = 1  # as in csrc/api.h
_log = logging.getLogger("vheatir")
_lock = threading.Lock()
_loaded: "Library | None" = None


class Library(NamedTuple):
    """The loaded library, or why there is none.

    Attributes:
        functions: the library, None where it cannot be had.
        reason: why not; None where it is there.
        path: its file.
        instructions: the vector instructions it uses on this processor.
    """

    functions: ctypes.CDLL | None
    reason: str | None
    path: Path | None = None
    instructions: str | None = None


def cache_folder() -> Path:
    """Where compiled libraries are kept: VHEATIR_CACHE, or vheatir in the user's cache folder."""
    if stated := os.environ.get("VHEATIR_CACHE"):
        return Path(stated)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vheatir"


def _cached_file(command: list[str]) -> Path:
    """The library of these sources and this compiler; another compiler, or a new version of it, gets another file."""
    program = Path(shutil.which(command[0])).resolve()
    about = program.stat()
    identity = repr((command, str(program), about.st_size, about.st_mtime_ns))
    name = Path(cpu_build.library_name())
    return cache_folder() / f"{name.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}{name.suffix}"


@contextlib.contextmanager
def _one_process_at_a_time(folder: Path) -> Iterator[None]:
    """Processes that start together build once; where files cannot be locked each builds for itself, which is safe."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "build.lock", "w") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _file() -> Path:
    """The library's file, compiled now if need be.

    Raises:
        BuildError, OSError: it cannot be had.
    """
    installed = Path(__file__).resolve().parent / cpu_build.library_name()
    if installed.exists():
        return installed
    command = cpu_build.compiler()
    if command is None:
        raise cpu_build.BuildError(cpu_build.NO_COMPILER)
    cached = _cached_file(command)
    if not cached.exists():
        with _one_process_at_a_time(cached.parent):
            if not cached.exists():
                _log.info("compiling the CPU kernel into %s, once", cached)
                cpu_build.build(cached)
    return cached


def _load() -> Library:
    try:
        path = _file()
        functions = ctypes.CDLL(str(path))
        functions.vheatir_instructions.restype = ctypes.c_char_p
        if functions.vheatir_abi() != _ABI:
            raise cpu_build.BuildError(f"{path} has another interface ({functions.vheatir_abi()}, expected {_ABI})")
    except (cpu_build.BuildError, OSError, RuntimeError, AttributeError) as error:
        reason = f"the CPU kernel could not be built or loaded: {error}"
        warnings.warn(f"{reason}. The slower PyTorch path runs; {SWITCH}=0 silences this.", stacklevel=2)
        return Library(None, reason)
    return Library(functions, None, path, functions.vheatir_instructions().decode())


def library() -> Library:
    """The library; the first call in a process loads it and may compile it."""
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = _load()
    return _loaded


def refusal() -> str | None:
    """Why there is no native CPU kernel; None when there is one."""
    if os.environ.get(SWITCH) == "0":
        return f"the CPU kernel is switched off by {SWITCH}=0"
    return library().reason


def run(job: ctypes.Structure) -> None:
    """Do one job of csrc/api.h.

    Raises:
        MemoryError: there is no memory for the work space.
    """
    if library().functions.vheatir_conduct(ctypes.byref(job)) != 0:
        raise MemoryError("the CPU kernel got no memory for its work space")
