"""Keys, shapes, sizes and costs of the full-size models are the published ones; nothing is computed."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="the backbones need the extra `backbone`")

from timm.optim import param_groups_weight_decay

from vheatir.backbone.analysis.cost import count_macs, count_parameters
from vheatir.backbone.models.checkpoint import STRUCTURAL
from vheatir.backbone.models.create import create_model, list_models
from vheatir.backbone.models.dense_backbones import dense_backbone
from vheatir.backbone.models.meta_arch import MetaArch
from vheatir.backbone.models.vheat import VHeat

FOLDER = Path(__file__).parent.parent.parent / "golden"
NUMBERS = json.loads((FOLDER / "reference_numbers.json").read_text(encoding="utf-8"))["models"]
WEIGHT_DECAY = json.loads((FOLDER / "weight_decay_groups.json").read_text(encoding="utf-8"))
FILES = sorted(path.name.removesuffix(".json.gz") for path in (FOLDER / "state_dict").glob("*.json.gz"))


def build(file: str) -> nn.Module:
    """The model that a file of keys describes, on the "meta" device."""
    name, _, form = file.partition("_224")
    with torch.device("meta"):
        if form == "_merged":
            return create_model(name).fold()
        if "_backbone" not in file:
            return create_model(name)
        name, _, side = file.partition("_backbone")
        return dense_backbone(name, img_size=int(side.removeprefix("_") or 224))


def test_all_published_models_are_described():
    assert len([file for file in FILES if file.endswith("_224")]) == len(NUMBERS) == 23


@pytest.mark.parametrize("file", FILES)
def test_keys_and_shapes(file):
    facts = json.loads(gzip.decompress((FOLDER / "state_dict" / f"{file}.json.gz").read_bytes()))
    model = build(file)
    want = {k: v for k, v in facts["state_dict"].items() if k.rpartition(".")[2] not in STRUCTURAL}
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == {
        key: described["shape"] for key, described in want.items()
    }
    parameters = {key for key, described in want.items() if described["kind"] == "parameter"}
    assert {key for key, _ in model.named_parameters()} == parameters
    assert count_parameters(model) == {"total": facts["parameters_total"], "trainable": facts["parameters_trainable"]}


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_multiply_accumulates(name):
    """The published counter states the product with vHeat's decay in four digits; all else is exact."""
    with torch.device("meta"):
        model = create_model(name)
    facts, heat = NUMBERS[name], name.startswith("vheat")
    want = facts["macs_training_form_224" if heat else "macs_224"]
    assert abs(count_macs(model)["total"] - want) <= (500 if heat else 0)
    if heat:
        assert abs(count_macs(model.fold())["total"] - facts["macs_merged_form_224"]) <= 500


def test_the_sixth_mixer_matches_the_others_in_parameters():
    for size in ("micro", "tiny", "small", "base"):
        with torch.device("meta"):
            heat = count_parameters(create_model(f"unified_heat_{size}"))["total"]
        others = [facts["params"] for name, facts in NUMBERS.items() if name.endswith(size) and "params" in facts]
        assert min(others) < heat < 1.01 * max(others)


REDUCED = {"dims": (16, 32, 64, 128), "num_classes": 10, "img_size": 64}
HEADS = (1, 2, 4, 8)
MIXER_ARGS = {
    "halo": {"num_heads": HEADS, "block_size": 2, "halo_size": 1},
    "pvt": {"num_heads": HEADS, "sr_ratio": (8, 4, 2, 1), "mlp_ratio": (8, 8, 4, 4)},
    "swin": {"num_heads": HEADS, "window_size": 4},
    "convnext": {},
    "dcn_v3": {"num_heads": HEADS},
}


@pytest.mark.parametrize("family", sorted(WEIGHT_DECAY))
def test_weight_decay_groups(family):
    """timm's grouping with `no_weight_decay` decays what the published recipes decay."""
    if family == "vheat":
        model = VHeat(**REDUCED, depths=(1, 1, 2, 1), post_norm=True, layer_scale=1e-5)
    else:
        model = MetaArch(family, MIXER_ARGS[family], **REDUCED, depths=(1, 1, 1, 1))
    free, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    got = {
        kind: sorted(names[id(p)] for p in group["params"]) for kind, group in (("no_decay", free), ("decay", decayed))
    }
    assert got == {kind: sorted(listed) for kind, listed in WEIGHT_DECAY[family].items()}


def test_no_other_models_exist():
    assert set(NUMBERS) | {f"unified_heat_{size}" for size in ("micro", "tiny", "small", "base")} == set(list_models())
