"""Files that people give as weights: named by what they are, or read whatever stands before the names."""

import io
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from vheatir.backbone.models.checkpoint import load_checkpoint, read_checkpoint
from vheatir.backbone.models.create import create_model
from vheatir.errors import UserError

SMALL = {"dims": 8, "depths": [1, 1, 1, 1], "img_size": 32, "num_classes": 3}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("vheat_tiny", **SMALL)


def pth(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def legacy(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


TENSORS = {"a": torch.arange(1000.0), "b": torch.ones(50, 50)}
WHOLE = {".pth": pth(TENSORS), ".pt": legacy(TENSORS), ".safetensors": save(TENSORS)}
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
DAMAGE = {
    "empty": (lambda whole: b"", r"the file is empty \(0 bytes\); download"),
    "one byte": (lambda whole: whole[:1], r"cut off or damaged|but text"),
    "ten bytes": (lambda whole: whole[:10], "cut off or damaged|would run code"),
    "half": (lambda whole: whole[: len(whole) // 2], "cut off or damaged|would run code"),
    "all but the end": (lambda whole: whole[:-30], "cut off or damaged"),
    "page": (lambda whole: PAGE, "a web page, not the weights; download the file itself"),
    "page with a mark": (lambda whole: b"\xef\xbb\xbf" + PAGE, "a web page, not the weights"),
    "pointer": (lambda whole: LFS, "a pointer of Git LFS, not the weights; run `git lfs pull`"),
    "refusal": (
        lambda whole: b"Access denied\n",
        r"is no checkpoint of tensors, but text \(it begins 'Access denied'\)",
    ),
}


@pytest.mark.parametrize("suffix", WHOLE)
@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_no_file_of_weights_is_named(tmp_path, suffix, kind):
    make, message = DAMAGE[kind]
    file = tmp_path / f"w{suffix}"
    file.write_bytes(make(WHOLE[suffix]))
    with pytest.raises(ValueError, match=message) as caught:
        read_checkpoint(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", WHOLE)
@pytest.mark.parametrize("suffix", [*WHOLE, ".ckpt", ".bin"])
def test_the_bytes_tell_the_kind_of_a_file(tmp_path, content, suffix):
    (tmp_path / f"w{suffix}").write_bytes(WHOLE[content])
    got = read_checkpoint(tmp_path / f"w{suffix}")
    assert got.keys() == TENSORS.keys() and all(torch.equal(got[key], TENSORS[key]) for key in got)


def test_folders_and_other_content_are_named(tmp_path, model):
    with pytest.raises(ValueError, match=r"is a folder; give the \.safetensors"):
        load_checkpoint(model, tmp_path)
    for content, kind in (([torch.ones(1)], "list"), (torch.ones(1), "Tensor")):
        (tmp_path / "w.pth").write_bytes(pth(content))
        with pytest.raises(ValueError, match=rf"w\.pth holds a {kind}, expected a table of tensors by name"):
            load_checkpoint(model, tmp_path / "w.pth")


COMMANDS = ["pretrain --finetune", "pretrain --eval", "detect --pretrained", "detect --eval", "detect --predict"]
COMMANDS += ["segment --pretrained", "segment --eval", "analyze"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["empty", "half", "page", "pointer"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_command_says_it_in_a_line(tmp_path, command, kind, suffix):
    make, message = DAMAGE[kind]
    file = tmp_path / f"w{suffix}"
    file.write_bytes(make(WHOLE[suffix]))
    with pytest.raises(UserError, match=rf"w{suffix}.*({message})") as caught:
        run(command, tmp_path, file)
    assert "\n" not in str(caught.value)


def run(command: str, folder: Path, file: Path) -> None:
    from tests.backbone import dense_data
    from tests.backbone.classification import small

    name, _, mode = command.partition(" ")
    weights = [mode, str(file)] if mode in ("--finetune", "--pretrained") else [mode, "--weights", str(file)]
    if name == "pretrain":
        from vheatir.pretrain import main

        main(["-opt", str(small.make_recipe(folder, folder)), *weights])
    elif name == "analyze":
        from vheatir.analyze.command import main

        main(["cost", "--model", "vheat_tiny", "--weights", str(file), "-o", str(folder / "out"), "--rounds", "0"])
    else:
        from vheatir.detect import main as detect
        from vheatir.segment import main as segment

        main, make = (detect, dense_data.make_coco) if name == "detect" else (segment, dense_data.make_label_maps)
        recipe = dense_data.detection_recipe if name == "detect" else dense_data.segmentation_recipe
        root = make(folder / "set")
        if mode == "--predict":
            weights = ["--predict", str(root), "-o", str(folder / "out"), "--weights", str(file)]
        main(["-opt", str(recipe(folder, root)), *weights])


def average(model: nn.Module) -> dict:
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


def under(prefix: str, wrapper: str | None = None, **more):
    def make(model: nn.Module) -> dict:
        state = {prefix + key: value for key, value in model.state_dict().items()} | more
        return {wrapper: state} if wrapper else state

    return make


OTHER = {"neck.conv.weight": torch.ones(3), "criterion.weight": torch.ones(2)}
STORED = {
    "as it is": (under(""), ""),
    "compiled": (lambda model: torch.compile(model, backend="eager").state_dict(), "_orig_mod."),
    "DDP and compiled": (under("module._orig_mod."), "module._orig_mod."),
    "compiled and DDP": (under("_orig_mod.module."), "_orig_mod.module."),
    "DDP twice": (under("module.module.", "state_dict"), "module.module."),
    "averaged": (average, "module."),
    "lightning": (under("model.", "state_dict", **OTHER), "model."),
    "lightning, compiled": (under("model._orig_mod.", "state_dict"), "model."),
    "mmdetection": (under("backbone.", "state_dict", **OTHER), "backbone."),
    "a detector inside": (under("detector.body.", None, **OTHER), "detector.body."),
}


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_stands_before_the_names_is_taken_away_and_told(tmp_path, model, caplog, kind, suffix):
    caplog.set_level(logging.INFO)
    make, prefix = STORED[kind]
    state = make(model)
    file = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        flat = state.get("state_dict", state)
        save_file({key: value.clone() for key, value in flat.items()}, file)
    other = create_model("vheat_tiny", **SMALL)
    report = load_checkpoint(other, file)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    assert prefix in report.prefix and (not prefix or f"keys without '{report.prefix}'" in caplog.text)
    assert set(report.unused) - {"n_averaged"} <= set(OTHER)


def test_parts_compiled_by_themselves(tmp_path, model):
    state = {key.replace("layers.2.", "layers.2._orig_mod."): value for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    other = create_model("vheat_tiny", **SMALL)
    load_checkpoint(other, tmp_path / "w.pth")
    assert all(torch.equal(other.state_dict()[key], value) for key, value in model.state_dict().items())


def test_ema_of_lightning_is_taken_where_it_is_asked_for(tmp_path, model):
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    state |= {f"ema_model.{key}": value + 1 for key, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    for weights, more in (("model", 0), ("ema", 1)):
        other = create_model("vheat_tiny", **SMALL)
        load_checkpoint(other, tmp_path / "w.pth", weights=weights)
        for key, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[key], value + more)


def test_other_networks_take_them_too(tmp_path):
    from torchvision.models import resnet18

    from vheatir.backbone.models.feature_maps import build_features, load_features

    network = resnet18()
    state = {f"model._orig_mod.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    maps = build_features({"name": "resnet18"})
    report = load_features(maps, tmp_path / "w.pth", "model", "relative")
    assert report.prefix.endswith("model.") and torch.equal(maps.conv1.weight, network.conv1.weight)


def test_a_stranger_is_shown_by_its_first_keys(tmp_path, model):
    torch.save({"encoder.blocks.0.weight": torch.ones(2), "encoder.blocks.1.weight": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"w\.pth lacks \d+ of the model's tensors.*keys begin with encoder\.blocks\.0"
    ):
        load_checkpoint(model, tmp_path / "w.pth")
