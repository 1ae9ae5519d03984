"""The package works installed, installed for editing, and straight from a checkout, with all its files.

Nothing is downloaded: the new environments see the packages of the running one.
"""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("vheatir", "kernels", "backbone", "options", "setup.py", "pyproject.toml", "LICENSE", "README.md")
NOT_SOURCE = shutil.ignore_patterns("*.egg-info", "__pycache__", "build")
LOWER = [path for folder in ("kernels", "backbone") for path in (ROOT / folder).rglob("[!_]*.py")]
MODULES = sorted(".".join(["vheatir", *path.relative_to(ROOT).with_suffix("").parts]) for path in LOWER)

PROBE = f"""
import importlib, json, pathlib
import vheatir
from vheatir.utils import recipes

for name in {MODULES}:
    importlib.import_module(name)
package = pathlib.Path(vheatir.__file__).parent

def files(folder):
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sorted(path.relative_to(folder).as_posix() for path in found)

print(json.dumps({{
    "package": str(package),
    "kernels": str(pathlib.Path(vheatir.kernels.dct.__file__).parent),
    "csrc": files(pathlib.Path(vheatir.kernels.dct.__file__).parent / "csrc"),
    "backbone": str(pathlib.Path(vheatir.backbone.__file__).parent),
    "recipes": [name for name in files(recipes.recipes()) if name.endswith(".yml")],
    "weights": files(package / "weights"),
    "conducts": vheatir.heat_conduction.__module__,
}}))
"""

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("pip", "setuptools", "wheel"))
    or int(importlib.metadata.version("setuptools").split(".")[0]) < 77,
    reason="installing without network needs pip, wheel and setuptools>=77 in the running environment",
)


class Layout(NamedTuple):
    """A Python that can import vheatir when started in `folder`, and the root of the sources it came from."""

    python: Path
    folder: Path
    root: Path


def _run(command: list, folder: Path) -> str:
    unset = {"PYTHONPATH", "PYTHONHOME"}
    variables = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=variables)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _copy(target: Path) -> Path:
    """The sources without what may lie beside them in a working checkout; building writes into its folder."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=NOT_SOURCE)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, target / name)
    return target


def _environment(folder: Path) -> Path:
    """A new environment in front of the running one's packages; their own .pth files stay without effect."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    seen = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "neighbours.pth").write_text("\n".join(seen) + "\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="module", params=["installed", "editable", "checkout", "installed, started in a checkout"])
def layout(request, tmp_path_factory) -> Layout:
    top = tmp_path_factory.mktemp("layout")
    for name in ("elsewhere", "source"):
        (top / name).mkdir()
    root = _copy(top / "source")
    python = _environment(top / "env")
    if request.param != "checkout":
        how = ["--editable", "."] if request.param == "editable" else ["."]
        pip = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        _run([*pip, "--ignore-installed", *how], root)
    return Layout(python, root if "checkout" in request.param else top / "elsewhere", root)


@pytest.fixture(scope="module")
def found(layout) -> dict:
    return json.loads(_run([layout.python, "-c", PROBE], layout.folder).splitlines()[-1])


def test_all_modules_come_from_the_same_place(layout, found):
    """No part may come from the tree these tests run in, nor half from an installation and half from a checkout."""
    package = Path(found["package"])
    if package.parent == layout.root:
        assert (Path(found["kernels"]), Path(found["backbone"])) == (layout.root / "kernels", layout.root / "backbone")
    else:
        assert package.is_relative_to(layout.python.parent.parent)
        assert (Path(found["kernels"]), Path(found["backbone"])) == (package / "kernels", package / "backbone")
    assert found["conducts"].startswith("vheatir.kernels")


@pytest.mark.parametrize(
    "data, folder, pattern",
    [
        ("recipes", "options", "**/*.yml"),
        ("weights", "vheatir/weights", "**/*"),
        ("csrc", "kernels/csrc", "**/*"),
    ],
)
def test_data_files_are_all_there(layout, found, data, folder, pattern):
    source = layout.root / folder
    files = [path for path in source.glob(pattern) if path.is_file() and path.suffix != ".pyc"]
    assert found[data] == sorted(path.relative_to(source).as_posix() for path in files)


def test_the_command_answers(layout, found):
    script = layout.python.parent / "vheatir"
    command = [script] if script.exists() else [layout.python, "-m", "vheatir"]
    assert script.exists() or layout.folder == layout.root
    assert _run([*command, "--version"], layout.folder).startswith("vheatir ")


def test_nothing_is_installed_under_a_name_of_others(layout):
    (packages,) = (layout.python.parent.parent).glob("lib/python*/site-packages")
    top_level = {path.name for path in packages.iterdir() if path.is_dir() and path.suffix != ".dist-info"}
    assert top_level <= {"vheatir", "__pycache__"}
