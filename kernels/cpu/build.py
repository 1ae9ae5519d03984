"""Builds the CPU kernel with the system's C++ compiler. Standard library only, for setup.py."""

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
_PARTS = ("hco_cpu", "separable_cpu", "norm_cpu", "gate_cpu", "gate_gradient_cpu")  # compiled once for each version
_HEADERS = (
    "api.h",
    "lanes.h",
    "narrow.h",
    "odd_leaf.h",
    "subnormal.h",
    "transform.h",
    "frequency_weights.h",
    "passes.h",
    "axis.h",
)
_FILES = (*_HEADERS, "dispatch.cpp", *(f"{part}.cpp" for part in _PARTS))
_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
)
# Version of the kernel -> flags that allow its instructions; dispatch.cpp asks the processor for the same ones.
_VERSIONS_X86 = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"),
}
_LONGEST_BUILD_S = 1200  # of one file; seconds on a free core
NO_COMPILER = "there is no C++ compiler (c++, g++ or clang++; the variable CXX can name one)"


class BuildError(Exception):
    """The library could not be built; the text says why."""


def compiler() -> list[str] | None:
    """The C++ compiler's command: that of the environment variable CXX, or the first of c++, g++, clang++; or None."""
    if named := os.environ.get("CXX"):
        try:
            command = shlex.split(named)
        except ValueError:  # a quotation that does not end
            return None
        program = shutil.which(command[0]) if command else None
        if program is None:
            return None
        # It is run in another folder.
        return [os.path.abspath(program), *command[1:]] if os.path.dirname(command[0]) else command
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def library_name(machine: str | None = None) -> str:
    """File name of the library for a family of processors, as `platform.machine()` calls it; by default this one's.

    It changes with the sources, the flags and the family.
    """
    digest = hashlib.sha256(repr((_FLAGS, _VERSIONS_X86, machine or platform.machine(), sys.platform)).encode())
    for name in _FILES:
        digest.update((SOURCES / name).read_bytes())
    return f"libvheatir_cpu-{digest.hexdigest()[:16]}.so"


def cache_folder() -> Path:
    """Where compiled libraries are kept: VHEATIR_CACHE, or vheatir in the user's cache folder; an absolute path.

    Raises:
        BuildError: the user has no home folder, and no other one is named.
    """
    if stated := os.environ.get("VHEATIR_CACHE"):
        return Path(stated).absolute()  # a library named without a folder is looked for elsewhere
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "vheatir"
    except RuntimeError as error:
        raise BuildError("there is no home folder to keep compiled kernels in; name one by VHEATIR_CACHE") from error


def cached_file(command: list[str]) -> Path:
    """The library of these sources and this compiler; another compiler, or a new version of it, gets another file."""
    program = Path(shutil.which(command[0]) or command[0]).resolve()
    about = program.stat()
    identity = repr((command, str(program), about.st_size, about.st_mtime_ns))
    name = Path(library_name())
    return cache_folder() / f"{name.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}{name.suffix}"


@contextlib.contextmanager
def one_process_at_a_time(folder: Path) -> Iterator[None]:
    """Processes that start together build once; where files cannot be locked each builds for itself, which is safe."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            lock = held.enter_context(open(folder / "build.lock", "w"))
        except OSError:
            if not os.access(folder, os.W_OK):
                raise
            # The lock is another user's, in a folder that both may write.
        else:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], folder: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_LONGEST_BUILD_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{command[0]} could not be run: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        first = next((line for line in lines if "error" in line), lines[-1])
        raise BuildError(f"{command[0]} failed: {first}")


def _has_openmp(command: list[str], folder: str) -> bool:
    probe = Path(folder, "probe.cpp")
    probe.write_text("#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n")
    try:
        _run([*command, "-fopenmp", "-fPIC", "-shared", probe.name, "-o", "probe.so"], folder)
    except BuildError:
        return False
    return True


def _check_target(command: list[str], machine: str) -> None:
    """That a compiler makes code for a family of processors: the first part of what it calls its machine."""
    try:
        done = subprocess.run(
            [*command, "-dumpmachine"], capture_output=True, text=True, errors="replace", timeout=_LONGEST_BUILD_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{command[0]} could not be run: {error}") from error
    made = done.stdout.strip() or "nothing that it names"
    if made.partition("-")[0] != machine:
        raise BuildError(f"{command[0]} compiles for {made}, not for {machine}; name a cross compiler by CXX")


def build(target: Path, machine: str | None = None) -> None:
    """Compile the library to `target`, which appears complete or not at all.

    Args:
        target: file to write.
        machine: family of processors to compile for, with a cross compiler in CXX; by default this one's.

    Raises:
        BuildError: there is no compiler, it fails, is for other processors, or the folder cannot be written.
    """
    command = compiler()
    if command is None:
        raise BuildError(NO_COMPILER)
    if sys.platform == "win32":
        raise BuildError("the CPU kernel has no build for Windows")
    if machine:
        _check_target(command, machine)
    x86 = (machine or platform.machine()) in ("x86_64", "AMD64")
    versions = _VERSIONS_X86 if x86 else {"portable": ()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="vheatir-build-", dir=target.parent) as folder:
            openmp = ["-fopenmp"] if _has_openmp(command, folder) else []
            common = [*command, *_FLAGS, *openmp]
            jobs = [
                [*common, *flags, f"-DVHEATIR_VERSION={name}", "-c", str(SOURCES / f"{part}.cpp"), "-o", object_file]
                for part in _PARTS
                for name, flags in versions.items()
                for object_file in [f"{part}_{name}.o"]
            ]
            x86_define = ["-DVHEATIR_X86"] if x86 else []
            jobs.append([*common, *x86_define, "-c", str(SOURCES / "dispatch.cpp"), "-o", "dispatch.o"])
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda job: _run(job, folder), jobs))
            objects = [job[-1] for job in jobs]
            _run([*common, "-shared", *objects, "-o", "library.so"], folder)
            os.replace(Path(folder, "library.so"), target)
    except OSError as error:
        raise BuildError(f"{target.parent} cannot be written: {error}") from error
