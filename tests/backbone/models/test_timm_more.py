"""What timm's newer functions ask of a model: a saved configuration of now, device and type, counted operations."""

import json

import numpy as np
import pytest
import timm
import torch
from timm.models._hub import save_for_hf  # newer releases have it in timm.models too
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from tests.backbone.conftest import SMALL, SMALL_MODELS
from vheatir import diffuse
from vheatir.backbone.analysis import cost
from vheatir.backbone.analysis.cost import count_macs
from vheatir.backbone.models.create import create_model
from vheatir.backbone.models.dense_backbones import dense_backbone
from vheatir.backbone.models.pyramid import image_size

RESIZED = {
    "to a square": lambda model: model.set_input_size(96),
    "to a rectangle": lambda model: model.set_input_size((64, 96)),
    "twice": lambda model: (model.set_input_size(96), model.set_input_size(32)),
    "other classes": lambda model: model.reset_classifier(4),
    "no pooling": lambda model: model.reset_classifier(0, ""),
    "size and classes": lambda model: (model.set_input_size(96), model.reset_classifier(4)),
}


def _changed(name: str, change: str):
    torch.manual_seed(1)
    scale = {} if name == "vheat_tiny" else {"layer_scale": 0.5}
    model = create_model(name, **{**SMALL, **SMALL_MODELS[name], **scale}).eval()
    RESIZED[change](model)
    return model


@pytest.mark.skipif(not hasattr(timm.models, "save_for_hf"), reason="this timm loads no local folders")
@pytest.mark.parametrize("change", RESIZED)
def test_a_saved_folder_gives_the_network_of_now(model_name, change, tmp_path):
    model = _changed(model_name, change)
    save_for_hf(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert tuple(again.img_size) == tuple(model.img_size) and again.num_classes == model.num_classes
    x = torch.randn(2, 3, *model.img_size)
    with torch.no_grad():
        assert_close(again(x), model(x), rtol=0, atol=0)
    if "to" in change or change == "twice":
        stored = json.loads((tmp_path / "config.json").read_text())
        assert stored["pretrained_cfg"]["input_size"] == [3, *model.img_size]
        assert tuple(stored["model_args"]["img_size"]) == tuple(model.img_size)
    assert create_model("vheat_tiny", **SMALL).pretrained_cfg["input_size"] == (3, 224, 224)


def test_device_and_type_are_passed_on(model_name, device):
    arguments = {**SMALL, **SMALL_MODELS[model_name]}
    for make in (create_model, timm.create_model):
        model = make(model_name, device=device, dtype=torch.float64, **arguments)
        assert {(one.device.type, one.dtype) for one in model.parameters()} == {(device.type, torch.float64)}
        assert model(torch.randn(1, 3, 40, 36, device=device, dtype=torch.float64)).dtype == torch.float64
    assert next(create_model(model_name, device="meta", **arguments).parameters()).is_meta
    assert next(create_model(model_name, dtype=torch.bfloat16, **arguments).parameters()).dtype == torch.bfloat16
    network = {key: value for key, value in arguments.items() if key != "num_classes"}
    dense = dense_backbone(model_name, device="meta", dtype=torch.float16, **network)
    assert {(one.is_meta, one.dtype) for one in dense.parameters()} == {(True, torch.float16)}
    maps = create_model(model_name, device="meta", dtype=torch.float64, features_only=True, **arguments)
    assert {(one.is_meta, one.dtype) for one in maps.parameters()} == {(True, torch.float64)}
    with pytest.raises(TypeError, match=r"dtype must be a floating type, got torch\.int64"):
        create_model(model_name, dtype=torch.int64, **arguments)


def test_pretrained_weights_come_in_the_type_that_is_asked_for(tmp_path):
    torch.manual_seed(0)
    source = create_model("vheat_tiny", **SMALL)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    overlay = {"file": str(tmp_path / "w.pth"), "custom_load": True}
    model = create_model("vheat_tiny", pretrained=True, pretrained_cfg_overlay=overlay, dtype=torch.bfloat16, **SMALL)
    assert_close(model.layers[0][0].op.linear.weight, source.layers[0][0].op.linear.weight.bfloat16())


@pytest.mark.parametrize("name", ["vheat_tiny", "unified_heat_micro"])
def test_the_counter_sees_the_heat_of_a_network(name):
    model = create_model(name, **SMALL).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    found = {str(key): value for key, value in counter.get_flop_counts()["Global"].items()}
    heat = sum(value for key, value in found.items() if "vheatir.conduct" in key)
    assert heat // 2 == count_macs(model, 64)["heat_conduction"] > 0


class _Diffusing(torch.nn.Module):
    in_chans = 3

    def forward(self, image):
        return torch.mm(diffuse(image.permute(0, 2, 3, 1), 2.0).flatten(0, 2), torch.ones(3, 1, device=image.device))


def test_the_counter_takes_mixers_of_other_operators():
    """`vheatir.diffuse` has 2 products of the side and 1 with the decay for each axis; what has no group is `other`."""
    with pytest.MonkeyPatch.context() as patch:
        assert count_macs(_Diffusing(), 64) == {
            "heat_conduction": 3 * 64 * 64 * (4 * 64 + 4 * 64 + 2) // 2,
            "linear": 3 * 64 * 64,
            "total": 3 * 64 * 64 * (4 * 64 + 1) + 3 * 64 * 64,
        }
        patch.delitem(cost._GROUPS, "linear")
        assert count_macs(_Diffusing(), 64)["other"] == 3 * 64 * 64


@pytest.mark.parametrize("name", ["vheat_tiny", "unified_heat_micro"])
def test_a_pruned_network_still_runs(name):
    network = create_model(name, img_size=32, num_classes=3, dims=8, depths=(1, 1, 1, 1))
    network.prune_intermediate_layers([1])
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 16, 4, 4)


@pytest.mark.parametrize("name", ["vheat_tiny", "unified_heat_micro"])
def test_a_network_pruned_while_it_is_folded_unfolds_and_folds(name):
    network = create_model(name, img_size=32, num_classes=3, dims=8, depths=(1, 1, 1, 1))
    network.fold().prune_intermediate_layers([1])
    assert len(network.unfold().freq_embed) == 2
    assert network.fold()(torch.zeros(2, 3, 32, 32)).shape == (2, 16, 4, 4)


def test_image_sizes_of_other_kinds_of_numbers():
    assert image_size(np.int64(48)) == image_size(np.array([48, 48])) == image_size(48) == (48, 48)
    for size in (48.0, (48,), (48, 48, 3), 0, (48, 0), (48, 47.5), "48"):
        with pytest.raises(ValueError, match="an image size must be a whole number of pixels of at least 1"):
            image_size(size)
