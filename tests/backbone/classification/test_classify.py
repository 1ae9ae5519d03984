"""Classification learns, goes on as if it had not stopped, and does in two processes what it does in one."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm", reason="training backbones needs the extra `backbone`")

from safetensors.torch import load_file

from tests.backbone.classification import small
from tests.backbone.stops import interrupted_before, terminated_after
from vheatir.backbone.classification import task as classify
from vheatir.errors import UserError
from vheatir.pretrain import main

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PLAIN = {"auto_augment": None, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0, "scale": [1.0, 1.0], "hflip": 0.5}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return small.make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory) -> Path:
    """The folder of a run of two epochs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert main(["-opt", str(small.make_recipe(folder, images))]) == 0
    return folder / "runs" / "small"


def start(*arguments, processes: int = 1) -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "vheatir", "pretrain", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def curves(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()]


def assert_same_run(run: Path, other: Path) -> None:
    for name in ("latest", "latest_ema", "best", "best_ema"):
        got, want = (load_file(folder / "models" / f"{name}.safetensors") for folder in (run, other))
        assert all(torch.equal(got[key], want[key]) for key in want), name
    assert curves(run) == curves(other)


def test_a_run_learns_and_leaves_what_it_found(images, tmp_path):
    train = {"epochs": 8, "accumulate": 1, "lr": 4e-3}
    more = {"augment": PLAIN, "val": {"every": 4}, "data": {"batch_size": 8}}
    recipe = small.make_recipe(tmp_path, images, train=train, **more)
    assert main(["-opt", str(recipe)]) == 0
    run = tmp_path / "runs" / "small"
    points = curves(run)
    assert [point["epoch"] for point in points if "val/top1" in point] == [4, 8]
    assert points[-1]["val/top1"] == 100 and points[-1]["val/loss"] < points[0]["train/loss"]
    written = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert {
        "options.yml",
        "resolved.yml",
        "run.json",
        "train.log",
        "curves.jsonl",
        "curves.png",
        "curves.svg",
    } <= written
    assert {f"models/{name}.safetensors" for name in ("latest", "best", "latest_ema", "best_ema")} <= written
    assert {"checkpoints/iter_00000046.pt", "checkpoints/iter_00000048.pt"} <= written


def test_the_log_has_the_published_rates_and_training_accuracy(unbroken):
    first = curves(unbroken)[0]
    assert first["iteration"] == 2 and 0 < first["train/lr"] < 2e-3
    assert {"train/loss", "train/top1", "train/grad_norm"} <= set(first)


def test_a_run_stopped_amid_an_epoch_goes_on_as_if_it_had_not(unbroken, images, tmp_path):
    recipe = str(small.make_recipe(tmp_path, images))
    with interrupted_before(5):
        main(["-opt", recipe])
    torch.manual_seed(99)
    assert main(["-opt", recipe, "--resume"]) == 0
    assert_same_run(tmp_path / "runs" / "small", unbroken)


def test_a_killed_run_goes_on_with_another_number_of_loader_processes(unbroken, images, tmp_path):
    recipe = small.make_recipe(tmp_path, images)
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    process = start("-opt", recipe, "--set", "data.workers=1")
    deadline = time.monotonic() + 240
    while not (checkpoints / "iter_00000004.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, output
    assert main(["-opt", str(recipe), "--resume"]) == 0
    assert_same_run(tmp_path / "runs" / "small", unbroken)


def test_a_signal_ends_the_run_with_a_checkpoint(images, tmp_path):
    recipe = str(small.make_recipe(tmp_path, images))
    with terminated_after(1, signals=2):  # SLURM sends one to all processes, torchrun passes its own on
        assert main(["-opt", recipe]) == 130
    run = tmp_path / "runs" / "small"
    assert (run / "checkpoints" / "iter_00000001.pt").is_file() and not (run / "curves.jsonl").exists()


def test_two_processes_train_what_one_does(images, tmp_path):
    """Same global batch; drop path, mixing and random augmentation off."""
    weights = {}
    for processes, batch in ((1, 8), (2, 4)):
        folder = tmp_path / str(processes)
        recipe = small.make_recipe(
            folder, images, model={"drop_path_rate": 0.0}, augment=PLAIN, data={"batch_size": batch}
        )
        short = ["--set", "train.epochs=1", "--set", "train.accumulate=1"]
        if processes == 1:
            assert main(["-opt", str(recipe), *short]) == 0
        else:
            process = start("-opt", recipe, *short, processes=processes)
            output, _ = process.communicate(timeout=400)
            assert process.returncode == 0, output
            assert "2 process(es)" in output
        run = folder / "runs" / "small"
        weights[processes] = load_file(run / "models" / "latest.safetensors"), curves(run)[-1]
    (one, scores), (two, scores_of_two) = weights[1], weights[2]
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=2e-4, rtol=1e-3, msg=lambda m, key=key: f"{key}: {m}")
    assert scores_of_two["val/images"] == scores["val/images"] == 18
    assert scores_of_two["val/loss"] == pytest.approx(scores["val/loss"], abs=2e-3)


def test_a_run_goes_on_in_another_number_of_processes(images, tmp_path):
    """With the same images a step it is the same run; with others it goes on with the next images of the epoch."""
    more = {"model": {"drop_path_rate": 0.0}, "augment": PLAIN, "train": {"accumulate": 1, "epochs": 2}}
    recipe = small.make_recipe(tmp_path, images, data={"batch_size": 4}, logger={"save_freq": 1}, **more)
    run = tmp_path / "runs" / "small"
    process = start("-opt", recipe, processes=2)
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / "iter_00000004.pt").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    stopped = max(int(path.stem.split("_")[1]) for path in (run / "checkpoints").iterdir())
    assert 4 <= stopped < 12 and f"stopped at step {stopped}" in output, output
    assert main(["-opt", str(recipe), "--resume", "--set", "data.batch_size=8"]) == 0
    assert f"resumed at step {stopped}\n" in (run / "train.log").read_text()
    whole = small.make_recipe(tmp_path / "whole", images, data={"batch_size": 8}, **more)
    assert main(["-opt", str(whole)]) == 0
    got, want = (load_file(one / "models" / "latest.safetensors") for one in (run, tmp_path / "whole/runs/small"))
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, atol=5e-4, rtol=1e-3, msg=lambda m, key=key: f"{key}: {m}")
    recipe = small.make_recipe(tmp_path / "other", images, data={"batch_size": 4}, **more)
    with terminated_after(4):
        assert main(["-opt", str(recipe)]) == 130
    assert main(["-opt", str(recipe), "--resume", "--set", "data.batch_size=12"]) == 0
    # 16 of 48 images are seen; of the 32 left, two steps of 12 are made and 8 left out: steps 2 and 3 of 4
    other = tmp_path / "other" / "runs" / "small"
    assert "resumed at step 2\n" in (other / "train.log").read_text()
    assert curves(other)[-1]["iteration"] == 8 and curves(other)[-1]["epoch"] == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.weight_decay=0.2", "weight_decay was 0.05, is now 0.2"),
        ("train.optimizer=sgd", "another type of the optimizer"),
        ("train.optimizer_args={betas: [0.8, 0.9]}", "betas was"),
    ],
)
def test_a_run_does_not_go_on_with_another_optimizer(change, said, images, tmp_path):
    """The checkpoint's values would be in effect while the run's record named the new ones."""
    recipe = small.make_recipe(tmp_path, images, logger={"save_freq": 1})
    with terminated_after(2):
        assert main(["-opt", str(recipe)]) == 130
    with pytest.raises(UserError, match=said):
        main(["-opt", str(recipe), "--resume", "--set", change])


def test_a_run_does_not_go_on_with_other_classes(tmp_path, caplog):
    root = small.make_images(tmp_path / "set")
    recipe = str(small.make_recipe(tmp_path, root))
    with terminated_after(2):
        assert main(["-opt", recipe]) == 130
    for split in ("train", "val"):
        (root / split / "blue").rename(root / split / "violet")  # now green is class 0
    with pytest.raises(UserError, match="class 'green' is number 1 in the run, and number 0 in this set"):
        main(["-opt", recipe, "--resume"])
    for split in ("train", "val"):
        (root / split / "violet").rename(root / split / "azure")
    (root / "train" / "red" / "00.png").unlink()
    caplog.clear()
    assert main(["-opt", recipe, "--resume"]) == 0
    assert "1 classes have other names than in the run: 'blue' is now 'azure'" in caplog.text
    assert "the training set had 48 images, and has 47 now" in caplog.text


def test_a_set_that_numbers_the_classes_otherwise_is_not_scored(unbroken, tmp_path):
    """As many classes as the weights', in an order of its own."""
    root = small.make_images(tmp_path / "set", train=0)
    shutil.rmtree(root / "train")
    recipe = str(small.make_recipe(tmp_path, root))
    weights = ["--weights", str(unbroken / "models" / "best.safetensors")]
    assert main(["-opt", recipe, "--eval", *weights]) == 0
    (root / "val" / "blue").rename(root / "val" / "violet")
    with pytest.raises(UserError, match=r"class .green. is number 1 in .*best\.safetensors, and number 0 in this"):
        main(["-opt", recipe, "--eval", *weights])
    mapping = tmp_path / "map.txt"
    mapping.write_text("green 1\nred 2\nviolet 0\n")
    assert main(["-opt", recipe, "--eval", *weights, "--set", f"val.subset={mapping}"]) == 0


def test_weights_to_start_from_are_not_those_to_evaluate(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["-opt", "x.yml", "--eval", "--finetune", "w.safetensors"])
    assert ended.value.code == 2 and "--finetune starts a run" in capsys.readouterr().err


def test_evaluation_writes_scores_and_costs(unbroken, images, tmp_path, capsys):
    recipe = str(small.make_recipe(tmp_path, images))
    weights = ["--weights", str(unbroken / "models" / "best_ema.safetensors")]
    assert main(["-opt", recipe, "--eval", *weights, "--json", str(tmp_path / "e.json")]) == 0
    result = json.loads((tmp_path / "e.json").read_text())
    points = [point for point in curves(unbroken) if "ema/top1" in point]
    best = max(points, key=lambda point: point["ema/top1"])
    assert result["scores"]["top1"] == best["ema/top1"] and result["scores"]["images"] == 18
    assert result["scores"]["loss"] == pytest.approx(best["ema/loss"], rel=1e-6)
    training, merged = result["cost"]["training"], result["cost"]["merged"]
    assert merged["parameters"]["trainable"] < training["parameters"]["trainable"]
    assert merged["macs"]["heat_conduction"] == training["macs"]["heat_conduction"] > 0
    assert merged["macs"]["total"] < training["macs"]["total"]
    assert result["metadata"]["command"].startswith("vheatir pretrain")
    printed = capsys.readouterr().out
    assert "top-1" in printed and "merged form" in printed and "in cosine transforms" in printed


def test_the_best_weights_of_the_run_are_the_default(images, tmp_path):
    recipe = str(small.make_recipe(tmp_path, images))
    with pytest.raises(UserError, match=r"best\.safetensors does not exist; give --weights"):
        main(["-opt", recipe, "--eval"])


def test_a_run_from_released_weights_is_scored_by_its_own(unbroken, images, tmp_path, monkeypatch, capsys):
    """Its recipe says `pretrained`, too, and the start has other scores."""
    build = classify.create_model
    monkeypatch.setattr(classify, "create_model", lambda name, pretrained, **others: build(name, **others))
    recipe = str(small.make_recipe(tmp_path, images, model={"pretrained": True}))
    assert main(["-opt", recipe, "--eval", "--json", str(tmp_path / "start.json")]) == 0
    assert json.loads((tmp_path / "start.json").read_text())["weights"] is None
    assert "weights: those released" in capsys.readouterr().out
    shutil.copytree(unbroken, tmp_path / "runs" / "small")
    assert main(["-opt", recipe, "--eval", "--json", str(tmp_path / "run.json")]) == 0
    best = tmp_path / "runs" / "small" / "models" / "best.safetensors"
    assert json.loads((tmp_path / "run.json").read_text())["weights"] == str(best)
    assert f"weights: {best}" in capsys.readouterr().out


def test_throughput_is_measured_on_the_folded_form(images, tmp_path, capsys):
    recipe = str(small.make_recipe(tmp_path, images, val={"throughput_warmup": 1, "throughput_passes": 3}))
    assert main(["-opt", recipe, "--throughput", "--json", str(tmp_path / "t.json")]) == 0
    speed = json.loads((tmp_path / "t.json").read_text())["throughput"]
    assert speed["batch"] == 5 and speed["passes"] == 3 and speed["images_per_s"] > 0
    assert "images/s" in capsys.readouterr().out


def test_a_run_does_not_start_from_folded_weights(images, tmp_path):
    """Their diffusivities are fixed, and `--resume` refused the run's own checkpoints."""
    arguments = {key: value for key, value in small.SMALL.items() if key != "name"}
    torch.save(classify.create_model("vheat_tiny", **arguments).eval().fold().state_dict(), tmp_path / "folded.pth")
    with pytest.raises(UserError, match=r"folded\.pth: weights in folded form"):
        main(["-opt", str(small.make_recipe(tmp_path, images)), "--finetune", str(tmp_path / "folded.pth")])
    assert not (tmp_path / "runs").exists()


def test_finetuning_to_other_classes_and_another_size(unbroken, images, tmp_path):
    model = {"num_classes": 5, "img_size": 48}
    recipe = small.make_recipe(
        tmp_path, images, model=model, train={"epochs": 1, "lr": 1e-9, "min_lr": 0.0, "grad_clip": None}
    )
    trained = unbroken / "models" / "latest.safetensors"
    assert main(["-opt", str(recipe), "--finetune", str(trained)]) == 0
    tuned = load_file(tmp_path / "runs" / "small" / "models" / "latest.safetensors")
    before = load_file(trained)
    assert tuned["classifier.3.weight"].shape == (5, 64) and tuned["freq_embed.0"].shape == (12, 12, 8)
    torch.testing.assert_close(
        tuned["layers.0.0.mlp.fc1.weight"], before["layers.0.0.mlp.fc1.weight"], atol=1e-6, rtol=0
    )
    log = (tmp_path / "runs" / "small" / "train.log").read_text()
    assert "not loaded classifier.3.weight" in log and "resized freq_embed.0" in log
    with pytest.raises(UserError, match=r"set model\.num_classes"):
        main(["-opt", str(recipe), "--eval", "--weights", str(trained)])
