"""What docs/contributing.md adds works as it is written: the files, and their tests."""

import re
import sys
import types
from pathlib import Path

import pytest

from tests.docs.shown import python_blocks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "contributing.md"
TEXT = PAGE.read_text(encoding="utf-8")


def block(beginning: str) -> str:
    """The Python block of the page that holds a text."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", TEXT, re.S) if beginning in code]
    return found


def module(name: str, code: str, monkeypatch) -> types.ModuleType:
    """The code as a module of the package, for as long as a test runs."""
    made = types.ModuleType(name)
    exec(compile(code, name, "exec"), made.__dict__)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def collected(code: str) -> dict:
    found = {}
    exec(compile(code, "test", "exec"), found)
    return {name: value for name, value in found.items() if name.startswith("test_")}


def test_a_mixer(monkeypatch):
    pytest.importorskip("timm")
    from vheatir.backbone.mixers import MIXERS

    made = module("vheatir.backbone.mixers.mean", block("class MeanBlock"), monkeypatch)
    monkeypatch.setitem(MIXERS, "mean", made.MeanBlock)
    tests = collected(block("vheatir.backbone.mixers.mean import"))
    assert len(tests) == 2
    for test in tests.values():
        test()


def test_a_degradation(monkeypatch, tmp_path):
    module("vheatir.data.salt", block("class SaltAndPepperDataset"), monkeypatch)
    (test,) = collected(block("vheatir.data.salt import")).values()
    test(tmp_path)


def test_the_places_that_are_named_are_there():
    root = PAGE.parent.parent
    added = {"backbone/mixers/mean.py", "tests/backbone/mixers/test_mean.py", "vheatir/data/salt.py"}
    added |= {"tests/vheatir/data/test_salt.py", "vheatir/X.py", "vheatir/X/api.py", "vheatir/X/command.py"}
    added |= {"tests/vheatir/test_X.py", "tests/vheatir/X/"}
    if not (root / ".git").exists():
        added |= {"vheatir/backbone", "vheatir/kernels"}  # a source archive holds no links
    named = set(re.findall(r"`((?:backbone|kernels|vheatir|tests|scripts)/[\w./]*)`", TEXT)) - added
    assert len(named) > 15
    assert [name for name in sorted(named) if not (root / name).exists()] == []
    assert len(python_blocks("docs/contributing.md")) == 4
