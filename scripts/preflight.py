"""Names what the system lacks before anything is downloaded. Standard library only; run by `make`.

    python3 scripts/preflight.py [FOLDER OF THE VIRTUAL ENVIRONMENT]

Exit status 1 when the installation could not succeed; notes alone leave it at 0.
"""

from __future__ import annotations  # a Python too old to go on still has to read this file and say so

import ctypes
import importlib.util
import shutil
import sys
from pathlib import Path

OLDEST = (3, 11)
BASICSR_CANNOT_BUILD = (3, 13)
NEEDED_GIB = 9  # the CUDA build of torch takes 6 in the environment and 3 while pip unpacks it

NO_BASICSR = (
    "BasicSR 1.4.2, which training stands on, cannot be built on Python {version}. Restoring, evaluating and the "
    "operator work without it. To train, take Python 3.11 or 3.12 (`make demo PYTHON=python3.12`), or make its wheel "
    "there and give pip the folder (docs/contributing.md, Python 3.13)."
)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def missing_for_opencv() -> list[str]:
    """Debian packages whose libraries the window code of opencv-python loads and this system lacks."""
    libraries = {"libGL.so.1": "libgl1", "libgthread-2.0.so.0": "libglib2.0-0"}
    return [package for library, package in libraries.items() if not _loads(library)]


def errors() -> list[str]:
    """What stops the installation, each with the next step."""
    version = "{}.{}".format(*sys.version_info)
    found = []
    if sys.version_info < OLDEST:
        found.append(
            f"Python 3.11 or 3.12 is needed, {sys.executable} is {version}. "
            "Name another one: make PYTHON=python3.12 (Debian/Ubuntu: apt-get install python3.12 python3.12-venv)."
        )
    if any(importlib.util.find_spec(module) is None for module in ("venv", "ensurepip")):
        found.append(
            f"{sys.executable} cannot make virtual environments. Debian/Ubuntu: apt-get install python{version}-venv "
            "(or python3-venv)."
        )
    return found


def notes(folder: Path) -> list[str]:
    """What the installation works around, or may fail on."""
    found = []
    if sys.version_info >= BASICSR_CANNOT_BUILD:
        found.append(NO_BASICSR.format(version="{}.{}".format(*sys.version_info)))
    if packages := missing_for_opencv():
        found.append(
            "opencv-python needs libraries that are missing here; the headless build of OpenCV will take its place. "
            f"To have the full one: apt-get install {' '.join(packages)}."
        )
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    if not (folder / "bin" / "python").exists() and free_gib < NEEDED_GIB:
        found.append(
            f"{free_gib:.1f} GiB are free in {existing}, the CUDA build of torch needs about {NEEDED_GIB}. A CPU build "
            "is small: make PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'."
        )
    return found


def report(folder: Path) -> bool:
    """Print errors and notes; True when the installation may go on."""
    stopping = errors()
    for text in stopping:
        print(f"preflight: ERROR: {text}", file=sys.stderr)
    for text in notes(folder):
        print(f"preflight: note: {text}", file=sys.stderr)
    return not stopping


if __name__ == "__main__":
    raise SystemExit(0 if report(Path(sys.argv[1] if len(sys.argv) > 1 else ".venv").resolve()) else 1)
