"""Every file of options/: read, checked, its datasets, network and model built, one step of training made."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vheatir import weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.data.sources import close_environments
from vheatir.train.options import read_options

pytest.importorskip("basicsr", reason="training needs BasicSR")
from basicsr.utils.registry import ARCH_REGISTRY

from vheatir.runs.folder import RunFolder
from vheatir.test import evaluate_options
from vheatir.train.build import build_model, complete_options
from vheatir.train.registry import register_all
from vheatir.train.trainer import Trainer

RECIPES = Path(__file__).resolve().parent.parent.parent.parent / "options"
TRAINING = ["denoise", "denoise_light", "denoise_gray_light", "jpeg", "jpeg_light", "jpeg_gray_light", "smoke"]
TRAINING += ["dncnn_light", "swinir_light", "photo_light", "video_light"]
TESTING = ["test_denoise", "test_jpeg", "test_photo"]
SMALL = {
    "VHeatIR": ["dim=8", "depths=[1]", "reach=[0.5, 4.0]"],
    "VHeatUNet": ["dim=8", "encoder=[1]", "middle=1", "decoder=[1]", "attention=[heat, heat]", "reach=[0.5, 4.0]"],
    "VHeatVideoNet": ["dim=8", "mix_dim=8", "encoder=[1]", "middle=1", "decoder=[1]", "attention=[heat, heat]"],
    "DnCNN": ["dim=8", "depth=4"],
    "AnySizeSwinIR": ["embed_dim=12", "depths=[2]", "num_heads=[2]", "img_size=16"],
}
FULL_SIZE = {  # what the files promise; the tests shrink it
    "denoise": {"dim": 180, "depths": [6] * 6, "gt_size": 128, "batch": 8, "iterations": 1_600_000},
    "jpeg": {"dim": 180, "depths": [6] * 6, "gt_size": 128, "batch": 8, "iterations": 1_600_000},
}


@pytest.fixture(scope="module", autouse=True)
def _registered():
    register_all()
    yield
    close_environments()


def shrunk(name, stand_ins, *more):
    """The recipe on stand-in images with a small network; everything else as in the file."""
    path = RECIPES / f"{name}.yml"
    overrides = list(more)
    for phase, table in read_options(path)["datasets"].items():
        root = table["dataroot_gt"]
        if not root.startswith("package:"):
            stand_in = stand_ins / ("train.lmdb" if root.endswith(".lmdb") else "folder")
            overrides.append(f"datasets.{phase}.dataroot_gt={stand_in}")
            if "include" in table:
                overrides.append(f'datasets.{phase}.include=["38*.jpg"]')
    if name in TRAINING:
        network = read_options(path)["network_g"]["type"]
        overrides += ["datasets.train.gt_size=16", "datasets.train.batch_size_per_gpu=2"]
        overrides += ["datasets.train.num_worker_per_gpu=0", "val.max_images=1"]
        overrides += ["datasets.train.progressive=[]"]  # its crops are larger than the stand-ins
        overrides += [f"network_g.{change}" for change in SMALL[network]]
        overrides += ["path.pretrain_network_g=null"]  # of the full size: tested below
    return path, complete_options(path, read_options(path, overrides), is_train=name in TRAINING)


def test_every_file_is_tested():
    assert sorted(path.stem for path in RECIPES.glob("*.yml")) == sorted(TRAINING + TESTING)


@pytest.mark.parametrize("name", TRAINING)
def test_recipe_builds_steps_and_validates(name, stand_ins, tmp_path):
    path, options = shrunk(name, stand_ins)
    trainer = Trainer(path, options, RunFolder(tmp_path, "x", resume=False))
    before = [parameter.detach().clone() for parameter in trainer.model.net_g.parameters()]
    batch = next(iter(trainer.loader()))
    colors = options["network_g"].get("in_chans", 3)
    assert batch["gt"].shape == (2, colors, 16, 16)
    assert batch["lq"].shape == (2, colors * options["network_g"].get("frames", 1), 16, 16)
    trainer.model.update_learning_rate(1, options["train"].get("warmup_iter", -1))
    trainer.model.feed_data(batch)
    trainer.model.optimize_parameters(1)
    assert np.isfinite(float(trainer.model.get_current_log()["l_pix"]))
    after = trainer.model.net_g.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert trainer.validation_sets
    for dataset in trainer.validation_sets.values():
        result = trainer.model.validate(dataset)
        assert set(result["restored"]) == set(options["val"]["metrics"]) and result["images"] == 1


@pytest.mark.parametrize("name", ["denoise_gray_light", "jpeg_gray_light"])
def test_gray_recipes_start_from_the_shipped_color_weights(name, stand_ins):
    path = RECIPES / f"{name}.yml"
    sets = [f"datasets.{phase}.dataroot_gt={stand_ins / 'folder'}" for phase in read_options(path)["datasets"]]
    options = complete_options(path, read_options(path, sets), is_train=True)
    color, _ = weights.load(options["path"]["pretrain_network_g"])
    network = build_model(path, options).net_g.eval()
    image = torch.rand(1, 1, 24, 20)
    with torch.no_grad():
        assert_close(network(image), color(image.expand(-1, 3, -1, -1)).mean(1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_the_video_recipe_starts_from_the_shipped_image_weights(stand_ins):
    path = RECIPES / "video_light.yml"
    sets = [f"datasets.{phase}.dataroot_gt={stand_ins / 'folder'}" for phase in read_options(path)["datasets"]]
    options = complete_options(path, read_options(path, sets), is_train=True)
    image_network, _ = weights.load(options["path"]["pretrain_network_g"])
    network = build_model(path, options).net_g.eval()
    clip = torch.rand(1, 15, 24, 20)
    with torch.no_grad():
        assert_close(network(clip), image_network(clip[:, 6:9]))


@pytest.mark.parametrize("name", TRAINING)
def test_recipe_can_be_built_at_its_full_size(name):
    """Constructor arguments, crop and context fit each other; nothing is allocated."""
    options = read_options(RECIPES / f"{name}.yml")
    table = dict(options["network_g"])
    # BasicSR's SwinIR reads values of tensors as it is built
    with torch.device("cpu" if table["type"] == "AnySizeSwinIR" else "meta"):
        network = ARCH_REGISTRY.get(table.pop("type"))(**table)
    assert options["datasets"]["train"]["gt_size"] % table.get("downscale", 1) == 0
    promised = FULL_SIZE.get(name)
    if promised:
        train = options["datasets"]["train"]
        got = [table["dim"], table["depths"], train["gt_size"], train["batch_size_per_gpu"]]
        assert [*got, options["train"]["total_iter"]] == list(promised.values())
        assert train["dataroot_gt"].endswith(".lmdb") and "io_backend" not in train  # a folder can take its place
    if name.endswith("light"):
        assert sum(parameter.numel() for parameter in network.parameters()) <= 2e6


def test_light_recipes_split_one_folder_into_training_and_validation(stand_ins, tmp_path):
    path, options = shrunk("denoise_light", stand_ins)
    trainer = Trainer(path, options, RunFolder(tmp_path, "x", resume=False))
    (validation,) = trainer.validation_sets.values()
    assert (trainer.train_set.keys, validation.keys) == (["100075.jpg", "12003.jpg"], ["38082.jpg", "385028.jpg"])


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    network = VHeatIR(dim=8, depths=[1], embed_size=8, downscale=2)
    torch.nn.init.normal_(network.conv_last.weight, std=0.01)
    about = {"task": "denoise", "color": "color", "levels": "none", "license": "none"}
    weights.save(path, network.state_dict(), {**about, "config": json.dumps(network.config)})
    return path


@pytest.mark.parametrize("name", TESTING)
def test_recipe_is_evaluated(name, stand_ins, small_weights, tmp_path):
    path, options = shrunk(name, stand_ins, f"path.pretrain_network_g={small_weights}", "val.max_images=1")
    results = evaluate_options(path, options, tmp_path)
    assert [result["data"] for result in results] == [table["name"] for table in options["datasets"].values()]
    for result in results:
        assert set(result["restored"]) == set(options["val"]["metrics"])
        assert result["restored"] != result["input"] and result["images"] == 1


@pytest.mark.parametrize("name", TRAINING + TESTING)
def test_every_number_is_written_so_that_any_yaml_reader_takes_it_for_one(name):
    import yaml

    def texts(value):
        if isinstance(value, dict):
            return [text for item in value.values() for text in texts(item)]
        if isinstance(value, list):
            return [text for item in value for text in texts(item)]
        return [value] if isinstance(value, str) else []

    found = texts(yaml.safe_load((RECIPES / f"{name}.yml").read_text(encoding="utf-8")))
    assert [text for text in found if text.replace("e-", "").replace(".", "").isdigit()] == []
