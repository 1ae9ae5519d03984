"""Every file of examples/ runs on small data and reaches what it says."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.docs.shown import ROOT

FOLDER = ROOT / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_array_is_restored():
    before, after = example("restore_array").main(size=64)
    assert 20 < before < 21 and after > before + 8


def test_a_clip_is_restored(tmp_path):
    pytest.importorskip("av", reason="clips need PyAV: pip install 'vheatir[video]'")
    before, after = example("restore_clip").main(tmp_path, size=64, count=3)
    assert 20 < before < 21 and after > before + 7


def test_a_block_with_the_operator_learns_the_diffusivities():
    learned = example("operator_in_your_block").main(size=16, steps=120)
    torch.testing.assert_close(learned, torch.tensor([0.3, 1.0, 4.0]), rtol=0.1, atol=0)


def test_a_mixer_of_ones_own_is_trained():
    pytest.importorskip("timm")
    from vheatir.backbone.mixers import MIXERS

    try:
        assert example("own_mixer").main(size=32, steps=25, dims=8) > 0.85
    finally:
        MIXERS.pop("rows_and_columns", None)


def test_fine_tuned_weights_restore_the_new_noise_better(tmp_path):
    shipped, tuned = example("fine_tune").main(tmp_path / "tuned.safetensors", size=32, steps=20)
    assert tuned < 0.8 * shipped


def test_a_solver_with_the_denoiser_deblurs():
    pytest.importorskip("deepinv", reason="pip install 'vheatir[integrations]'")
    before, after = example("plug_and_play").main(size=64, steps=15)
    assert after > before + 1


def test_the_page_and_these_tests_name_every_example():
    files = {path.stem for path in FOLDER.glob("*.py")}
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\((\w+)\.py\)", page)) == files
    tests = Path(__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'example\("(\w+)"\)', tests)) == files
