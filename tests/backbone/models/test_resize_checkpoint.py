"""The command that brings a checkpoint to another image size."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

pytest.importorskip("timm", reason="the backbones need the extra `backbone`")

from vheatir.backbone.models.checkpoint import load_checkpoint
from vheatir.backbone.models.checkpoint_files import stored_classes, stored_model
from vheatir.backbone.models.create import create_model

SCRIPT = Path(__file__).resolve().parent.parent.parent.parent / "scripts" / "resize_checkpoint.py"


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    """`run(*arguments)`: exit status, output and errors of the command."""
    spec = importlib.util.spec_from_file_location("resize_checkpoint", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def call(*arguments: object) -> tuple[int, str, str]:
        status = script.main([str(argument) for argument in arguments])
        return (status, *capsys.readouterr())

    return call


def test_resized_file_loads_at_the_new_size_and_shapes_are_reported(tmp_path, run):
    source = create_model("unified_swin_micro", img_size=64, num_classes=5)
    torch.save({"model": source.state_dict(), "epoch": 1}, tmp_path / "a.pth")
    status, said, _ = run("unified_swin_micro", tmp_path / "a.pth", tmp_path / "b.safetensors", "--img-size", 96, 128)
    assert status == 0
    assert "resized stages.2.0.attn.relative_position_bias_table: (49, 4) -> (121, 4)" in said
    model = create_model("unified_swin_micro", img_size=(96, 128), num_classes=5)
    report = load_checkpoint(model, tmp_path / "b.safetensors")
    assert not report.resized and not report.missing and not report.unused


def test_weights_of_pretrain_still_say_what_they_are(tmp_path, run):
    source = create_model("unified_swin_micro", img_size=64, num_classes=2)
    network = {"name": "unified_swin_micro", "img_size": 64, "num_classes": 2, "drop_path_rate": 0.1}
    told = {"task": "classification", "license": "mine", "classes": json.dumps(["cat", "dog"])}
    save_file(source.state_dict(), tmp_path / "a.safetensors", {**told, "model": json.dumps(network)})
    assert run("unified_swin_micro", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--img-size", 96)[0] == 0
    assert stored_model(tmp_path / "b.safetensors") == {**network, "img_size": 96}
    assert stored_classes(tmp_path / "b.safetensors") == ["cat", "dog"]
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert {key: file.metadata()[key] for key in told} == told


def test_networks_of_other_widths_are_built_as_their_weights_say(tmp_path, run):
    network = {"img_size": 64, "dims": 8, "depths": [1, 1, 1, 1], "num_classes": 2}
    source = create_model("vheat_tiny", **network)
    told = {"model": json.dumps({"name": "vheat_tiny", **network, "grad_checkpointing": True})}
    save_file(source.state_dict(), tmp_path / "a.safetensors", told)
    status, said, _ = run("vheat_tiny", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--img-size", 96)
    assert status == 0 and "resized freq_embed.0: (16, 16, 8) -> (24, 24, 8)" in said
    report = load_checkpoint(create_model("vheat_tiny", **{**network, "img_size": 96}), tmp_path / "b.safetensors")
    assert not report.resized and not report.missing


def test_published_convention_appends_zeros(tmp_path, run):
    embedding = torch.ones(56, 56, 96)
    torch.save({"model": {"freq_embed.0": embedding}}, tmp_path / "a.pth")
    status, _, _ = run("vheat_tiny", tmp_path / "a.pth", tmp_path / "b.pth", "--img-size", 512, "--embeddings", "index")
    assert status == 0
    resized = torch.load(tmp_path / "b.pth")["model"]["freq_embed.0"]
    assert resized.shape == (128, 128, 96)
    assert resized.sum() == resized[:56, :56].sum() == embedding.sum()


def test_refusals_say_what_is_wrong(tmp_path, run):
    (tmp_path / "empty.pth").write_bytes(b"not a checkpoint")
    for file, reason in (("none.pth", "no checkpoint"), ("empty.pth", "is no checkpoint of tensors")):
        status, _, said = run("vheat_tiny", tmp_path / file, tmp_path / "b.pth", "--img-size", 512)
        assert status == 2 and reason in said


@pytest.mark.parametrize("name, size, reason", [("vheat_tyni", 64, "unknown network"), ("vheat_tiny", 0, "above 0")])
def test_a_network_or_size_that_there_is_not_is_refused_without_a_traceback(tmp_path, run, name, size, reason):
    torch.save({"model": {"freq_embed.0": torch.ones(56, 56, 96)}}, tmp_path / "a.pth")
    status, _, said = run(name, tmp_path / "a.pth", tmp_path / "b.pth", "--img-size", size)
    assert status == 2 and reason in said


@pytest.mark.parametrize("name", ["a.pth", "b.pth", "b.safetensors"])
def test_no_weights_are_lost(tmp_path, run, name):
    """The checkpoint under its own name, and a disk that is full: what was there stays."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    torch.save({"model": {"freq_embed.0": torch.ones(56, 56, 96)}}, tmp_path / "a.pth")
    (tmp_path / name).touch()
    before = (tmp_path / name).read_bytes()
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, former[1]))
    try:
        status, _, said = run("vheat_tiny", tmp_path / "a.pth", tmp_path / name, "--img-size", 256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert status == 2 and ("would be lost" if name == "a.pth" else "too large") in said
    assert (tmp_path / name).read_bytes() == before and len(list(tmp_path.iterdir())) == len({"a.pth", name})
