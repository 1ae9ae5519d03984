"""Result files: JSON whose metadata says how to measure the same again, written atomically."""

import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vheatir import __version__
from vheatir.errors import UserError
from vheatir.utils.files import TEMPORARY_PREFIX, atomic_open

_TRIED = 4096  # bytes that a folder must take, a block of most file systems

# name shown -> names of the distributions that may provide it
_PACKAGES = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "basicsr": ("basicsr",),
    "numpy": ("numpy",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python"),
    "kornia": ("kornia",),
    "scikit-image": ("scikit-image",),
    "lmdb": ("lmdb",),
    "einops": ("einops",),
    "safetensors": ("safetensors",),
    "timm": ("timm",),
}


def run_metadata(command: Sequence[str]) -> dict[str, Any]:
    """What a result needs to be measured again: command, versions, commit of the checkout, machine, time."""
    return {
        "command": shlex.join(command),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": versions(),
        "machine": machine(),
    }


def resident_mib(usage: Any) -> float:
    """Largest resident memory in MiB out of `resource.getrusage` or `os.wait4`, whose unit differs between systems."""
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return f"{importlib.metadata.version(name)}" + (f" ({name})" if len(distributions) > 1 else "")
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def versions() -> dict[str, str | None]:
    """Versions of this package, Python and the libraries it uses; None for one that is not installed."""
    found = {"vheatir": __version__, "python": platform.python_version()}
    return found | {name: _version(distributions) for name, distributions in _PACKAGES.items()}


def _processor() -> str:
    """The name of the CPU; the architecture where the system does not tell."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """CPU, its vector instructions as torch uses them, threads, and the CUDA devices torch sees."""
    import torch  # slow to import, and commands need this module before they know that they need torch

    return {
        "system": platform.platform(),
        "cpu": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda_build": torch.version.cuda,
        "cuda_devices": [
            {
                "name": torch.cuda.get_device_name(index),
                "capability": ".".join(map(str, torch.cuda.get_device_capability(index))),
                "memory_gib": round(torch.cuda.get_device_properties(index).total_memory / 2**30, 1),
            }
            for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ],
    }


def _commit() -> str | None:
    """The commit of the checkout that holds this file, with "-dirty" for edited files; None when there is none."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        described = _run([*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
        tracked = _run([*git, "ls-files", "--error-unmatch", Path(__file__).name])
    except OSError:
        return None
    return described.stdout.strip() if described.returncode == tracked.returncode == 0 else None


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically; numbers that JSON does not know (infinite, NaN) become null, odd bytes escapes.

    Raises:
        UserError: it cannot be written, as on a full disk.
    """
    text = json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with atomic_open(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))  # a lone surrogate becomes what JSON escapes it to
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def finite(value: Any) -> Any:
    """A value with None in place of the numbers that JSON does not know, at any depth of tables and lists."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def prepare_output(path: Path) -> None:
    """Make the folder of an output file, and try it, before hours of work for a file that cannot be written."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected the name of a file to write")
    prepare_folder(path.parent)


def prepare_folder(folder: Path) -> None:
    """Make a folder for output files, and write a file there that vanishes again; UserError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=TEMPORARY_PREFIX) as file:
            file.write(bytes(_TRIED))
    except OSError as error:
        raise UserError(f"{folder}: nothing can be written there ({error.strerror}); choose another place") from error
