"""Compiles the CUDA kernels: with nvcc when the package is installed, or with NVRTC at first use.

Standard library only, for setup.py; NVRTC's bindings, which torch's CUDA wheels bring, are imported on use.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from vheatir.kernels.cpu.build import BuildError, cache_folder, one_process_at_a_time

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
MAIN = "cuda_kernels.cu"
_HEADERS = ("cuda_api.h", "cuda_device.h", "cuda_lines.h", "cuda_plane.h")
_FLAGS = ("-std=c++17",)
SWITCH = "VHEATIR_CUDA"  # 1: build at installation, use without being asked; 0: neither build nor use
ARCHITECTURES = "VHEATIR_CUDA_ARCH"  # compute capabilities to build for, such as 80;90
_USUAL = (80, 86, 89, 90, 100, 120)
_OLDEST = 80  # bfloat16 and the matrix operation of 16 x 8 x 16 numbers
_LONGEST_BUILD_S = 900
_LONGEST_QUESTION_S = 30


def _identity() -> str:
    digest = hashlib.sha256(repr(_FLAGS).encode())
    for name in (MAIN, *_HEADERS):
        digest.update((SOURCES / name).read_bytes())
    return digest.hexdigest()[:16]


def library_name() -> str:
    """File name of the kernels that were built at installation; it changes with the sources."""
    return f"vheatir_cuda-{_identity()}.fatbin"


def _answer(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_LONGEST_QUESTION_S)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def stated_architectures() -> list[int]:
    """Compute capabilities (90 for 9.0) that VHEATIR_CUDA_ARCH lists.

    Raises:
        BuildError: it lists something else.
    """
    stated = os.environ.get(ARCHITECTURES, "")
    words = [word for word in re.split(r"[;,\s]+", stated) if word]
    numbers = [word.removeprefix("sm_").replace(".", "") for word in words]
    if not all(number.isdecimal() and int(number) >= _OLDEST for number in numbers):
        raise BuildError(f"{ARCHITECTURES} must list compute capabilities from {_OLDEST} on, such as 80;90: {stated!r}")
    return sorted({int(number) for number in numbers})


def visible_architectures() -> list[int]:
    """Compute capabilities of this machine's GPUs that the kernels can run on, as nvidia-smi tells them."""
    answer = _answer(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    found = {int(major) * 10 + int(minor) for major, minor in re.findall(r"^(\d+)\.(\d)", answer, re.MULTILINE)}
    return sorted(number for number in found if number >= _OLDEST)


def planned_architectures() -> list[int]:
    """What an installation builds for; empty where it is to build nothing.

    `VHEATIR_CUDA=1` builds for the stated architectures, or this machine's, or all usual ones that nvcc knows; without
    it the kernels are built where there is nvcc and an architecture is stated or visible.

    Raises:
        BuildError: a list that cannot be read, or a build that was asked for without a compiler.
    """
    wish = os.environ.get(SWITCH, "auto")
    if wish == "0":
        return []
    stated = stated_architectures()
    if shutil.which("nvcc") is None:
        if wish == "1":
            raise BuildError("nvcc is not on the PATH; without it NVRTC compiles the kernels at first use")
        return []
    if found := stated or visible_architectures():
        return found
    known = {int(number) for number in re.findall(r"sm_(\d+)\b", _answer(["nvcc", "--list-gpu-code"]))}
    return [number for number in _USUAL if number in known] if wish == "1" else []


def build(target: Path, architectures: list[int]) -> None:
    """Compile the kernels with nvcc to one file for several architectures; newer ones translate the last one's PTX.

    Raises:
        BuildError: nvcc fails, or the folder cannot be written.
    """
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    codes.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="vheatir-build-", dir=target.parent) as folder:
            result = Path(folder, "kernels.fatbin")
            command = ["nvcc", "-fatbin", "-O3", *_FLAGS, *codes, "--threads=0", str(SOURCES / MAIN), "-o", str(result)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_LONGEST_BUILD_S)
            if done.returncode != 0:
                raise BuildError(f"nvcc failed: {(done.stderr.strip() or done.stdout.strip() or 'no message')[:2000]}")
            os.replace(result, target)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"the CUDA kernels could not be built: {error}") from error


def _checked(result: tuple, what: str):
    """The value of an NVRTC call, of which the first item is its status."""
    if int(result[0]) != 0:
        raise BuildError(f"{what} failed: {result[0].name}")
    return result[1] if len(result) == 2 else result[1:]


def _nvrtc():
    try:
        from cuda.bindings import nvrtc  # pyright: ignore[reportAttributeAccessIssue] (compiled, without type stubs)

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise BuildError(f"NVRTC cannot be used ({error}); pip install cuda-bindings nvidia-cuda-nvrtc") from error
    return nvrtc


def compile_with_nvrtc(capability: int, *more_flags: str) -> tuple[bytes, str]:
    """The kernels for one compute capability (90 for 9.0), and what the compiler said.

    They come as machine code, or as PTX where NVRTC does not know that capability yet.

    Raises:
        BuildError: NVRTC is missing, knows no such architecture, or refuses the source.
    """
    nvrtc = _nvrtc()
    known = [int(number) for number in _checked(nvrtc.nvrtcGetSupportedArchs(), "nvrtcGetSupportedArchs")]
    usable = [number for number in known if _OLDEST <= number <= capability]
    if not usable:
        raise BuildError(f"NVRTC knows no architecture for compute capability {capability / 10}; it knows {known}")
    exact = capability in usable
    flags = [f"--gpu-architecture={'sm' if exact else 'compute'}_{max(usable)}", *_FLAGS, *more_flags]
    source = (SOURCES / MAIN).read_bytes()
    headers = [(SOURCES / name).read_bytes() for name in _HEADERS]
    names = [name.encode() for name in _HEADERS]
    program = _checked(
        nvrtc.nvrtcCreateProgram(source, MAIN.encode(), len(headers), headers, names), "nvrtcCreateProgram"
    )
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        # NVRTC writes into these objects. Zeros, because an empty log has one byte: Python keeps a single b" " for the
        # whole process, and a zero written into it would be in every string of one blank from then on.
        log = bytes(_checked(nvrtc.nvrtcGetProgramLogSize(program), "nvrtcGetProgramLogSize"))
        nvrtc.nvrtcGetProgramLog(program, log)
        output = log.decode(errors="replace").strip("\0 \n")
        if int(status) != 0:
            raise BuildError(f"NVRTC failed: {output[:2000]}")
        kind = "CUBIN" if exact else "PTX"
        code = bytes(_checked(getattr(nvrtc, f"nvrtcGet{kind}Size")(program), f"nvrtcGet{kind}Size"))
        _checked(getattr(nvrtc, f"nvrtcGet{kind}")(program, code), f"nvrtcGet{kind}")
        return code, output
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def cached_file(capability: int) -> Path:
    """Where the kernels that NVRTC compiled for that capability are kept."""
    major, minor = _checked(_nvrtc().nvrtcVersion(), "nvrtcVersion")
    return cache_folder() / f"vheatir_cuda-{_identity()}-sm_{capability}-nvrtc{major}.{minor}.bin"


def compiled(capability: int) -> Path:
    """The file of kernels for that capability, compiled now by NVRTC if it is not there; processes wait for each other.

    Raises:
        BuildError, OSError: it cannot be had.
    """
    target = cached_file(capability)
    if not target.exists():
        with one_process_at_a_time(target.parent):
            if not target.exists():
                code, _ = compile_with_nvrtc(capability)
                with tempfile.TemporaryDirectory(prefix="vheatir-build-", dir=target.parent) as folder:
                    Path(folder, "code").write_bytes(code)
                    os.replace(Path(folder, "code"), target)
    return target
