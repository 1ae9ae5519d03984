"""The public names: those of the reference pages, and what type checkers see of the lazy packages."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAZY = {"vheatir": "vheatir", "vheatir.backbone": "backbone"}


def seen_by_tools(folder: str) -> dict[str, str]:
    """Name -> module in the folder's stub; every import must say `as` itself, which makes it public."""
    found = {}
    for node in ast.parse((ROOT / folder / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, f"{alias.name} is not exported"
                found[alias.name] = node.module
    return found


def listed(folder: str) -> list[str]:
    body = ast.parse((ROOT / folder / "__init__.pyi").read_text(encoding="utf-8")).body
    (value,) = [
        node.value
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    ]
    return ast.literal_eval(value)


@pytest.mark.parametrize("package, folder", LAZY.items())
def test_stub_and_lazy_table_say_the_same(package, folder):
    module = importlib.import_module(package)
    assert seen_by_tools(folder) == module._PUBLIC
    assert sorted(listed(folder)) == sorted(module.__all__)


@pytest.mark.parametrize("package", LAZY)
def test_every_public_name_is_there(package):
    """In the module that the table names, or brought to it from where it stands."""
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module))


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "vheatir" / "py.typed").is_file()


def referenced() -> list[str]:
    """Full names on the pages of docs/reference, sorted."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return sorted(name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M))


PINNED = (ROOT / "tests" / "data" / "public_names.txt").read_text(encoding="utf-8").split()
# Their modules need packages of an extra.
NEED = {
    "vheatir.backbone.models": "timm",
    "vheatir.train": "basicsr",
    "vheatir.integrations.deepinv": "deepinv",
    "vheatir.integrations.spandrel": "spandrel",
    "vheatir.integrations.huggingface": "huggingface_hub",
}


def found(full_name: str):
    module, _, name = full_name.rpartition(".")
    for start, package in NEED.items():
        if module.startswith(start):
            pytest.importorskip(package)
    return getattr(importlib.import_module(module), name)


def test_the_list_of_public_names_is_what_the_reference_pages_hold():
    """A name that goes is a deprecation first: see docs/reference/index.md."""
    assert referenced() == PINNED


@pytest.mark.parametrize("full_name", PINNED)
def test_a_public_name_stands_where_the_reference_says_and_is_documented(full_name):
    value = found(full_name)
    assert inspect.getdoc(value)
    assert value.__module__ == full_name.rpartition(".")[0]


@pytest.mark.parametrize("package", LAZY)
def test_the_reference_holds_all_names_of_the_packages(package):
    module = importlib.import_module(package)
    assert {f"{place}.{name}" for name, place in module._PUBLIC.items()} <= set(PINNED)
