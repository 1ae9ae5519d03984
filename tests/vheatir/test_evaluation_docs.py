"""What docs/evaluation.md shows runs as shown, on small stand-ins for the test sets."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from vheatir import evaluate, weights

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python (scripts/\S+) (.+)$", TEXT, flags=re.MULTILINE)
SNIPPETS = re.findall(r"```python\n(.+?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A working folder with the test sets of the examples, two small pictures each, and results for one of them."""
    rng = np.random.default_rng(0)
    places = [f"datasets/test/{name}" for name in re.findall(r"datasets/test/(\w+)", TEXT)]
    for place in {*places, "results/images/Classic5/quality10"}:
        folder = tmp_path / place
        folder.mkdir(parents=True)
        for name in ("1.png", "2.png"):
            shape = (24, 32, 3) if "CBSD68" in place else (24, 32)
            cv2.imwrite(str(folder / name), rng.integers(0, 256, shape, dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_shows_commands_and_code():
    assert len(COMMANDS) >= 5 and len(SNIPPETS) == 1


@pytest.mark.parametrize(("script", "arguments"), COMMANDS, ids=range(len(COMMANDS)))
def test_shown_commands_run(script, arguments, checkout, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("shown_script", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    needs_weights = "evaluate" in script and "--weights" not in arguments and "--method" not in arguments
    shipped = {name for names in weights.DEFAULTS.values() for name in names.values()}
    if needs_weights and not shipped <= set(weights.available()):
        pytest.skip("the shipped weights are not in this checkout")
    assert module.main(shlex.split(arguments)) == 0
    assert "PSNR" in capsys.readouterr().out
    written = re.findall(r"--(?:json|save-images) (\S+)", arguments)
    assert all((checkout / name).exists() for name in written)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_shown_code_runs(snippet, checkout, capsys):
    exec(compile(snippet, "docs/evaluation.md", "exec"), {})
    before, after = map(float, capsys.readouterr().out.split())
    assert 20 < before < after


def test_every_option_of_the_page_exists():
    known = evaluate._parser().format_help() + "--border --luma"
    assert set(re.findall(r"--[a-z][a-z-]+", TEXT)) <= set(re.findall(r"--[a-z][a-z-]+", known))
