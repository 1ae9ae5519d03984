"""Every recipe in options/classification builds its network, shrunk, and makes a step; published numbers hold."""

import json
from pathlib import Path

import pytest

pytest.importorskip("timm", reason="training backbones needs the extra `backbone`")

from tests.backbone.classification import small
from vheatir.backbone.classification.optimizer import scaled_lr
from vheatir.backbone.classification.recipe import read_recipe
from vheatir.backbone.models.create import create_model, list_models
from vheatir.pretrain import main
from vheatir.utils.recipes import find_options, load_table, recipes

NAMES = sorted(path.stem for path in (recipes() / "classification").glob("*.yml"))
PVT = "[8, 16, 40, 64]"
MIXERS = {"halo": "24", "pvt": PVT, "swin": "24", "dcn_v3": "16", "heat": "8"}
CASES = [(name, None, "24") for name in NAMES]
CASES += [("unified", f"unified_{mixer}_tiny", dims) for mixer, dims in MIXERS.items()]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return small.make_images(tmp_path_factory.mktemp("images"), train=2, val=1)


@pytest.mark.parametrize("name, model, dims", CASES, ids=str)
def test_each_recipe_builds_and_steps(name, model, dims, images, tmp_path):
    changes = [f"data.root={images}", "data.batch_size=2", "data.workers=0", "device=cpu", "train.epochs=1"]
    changes += [f"model.dims={dims}", "model.depths=[1, 1, 1, 1]", "model.img_size=32", "train.warmup_epochs=0"]
    changes += ["train.accumulate=3", f"path.experiments_root={tmp_path}", "name=x", "logger.use_tb_logger=false"]
    changes += [f"model.name={model}"] if model else []
    assert main(["-opt", f"classification/{name}", *(part for change in changes for part in ("--set", change))]) == 0
    points = [json.loads(line) for line in (tmp_path / "x" / "curves.jsonl").read_text().splitlines()]
    assert points[0]["iteration"] == 1 and 0 < points[0]["train/loss"] < 15
    assert points[-1]["val/images"] == 3


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_names_a_known_model_and_its_own_drop_path(name):
    recipe = read_recipe(load_table(find_options(f"classification/{name}")))
    assert recipe.model["name"] in list_models()
    if "drop_path_rate" in recipe.model and recipe.model["num_classes"] == 1000:
        import torch

        with torch.device("meta"):
            own, built = create_model(recipe.model["name"]), create_model(**recipe.model)
        assert str(own) == str(built)


@pytest.mark.parametrize(
    "name, batch, rates, decay",
    [
        ("vheat_tiny", 2048, (2e-3, 2e-5, 2e-6), 0.08),
        ("vheat_base", 2048, (2e-3, 2e-5, 2e-6), 0.08),
        ("unified", 1024, (1e-3, 1e-5, 1e-6), 0.05),
        ("unified_cnn", 4096, (4e-3, 1e-6, 0.0), 0.05),
    ],
)
def test_the_recipes_state_the_published_numbers(name, batch, rates, decay):
    recipe = read_recipe(load_table(find_options(f"classification/{name}")))
    train, augment = recipe.train, recipe.augment
    assert tuple(scaled_lr(train, batch).values()) == pytest.approx(rates, rel=1e-12)
    assert (train.epochs, train.warmup_epochs, train.grad_clip, train.ema_decay) == (300, 20, 5.0, 0.9999)
    assert train.weight_decay == decay
    assert (augment.mixup, augment.cutmix, augment.smoothing, augment.erase) == (0.8, 1.0, 0.1, 0.25)
    assert augment.auto_augment == "rand-m9-mstd0.5-inc1" and recipe.val.crop_pct == 0.875


def test_the_guide_names_every_recipe():
    guide = Path(__file__).parent.parent.parent.parent / "docs" / "classification.md"
    assert [name for name in NAMES if f"`{name}`" not in guide.read_text(encoding="utf-8")] == []
