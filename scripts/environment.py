"""Makes the virtual environment that `make demo` and `make test` run in, or leaves it alone when it is up to date.

    python3 scripts/environment.py [--venv .venv] [--extras all] [--pip-args "..."]

An interpreter that already has torch and torchvision keeps them: the new environment sees its packages. Standard
library only.
"""

import argparse
import hashlib
import importlib.metadata
import os
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import preflight

ROOT = Path(__file__).resolve().parent.parent
STAMP = ".vheatir-setup"  # in the environment: the digest of all that decided what is installed
TORCH = ["torch>=2.9", "torchvision>=0.24"]
BUILD_TOOLS = ["setuptools>=77,<82", "wheel", "cython", "numpy>=2.0"]  # <82: see the train extra in pyproject.toml
BASICSR = "basicsr==1.4.2"

CHECK_PAIR = "import torch, torchvision; torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)"
PAIR_HINT = (
    "torch and torchvision of this environment do not belong together. Both must come from one index: remove the "
    "environment and run make again, or give both with PIP_ARGS, for a CPU build "
    "PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'."
)


def digest(extras: str, pip_args: str) -> str:
    """What the environment depends on; it is set up again when this changes."""
    parts = [sys.version, str(ROOT), extras, pip_args]
    files = [ROOT / "pyproject.toml", ROOT / "setup.py", Path(__file__)]
    return hashlib.sha256("\0".join([*parts, *(file.read_text() for file in files)]).encode()).hexdigest()


def own_packages() -> list[str]:
    """Folders of the running interpreter's packages if it has torch and torchvision, else none."""
    try:
        release = importlib.metadata.version("torch").split(".")
        importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return []
    if (int(release[0]), int(release[1])) < (2, 9):
        print(f"torch {'.'.join(release)} of {sys.executable} is older than 2.9 and not used")
        return []
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]


def create(folder: Path) -> None:
    print(f"making the environment {folder} with {sys.executable}")
    venv.create(folder, with_pip=True, symlinks=True)
    if kept := own_packages():
        print(f"keeping torch {importlib.metadata.version('torch')} and its neighbors of {sys.executable}")
        for packages in folder.glob("lib/python*/site-packages"):
            (packages / "vheatir_kept.pth").write_text("\n".join(kept) + "\n")


class Environment:
    """A virtual environment and the pip arguments it is filled with."""

    def __init__(self, folder: Path, pip_args: str):
        self.python = str(folder / "bin" / "python")
        self.pip_args = shlex.split(pip_args)
        self.variables = {**os.environ, "PYTHONNOUSERSITE": "1"}

    def runs(self, code: str, *, quiet: bool = False) -> bool:
        command, stderr = [self.python, "-c", code], subprocess.DEVNULL if quiet else None
        return subprocess.run(command, env=self.variables, stderr=stderr).returncode == 0

    def has_pip(self) -> bool:
        """Whether there is pip, which is put in where it is missing: uv leaves it out, and so does an interruption."""
        if self.runs("import pip", quiet=True):
            return True
        command = [self.python, "-m", "ensurepip", "--default-pip"]
        print("+", shlex.join(command), flush=True)
        return subprocess.run(command, env=self.variables).returncode == 0

    def install(self, *arguments: str) -> bool:
        command = [self.python, "-m", "pip", "install", "--disable-pip-version-check", *self.pip_args, *arguments]
        print("+", shlex.join(command), flush=True)
        return subprocess.run(command, env=self.variables, cwd=ROOT).returncode == 0

    def version(self, package: str) -> str:
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        return subprocess.check_output([self.python, "-c", code], env=self.variables, text=True).strip()


def _require(done: bool, failure: str) -> None:
    if not done:
        raise SystemExit(f"set-up: ERROR: {failure}")


def fill(environment: Environment, extras: str) -> None:
    """Install everything in the order that works."""
    # torch first: BasicSR's build asks for it, and would else download its own copy into temporary files.
    _require(environment.install(*TORCH), "pip could not install torch and torchvision; its messages are above.")
    _require(environment.runs(CHECK_PAIR), PAIR_HINT)
    _require(environment.install(*BUILD_TOOLS), "pip could not install the build tools; its messages are above.")
    if sys.version_info < preflight.BASICSR_CANNOT_BUILD:
        built = environment.install("--no-build-isolation", BASICSR)
        _require(built, f"{BASICSR} could not be built; pip's messages are above.")
    elif not environment.install("--only-binary=basicsr", BASICSR):
        version = "{}.{}".format(*sys.version_info)
        print(f"set-up: going on without training. {preflight.NO_BASICSR.format(version=version)}", file=sys.stderr)
    done = environment.install("--no-build-isolation", "--editable", f".[{extras}]")
    _require(done, "pip could not install vheatir; its messages are above.")
    if not environment.runs("import cv2", quiet=True):
        # BasicSR requires opencv-python by name, so its entry stays and the headless files go over it.
        headless = f"opencv-python-headless=={environment.version('opencv-python')}"
        print("set-up: opencv-python does not load on this system; putting the headless build in its place")
        environment.install("--no-deps", "--force-reinstall", headless)
        needed = " ".join(preflight.missing_for_opencv()) or "libgl1 libglib2.0-0"
        _require(environment.runs("import cv2"), f"OpenCV does not load. Debian/Ubuntu: apt-get install {needed}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="made if it does not exist")
    parser.add_argument("--extras", default="all")
    parser.add_argument("--pip-args", default="", help="handed to every `pip install`")
    options = parser.parse_args()
    folder = options.venv.resolve()
    stamp, wanted = folder / STAMP, digest(options.extras, options.pip_args)
    if (folder / "bin" / "python").exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    _require(preflight.report(folder), "see the preflight messages above.")
    if not (folder / "bin" / "python").exists():
        create(folder)
    environment = Environment(folder, options.pip_args)
    same = environment.runs(f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})")
    _require(same, f"{folder} was made with another Python than {sys.executable}; remove it or name another VENV=.")
    _require(environment.has_pip(), f"{folder} has no pip, and none could be put in; remove it or name another VENV=.")
    fill(environment, options.extras)
    stamp.write_text(wanted)


if __name__ == "__main__":
    main()
