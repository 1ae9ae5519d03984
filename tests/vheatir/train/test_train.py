"""`vheatir train` from end to end on tiny networks: it learns, writes what it promises, and reads what it wrote."""

import json
import logging
import shutil

import pytest
import torch
import yaml

from vheatir import weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.data.camera_dataset import CameraNoiseDataset
from vheatir.data.datasets import JPEGDataset, PairedDataset
from vheatir.errors import UserError
from vheatir.prepare.patches import make_lmdb
from vheatir.runs.checkpoints import load_latest
from vheatir.train.command import main
from vheatir.train.notes import notes
from vheatir.train.registry import register_all

pytest.importorskip("basicsr", reason="training needs BasicSR")


def test_training_learns_to_denoise(train):
    folder = train(
        "train.total_iter=150",
        "val.val_freq=50",
        "network_g.dim=16",
        "train.optim_g.lr=5e-3",
        "train.scheduler={type: CosineAnnealingRestartLR, periods: [150]}",
        "datasets.train.batch_size_per_gpu=4",
        "val.metrics.ssim={type: vheatir_ssim}",
    )
    points, losses = train.curves(folder), train.losses(folder)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    last = [point for point in points if "val/psnr" in point][-1]
    assert last["iteration"] == 150
    assert last["val/psnr"] > last["val/input_psnr"] + 1 and last["val/ssim"] > last["val/input_ssim"]


def test_run_folder_tells_all(train, recipe):
    folder = train("train.optim_g.lr=1e-3", "logger.use_tb_logger=true", "val.save_img=true")
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "curves.jsonl",
        "images",
        "models",
        "options.yml",
        "resolved.yml",
        "run.json",
        "tensorboard",
        "train.log",
    ]
    assert (folder / "options.yml").read_text() == recipe.read_text()
    resolved = yaml.safe_load((folder / "resolved.yml").read_text())
    assert resolved["train"]["optim_g"]["lr"] == 1e-3 and resolved["datasets"]["train"]["sigma"] == 25
    run = json.loads((folder / "run.json").read_text())
    assert run["command"].startswith("vheatir train -opt") and {"commit", "versions", "machine", "utc"} <= run.keys()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["iter_00000008.pt", "iter_00000012.pt"]
    assert sorted(path.name for path in (folder / "models").iterdir()) == ["best.safetensors", "latest.safetensors"]
    assert next((folder / "tensorboard").iterdir()).name.startswith("events.out.tfevents")
    images = sorted(path.relative_to(folder / "images").as_posix() for path in folder.rglob("*.png"))
    assert images == [f"{i:08d}/val/val{n}.png" for i in (6, 12) for n in (0, 1)]
    log = (folder / "train.log").read_text()
    assert log.count("iteration 6, restored (input):\n") == 1 and "12/12 l_pix" in log and "best psnr" in log
    assert [point["iteration"] for point in train.curves(folder)] == [2, 4, 6, 6, 8, 10, 12, 12]


def test_the_options_in_the_folder_train_the_same_again(train, recipe):
    """Those as given even in place of the run to which they belong, which is moved aside."""
    from vheatir.train.command import main

    folder = train("train.optim_g.lr=1e-3", "train.total_iter=4", name="first")
    assert main(["-opt", str(folder / "resolved.yml"), "--set", "name=second"]) == 0
    train.assert_same(folder, folder.with_name("second"))
    assert main(["-opt", str(folder / "resolved.yml"), "--resume"]) == 0
    settings = ("--set", "name=first", "--set", "train.total_iter=1")
    assert main(["-opt", str(folder / "options.yml"), *settings]) == 0
    assert (folder / "options.yml").read_text() == recipe.read_text()


def test_the_log_notes_what_is_seldom_meant(train, small_photos, tmp_path):
    """Validation on training images, a rate that does not fall, other data in a resumed run; and none of it wrongly."""
    plain = train("train.total_iter=2", name="plain")
    assert "note: " not in (plain / "train.log").read_text()
    images = tmp_path / "images"
    images.mkdir()
    for path in (small_photos / "train").iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (tmp_path / "link").symlink_to(images, target_is_directory=True)
    changes = [f"datasets.train.dataroot_gt={images}", f"datasets.val.dataroot_gt={tmp_path / 'link'}"]
    changes += ["datasets.val.exclude=['train0*']", "train.total_iter=2"]
    schedule = "train.scheduler={{type: CosineAnnealingRestartLR, periods: [{}]}}"
    folder = train(*changes, schedule.format(9), name="odd")
    log = (folder / "train.log").read_text()
    assert "note: 4 of 4 images of datasets.val are trained on too" in log
    assert "periods is 9, train.total_iter 2: the learning rate stops short" in log and " had " not in log
    (images / "train4.png").unlink()
    changes[-1] = "train.total_iter=3"
    log = (train(*changes, schedule.format(9), name="odd", resume=True) / "train.log").read_text()
    assert "note: datasets.train had 5 images, now 4: samples" in log
    assert "note: datasets.val had 4 images, now 3: scores" in log
    cosine = "train.scheduler={{type: CosineAnnealingLR, T_max: {}}}"
    for end, noted in ((1, True), (3, False), (4, False)):
        log = (train(cosine.format(end), "train.total_iter=4", name=f"cosine{end}") / "train.log").read_text()
        assert ("rises again" in log) is noted


def test_the_log_of_a_resumed_run_notes_what_its_scores_do_not_compare_by(train, small_photos, tmp_path):
    train("train.total_iter=2")
    moved = tmp_path / "moved"
    (moved / "val").mkdir(parents=True)
    for path in (small_photos / "val").iterdir():
        (moved / "val" / path.name).write_bytes(path.read_bytes())
    more = (f"datasets.val.dataroot_gt={moved / 'val'}", "datasets.val.cache=memory", "val.val_freq=1")
    log = (train(*more, "train.total_iter=3", resume=True) / "train.log").read_text()
    assert "note: " not in log
    log = (train("datasets.val.sigma=50", "val.max_images=1", resume=True) / "train.log").read_text()
    effect = "scores do not compare with the best so far"
    assert "note: datasets.val was {'sigma': 25, 'type': 'GaussianNoiseDataset'}, is now {'sigma': 50, " in log
    assert f"note: val.max_images was None, is now 1: {effect}" in log and log.count("note: ") == 2


def test_the_log_notes_patterns_that_match_no_image(train):
    """As in a folder of sub-images, whose names end otherwise: what was to be left out is trained on."""
    excluded = "datasets.train.exclude=['train0.jpg', 'train1.*', '*/train2.png']"
    log = (train(excluded, "datasets.val.include=['val*.png']", "train.total_iter=1") / "train.log").read_text()
    assert log.count("note: ") == 2 and "note: datasets.train: include or exclude has train0.jpg, which no image" in log
    assert "has */train2.png, which" in log


def test_the_log_notes_options_without_effect(photo_folder):
    """Stages after the end of the run, and what a validation set does not do to whole images."""
    common = {"dataroot_gt": str(photo_folder()), "quality": 10, "double_probability": 0.5, "text_probability": 0.1}
    stages = {"gt_size": 16, "progressive": [{"start_iter": 9, "gt_size": 24}, {"start_iter": 10, "gt_size": 32}]}
    datasets = {
        "train": JPEGDataset({**common, **stages, "include": ["*.png"]}),
        "val": JPEGDataset({**common, "phase": "val", "include": ["*.jpg"]}),
        "val_photo": CameraNoiseDataset({**common, "phase": "val", "include": ["*.jpg"], "text_probability": 0}),
    }
    schedule = {"type": "StepLR", "step_size": 5}
    lines = notes({"train": {"total_iter": 10, "scheduler": schedule}}, datasets)
    assert lines == [
        "note: datasets.val: double_probability, text_probability: for training samples alone; whole images go without",
        "note: datasets.train.progressive: the stage of iteration 10 never begins, train.total_iter is 10",
    ]


def test_the_log_notes_that_the_list_of_a_folder_is_not_that_of_an_lmdb(photo_folder, tmp_path):
    roots = {f"dataroot_{side}": tmp_path / f"{side}.lmdb" for side in ("gt", "lq")}
    for path in roots.values():
        make_lmdb(photo_folder(path.stem), path)
    pairs = PairedDataset({"phase": "train", "gt_size": 16, "meta_info_file": "list.txt", **roots})
    lines = notes({"train": {"total_iter": 10, "scheduler": {"type": "StepLR"}}}, {"train": pairs})
    assert lines == ["note: datasets.train: meta_info_file: for folders alone; of an LMDB all images are taken"]


def test_written_weights_are_the_average_and_restore_images(train):
    from vheatir.restore.restorer import Restorer

    folder = train()
    network, metadata = weights.load(folder / "models" / "latest.safetensors")
    for key, value in train.state(folder)["network_ema"].items():
        assert torch.equal(network.state_dict()[key], value.half().float()), key
    assert {"task": "denoise", "color": "color", "levels": "25"}.items() <= metadata.items()
    assert (
        Restorer("denoise", weights=folder / "models" / "best.safetensors").restore(torch.rand(9, 8, 3).numpy()).any()
    )


def test_same_seed_gives_the_same_weights_and_another_seed_others(train):
    first, same, other = train(name="a"), train(name="b"), train("manual_seed=4", name="c")
    train.assert_same(first, same)
    assert not torch.equal(train.state(first)["network"]["freq_embed"], train.state(other)["network"]["freq_embed"])


def test_second_run_of_a_name_moves_the_first_aside(train, tmp_path):
    first = (train() / "run.json").read_text()
    folder = train("train.total_iter=2")
    (moved,) = [path for path in (tmp_path / "runs").iterdir() if path != folder]
    assert moved.name.startswith("tiny_2") and (moved / "run.json").read_text() == first
    assert str(moved) in (folder / "train.log").read_text()


def test_runs_may_be_kept_below_the_home_folder(train, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    train("path.experiments_root=~/runs", "train.total_iter=1")
    assert (tmp_path / "home" / "runs" / "tiny" / "models").is_dir() and not (tmp_path / "~").exists()


def test_two_runs_in_one_process_keep_their_logs_apart(train, capsys):
    first, second = train(name="first"), train(name="second")
    for folder in (first, second):
        lines = (folder / "train.log").read_text().splitlines()
        assert sum("run " + str(folder) in line for line in lines) == 1
        assert sum("12/12" in line for line in lines) == 1
    assert capsys.readouterr().err.count(" 12/12") == 0  # one line each: nothing is printed twice
    logger = logging.getLogger("vheatir")
    assert logger.handlers == [] and logger.propagate


def test_noise_differs_between_epochs(train, monkeypatch):
    from vheatir.train.model import VHeatIRModel

    seen, feed = [], VHeatIRModel.feed_data

    def spy(self, data):
        feed(self, data)
        seen.extend(zip(data["lq_path"], data["lq"] - data["gt"]))

    monkeypatch.setattr(VHeatIRModel, "feed_data", spy)
    train("datasets.train.num_worker_per_gpu=2")  # workers: where stock BasicSR repeats it
    seen = seen[1:]  # one sample is tried before the run begins
    assert len(seen) == 24
    paths = [path for path, _ in seen]
    assert len(set(paths[:5])) == len(set(paths[5:10])) == 5  # epochs of 5 images
    noise = torch.stack([noise for _, noise in seen]).flatten(1)
    repeats = (noise[:, None] - noise[None]).abs().amax(-1) < 1e-3
    assert repeats.sum() == len(seen)  # each equals itself only


def test_average_has_the_buffers_of_the_network(train, normed):
    """Stock BasicSR averages parameters only: its running statistics stay those of an untrained network."""
    saved = train.state(train(normed))
    assert saved["network_ema"]["body.1.num_batches_tracked"] == 12
    assert torch.equal(saved["network_ema"]["body.1.running_mean"], saved["network"]["body.1.running_mean"])
    assert not torch.equal(saved["network_ema"]["body.1.weight"], saved["network"]["body.1.weight"])


def test_saving_and_validating_leave_the_network_in_training_mode(train, normed):
    """Without an average the validated network is the trained one."""
    saved = train.state(train(normed, "train.ema_decay=0", "logger.save_checkpoint_freq=1", "val.val_freq=3"))
    assert saved["network"]["body.1.num_batches_tracked"] == 12 and "network_ema" not in saved


def test_another_architecture_of_basicsr_trains_and_is_written_as_pth(train):
    swinir = "{type: SwinIR, in_chans: 3, upscale: 1, img_size: 16, window_size: 8, depths: [1], embed_dim: 8, "
    folder = train(f"network_g={swinir} num_heads: [2], mlp_ratio: 2, upsampler: '', resi_connection: 1conv}}")
    content = torch.load(folder / "models" / "latest.pth", weights_only=True)
    assert content["params"].keys() == train.state(folder)["network"].keys()
    assert any("val/psnr" in point for point in train.curves(folder))


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_non_finite_step_stops_the_run_and_names_the_images(train, monkeypatch, tmp_path, kind):
    forward, count = VHeatIR.forward, []

    def poisoned(self, image, level=None):
        y = forward(self, image, level)
        count.extend([1] * self.training)
        if self.training and len(count) == 7:
            y = y * float("nan") if kind == "loss" else y + 0
            if kind == "gradient":
                y.register_hook(lambda grad: grad * float("inf"))
        return y

    monkeypatch.setattr(VHeatIR, "forward", poisoned)
    with pytest.raises(UserError, match=rf"{kind}.* is (nan|inf) at iteration 7, images .*train\d.png, .*train\d.png"):
        train()
    monkeypatch.undo()
    folder = tmp_path / "runs" / "tiny"
    stored = torch.load(folder / "nonfinite_00000007.pt", weights_only=True)
    assert [batch["lq"].shape for batch in stored["batches"]] == [(2, 3, 16, 16)] and stored["iteration"] == 7
    assert all(value.isfinite().all() for value in stored["model"]["network"].values())
    assert "at iteration 7" in (folder / "train.log").read_text()
    resumed = train(resume=True)  # the poison is gone
    train.assert_same(resumed, train(name="straight"))


def test_several_validation_sets_are_told_apart(train, small_photos):
    folder = train(f"datasets.val_50={{type: GaussianNoiseDataset, dataroot_gt: {small_photos / 'val'}, sigma: 50}}")
    points = [point for point in train.curves(folder) if "val/psnr" in point]
    assert [point["iteration"] for point in points] == [6, 12]
    assert points[0]["val/input_psnr"] > points[0]["val_50/input_psnr"] + 5
    best = load_latest(folder / "checkpoints")["best"]["best"]
    assert best["value"] == max((point["val/psnr"] + point["val_50/psnr"]) / 2 for point in points)


def test_training_without_validation_sets_writes_the_latest_weights(train, recipe):
    recipe.write_text("\n".join(line for line in recipe.read_text().splitlines() if not line.startswith("  val:")))
    folder = train("val.metrics=~")
    assert [path.name for path in (folder / "models").iterdir()] == ["latest.safetensors"]


def test_missing_basicsr_is_told_with_what_to_install(recipe, monkeypatch, tmp_path):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr("vheatir.train.trainer.register_all", register_all.__wrapped__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "basicsr" else find_spec(name))
    with pytest.raises(UserError, match=r"training needs BasicSR 1\.4\.2, which is not installed; "):
        main(["-opt", str(recipe)])
    assert not (tmp_path / "runs").exists()


def test_images_of_one_name_in_two_folders_are_both_written(train, small_photos, tmp_path):
    for place in ("a", "b"):
        (tmp_path / "twins" / place).mkdir(parents=True)
        shutil.copy(small_photos / "val" / "val0.png", tmp_path / "twins" / place / "same.png")
    folder = train(f"datasets.val.dataroot_gt={tmp_path / 'twins'}", "val.save_img=true", "val.val_freq=12")
    assert len(list(folder.rglob("images/*/val/*.png"))) == 2
