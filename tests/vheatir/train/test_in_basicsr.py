"""BasicSR's own train_pipeline and test_pipeline run our options, and make what `vheatir train` makes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vheatir.errors import UserError

pytest.importorskip("basicsr", reason="training needs BasicSR")

from vheatir import basicsr, weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.data.sources import close_environments
from vheatir.train.options import read_options

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted((ROOT / "options").glob("*.yml"))
TRAINING = [path for path in RECIPES if "train" in read_options(path)["datasets"]]
SMALL = {  # in the words of --force_yml, whose lists are Python
    "VHeatIR": ["dim=8", "depths=[1]", "reach=[0.5, 4.0]"],
    "VHeatUNet": ["dim=8", "encoder=[1]", "middle=1", "decoder=[1]", "attention=['heat', 'heat']", "reach=[0.5, 4.0]"],
    "VHeatVideoNet": ["dim=8", "mix_dim=8", "encoder=[1]", "middle=1", "decoder=[1]", "attention=['heat', 'heat']"],
    "DnCNN": ["dim=8", "depth=4"],
    "AnySizeSwinIR": ["embed_dim=12", "depths=[2]", "num_heads=[2]", "img_size=16"],
}


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_environments()


def forced(*changes: str) -> list[str]:
    return ["--force_yml", *changes] if changes else []


def train_there(recipe: Path, root: Path, *changes: str, more: tuple[str, ...] = ()) -> Path:
    """Train in BasicSR's loop; the run's folder."""
    basicsr.train(["-opt", str(recipe), *more, *forced(*changes)], root)
    return root / "experiments" / "tiny"


def stored(folder: Path, name: str = "latest") -> dict:
    return torch.load(folder / "models" / f"net_g_{name}.pth", weights_only=True)


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Curves of a run of BasicSR's loop, from TensorBoard's file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_smoke_for_30_iterations_by_both_loops(tmp_path, monkeypatch):
    """Same batches, losses, rates, scores and weights, and the files that each loop is known for."""
    from vheatir.runs.checkpoints import load_latest
    from vheatir.train.command import main

    monkeypatch.chdir(tmp_path)
    changes = {"train.total_iter": 30, "val.val_freq": 30, "logger.print_freq": 1, "logger.save_checkpoint_freq": 15}
    ours = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    assert main(["-opt", "smoke", *ours, "--set", "threads=1"]) == 0
    theirs = tmp_path / "theirs"
    basicsr.train(["-opt", "smoke", *forced(*(f"{k}={v}".replace(".", ":") for k, v in changes.items()))], theirs)

    run_folder = tmp_path / "experiments" / "smoke"
    points = [json.loads(line) for line in (run_folder / "curves.jsonl").read_text().splitlines()]
    steps = {point["iteration"]: point for point in points if "train/l_pix" in point}
    curves = scalars(theirs / "tb_logger" / "smoke")
    assert list(curves["losses/l_pix"]) == list(steps) == list(range(1, 31))
    for number, point in steps.items():
        assert curves["losses/l_pix"][number] == pytest.approx(point["train/l_pix"], rel=1e-5)
        assert curves["grad_norm"][number] == pytest.approx(point["train/grad_norm"], rel=1e-4)
    losses = [point["train/l_pix"] for point in steps.values()]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    (log,) = (theirs / "experiments" / "smoke").glob("train_smoke_*.log")
    rates = [line.split("lr:(")[1].split(",")[0] for line in log.read_text().splitlines() if "lr:(" in line]
    assert [float(rate) for rate in rates] == pytest.approx([p["train/lr"] for p in steps.values()], rel=1e-3)
    scores = {name: value for point in points for name, value in point.items() if name.startswith("val/")}
    for metric in ("psnr", "ssim", "psnrb"):
        assert curves[f"metrics/chelsea/{metric}"][30] == pytest.approx(scores[f"val/{metric}"], rel=1e-5)

    model = load_latest(run_folder / "checkpoints")["model"]
    for key, part in (("params", "network"), ("params_ema", "network_ema")):
        for name, value in stored(theirs / "experiments" / "smoke")[key].items():
            torch.testing.assert_close(value, model[part][name], rtol=1e-4, atol=1e-6)
    written = {path.relative_to(theirs / "experiments" / "smoke").as_posix() for path in theirs.rglob("*.[psy]*")}
    assert written >= {"models/net_g_15.pth", "models/net_g_30.pth", "models/net_g_latest.pth"} | {
        "training_states/15.state",
        "training_states/30.state",
        "smoke.yml",
    }
    assert {path.name for path in run_folder.iterdir()} >= {"options.yml", "train.log", "curves.jsonl", "models"}


def on_stand_ins(recipe: Path, stand_ins: Path) -> list[str]:
    changes = []
    for phase, table in read_options(recipe)["datasets"].items():
        if not (place := table["dataroot_gt"]).startswith("package:"):
            stand_in = stand_ins / ("train.lmdb" if place.endswith(".lmdb") else "folder")
            changes.append(f"datasets:{phase}:dataroot_gt={stand_in}")
            if "include" in table:
                changes.append(f"datasets:{phase}:include=['38*.jpg']")
    return changes


@pytest.mark.parametrize("recipe", TRAINING, ids=lambda path: path.stem)
def test_every_training_recipe_runs_in_train_pipeline(recipe, stand_ins, tmp_path):
    options = read_options(recipe)
    changes = [f"network_g:{change}" for change in SMALL[options["network_g"]["type"]]]
    changes += [f"datasets:train:{change}" for change in ("gt_size=16", "batch_size_per_gpu=2", "num_worker_per_gpu=0")]
    if "progressive" in options["datasets"]["train"]:
        changes.append("datasets:train:progressive=[{'start_iter': 1, 'gt_size': 24, 'batch_size_per_gpu': 1}]")
    changes += ["path:pretrain_network_g=~", "train:total_iter=2", "val:val_freq=2", "val:save_img=true", "name=tiny"]
    folder = train_there(recipe, tmp_path, *changes, *on_stand_ins(recipe, stand_ins))
    assert {"params", "params_ema"} == stored(folder).keys()
    phases = {table["name"] for phase, table in options["datasets"].items() if phase != "train"}
    (log,) = folder.glob("train_tiny_*.log")
    assert all(f"Validation {name}\n" in log.read_text() for name in phases)
    images = list((folder / "visualization").rglob("*_2.png"))
    assert images and all(path.parent.name == path.stem.removesuffix("_2") for path in images)


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path not in TRAINING], ids=lambda path: path.stem)
def test_every_test_recipe_runs_in_test_pipeline(recipe, stand_ins, tmp_path):
    """The network's arguments come from the weights, as in `vheatir test`, which finds the same."""
    from vheatir.test import evaluate_options
    from vheatir.train.build import complete_options

    file = tmp_path / "small.safetensors"
    network = VHeatIR(dim=8, depths=[1], embed_size=8, downscale=2)
    torch.nn.init.normal_(network.conv_last.weight, std=0.01)
    about = {"task": "denoise", "color": "color", "levels": "none", "license": "none"}
    weights.save(file, network.state_dict(), {**about, "config": json.dumps(network.config)})
    changes = [f"path:pretrain_network_g={file}", "network_g:type=VHeatIR", "val:save_img=true"]
    changes += on_stand_ins(recipe, stand_ins)
    basicsr.test(["-opt", str(recipe), *forced(*changes)], tmp_path)
    folder = tmp_path / "results" / recipe.stem
    (log,) = folder.glob("test_*.log")
    options = read_options(
        recipe, [change.replace(":", ".", change.partition("=")[0].count(":")) for change in changes]
    )
    for result in evaluate_options(recipe, complete_options(recipe, options, is_train=False), tmp_path / "ours"):
        text = log.read_text().split(f"Validation {result['data']}\n")[1]
        for metric, value in result["restored"].items():
            assert f"# {metric}: {value:.4f}" in text.split("INFO")[0]
        shown = [path.name for path in (folder / "visualization" / result["data"]).iterdir()]
        assert sorted(shown) == sorted(f"{Path(r['image']).stem}_{recipe.stem}.png" for r in result["per_image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_stopped_amid_an_epoch_resumes_exactly_from_any_folder(recipe, tmp_path, monkeypatch, workers):
    """5 images in batches of 2: epochs end after 3, 6, 9 iterations. Progressive crops go on where they were."""
    text = recipe.read_text().replace(
        "gt_size: 16,", f"gt_size: 16, num_worker_per_gpu: {workers}, progressive: STAGES,"
    )
    stages = "[{start_iter: 5, gt_size: 20, batch_size_per_gpu: 1}]"
    recipe.write_text(text.replace("STAGES", stages).replace("scheduler:", "accumulate: 1\n  scheduler:"))
    straight = stored(train_there(recipe, tmp_path / "straight"))
    folder = train_there(recipe, tmp_path / "stopped", "train:total_iter=4")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    torch.manual_seed(99)
    train_there(recipe, tmp_path / "stopped", more=("--auto_resume",))
    logs = sorted(path.read_text() for path in folder.glob("train_tiny_*.log"))
    assert any("Resuming training from epoch: 1, iter: 4." in text for text in logs)
    resumed = stored(folder)
    for key in ("params", "params_ema"):
        assert_equal(resumed[key], straight[key])


@pytest.mark.parametrize(("before", "after", "done"), [(2, 1, 4), (1, 2, 4), (1, 5, 10)])
def test_a_run_goes_on_to_its_last_iteration_with_other_batches(recipe, tmp_path, monkeypatch, before, after, done):
    """Epochs of the 5 images are longer or shorter then; with smaller batches the run ended before its time."""
    from vheatir.train.model import VHeatIRModel

    made = []
    step = VHeatIRModel.optimize_parameters
    monkeypatch.setattr(
        VHeatIRModel, "optimize_parameters", lambda self, number: (made.append(number), step(self, number))
    )
    for batch, total, more in ((before, done, ()), (after, 12, ("--auto_resume",))):
        changes = (
            f"datasets:train:batch_size_per_gpu={batch}",
            f"train:total_iter={total}",
            "logger:save_checkpoint_freq=2",
        )
        train_there(recipe, tmp_path, *changes, more=more)
    assert made == list(range(1, 13))


def test_a_key_that_is_null_means_its_default_as_in_vheatir_train():
    """BasicSR compares iterations with what such keys hold."""
    from vheatir.train.basicsr_loop import complete

    options = {"model_type": "VHeatIRModel", "num_gpu": 0, "is_train": True, "datasets": {}}
    options |= {"logger": {"print_freq": None, "save_checkpoint_freq": 7}, "val": {"val_freq": None}}
    options["train"] = {"warmup_iter": None, "ema_decay": None, "mixup": None, "total_iter": 3}
    complete(options)
    assert (options["logger"]["print_freq"], options["logger"]["save_checkpoint_freq"]) == (100, 7)
    assert options["val"]["val_freq"] == 5000 and options["train"] == {"total_iter": 3}


def test_samples_are_those_of_vheatir_train_and_new_in_every_epoch(recipe, train, tmp_path):
    """Two epochs and more, so that a loop that repeats its noise would differ."""
    from vheatir.train.model import VHeatIRModel

    seen = []
    feed = VHeatIRModel.feed_data

    def spy(self, data):
        seen.append(data["lq"].clone())
        feed(self, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VHeatIRModel, "feed_data", spy)
        train()
        ours = [batch for batch in seen if len(batch) == 2]  # the others are tried before the start
        seen.clear()
        train_there(recipe, tmp_path)
    assert len(ours) == len(seen) == 12
    assert all(torch.equal(one, other) for one, other in zip(ours, seen, strict=True))
    assert len({batch.sum().item() for batch in seen}) == 12


@pytest.mark.parametrize("model", ["VHeatIRModel", "SRModel"])
def test_two_processes_on_gloo_train_as_one_with_their_batches(recipe, tmp_path, load_beside, model):
    """With ours, weights agree with one process's; with BasicSR's model both processes train and one writes."""
    text = recipe.read_text().replace("model_type: VHeatIRModel", f"model_type: {model}")
    recipe.write_text(text.replace("val_freq: 6", "val_freq: 6\n  save_img: false"))
    command = [sys.executable, "-m", "vheatir.basicsr", "train", "-opt", str(recipe), "--launcher", "pytorch"]
    root = tmp_path / "two"
    root.mkdir()
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = load_beside("ranks").start_ranks([*command, *forced("val:val_freq=12")], 2, root, own)
    assert [one.status for one in ended] == [0, 0], "\n".join(one.errors for one in ended)
    folder = tmp_path / "two" / "experiments" / "tiny"
    assert len(list(folder.glob("train_tiny_*.log"))) == 1
    two = stored(folder)
    if model == "SRModel":
        assert set(two) == {"params", "params_ema"}
        return
    one = stored(train_there(recipe, tmp_path / "one", "val:val_freq=12", "datasets:train:batch_size_per_gpu=4"))
    for key in ("params", "params_ema"):
        for name, value in one[key].items():
            torch.testing.assert_close(two[key][name], value, rtol=1e-3, atol=2e-5)


def test_basicsrs_model_trains_our_network_on_our_data(recipe, tmp_path):
    text = recipe.read_text().replace("model_type: VHeatIRModel", "model_type: SRModel").replace("2e-3", "2.0e-3")
    recipe.write_text(text.replace("val:\n", "val:\n  save_img: false\n"))
    folder = train_there(recipe, tmp_path)
    assert "# psnr: " in next(folder.glob("train_tiny_*.log")).read_text()
    assert all(value.isfinite().all() for value in stored(folder)["params"].values())


def test_debug_is_basicsrs(recipe, tmp_path):
    basicsr.train(["-opt", str(recipe), "--debug", *forced("train:total_iter=8")], tmp_path)
    (log,) = (tmp_path / "experiments" / "debug_tiny").glob("*.log")
    assert "iter:       1, " in log.read_text() and not (tmp_path / "tb_logger").exists()


def test_the_command_in_a_process_of_its_own_and_three_lines_of_python(recipe, tmp_path):
    lines = "from vheatir.basicsr import register\nregister()\nfrom basicsr.train import train_pipeline\n"
    script = tmp_path / "mine.py"
    script.write_text(f"{lines}train_pipeline('by_script')\n")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    arguments = ["-opt", str(recipe), "--force_yml", "train:total_iter=1", "val:val_freq=9"]
    for command in ([str(script)], ["-m", "vheatir.basicsr", "train"]):
        done = subprocess.run(
            [sys.executable, *command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    one, other = (stored(tmp_path / part / "experiments" / "tiny") for part in ("by_script", "."))
    assert_equal(one["params"], other["params"])
    copied = (tmp_path / "experiments" / "tiny" / "tiny.yml").read_text()
    assert "vheatir/basicsr.py train -opt" in copied


@pytest.mark.parametrize(
    "change, message",
    [
        ("path:", "BasicSR needs 'path' in the options"),
        ("model_type:", "BasicSR needs 'model_type' in the options"),
        ("network_g:", "BasicSR needs 'network_g' in the options"),
        ("scale: 4 #", "scale: VHeatIRModel restores images at their own size, got 4"),
        ("dataroot", r"(?s)2 of 7 images cannot be used.*cut.png"),
    ],
)
def test_what_cannot_be_used_is_said(recipe, tmp_path, change, message, small_photos):
    text = recipe.read_text()
    if change == "dataroot":
        (tmp_path / "images").mkdir()
        for path in (small_photos / "train").iterdir():
            (tmp_path / "images" / path.name).write_bytes(path.read_bytes())
        for name in ("cut.png", "empty.png"):
            (tmp_path / "images" / name).write_bytes(path.read_bytes()[: 100 if name == "cut.png" else 0])
        text = text.replace(str(small_photos / "train"), str(tmp_path / "images"))
    else:
        text = text.replace(change, f"# {change}") if change.endswith(":") else f"{change}\n{text}"
    recipe.write_text(text)
    with pytest.raises(UserError, match=message):
        train_there(recipe, tmp_path)


def test_a_training_state_that_wants_to_run_code_is_refused(recipe, tmp_path):
    folder = train_there(recipe, tmp_path, "train:total_iter=4")
    (folder / "training_states" / "my copy.state").touch()
    import pickle

    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "trace",)

    (folder / "training_states" / "9.state").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match=r"9\.state: cannot be read"):
        train_there(recipe, tmp_path, more=("--auto_resume",))
    assert not (tmp_path / "trace").exists()


def test_a_resumed_network_is_never_the_average_whatever_param_key_says(tmp_path):
    from vheatir.train.model import VHeatIRModel

    states = {"params": {"weight": torch.zeros(2, 3)}, "params_ema": {"weight": torch.ones(2, 3)}}
    torch.save(states, tmp_path / "net_g_8.pth")
    model = object.__new__(VHeatIRModel)
    model.opt = {"path": {"resume_state": "8.state", "param_key_g": None}}
    network = torch.nn.Linear(3, 2, bias=False)
    for key, value in ((None, 0), ("params", 0), ("params_ema", 1)):  # as SRModel asks for network and average
        model.load_network(network, str(tmp_path / "net_g_8.pth"), True, key)
        assert bool((network.weight == value).all()), key


@pytest.mark.parametrize("state", [{}, {"scaler": {}}], ids=["of SRModel", "without fp16"])
def test_a_run_without_fp16_goes_on_with_it(state):
    from vheatir.train.model import VHeatIRModel

    model = object.__new__(VHeatIRModel)
    model.optimizers = model.schedulers = []
    model.update = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    model.resume_training({"optimizers": [], "schedulers": [], **state})
    assert model.update.scaler.get_scale() == 8
    model.resume_training(
        {"optimizers": [], "schedulers": [], "scaler": model.update.scaler.state_dict() | {"scale": 4.0}}
    )
    assert model.update.scaler.get_scale() == 4
