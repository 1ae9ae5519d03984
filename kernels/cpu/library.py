"""Loads the native CPU library: the one that was installed, or one compiled at first use and kept in a cache folder."""

import ctypes
import logging
import os
import struct
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import NamedTuple

from vheatir.kernels.cpu import build as cpu_build

SWITCH = "VHEATIR_CPU_KERNEL"  # 0 switches the kernel off
INSTRUCTIONS = ("portable", "avx2", "avx512")  # by their numbers in csrc/api.h
_ABI = 7  # likewise
_ELF_HEADER = 64  # bytes
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


def _say(text: str) -> None:
    """One line, through the log where somebody listens to it, else on stderr."""
    if _log.isEnabledFor(logging.INFO) and _log.hasHandlers():
        _log.info(text)
    else:
        sys.stderr.write(f"vheatir: {text}\n")


def _check_runs_code(folder: Path) -> None:
    """Raise BuildError where files may not be run: what is compiled there could not be loaded, in no process ever."""
    if hasattr(os, "ST_NOEXEC") and os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise cpu_build.BuildError(
            f"{folder} lies on a file system that runs no code (noexec); name another folder by VHEATIR_CACHE"
        )


def _compile(target: Path) -> None:
    """Build the library; a line before the wait, and one after it says how long it was."""
    _check_runs_code(target.parent)
    _say(f"compiling the CPU kernel of heat conduction, once, for up to a minute; it is kept in {target.parent}")
    begun = time.monotonic()
    cpu_build.build(target)
    _say(f"the CPU kernel is compiled, in {time.monotonic() - begun:.0f} s")


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
    cached = cpu_build.cached_file(command)
    if not cached.exists():
        with cpu_build.one_process_at_a_time(cached.parent):
            if not cached.exists():
                _compile(cached)
    return cached


def _is_cut(path: Path) -> bool:
    """Whether an ELF file of 64 bits ends before its section headers, its last part; to load it ends the process."""
    with open(path, "rb") as file:
        header = file.read(_ELF_HEADER)
        size = file.seek(0, os.SEEK_END)
    if len(header) < _ELF_HEADER or not header.startswith(b"\x7fELF\2\1"):  # the system's loader says so itself
        return False
    (start,) = struct.unpack_from("<Q", header, 40)
    length, count = struct.unpack_from("<HH", header, 58)
    return size < start + length * count


def _opened(path: Path) -> ctypes.CDLL:
    """The library of a file.

    Raises:
        BuildError, OSError, AttributeError: it is damaged, or another one.
    """
    if _is_cut(path):
        raise cpu_build.BuildError(f"{path} is cut off")
    functions = ctypes.CDLL(str(path))
    if functions.vheatir_abi() != _ABI:
        raise cpu_build.BuildError(f"{path} has another interface ({functions.vheatir_abi()}, expected {_ABI})")
    return functions


def _mended(path: Path) -> ctypes.CDLL:
    """The library of a file in the cache that could not be loaded, compiled again by one of the processes that find so.

    Raises:
        BuildError, OSError, AttributeError: the new one cannot be had, or loaded.
    """
    with cpu_build.one_process_at_a_time(path.parent):
        try:
            return _opened(path)
        except (cpu_build.BuildError, OSError, AttributeError) as error:
            _say(f"the compiled CPU kernel cannot be loaded ({error})")
            _compile(path)
    return _opened(path)


def _load() -> Library:
    try:
        path = _file()
        try:
            functions = _opened(path)
        except (cpu_build.BuildError, OSError, AttributeError):
            if path.parent == Path(__file__).resolve().parent:  # installed, and so not ours to replace
                raise
            functions = _mended(path)
    except (cpu_build.BuildError, OSError, RuntimeError, AttributeError) as error:
        reason = f"the CPU kernel could not be built or loaded: {error}"
        warnings.warn(f"{reason}. The slower PyTorch path runs; {SWITCH}=0 silences this.", stacklevel=2)
        return Library(None, reason)
    return Library(functions, None, path, INSTRUCTIONS[functions.vheatir_instructions()])


def library() -> Library:
    """The library; the first call in a process loads it and may compile it."""
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = _load()
    return _loaded


def functions() -> ctypes.CDLL:
    """The functions of csrc/api.h.

    Raises:
        RuntimeError: there is no library.
    """
    loaded = library()
    if loaded.functions is None:
        raise RuntimeError(loaded.reason)
    return loaded.functions


def instructions() -> str:
    """The vector instructions that the library, which must be there, uses on this processor.

    Raises:
        RuntimeError: there is no library.
    """
    loaded = library()
    if loaded.instructions is None:
        raise RuntimeError(loaded.reason)
    return loaded.instructions


def refusal() -> str | None:
    """Why there is no native CPU kernel; None when there is one."""
    if os.environ.get(SWITCH) == "0":
        return f"the CPU kernel is switched off by {SWITCH}=0"
    return library().reason


def run(job: ctypes.Structure) -> None:
    """Do one vheatir_job of csrc/api.h.

    Raises:
        MemoryError: there is no memory for the work space.
        RuntimeError: there is no library.
    """
    if functions().vheatir_conduct(ctypes.byref(job)) != 0:
        raise MemoryError("the CPU kernel got no memory for its work space")
