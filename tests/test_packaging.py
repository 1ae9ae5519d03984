"""The package works installed, installed for editing, and straight from a checkout, with all its files.

Nothing is downloaded: the new environments see the packages of the running one.
"""

import email
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from vheatir.kernels.cpu import build as cpu_build

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "vheatir",
    "kernels",
    "backbone",
    "options",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "LICENSE",
    "README.md",
)
LINKS = ("backbone", "kernels")  # in vheatir/, to the folders beside it
NOT_SOURCE = shutil.ignore_patterns("*.egg-info", "__pycache__", "build")
LOWER = [path for folder in ("kernels", "backbone") for path in (ROOT / folder).rglob("[!_]*.py")]
MODULES = sorted(".".join(["vheatir", *path.relative_to(ROOT).with_suffix("").parts]) for path in LOWER)

PROBE = f"""
import importlib, json, pathlib, sys
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
    "kernels": str(pathlib.Path(vheatir.kernels.dct.__file__).parent.resolve()),
    "csrc": files(pathlib.Path(vheatir.kernels.dct.__file__).parent / "csrc"),
    "backbone": str(pathlib.Path(vheatir.backbone.__file__).parent.resolve()),
    "twice": sorted(name for name in sys.modules if name.partition(".")[0] in ("backbone", "kernels")),
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
    target.mkdir(exist_ok=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=NOT_SOURCE, symlinks=True)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, target / name)
    return target


def _without_links(root: Path) -> Path:
    """As an archive unpacks, or git where it makes no links: these are files that hold the target's name."""
    for name in LINKS:
        (root / "vheatir" / name).unlink(missing_ok=True)
        (root / "vheatir" / name).write_text(f"../{name}")
    return root


def _environment(folder: Path) -> Path:
    """A new environment in front of the running one's packages; their own .pth files stay without effect."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    seen = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "neighbors.pth").write_text("\n".join(seen) + "\n")
    return folder / "bin" / "python"


@pytest.fixture(
    scope="module",
    params=[
        "installed",
        "installed from an archive",
        "editable",
        "checkout",
        "checkout without links",
        "installed, started in a checkout",
    ],
)
def layout(request, tmp_path_factory) -> Layout:
    top = tmp_path_factory.mktemp("layout")
    (top / "elsewhere").mkdir()
    root = _copy(top / "source")
    if request.param in ("installed from an archive", "checkout without links"):
        _without_links(root)
    python = _environment(top / "env")
    if not request.param.startswith("checkout"):
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
    assert found["twice"] == []


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


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a source archive holds no links")
def test_the_links_lead_to_the_folders_beside_the_package():
    assert {name: os.readlink(ROOT / "vheatir" / name) for name in LINKS} == {name: f"../{name}" for name in LINKS}


def _expected() -> set[str]:
    """Every module and data file of the package, under the names that they have when installed."""
    expected = set()
    for folder, package in (
        ("vheatir", ""),
        ("kernels", "kernels/"),
        ("backbone", "backbone/"),
        ("options", "recipes/"),
    ):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT / folder).as_posix()
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".so"):
                expected.add(f"vheatir/{package}{name}")
    return expected


def build_wheel(folder: Path, monkeypatch, kernel: str) -> Path:
    """The wheel of a copy of the sources, built with VHEATIR_CPU_KERNEL=`kernel`."""
    monkeypatch.setenv("VHEATIR_CPU_KERNEL", kernel)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    _run([*command, "--wheel-dir", folder, "."], _copy(folder / "source"))
    (wheel,) = folder.glob("*.whl")
    return wheel


needs_compiler = pytest.mark.skipif(cpu_build.compiler() is None, reason=cpu_build.NO_COMPILER)


@pytest.mark.parametrize("kernel", [pytest.param("1", marks=needs_compiler), "0"], ids=["native", "pure"])
def test_a_wheel_holds_every_file_once(kernel, tmp_path, monkeypatch):
    wheel = build_wheel(tmp_path, monkeypatch, kernel)
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.partition("/")[0].endswith(".dist-info")]
    native = [name for name in names if name.endswith(".so")]
    assert len(names) == len(set(names))
    assert set(names) - set(native) == _expected()
    assert native == ([f"vheatir/kernels/cpu/{cpu_build.library_name()}"] if kernel == "1" else [])


def test_a_wheel_holds_nothing_of_an_earlier_build(tmp_path, monkeypatch):
    """pip builds in the checkout: modules that were moved since, and the kernel for other processors, lay there."""
    old = tmp_path / "source" / "build" / "lib" / "vheatir"
    for name in ("export.py", "kernels/cpu/libvheatir_cpu-0123456789abcdef.so", "recipes/former.yml"):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).touch()
    wheel = build_wheel(tmp_path, monkeypatch, "0")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert names == _expected()


@needs_compiler
def test_a_wheel_with_the_kernel_belongs_to_a_platform_and_to_every_python(tmp_path, monkeypatch):
    wheel = build_wheel(tmp_path, monkeypatch, "1")
    *_, python, abi, platform = wheel.stem.split("-")
    assert (python, abi) == ("py3", "none")
    assert platform == sysconfig.get_platform().replace("-", "_").replace(".", "_")


def test_a_wheel_without_the_kernel_is_for_every_machine(tmp_path, monkeypatch):
    assert build_wheel(tmp_path, monkeypatch, "0").name.endswith("-py3-none-any.whl")


def test_a_kernel_that_was_asked_for_and_cannot_be_built_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-compiler-of-that-name")
    with pytest.raises(AssertionError, match="asks for the CPU kernel"):
        build_wheel(tmp_path, monkeypatch, "1")


def test_the_metadata_name_the_readme_and_both_licenses(tmp_path, monkeypatch):
    wheel = zipfile.ZipFile(build_wheel(tmp_path, monkeypatch, "0"))
    (path,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(path))
    assert metadata["Version"] == importlib.import_module("vheatir").__version__
    assert metadata.get_payload().startswith((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[0])
    assert metadata["License-Expression"] == "Apache-2.0 AND LicenseRef-vHeatIR-Weights"
    folder = path.removesuffix("METADATA") + "licenses/"
    files = {folder + name for name in metadata.get_all("License-File")}
    assert files == {folder + "LICENSE", folder + "vheatir/weights/LICENSE-WEIGHTS"} and files <= set(wheel.namelist())
    assert metadata["Keywords"] and metadata["Author"] and len(metadata.get_all("Classifier")) > 5


def test_a_source_archive_holds_every_file_once(tmp_path):
    source = _copy(tmp_path / "source")
    _run([sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path], source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        members = [member for member in file.getmembers() if not member.isdir()]
    names = [member.name.partition("/")[2] for member in members]
    assert len(names) == len(set(names))
    assert not [member.name for member in members if member.issym() or member.islnk()]
    moved = {"vheatir/kernels/": "kernels/", "vheatir/backbone/": "backbone/", "vheatir/recipes/": "options/"}
    wanted = set()
    for name in _expected():
        start = next((start for start in moved if name.startswith(start)), "")
        wanted.add(moved.get(start, "") + name.removeprefix(start))
    assert wanted <= set(names)
    assert not [name for name in names if name.startswith(tuple(moved))]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="compares with what git holds")
def test_a_source_archive_holds_what_git_holds(tmp_path):
    """So the tests run from it; the links in vheatir/ are the one difference."""
    held = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in held.split("\0") if (ROOT / name).is_file()]
    source = tmp_path / "source"
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    _run([sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path], source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        packed = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
    assert set(names) - packed == set()
