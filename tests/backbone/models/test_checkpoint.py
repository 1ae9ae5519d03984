"""Published files load unchanged, without running code; what was not used is reported."""

import argparse
import pickle
import sys
import types

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("timm", reason="the backbones need the extra `backbone`")

from safetensors.torch import save_file

from vheatir.backbone.models.checkpoint import fit_state, load_checkpoint, read_checkpoint, unwrap
from vheatir.backbone.models.create import create_model


@pytest.fixture
def yacs_node(monkeypatch):
    """A configuration node that pickles as `yacs.config.CfgNode`, which yacs keeps as a dict with attributes."""
    node_type = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    module = types.ModuleType("yacs.config")
    module.CfgNode = node_type
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    node = node_type(MODEL=node_type(NAME="vheat_tiny"), AMP=True)
    node.__dict__["__immutable__"] = True
    return node


def test_files_of_the_published_training_load(yacs_node, tmp_path, make_model, monkeypatch):
    source, target = make_model("vheat_tiny"), make_model("vheat_tiny")
    ema = {key: value + 1 for key, value in source.state_dict().items()}
    content = {
        "model": {f"module.{key}": value for key, value in source.state_dict().items()},
        "model_ema": ema,
        "optimizer": {"lr": 1e-3},
        "max_accuracy": 82.1,
        "max_accuray_ema": 82.2,  # spelled so in the published code
        "epoch": 299,
        "config": yacs_node,
    }
    torch.save(content, tmp_path / "ckpt.pth")
    monkeypatch.delitem(sys.modules, "yacs.config")  # as where yacs is not installed
    report = load_checkpoint(target, tmp_path / "ckpt.pth")
    assert report.loaded == len(source.state_dict()) and not report.missing and not report.unused
    assert report.facts == {"max_accuracy": 82.1, "max_accuracy_ema": 82.2, "epoch": 299}
    assert set(report.entries) == {"model_ema", "optimizer", "config"}
    for key, value in source.state_dict().items():
        assert_close(target.state_dict()[key], value)
    load_checkpoint(target, tmp_path / "ckpt.pth", weights="ema")
    assert_close(target.state_dict()["classifier.3.bias"], ema["classifier.3.bias"])


def test_arguments_of_the_unified_training_load(tmp_path, make_model):
    model = make_model("unified_swin_micro")
    content = {"model": model.state_dict(), "args": argparse.Namespace(lr=1e-3), "epoch": 3}
    torch.save(content, tmp_path / "ckpt.pth")
    assert load_checkpoint(model, tmp_path / "ckpt.pth").entries == ["args"]


class Intruder:
    def __reduce__(self):
        return (sys.modules["os"].mkdir, ("ran",))


def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": torch.zeros(1)}, "config": Intruder()}, "bad.pth")
    with pytest.raises(ValueError, match="would run code"):
        read_checkpoint("bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Intruder()}))
    with pytest.raises(ValueError, match="would run code"):
        read_checkpoint("plain.pth")
    assert not (tmp_path / "ran").exists()


def test_pretrained_goes_through_the_safe_loader(yacs_node, tmp_path, make_model):
    source = make_model("vheat_tiny")
    torch.save({"model": source.state_dict(), "config": yacs_node}, tmp_path / "ckpt.pth")
    overlay = {"file": str(tmp_path / "ckpt.pth"), "custom_load": True}
    model = make_model("vheat_tiny", pretrained=True, pretrained_cfg_overlay=overlay)
    for key, value in source.state_dict().items():
        assert_close(model.state_dict()[key], value)


def test_structural_buffers_may_come_and_are_ignored(make_model):
    model = make_model("unified_swin_micro")
    state = dict(model.state_dict())
    state["stages.0.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    state["stages.0.1.attn_mask"] = torch.zeros(4, 16, 16)
    model.load_state_dict(state, strict=True)
    _, report = fit_state(state, model)
    assert sorted(report.ignored) == ["stages.0.0.attn.relative_position_index", "stages.0.1.attn_mask"]
    assert not report.unused
    with pytest.raises(RuntimeError, match="Unexpected"):
        model.load_state_dict({**state, "stages.0.0.attn.other": torch.zeros(1)}, strict=True)


def test_merged_files_load_into_either_form(tmp_path, make_model):
    source = make_model("vheat_tiny").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = source(x)
    save_file(source.fold().state_dict(), tmp_path / "merged.safetensors")
    model = make_model("vheat_tiny").eval()
    report = load_checkpoint(model, tmp_path / "merged.safetensors")
    assert model.folded and not report.missing
    with torch.no_grad():
        assert_close(model(x), want)
        with pytest.raises(ValueError, match="loaded in folded form: load unfolded weights"):
            model.unfold()  # its embeddings are not those of the file
        assert_close(model(x), want)
    save_file(source.unfold().state_dict(), tmp_path / "plain.safetensors")
    load_checkpoint(model, tmp_path / "plain.safetensors")
    assert not model.folded
    with torch.no_grad():
        assert_close(model(x), want)
    with pytest.raises(ValueError, match="give img_size"):
        load_checkpoint(make_model("vheat_tiny", img_size=96), tmp_path / "merged.safetensors")


def test_a_head_for_other_classes_stays_fresh(tmp_path, make_model):
    torch.save(make_model("unified_convnext_micro").state_dict(), tmp_path / "c.pth")
    model = make_model("unified_convnext_micro", num_classes=4, in_chans=1)
    before = model.head.weight.clone()
    report = load_checkpoint(model, tmp_path / "c.pth")
    assert set(report.dropped) == {"head.weight", "head.bias"}
    assert set(report.resized) == {"downsample_layers.0.stem.0.weight"}
    assert_close(model.head.weight, before)
    assert "another number of classes" in str(report)


def test_dense_backbones_take_classifier_files(tmp_path, make_model):
    from vheatir.backbone.models.dense_backbones import dense_backbone

    source = make_model("unified_convnext_micro")
    torch.save(source.state_dict(), tmp_path / "c.pth")
    model = dense_backbone("unified_convnext_micro", dims=(16, 32, 64, 128), depths=(2, 2, 1, 1))
    report = load_checkpoint(model, tmp_path / "c.pth")
    assert {key.split(".")[0] for key in report.missing} == {f"out_norm_{index}" for index in range(4)}
    assert {key.split(".")[0] for key in report.unused} == {"stage_norms", "conv_head", "head"}


@pytest.mark.parametrize("embeddings", ["relative", "index"])
def test_embeddings_follow_the_convention(embeddings, make_model):
    source, target = make_model("vheat_tiny"), make_model("vheat_tiny", img_size=128)
    state, report = fit_state(source.state_dict(), target, embeddings)
    assert report.resized["freq_embed.0"] == ((16, 16, 16), (32, 32, 16))
    old, new = source.freq_embed[0], state["freq_embed.0"]
    if embeddings == "relative":
        assert_close(new[::2, ::2], old)
    else:
        assert_close(new[:16, :16], old)
        assert new[16:].abs().sum() == new[:, 16:].abs().sum() == 0


def test_refusals(tmp_path, make_model):
    model = make_model("vheat_tiny")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*none\.pth"):
        load_checkpoint(model, tmp_path / "none.pth")
    with pytest.raises(ValueError, match="no tensors among the entries"):
        unwrap({"epoch": 3})
    with pytest.raises(ValueError, match="weights must be"):
        unwrap({}, "best")
    with pytest.raises(ValueError, match="embeddings must be one of relative, index"):
        fit_state({}, model, "nearest")
    torch.save({"patch_embed.conv1.weight": model.patch_embed.conv1.weight.detach()}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"lacks .* of the model's tensors"):
        load_checkpoint(model, tmp_path / "part.pth")
    assert load_checkpoint(model, tmp_path / "part.pth", strict=False).loaded == 1
    with pytest.raises(ValueError, match=r"conv1\.bias does not fit"):
        fit_state({"patch_embed.conv1.bias": torch.zeros(3)}, model)


def test_create_model_refuses_a_stem_of_other_patches():
    with pytest.raises(ValueError, match="patches of 4 pixels"):
        create_model("vheat_tiny", patch_size=8)
