"""The command that brings a checkpoint to another image size."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm", reason="the backbones need the extra `backbone`")

from vheatir.backbone.checkpoint import load_checkpoint
from vheatir.backbone.models import create_model

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "resize_checkpoint.py"


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def test_resized_file_loads_at_the_new_size_and_shapes_are_reported(tmp_path):
    source = create_model("unified_swin_micro", img_size=64, num_classes=5)
    torch.save({"model": source.state_dict(), "epoch": 1}, tmp_path / "a.pth")
    done = run("unified_swin_micro", tmp_path / "a.pth", tmp_path / "b.safetensors", "--img-size", 96, 128)
    assert done.returncode == 0, done.stderr
    assert "resized stages.2.0.attn.relative_position_bias_table: (49, 4) -> (121, 4)" in done.stdout
    model = create_model("unified_swin_micro", img_size=(96, 128), num_classes=5)
    report = load_checkpoint(model, tmp_path / "b.safetensors")
    assert not report.resized and not report.missing and not report.unused


def test_published_convention_appends_zeros(tmp_path):
    embedding = torch.ones(56, 56, 96)
    torch.save({"model": {"freq_embed.0": embedding}}, tmp_path / "a.pth")
    done = run("vheat_tiny", tmp_path / "a.pth", tmp_path / "b.pth", "--img-size", 512, "--embeddings", "index")
    assert done.returncode == 0, done.stderr
    resized = torch.load(tmp_path / "b.pth")["model"]["freq_embed.0"]
    assert resized.shape == (128, 128, 96)
    assert resized.sum() == resized[:56, :56].sum() == embedding.sum()


def test_refusals_have_no_traceback(tmp_path):
    for file, said in (("none.pth", "no checkpoint"), ("empty.pth", "no checkpoint of tensors")):
        (tmp_path / "empty.pth").write_bytes(b"not a checkpoint")
        done = run("vheat_tiny", tmp_path / file, tmp_path / "b.pth", "--img-size", 512)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
