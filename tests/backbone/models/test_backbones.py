"""Each family and mixer as timm's own tests would have it, and at the sizes and types where published code fails."""

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("timm", reason="the backbones need the extra `backbone`")

import timm
from timm.models import group_parameters

from vheatir.backbone.models.create import create_model, list_models

SIZES = [(64, 64), (33, 65), (1, 1), (7, 130), (224, 96)]


def image(*size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *size)


def test_every_model_is_registered_with_timm():
    assert len(list_models()) == 27
    assert set(list_models()) <= set(timm.list_models())


@pytest.mark.parametrize("name", list_models())
def test_default_config_names_layers_sizes_and_source(name):
    with torch.device("meta"):
        model = create_model(name)
    config, keys = model.pretrained_cfg, set(model.state_dict())
    assert {f"{config['first_conv']}.weight", f"{config['classifier']}.weight"} <= keys
    assert model.get_classifier().out_features == model.num_classes == config["num_classes"] == 1000
    maps = model.forward_features(torch.empty(1, *config["input_size"], device="meta"))
    assert maps.shape == (1, model.num_features, *config["pool_size"])
    assert (config["crop_pct"], config["interpolation"], config["fixed_input_size"]) == (0.875, "bicubic", False)
    mixer, size = name.split("_", 1)[1].rsplit("_", 1) if name.startswith("unified") else (None, None)
    released = {"halo": "halonet", "dcn_v3": "internimage"}.get(mixer, mixer)
    if mixer in (None, "heat"):
        assert not config["url"] and config.get("license") is None
    else:
        assert config["url"].endswith(f"/unified_{released}_{size}.pth") and config["license"] == "mit"
    assert (config.get("origin_url") or "").startswith("https://github.com/") == (mixer != "heat")


def test_pretrained_goes_through_the_released_address(make_model, tmp_path, monkeypatch):
    source = make_model("unified_swin_micro", num_classes=1000)
    torch.save({"model": source.state_dict()}, tmp_path / "unified_swin_micro.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    overlay = {"url": (tmp_path / "unified_swin_micro.pth").as_uri()}
    model = make_model("unified_swin_micro", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1)
    assert_close(model.stages[0][0].attn.qkv.weight, source.stages[0][0].attn.qkv.weight)
    assert model.head.out_features == 7


def test_forward_and_features(model_name, make_model):
    model = make_model(model_name).eval()
    x = image(64, 64)
    with torch.no_grad():
        logits, maps = model(x), model.forward_features(x)
    assert logits.shape == (2, 7)
    assert maps.shape == (2, model.num_features, 2, 2)
    assert_close(model.forward_head(maps), logits)


def test_every_parameter_gets_a_gradient(model_name, make_model):
    model = make_model(model_name, drop_path_rate=0.1).train()
    model(image(64, 64)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_runs_one_image_at_a_time(model_name, size, make_model):
    with torch.no_grad():
        logits = make_model(model_name).eval()(image(*size, batch=1))
    assert logits.shape == (1, 7) and logits.isfinite().all()


@pytest.mark.parametrize("size", [(64, 64), (45, 70)], ids=str)
def test_images_of_a_batch_do_not_meet(model_name, size, make_model):
    model, x = make_model(model_name).eval().double(), image(*size, batch=3).double()
    with torch.no_grad():
        assert_close(model(x), torch.cat([model(one[None]) for one in x]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_types(model_name, dtype, make_model):
    model, x = make_model(model_name).eval(), image(40, 64)
    with torch.no_grad():
        want, got = model(x), model.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    assert_close(got.float(), want, atol=tolerance * want.abs().max().item(), rtol=0)


def test_training_works_under_autocast_and_after_inference_mode(model_name, make_model):
    model = make_model(model_name)
    with torch.inference_mode():
        model.eval()(image(64, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train()(image(64, 64)).float().square().mean()
    loss.backward()
    assert next(model.parameters()).grad.isfinite().all()


def test_features_only_keeps_the_classifiers_keys_and_values(model_name, make_model):
    classifier, x = make_model(model_name).eval(), image(45, 70)
    extractor = make_model(model_name, features_only=True, out_indices=(0, 2)).eval()
    assert set(extractor.state_dict()) < set(classifier.state_dict())
    extractor.load_state_dict({k: v for k, v in classifier.state_dict().items() if k in extractor.state_dict()})
    with torch.no_grad():
        maps, want = extractor(x), classifier.forward_intermediates(x, intermediates_only=True)
    for one, index in zip(maps, (0, 2), strict=True):
        assert_close(one, want[index])
    assert [one.shape[1] for one in maps] == extractor.feature_info.channels() == [16, 64]
    assert extractor.feature_info.reduction() == [4, 16]


def test_intermediates(model_name, make_model):
    model, x = make_model(model_name).eval(), image(64, 96)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x, indices=2, norm=True)
        last = model.forward_intermediates(x, indices=[-1], output_fmt="NHWC", intermediates_only=True)
    assert [one.shape for one in maps] == [(2, 64, 4, 6), (2, 128, 2, 3)]
    assert_close(last[0].permute(0, 3, 1, 2), final)
    assert_close(final, model.forward_features(x))


def test_reset_classifier(model_name, make_model):
    model, x = make_model(model_name).eval(), image(64, 64)
    model.reset_classifier(11)
    assert model(x).shape == (2, 11) and model.get_classifier().out_features == 11
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.head_hidden_size, 2, 2)
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(3, "max")


def test_checkpointing_changes_no_gradient(model_name, make_model):
    model, x = make_model(model_name, drop_path_rate=0.0).double().train(), image(64, 64).double()
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, grad in found[0].items():
        assert_close(found[1][name], grad, msg=lambda text, name=name: f"{name}: {text}")


def test_groups_for_layer_decay_run_from_stem_to_head(model_name, make_model):
    model = make_model(model_name)
    groups = group_parameters(model, model.group_matcher(coarse=False))
    assert sum(len(names) for names in groups.values()) == len(list(model.parameters()))
    order = {name: index for index, names in groups.items() for name in names}
    head = f"{model.pretrained_cfg['classifier']}.weight"
    assert order[f"{model.pretrained_cfg['first_conv']}.weight"] == 0
    assert order[head] == max(order.values()) >= sum(model.depths)


def test_set_input_size_does_once_what_each_call_would_do(model_name, make_model):
    model, x = make_model(model_name).eval(), image(96, 64)
    with torch.no_grad():
        want = model(x)
        model.set_input_size((96, 64))
        assert_close(model(x), want)
    assert model.img_size == (96, 64)


def test_set_input_size_leaves_frozen_weights_frozen(model_name, make_model):
    model = make_model(model_name).requires_grad_(False)
    model.set_input_size(32)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_window_attention_follows_the_map(make_model):
    """The published code keeps the masks of the size it was made for, and silently mixes the wrong windows."""
    small = make_model("unified_swin_micro", img_size=64, depths=(2, 2, 2, 2)).eval()
    large = make_model("unified_swin_micro", img_size=128, depths=(2, 2, 2, 2)).eval()
    small.set_input_size(128)
    large.load_state_dict(small.state_dict())
    x = image(128, 128)
    with torch.no_grad():
        assert_close(small(x), large(x))


def test_other_channels_and_head(model_name, make_model):
    model = make_model(model_name, in_chans=1, num_classes=3).eval()
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 3)
    with pytest.raises(ValueError, match=r"expected images \(B, 1, H, W\)"):
        model(image(64, 64))


@pytest.mark.parametrize("name", ["vheat_tiny", "unified_swin_micro"])
def test_compiled_training_step_is_the_same(name, make_model):
    model, x = make_model(name, dims=(16,), depths=(2,), drop_path_rate=0.0).train(), image(40, 64)
    want = model(x).square().sum()
    got = torch.compile(model, backend="aot_eager")(x).square().sum()
    assert_close(got, want)
    got.backward()
    assert next(model.parameters()).grad is not None


@pytest.mark.parametrize("name", ["vheat_tiny", "unified_heat_micro"])
def test_folding_changes_no_value(name, make_model):
    model, x = make_model(name).eval().double(), image(64, 64).double()
    with torch.no_grad():
        want = model(x)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert_close(model.fold()(x), want)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) < parameters
        with pytest.raises(ValueError, match="folded for maps of 16x16"):
            model(image(96, 64).double())
        assert_close(model.unfold()(x), want)


def test_unfolding_keeps_16_bits(make_model):
    model = make_model("vheat_tiny").bfloat16()
    model.fold().unfold()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_another_default_device_moves_nothing(make_model):
    """As `torch.set_default_device` names one for what is made without a device."""
    model, x = make_model("vheat_tiny").eval(), image(96, 64)
    want = model(x)
    with torch.device("meta"):
        assert_close(model(x), want)
        model.set_input_size((96, 64))
        assert_close(model(x), want)
