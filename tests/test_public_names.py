"""What type checkers see of the lazy packages is what Python finds there."""

import ast
import importlib
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
