"""Runs the CUDA kernels on the CPU: their source, compiled for it, each thread of a block as a fiber (emulator/)."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from vheatir.kernels.cuda.launch_plan import Launch, Machine

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES, OWN = ROOT / "kernels" / "csrc", Path(__file__).resolve().parent / "emulator"
FLAGS = (
    *(
        "-O2",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-fno-strict-aliasing",
        "-U_FORTIFY_SOURCE",
        "-mavx2",
        "-mfma",
        "-mf16c",
    ),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-clobbered", "-DVHEATIR_EMULATED"),
)
FAULTS = {1: "there is no such kernel", 2: "threads wait at different barriers", 3: "shared memory is exceeded"}


class CannotEmulate(Exception):
    """What is missing here."""


def library() -> ctypes.CDLL:
    """The emulator, compiled once for each state of the sources.

    Raises:
        CannotEmulate: there is no GCC 12 or later, or the processor has no AVX2.
    """
    if shutil.which("g++") is None:
        raise CannotEmulate("the emulator needs g++")
    if "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        raise CannotEmulate("the emulator needs a processor with AVX2")
    digest = hashlib.sha256(repr(FLAGS).encode())
    for path in sorted([*SOURCES.glob("cuda_*"), *OWN.iterdir()]):
        digest.update(path.read_bytes())
    target = Path(tempfile.gettempdir(), f"vheatir-emulator-{os.getuid()}-{digest.hexdigest()[:16]}.so")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder, "emulator.so")
            command = ["g++", *FLAGS, f"-I{SOURCES}", f"-I{OWN}", str(OWN / "emulator.cpp"), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True)
            if "_Float16" in done.stderr:
                raise CannotEmulate("the emulator needs GCC 12 or later, for _Float16")
            assert done.returncode == 0, done.stderr
            os.replace(made, target)
    return ctypes.CDLL(str(target))


class Emulator:
    """Stands in for a device; `machine` says what it pretends to be, `seed` in which order its threads run."""

    def __init__(self):
        self._library = library()
        self.machine = Machine(shared_memory=227 << 10, multiprocessors=2)
        self.seed = 0
        self.launched: list[Launch] = []

    def launch(self, device, plan: Launch, job: ctypes.Structure) -> None:
        assert plan.shared_memory <= self.machine.shared_memory and 0 < plan.blocks < 1 << 31
        self.launched.append(plan)
        size = (ctypes.c_longlong(plan.blocks), plan.threads, ctypes.c_longlong(plan.shared_memory))
        fault = self._library.emulate(plan.kernel.encode(), *size, ctypes.byref(job), ctypes.c_uint(self.seed))
        assert fault == 0, f"{plan}: {FAULTS[fault]}"
