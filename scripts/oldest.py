"""Makes the environment of `make test-oldest`: the lowest versions that pyproject.toml allows, all of them together.

    python scripts/oldest.py [--venv .venv-oldest]

uv finds and installs them; it comes with the `dev` extra. Prints the minimum that pyproject.toml states beside the
version that is tested. On the oldest Python they must be the same; on newer ones a version is higher where there is no
wheel of the minimum. BasicSR, whose dependencies are known only after it is built, is installed last.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "oldest-constraints.txt"
PYTHON = "{}.{}".format(*sys.version_info)
# Without `train`, which is BasicSR; `phone`, which asks for a newer Pillow than the rest; `ray`. Tests of the two skip.
EXTRAS = [
    "cli",
    "backbone",
    "detection",
    "figures",
    "export",
    "metrics",
    "integrations",
    "serve",
    "docs",
    "tiff",
    "video",
    "raw",
    "readers",
    "dev",
]
OLDEST = (3, 11)  # Python
BUILD_TOOLS = ["setuptools>=77,<82", "wheel", "cython"]  # <82: see the train extra in pyproject.toml
BASICSR = "basicsr==1.4.2"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _release(version: str) -> str:
    """A version without its build and without zeros at its end: 24.2.0+cpu is 24.2."""
    return re.sub(r"(\.0)+$", "", version.partition("+")[0])


def minimums() -> dict[str, str]:
    """The lower bounds of the core dependencies and of EXTRAS, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name in EXTRAS for text in extras[name])]
    found = (re.match(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)", text) for text in texts)
    return {_canonical(match[1]): _release(match[2]) for match in found if match}


def versions(pins: str) -> dict[str, str]:
    """The versions of a list of `name==version` lines, by name."""
    return {_canonical(name): _release(version) for name, version in re.findall(r"^([\w.-]+)==(\S+)", pins, re.M)}


def table(stated: dict[str, str], tested: dict[str, str]) -> str:
    """A line for each dependency."""
    lines = [f"{name:24} stated {stated[name]:12} tested {tested.get(name, 'none')}" for name in sorted(stated)]
    return "\n".join(lines)


def uv(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "uv", *arguments], cwd=ROOT, check=True)


def resolve() -> None:
    """Write the versions to PINS and print them.

    Raises:
        SystemExit: on the oldest Python another version than the stated minimum had to be taken.
    """
    how = ("--quiet", "--upgrade", "--no-header", "--only-binary", ":all:", "--resolution", "lowest-direct")
    extras = [part for name in EXTRAS for part in ("--extra", name)]
    uv("pip", "compile", *how, "--python-version", PYTHON, *extras, "--output-file", PINS, "pyproject.toml")
    stated, tested = minimums(), versions(PINS.read_text(encoding="utf-8"))
    print(table(stated, tested), flush=True)
    wrong = sorted(name for name in stated if tested.get(name) != stated[name])
    if sys.version_info[:2] == OLDEST and wrong:
        raise SystemExit(f"pyproject.toml states minimums that cannot be installed together: {', '.join(wrong)}")


def make(folder: Path) -> None:
    """Install PINS, BasicSR and the checkout into an environment."""
    uv("venv", "--quiet", "--allow-existing", "--python", sys.executable, folder)
    into = ("pip", "install", "--python", folder, "--constraints", PINS)
    uv(*into, "--requirements", PINS)
    uv(*into, *BUILD_TOOLS)
    if sys.version_info < (3, 13):  # where it cannot be built
        uv(*into, "--no-build-isolation", BASICSR)
    uv(*into, "--no-build-isolation", "--no-deps", "--editable", ".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-oldest", help="made or brought up to date")
    folder = parser.parse_args().venv.resolve()
    resolve()
    make(folder)


if __name__ == "__main__":
    main()
