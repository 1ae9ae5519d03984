"""Every backbone as ONNX and as a program, with an open batch, equal to PyTorch."""

import json

import pytest
import torch

pytest.importorskip("timm", reason="the backbones need the extra `backbone`")
pytest.importorskip("onnxruntime", reason="exporting needs the extra `export`")
pytest.importorskip("onnxscript", reason="exporting needs the extra `export`")

import onnxruntime
from safetensors.torch import save_file

from tests.backbone.conftest import SMALL_MODELS
from vheatir.backbone.models.create import create_model
from vheatir.errors import UserError
from vheatir.export.command import main

TINY = {"dims": [8, 16, 32, 64], "depths": [2, 1, 1, 1], "img_size": [32, 64], "num_classes": 5}


def weights(folder, name: str, suffix: str = ".safetensors"):
    """A network and its file as `vheatir pretrain` writes it, or as others do."""
    torch.manual_seed(0)
    scale = {} if name == "vheat_tiny" else {"layer_scale": 0.5}
    arguments = {**TINY, **SMALL_MODELS[name], **scale}
    model = create_model(name, **arguments).eval()
    file = folder / f"w{suffix}"
    if suffix == ".safetensors":
        described = json.loads(json.dumps({"name": name, **arguments}))
        save_file(model.state_dict(), file, {"task": "classification", "model": json.dumps(described)})
    else:
        torch.save({"model": model.state_dict()}, file)
    return model, file


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_every_backbone(tmp_path, capsys, name, suffix):
    model, file = weights(tmp_path, name)
    target = tmp_path / f"out{suffix}"
    assert main([str(file), "-o", str(target)]) == 0
    assert "differs from PyTorch by" in capsys.readouterr().out
    x = torch.randn(3, 3, 32, 64)
    with torch.no_grad():
        want = model(x)
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        assert (
            session.get_outputs()[0].name == "scores"
            and json.loads(session.get_modelmeta().custom_metadata_map["model"])["name"] == name
        )
        got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    else:
        got = torch.export.load(target).module()(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_other_files_with_a_name_and_arguments(tmp_path):
    model, file = weights(tmp_path, "vheat_tiny", ".pth")
    settings = [word for key in TINY for word in ("--set", f"{key}={TINY[key]}")]
    assert main([str(file), "-o", str(tmp_path / "a.pt2"), "--model", "vheat_tiny", *settings]) == 0
    x = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(tmp_path / "a.pt2").module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["W", "--hub", "OUT"], "--hub is for restoration networks"),
        (["W", "-o", "OUT.onnx", "--set", "dims=12"], "does not fit"),
        (["denoise_color_blind", "-o", "OUT.onnx", "--set", "dims=12"], "arguments belong to backbones"),
        (["none.safetensors", "-o", "OUT.onnx", "--model", "vheat_tiny"], r"no checkpoint none\.safetensors"),
        (["W", "-o", "OUT.png"], r"expected a name in \.onnx, \.pt2"),
    ],
)
def test_what_cannot_be_exported_is_named(tmp_path, argv, message):
    _, file = weights(tmp_path, "vheat_tiny")
    argv = [word.replace("W", str(file)) if word == "W" else word.replace("OUT", str(tmp_path / "o")) for word in argv]
    with pytest.raises(UserError, match=message):
        main(argv)


def test_weights_of_a_detector_are_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "d.safetensors", {"model": json.dumps({"backbone": {}, "classes": []})})
    with pytest.raises(UserError, match="weights of a detector or segmenter"):
        main([str(tmp_path / "d.safetensors"), "-o", str(tmp_path / "o.onnx")])
