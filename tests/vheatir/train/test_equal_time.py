"""`vheatir train --compare`: equal data, equal time, a file and a figure that say how it went."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch.testing import assert_close

from vheatir.archs.dncnn_arch import DnCNN
from vheatir.archs.vheatvideo_arch import VHeatVideoNet
from vheatir.errors import UserError
from vheatir.utils.lock import Lock

pytest.importorskip("basicsr", reason="training needs BasicSR")
pytest.importorskip("matplotlib", reason="the comparison draws a figure")
from vheatir.backbone.training.until import TrainingClock
from vheatir.train import contestant, equal_time
from vheatir.train.command import main
from vheatir.train.contestant import rate_at
from vheatir.train.equal_time_report import plot
from vheatir.train.registry import register_all

MINUTES = ("--minutes", "0.02", "--validate-every", "0.01")


@pytest.fixture
def recipes(recipe):
    """The tiny recipe for a heat network and for DnCNN."""
    options = yaml.safe_load(recipe.read_text())
    options |= {"name": "plain", "network_g": {"type": "DnCNN", "dim": 8, "depth": 3}}
    other = recipe.with_name("plain.yml")
    other.write_text(yaml.safe_dump(options))
    return [str(recipe), str(other)]


def test_both_train_for_the_same_time_and_are_scored_at_the_same_moments(recipes, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--compare", *recipes, *MINUTES, "--out", str(out)]) == 0
    result = json.loads((out / "comparison.json").read_text())
    assert list(result["recipes"]) == ["tiny", "plain"] and result["clock"] == "processor time"
    for name, run in result["recipes"].items():
        minutes = [point["minutes"] for point in run["points"]]
        assert len(minutes) == 2 and minutes[0] >= 0.01 and 0.02 <= minutes[1] < 0.03, name
        assert run["points"][0]["iteration"] < run["points"][1]["iteration"]
        first, last = (point["val"] for point in run["points"])
        assert last["images"] == 2 and last["restored"]["psnr"] > first["restored"]["psnr"] + 0.1
        assert run["cost"]["iterations_per_s"] == pytest.approx(run["points"][1]["iteration"] / 60 / minutes[1])
        assert run["cost"]["training_peak_mib"] > 0 and run["cost"]["inference_s"] > 0
    inputs = [run["points"][0]["val"]["input"] for run in result["recipes"].values()]
    assert inputs[0] == inputs[1]
    state = torch.load(out / "plain" / "plain.pth", weights_only=True)["params"]
    network = DnCNN(dim=8, depth=3)
    network.load_state_dict(state)
    assert result["recipes"]["plain"]["cost"]["parameters"] == sum(p.numel() for p in network.parameters())
    assert (out / "psnr_over_time.svg").read_text().count("iterations") and (out / "psnr_over_time.png").exists()
    printed = capsys.readouterr().out
    assert "| tiny |" in printed and "| plain |" in printed


def test_killed_comparison_goes_on_where_it_stood(recipes, tmp_path):
    out, file = tmp_path / "out", tmp_path / "out" / "comparison.json"
    command = [sys.executable, "-m", "vheatir.train", "--compare", *recipes, "--out", str(out)]
    command += ["--minutes", "0.04", "--validate-every", "0.01"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        until = time.monotonic() + 600  # a busy machine; it takes seconds on a free one
        while not (file.exists() and len(json.loads(file.read_text())["recipes"]["tiny"]["points"]) > 1):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    before = json.loads(file.read_text())["recipes"]["tiny"]["points"]
    assert main([*command[3:], "--resume"]) == 0
    result = json.loads(file.read_text())
    after = result["recipes"]["tiny"]["points"]
    assert after[: len(before)] == before and len(after) == len(result["recipes"]["plain"]["points"]) == 4
    assert len(result["resumed"]) == 1


def test_side_by_side_each_trains_as_long_and_finds_the_same_inputs(recipes, tmp_path, capfd):
    out = tmp_path / "out"
    assert main(["--compare", *recipes, *MINUTES, "--jobs", "2", "--out", str(out)]) == 0
    result = json.loads((out / "comparison.json").read_text())
    assert result["jobs"] == 2 and list(result["recipes"]) == ["tiny", "plain"]
    for name, run in result["recipes"].items():
        assert [0.01 <= point["minutes"] < 0.03 for point in run["points"]] == [True, True], name
        assert run["cost"]["inference_s"] > 0 and (out / name / f"{name}.pth").exists()
    inputs = [run["points"][0]["val"]["input"] for run in result["recipes"].values()]
    assert inputs[0] == inputs[1] and (out / "psnr_over_time.png").exists()
    shown = capfd.readouterr()
    assert "| tiny |" in shown.out and "plain: trained at" in shown.err


@pytest.mark.parametrize("way", ["terminate", "kill"])
def test_side_by_side_ends_with_its_parent_and_goes_on(recipes, tmp_path, way):
    out, file = tmp_path / "out", tmp_path / "out" / "comparison.json"
    command = [sys.executable, "-m", "vheatir.train", "--compare", *recipes, "--out", str(out), "--jobs", "2"]
    command += ["--minutes", "0.05", "--validate-every", "0.01"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 600  # a busy machine; it takes seconds on a free one
    try:
        while not (file.exists() and any(run["points"] for run in json.loads(file.read_text())["recipes"].values())):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
    finally:
        getattr(process, way)()
    _, stderr = process.communicate(timeout=600)  # the pipe is closed when the last child is gone
    assert process.returncode == (130 if way == "terminate" else -9), stderr
    assert stderr.count("started, process") == 2 and "Traceback" not in stderr, stderr
    before = json.loads(file.read_text())["recipes"]
    assert main([*command[3:], "--resume"]) == 0
    after = json.loads(file.read_text())["recipes"]
    for name, run in before.items():
        assert after[name]["points"][: len(run["points"])] == run["points"]
        assert len(after[name]["points"]) == 5 and after[name]["cost"]


def test_side_by_side_a_failure_names_its_recipe_and_ends_the_others(recipes, tmp_path):
    other = Path(recipes[1])
    options = yaml.safe_load(other.read_text())
    options["train"]["pixel_opt"]["loss_weight"] = float("nan")
    other.write_text(yaml.safe_dump(options))
    started = time.monotonic()
    with pytest.raises(UserError, match="plain: the loss is nan at iteration 1"):
        main(["--compare", *recipes, "--minutes", "60", "--jobs", "2", "--out", str(tmp_path / "out")])
    assert time.monotonic() - started < 600


def test_side_by_side_a_lost_process_is_said(recipes, tmp_path):
    plugin = tmp_path / "dies.py"
    plugin.write_text(
        "import multiprocessing, os, signal\n"
        "if multiprocessing.current_process().name == 'plain':\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with pytest.raises(UserError, match=r"plain: the training process failed: signal 9 ended it.*--resume"):
        argv = ["--compare", *recipes, "--minutes", "60", "--jobs", "2", "--out", str(tmp_path / "out")]
        main([*argv, "--plugin", str(plugin)])


def test_side_by_side_is_refused_on_a_gpu_and_for_no_job(recipes, tmp_path, monkeypatch):
    argv = ["--compare", *recipes, *MINUTES, "--out", str(tmp_path / "out"), "--jobs"]
    with pytest.raises(UserError, match="--jobs must be at least 1, got 0"):
        main([*argv, "0"])
    monkeypatch.setattr("vheatir.train.equal_time.read_recipes", lambda *_: {Path("a.yml"): {"num_gpu": 1}})
    with pytest.raises(UserError, match="would share the GPU"):
        main([*argv, "2"])


def test_a_comparison_is_not_overwritten_nor_resumed_with_other_settings(recipes, tmp_path):
    argv = ["--compare", *recipes, "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="start without --resume"):
        main([*argv, "--resume"])
    assert main([*argv, *MINUTES]) == 0
    with pytest.raises(UserError, match="exists; go on with --resume"):
        main(argv)
    lock = Lock(tmp_path / "out" / ".comparison.lock", "it", "wait")
    with pytest.raises(UserError, match=r"comparison in .* is in use by process \d+ .*choose another --out"):
        main([*argv, *MINUTES, "--resume"])
    lock.release()
    with pytest.raises(UserError, match=r"other settings \(budget_minutes, validate_every_minutes\)"):
        main([*argv, "--resume"])
    with pytest.raises(UserError, match=r"other settings \(plain, tiny\)"):
        main([*argv, *MINUTES, "--resume", "--set", "train.optim_g.lr=1e-3"])


def test_recipes_that_differ_in_data_or_validation_are_refused_with_all_differences(recipes):
    file = Path(recipes[1])
    options = yaml.safe_load(file.read_text())
    options["datasets"]["train"]["sigma"] = 50
    options["manual_seed"] = 4
    options["val"]["max_images"] = 1
    file.write_text(yaml.safe_dump(options))
    with pytest.raises(UserError) as caught:
        main(["--compare", *recipes])
    for line in ("datasets.train.sigma: 25 in tiny.yml, 50 in plain.yml", "manual_seed: 3", "val.max_images: None"):
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("network_g", "in_chans", 1, "datasets.train.in_chans: 3 in tiny.yml, 1 in plain.yml"),
        ("val", "self_ensemble", True, "val.self_ensemble: None in tiny.yml, True in plain.yml"),
    ],
)
def test_gray_beside_color_and_a_mean_beside_one_pass_are_refused(recipes, section, key, value, message):
    """The data sets read alike: they take their channels from the network."""
    file = Path(recipes[1])
    options = yaml.safe_load(file.read_text())
    options[section][key] = value
    file.write_text(yaml.safe_dump(options))
    with pytest.raises(UserError, match=message):
        main(["--compare", *recipes])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"width": 8}, "unknown key network_g.width for DnCNN"), ({"in_chans": 4}, "does not fit datasets.train")],
)
def test_a_mistake_in_the_last_recipe_shows_before_the_first_is_trained(recipes, change, message, tmp_path):
    """After it, the mended recipe would be another one, and the comparison could not be resumed."""
    file = Path(recipes[1])
    options = yaml.safe_load(file.read_text())
    options["network_g"] |= change
    for recipe in recipes:  # the data sets say their channels themselves
        content = yaml.safe_load(Path(recipe).read_text()) if recipe != recipes[1] else options
        for table in content["datasets"].values():
            table["in_chans"] = 3
        Path(recipe).write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        main(["--compare", *recipes, *MINUTES, "--out", str(out)])
    assert not (out / "comparison.json").exists() and not (out / "tiny").exists()


def test_stages_by_iteration_are_refused(recipes):
    stages = "datasets.train.progressive=[{start_iter: 5, gt_size: 20}]"
    with pytest.raises(UserError, match="leave it out of a comparison"):
        main(["--compare", *recipes, "--set", stages])


@pytest.mark.parametrize(
    ("change", "message"),
    [([], "at least two recipes"), (["--minutes", "0"], "--minutes"), (["--minutes", "nan"], "--minutes")],
)
def test_wrong_arguments_are_refused(recipes, change, message, tmp_path):
    files = recipes if change else [recipes[0], recipes[0]]
    with pytest.raises(UserError, match=message):
        main(["--compare", *files, *change, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_without_psnr_there_is_nothing_to_compare(recipes, tmp_path):
    with pytest.raises(UserError, match=r"tiny\.yml: .* PSNR over time, .* has y"):
        metrics = "val.metrics={y: {type: vheatir_psnr, luma: true}}"
        main(["--compare", *recipes, *MINUTES, "--set", metrics, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(recipes, tmp_path):
    with pytest.raises(UserError, match=r"tiny\.yml: cannot be written .*--out"):
        main(["--compare", *recipes, *MINUTES, "--out", str(tmp_path / "tiny.yml")])


def test_a_name_with_dollars_is_drawn_as_it_is(tmp_path):
    points = [{"minutes": 1.0, "iteration": 3, "val": {"restored": {"psnr": 30.0}}}]
    plot({"clock": "processor time", "recipes": {"a$x^$": {"points": points}}}, tmp_path)
    assert "<!-- a$x^$, 3 iterations -->" in (tmp_path / "psnr_over_time.svg").read_text()


def test_networks_of_clips_are_timed_on_clips(recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(contestant, "_IMAGE", (23, 31))
    monkeypatch.setattr(contestant, "peak_mib", lambda work, device: 1.0)
    for file in map(Path, recipes):
        options = yaml.safe_load(file.read_text())
        for table in options["datasets"].values():
            table |= {"type": "MovingClipsDataset", "frames": 3}
        small = {"dim": 8, "encoder": [1], "middle": 1, "decoder": [1], "attention": ["none", "heat"], "mix_dim": 4}
        options["network_g"] = {"type": "VHeatVideoNet", "frames": 3, **small}
        file.write_text(yaml.safe_dump(options))
    seen = []
    forward = VHeatVideoNet.forward
    monkeypatch.setattr(VHeatVideoNet, "forward", lambda self, x: seen.append(tuple(x.shape)) or forward(self, x))
    assert main(["--compare", *recipes, "--minutes", "0.005", "--out", str(tmp_path / "out")]) == 0
    assert {shape for shape in seen if shape[2:] == (23, 31)} == {(1, 9, 23, 31)}


def test_a_new_comparison_is_not_resumed_from_the_checkpoints_of_a_former_one(recipes, tmp_path, monkeypatch):
    """Its comparison.json was removed; this one is killed before the first checkpoint of a recipe."""
    out = tmp_path / "out"
    kept = out / "plain" / "plain.pth"
    stale = out / "plain" / "iter_00000099.pt"
    stale.parent.mkdir(parents=True)
    stale.touch()
    kept.touch()
    monkeypatch.setattr(equal_time, "train_entry", lambda *_: False)
    assert main(["--compare", *recipes, *MINUTES, "--out", str(out)]) == 130
    assert not stale.exists() and kept.exists()
    stale.touch()
    assert main(["--compare", *recipes, *MINUTES, "--out", str(out), "--resume"]) == 130
    assert stale.exists()


def test_rate_rises_then_falls_to_the_end_of_the_budget():
    assert rate_at(0) == pytest.approx(0.1) and rate_at(0.03) == pytest.approx(1)
    assert rate_at(0.515) == pytest.approx(0.5, abs=1e-3)
    assert rate_at(1) == rate_at(1.2) == pytest.approx(1e-3)


def test_clock_counts_work_and_not_waiting():
    clock = TrainingClock(torch.device("cpu"))
    with clock:
        time.sleep(0.2)
    assert clock.used < 0.05 and clock.wall >= 0.2
    waited = clock.used
    started = time.process_time()
    with clock:
        while time.process_time() < started + 0.1:
            pass
    assert clock.used - waited >= 0.09


def test_nan_in_training_names_the_recipe(recipes, tmp_path):
    with pytest.raises(UserError, match="tiny: the loss is nan at iteration 1"):
        main(
            ["--compare", *recipes, *MINUTES, "--out", str(tmp_path / "x"), "--set", "train.pixel_opt.loss_weight=.nan"]
        )


def test_dncnn_has_the_published_size_and_predicts_the_noise():
    network = DnCNN()
    kinds = [type(layer).__name__ for layer in network.layers]
    assert kinds.count("Conv2d") == 20 and kinds.count("BatchNorm2d") == 18
    widths = 3 * 64 * 9 + 64 + 18 * (64 * 64 * 9 + 128) + 64 * 3 * 9 + 3
    assert sum(parameter.numel() for parameter in network.parameters()) == widths
    image = torch.rand(2, 3, 9, 7)
    assert_close(network.eval()(image), image)  # untrained, it returns its input
    torch.nn.init.constant_(network.layers[-1].bias, 0.1)
    assert_close(network(image), image - 0.1)
    with pytest.raises(ValueError, match="depth must be"):
        DnCNN(depth=1)


def test_dncnn_learns_to_predict_noise():
    """With scales of batch normalization of 1 it stays at the noise for good: 1.00 of it, instead of 0.7, is left."""
    torch.manual_seed(0)
    network = DnCNN()
    scales = torch.cat([layer.weight for layer in network.layers if isinstance(layer, torch.nn.BatchNorm2d)])
    scales = scales.detach().abs()
    assert scales.min() >= 0.025 and scales.square().mean().sqrt() == pytest.approx((2 / 576) ** 0.5, rel=0.1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    left = []
    for _ in range(150):
        clean = torch.rand(8, 3, 1, 1)
        noise = 0.1 * torch.randn(8, 3, 16, 16)
        loss = (network(clean + noise) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        left.append(loss.item() / 0.01)
    assert max(left) < 1.2 and sum(left[-10:]) / 10 < 0.85


def test_swinir_learns_to_predict_noise():
    register_all()
    from vheatir.archs.swinir_arch import AnySizeSwinIR

    torch.manual_seed(0)
    size = {"img_size": 16, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "mlp_ratio": 2}
    network = AnySizeSwinIR(**size, resi_connection="1conv", drop_path_rate=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    left = []
    for _ in range(60):
        clean = torch.rand(8, 3, 1, 1)
        noisy = clean + 0.1 * torch.randn(8, 3, 16, 16)
        loss = (network(noisy) - clean).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        left.append((network(noisy) - clean).square().mean().item() / 0.01)
    assert sum(left[-10:]) / 10 < 0.6


def test_swinir_takes_any_size_and_agrees_with_basicsrs_on_whole_windows():
    register_all()
    from basicsr.archs.swinir_arch import SwinIR

    from vheatir.archs.swinir_arch import AnySizeSwinIR

    size = {"img_size": 16, "embed_dim": 12, "depths": [2], "num_heads": [2], "mlp_ratio": 2}
    ours, stock = AnySizeSwinIR(**size).eval(), SwinIR(window_size=8, upscale=1, **size).eval()
    stock.load_state_dict(ours.state_dict())
    image = torch.rand(1, 3, 24, 16)
    with torch.no_grad():
        assert_close(ours(image), stock(image))
        assert ours(image[:, :, :19, :5]).shape == (1, 3, 19, 5)


def test_missing_matplotlib_is_said_before_training(recipes, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        main(["--compare", *recipes, *MINUTES, "--out", str(tmp_path / "x")])


def test_help_of_the_comparison(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--compare", "--help"])
    assert exit_.value.code == 0 and "processor time" in capsys.readouterr().out
