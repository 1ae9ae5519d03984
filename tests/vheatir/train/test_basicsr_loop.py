"""`VHeatIRModel` does what BasicSR's own loop asks of a model, and makes the steps that `vheatir train` makes."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("basicsr", reason="training needs BasicSR")

from vheatir.data.sampling import IterationSampler
from vheatir.train.build import build_datasets, build_model, complete_options
from vheatir.train.options import read_options
from vheatir.train.registry import register_all

MORE = ("train.accumulate=2", "train.grad_clip=0.2", "datasets.train.batch_size_per_gpu=4")


def prepared(recipe: Path, folder: Path):
    """Options as BasicSR's `parse_options` leaves them, and the datasets."""
    register_all()
    options = complete_options(recipe, read_options(recipe, MORE), is_train=True)
    for name in ("models", "training_states", "visualization"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        options["path"][name] = str(folder / name)
    datasets = build_datasets(recipe, options)
    datasets["val"].opt["name"] = "images"
    return options, datasets


def iterations(model, options, datasets, first: int):
    """The calls of BasicSR's `train_pipeline`, from an iteration on."""
    sampler = IterationSampler(4, options["train"]["total_iter"], first)
    batches = DataLoader(datasets["train"], batch_sampler=sampler)
    for number, batch in enumerate(batches, first + 1):
        model.update_learning_rate(number, warmup_iter=options["train"].get("warmup_iter", -1))
        model.feed_data(batch)
        model.optimize_parameters(number)
        if number == 6:
            model.save(0, number)
            model.validation(DataLoader(datasets["val"]), number, None, True)
    model.save(epoch=-1, current_iter=-1)


def test_basicsrs_loop_makes_the_steps_of_ours_saves_validates_and_resumes(train, recipe, tmp_path):
    ours = train.state(train(*MORE))
    options, datasets = prepared(recipe, tmp_path / "basicsr")
    torch.manual_seed(options["manual_seed"])
    model = build_model(recipe, options)
    iterations(model, options, datasets, 0)
    assert set(model.get_current_log()) == {"l_pix", "grad_norm"}
    assert model.best_metric_results["images"]["psnr"]["iter"] == 6
    assert len(list((tmp_path / "basicsr" / "visualization").rglob("*.png"))) == 2
    saved = torch.load(tmp_path / "basicsr" / "models" / "net_g_latest.pth", weights_only=True)
    for part, key in (("network", "params"), ("network_ema", "params_ema")):
        for name, value in ours[part].items():
            assert torch.equal(saved[key][name], value), f"{part}.{name}"
    options, datasets = prepared(recipe, tmp_path / "resumed")
    state = tmp_path / "basicsr" / "training_states" / "6.state"
    # as BasicSR's check_resume leaves them
    options["path"] |= {"resume_state": str(state), "pretrain_network_g": str(state.parents[1] / "models/net_g_6.pth")}
    torch.manual_seed(99)
    model = build_model(recipe, options)
    model.resume_training(torch.load(state, weights_only=True))
    iterations(model, options, datasets, 6)
    for network, part in ((model.net_g, "network"), (model.net_g_ema, "network_ema")):
        for name, value in network.state_dict().items():
            assert torch.equal(value, ours[part][name]), f"{part}.{name}"
