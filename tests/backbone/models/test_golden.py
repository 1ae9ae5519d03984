"""Every golden case of the published networks, in float64 and float32.

Constructors, shapes and arrays come from the folder that VHEATIR_GOLDEN names, else from the committed copy.
"""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("timm", reason="the backbones need the extra `backbone`")

from vheatir.backbone.layers.common import to_channels_first, to_channels_last
from vheatir.backbone.layers.heat import HeatBlock, HeatLayer
from vheatir.backbone.mixers import MIXERS, BlockPosition
from vheatir.backbone.mixers.deformable import DeformableSampling, base_offsets, pixel_centres, sample_weighted
from vheatir.backbone.mixers.halo import HaloAttention
from vheatir.backbone.models.checkpoint import fit_state, resize_by_index
from vheatir.backbone.models.dense_backbones import DenseMetaArch, DenseVHeat
from vheatir.backbone.models.meta_arch import MetaArch
from vheatir.backbone.models.pyramid import map_sizes
from vheatir.backbone.models.vheat import VHeat
from vheatir.kernels.dct import dct_matrix, decay_map

FOLDER = Path(os.environ.get("VHEATIR_GOLDEN") or Path(__file__).parent.parent.parent / "golden")
CASES = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["cases"]

# The names that the published code has for the arguments of a mixer; None for what is always so here.
ARGUMENTS = {
    "mlp_ratios": "mlp_ratio",
    "sr_ratios": "sr_ratio",
    "deform_points": "points",
    "n_points": "points",
    "dw_ks": "kernel_size",
    "offsets_scaler": "offset_scale",
    "deform_ratio": "ratio",
    "deform_padding": None,
    "padding": None,
}
NETWORK = {"in_channels": "in_chans", "layer_scale_init_value": "layer_scale", "block_type": "mixer"}


def renamed(arguments: dict) -> dict:
    return {ARGUMENTS.get(k, k): v for k, v in arguments.items() if ARGUMENTS.get(k, k) is not None}


def network_arguments(constructor: dict) -> dict:
    args = {NETWORK.get(k, k): v for k, v in constructor.items() if k not in ("block_kwargs", "forward_kwargs")}
    return {**args, "mixer_args": renamed(constructor.get("block_kwargs", {}))}


def with_gradient(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


def gradients(out: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out.square().sum(), wanted)


def vheat_tables(case):
    for output in CASES[case.name]["outputs"]:
        kind, size = output.split("_")
        if kind == "cos":
            case.check(output, dct_matrix(int(size), dtype=case.dtype))
        else:
            height, width = map(int, size.split("x"))
            case.check(output, decay_map(torch.ones(height, width, 1, dtype=case.dtype))[..., 0])


def vheat_op(case):
    layer = case.fill(HeatLayer(case.constructor["dim"]))
    x, embedding = with_gradient(case.inputs["x"]), with_gradient(case.inputs["freq_embed"])
    if case.constructor.get("infer_mode"):
        layer.fold(embedding)
        case.check("k_exp", layer.k_exp)
        case.check("out", to_channels_first(layer(to_channels_last(x))))
        return
    out = to_channels_first(layer(to_channels_last(x), embedding))
    case.check("out", out)
    case.check("k", layer.diffusivity(embedding))
    wanted = {"x": x, "freq_embed": embedding}
    wanted |= {"to_k_weight": layer.to_k[0].weight, "dwconv_weight": layer.dwconv.weight}
    for name, grad in zip(wanted, gradients(out, *wanted.values()), strict=True):
        case.check(f"grad_{name}", grad)


def vheat_block(case):
    args = {key: case.constructor[key] for key in ("mlp_ratio", "post_norm", "layer_scale", "drop_path")}
    block = case.fill(HeatBlock(case.constructor["hidden_dim"], **args))
    x = with_gradient(case.inputs["x"])
    out = to_channels_first(block(to_channels_last(x), case.inputs["freq_embed"]))
    case.check("out", out)
    case.check("grad_x", *gradients(out, x))


def check_stages(case, model, x: Tensor) -> None:
    outputs = CASES[case.name]["outputs"]
    if "stem" in outputs:
        case.check("stem", to_channels_first(model.stem(to_channels_last(x))))
    for index, maps in enumerate(model.forward_intermediates(x, intermediates_only=True)):
        if f"stage{index}" in outputs:
            case.check(f"stage{index}", maps)


def vheat_model(case):
    model, x = case.fill(VHeat(**case.constructor)), case.inputs["x"]
    check_stages(case, model, x)
    logits = model(x)
    case.check("logits", logits)
    case.check_parameter_gradients(logits, model)
    with torch.no_grad():
        case.check("merged_logits", model.fold()(x))


def vheat_dense(case):
    model = case.fill(DenseVHeat(**case.constructor))
    with torch.no_grad():
        for name, x in case.inputs.items():
            for index, maps in zip(case.constructor["out_indices"], model(x), strict=True):
                case.check(f"out{index}{name.removeprefix('x')}", maps)


def vheat_zero_pad(case):
    sizes = {key: case.constructor[key] for key in ("pt_size", "tg_size")}
    model = VHeat(**{key: value for key, value in case.constructor.items() if key not in sizes})
    case.fill(model)
    for index, size in enumerate(map_sizes(sizes["tg_size"])):
        case.check(f"freq_embed_{index}", resize_by_index(model.freq_embed[index].detach(), size))


def halo_op(case):
    args = {"dim": case.constructor["dim"], **{k: v for k, v in case.constructor.items() if k != "dim"}}
    attention = case.fill(HaloAttention(**args))
    x = with_gradient(case.inputs["x"])
    out = attention(x)
    case.check("out", out)
    case.check("grad_x", *gradients(out, x))


def mixer_block(case):
    args = dict(case.constructor)
    mixer, stage = case.name.split("/")[0], args.pop("stage", 0)
    args.pop("total_depth", None)
    size = tuple(args.pop("input_resolution", (56, 56)))
    place = BlockPosition(stage, args.pop("depth", 0), size, args.pop("drop_path"), args.pop("layer_scale_init_value"))
    args = {k: v[stage] if isinstance(v, list) else v for k, v in renamed(args).items()}
    block = case.fill(MIXERS[mixer](args.pop("dim"), place, **args))
    x = with_gradient(case.inputs["x"])
    # Halo's block is the only one whose published form takes channels-last maps.
    out = block(x) if mixer == "halo" else to_channels_first(block(to_channels_last(x)))
    case.check("out", out)
    case.check("grad_x", *gradients(out, x))


def dcn_sampling(case):
    value, place, weight = (with_gradient(case.inputs[name]) for name in ("value", "loc", "weight"))
    maps = value.unflatten(1, (case.constructor["H"], case.constructor["W"]))
    out = sample_weighted(maps, place.squeeze(3), weight.squeeze(3))
    case.check("out", out)
    for name, grad in zip(("value", "loc", "weight"), gradients(out, value, place, weight), strict=True):
        case.check(f"grad_{name}", grad)


def dcn_op(case):
    args = {k: v for k, v in renamed(case.constructor).items() if k not in ("n_levels", "H", "W")}
    height, width = case.constructor["H"], case.constructor["W"]
    layer = case.fill(DeformableSampling(args.pop("d_model"), args.pop("n_heads"), **args))
    x = with_gradient(case.inputs["x"])
    out = layer(x.unflatten(1, (height, width))).flatten(1, 2)
    case.check("out", out)
    case.check("grad_x", *gradients(out, x))
    # The published operator pads the map and counts places in the padded one.
    rim, device = layer.side // 2, torch.device("cpu")
    places = pixel_centres(height, width, case.dtype, device) + rim + 0.5
    padded = torch.tensor([width + 2 * rim, height + 2 * rim], dtype=case.dtype)
    case.check("reference_points", (places / padded)[None, :, None])
    base = base_offsets(layer.side, layer.num_heads, layer.dilation_rates, case.dtype, device)
    case.check("grid", base[None, None, :, None])
    case.check("spatial_shapes", padded.flip(0)[None].long())


def unified_model(case):
    model, x = case.fill(MetaArch(**network_arguments(case.constructor))), case.inputs["x"]
    check_stages(case, model, x)
    features = model.forward_features(x)
    case.check("pooled", model.forward_head(features, pre_logits=True))
    logits = model(x)
    case.check("logits", logits)
    if "param_grad_norms" in CASES[case.name]["outputs"]:
        case.check_parameter_gradients(logits, model)


def unified_dense(case):
    model = case.fill(DenseMetaArch(**network_arguments(case.constructor)))
    with torch.no_grad():
        for index, maps in zip(case.constructor["out_indices"], model(case.inputs["x"]), strict=True):
            case.check(f"out{index}", maps)


def unified_resize_on_load(case):
    mixer = case.constructor["block_type"]
    source, target = (
        MetaArch(**network_arguments({**case.constructor[which], "block_type": mixer}))
        for which in ("source", "target")
    )
    source = case.fill(source)
    state, report = fit_state(source.state_dict(), target.to(case.dtype))
    target.load_state_dict(state)
    assert report.resized and not report.missing
    for name in sorted(case.open):
        case.check(name, target.state_dict()[name])


MIXER_NAMES = "(halo|pvt|swin|convnext|dcn_v3)"
RUNNERS = {
    r"vheat/tables": vheat_tables,
    r"vheat/op_(square|rect|merged)": vheat_op,
    r"vheat/block_(pre|post)_norm(_ls)?(_rect)?": vheat_block,
    r"vheat/model_(pre_norm|post_norm_ls)": vheat_model,
    r"vheat/dense_(pre_norm|post_norm_ls)": vheat_dense,
    r"vheat/freq_embed_zero_pad": vheat_zero_pad,
    r"halo/op_(query_related|query_free|block7_halo3)": halo_op,
    r"halo/block|swin/block_(plain|shifted|clamped|clamped_small)|dcn_v3/block": mixer_block,
    r"pvt/block_(first_sr2|later_sr2|later_sr1)|convnext/block_(k7|k3)": mixer_block,
    r"dcn_v3/sampling_core": dcn_sampling,
    r"dcn_v3/op_(default|scaled|dilated|points25)": dcn_op,
    rf"{MIXER_NAMES}/model_(square|rect)|meta/options_(norm_end|norm_after_avg)": unified_model,
    rf"{MIXER_NAMES}/dense": unified_dense,
    r"(swin|halo|pvt)/resize_on_load": unified_resize_on_load,
}
# Cases of training and analysis, which have no network in them.
ELSEWHERE = {"invariance/transforms", "invariance/metrics", "recipe/schedules"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", [name for name in CASES if name not in ELSEWHERE])
def test_case(name, dtype, golden_case):
    """Outputs and gradients within the stated tolerance, weights under the published keys."""
    runner = next((run for pattern, run in RUNNERS.items() if re.fullmatch(pattern, name)), None)
    assert runner is not None, f"no test knows the golden case {name}"
    case = golden_case(name, dtype)
    runner(case)
    case.finish()


@pytest.mark.skipif("VHEATIR_GOLDEN" in os.environ, reason="another set may hold fewer cases than the committed one")
def test_every_runner_has_a_case():
    """A pattern that fits nothing would leave its part of the networks untested."""
    idle = [pattern for pattern in RUNNERS if not any(re.fullmatch(pattern, name) for name in CASES)]
    assert idle == []
