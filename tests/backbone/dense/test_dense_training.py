"""Detection and segmentation learn, go on as if they had not stopped, evaluate, draw and count."""

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm", reason="training backbones needs the extra `backbone`")
pytest.importorskip("pycocotools", reason="detection needs the extra `detection`")

from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tests.backbone import dense_data
from tests.backbone.stops import interrupted_before, terminated_after
from vheatir.backbone.dense.cost import cost_at
from vheatir.backbone.dense.recipe import make_lr_schedule, make_optimizer
from vheatir.backbone.detection.model import build_detector
from vheatir.backbone.detection.recipe import Detector
from vheatir.backbone.models.create import create_model
from vheatir.backbone.models.feature_maps import build_features, load_features
from vheatir.backbone.segmentation.recipe import read_recipe
from vheatir.detect import main as detect
from vheatir.errors import UserError
from vheatir.segment import main as segment
from vheatir.tasks.dense import DenseSession, predict

MAINS = {"detect": detect, "segment": segment}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """`recipes(command, folder, **sections)`: a small recipe on small data."""
    root = tmp_path_factory.mktemp("data")
    dense_data.make_coco(root / "coco")
    dense_data.make_label_maps(root / "maps")

    def make(command: str, folder: Path, **sections) -> str:
        if command == "detect":
            return str(dense_data.detection_recipe(folder, root / "coco", **sections))
        return str(dense_data.segmentation_recipe(folder, root / "maps", **sections))

    return make


@pytest.fixture(scope="module")
def unbroken(recipes, tmp_path_factory) -> dict[str, Path]:
    """Folders of runs that nothing interrupted, by command."""
    folders = {}
    for command, main in MAINS.items():
        folder = tmp_path_factory.mktemp(command)
        assert main(["-opt", recipes(command, folder)]) == 0
        folders[command] = folder / "runs" / "small"
    return folders


def curves(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("command", MAINS)
def test_a_run_leaves_losses_scores_and_weights(command, unbroken):
    points = curves(unbroken[command])
    losses = {"detect": ("loss_mask", "loss_objectness"), "segment": ("main", "auxiliary", "aacc")}[command]
    assert {f"train/{name}" for name in ("loss", "lr", *losses)} <= set(points[0])
    scores = {"detect": ("box_ap", "mask_ap"), "segment": ("miou", "aacc", "majority_miou")}[command]
    assert {f"{kind}/{name}" for kind in ("val", "ema") for name in scores} <= set(points[-1])
    assert points[-1]["val/images"] == 3 and points[-1]["iteration"] == 6
    written = {path.name for path in unbroken[command].rglob("*")}
    assert {"latest.safetensors", "best_ema.safetensors", "iter_00000006.pt", "curves.png", "resolved.yml"} <= written


@pytest.mark.parametrize("command", MAINS)
def test_a_run_stopped_amid_an_epoch_goes_on_as_if_it_had_not(command, unbroken, recipes, tmp_path):
    recipe = recipes(command, tmp_path)
    with interrupted_before(5):
        MAINS[command](["-opt", recipe])
    torch.manual_seed(99)
    assert MAINS[command](["-opt", recipe, "--resume"]) == 0
    run = tmp_path / "runs" / "small"
    for name in ("latest", "latest_ema", "best"):
        got, want = (load_file(folder / "models" / f"{name}.safetensors") for folder in (run, unbroken[command]))
        assert all(torch.equal(got[key], want[key]) for key in want), name
    assert curves(run) == curves(unbroken[command])


def test_a_run_counted_in_steps_has_as_many_left_with_other_batches(recipes, tmp_path):
    recipe = recipes("segment", tmp_path, data={"batch_size": 4})
    with terminated_after(3):
        assert segment(["-opt", recipe]) == 130
    assert segment(["-opt", recipe, "--resume", "--set", "data.batch_size=2"]) == 0
    run = tmp_path / "runs" / "small"
    assert "resumed at step 3\n" in (run / "train.log").read_text()
    assert [point["iteration"] for point in curves(run) if "train/loss" in point] == [2, 4, 6]


def test_segmentation_learns(recipes, tmp_path):
    train = {"steps": 60, "lr": 8e-3, "ema_decay": None, "grad_clip": 1.0}
    more = {"augment": {"color": False, "ratio": [1.0, 1.0]}, "head": {"dropout": 0.0, "channels": 16}}
    assert segment(["-opt", recipes("segment", tmp_path, train=train, val={"every": 60}, **more)]) == 0
    last = curves(tmp_path / "runs" / "small")[-1]
    assert last["val/miou"] > 2 * last["val/majority_miou"] and last["evaluation"] == 1


def test_detection_learns(recipes, tmp_path):
    train = {"epochs": 8, "milestones": [7], "lr": 3e-3, "ema_decay": None}
    more = {"val": {"every": 8}, "detector": {"channels": 32, "masks": False}}
    assert detect(["-opt", recipes("detect", tmp_path, train=train, **more)]) == 0
    losses = [point["train/loss"] for point in curves(tmp_path / "runs" / "small") if "train/loss" in point]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("command", MAINS)
def test_half_precision_trains(command, recipes, tmp_path):
    length = {"steps": 1} if command == "segment" else {"epochs": 1}
    train = {**length, "amp": "bf16", "ema_decay": None, "warmup_steps": 0}
    assert MAINS[command](["-opt", recipes(command, tmp_path, train=train, val={"every": 1})]) == 0
    assert curves(tmp_path / "runs" / "small")[0]["train/loss"] < 20


@pytest.mark.parametrize("command", MAINS)
def test_evaluation_repeats_the_figures_of_the_run(command, unbroken, recipes, tmp_path):
    weights = unbroken[command] / "models" / "latest.safetensors"
    out = tmp_path / "scores.json"
    recipe = recipes(command, tmp_path)
    assert MAINS[command](["-opt", recipe, "--eval", "--weights", str(weights), "--json", str(out)]) == 0
    result, last = json.loads(out.read_text()), curves(unbroken[command])[-1]
    for name, value in result["scores"].items():
        assert value == pytest.approx(last[f"val/{name}"], rel=1e-6), name
    if command == "segment":
        assert set(result["iou"]) == {"ground", "red", "blue"}
        assert segment(["-opt", recipe, "--eval", "--tta", "--weights", str(weights), "--json", str(out)]) == 0
        assert json.loads(out.read_text())["tta"] is True


@pytest.mark.parametrize("command", MAINS)
def test_an_image_that_a_run_skips_is_skipped_when_it_is_scored(command, tmp_path):
    from vheatir.detect import DetectSession
    from vheatir.segment import SegmentSession

    makers = {
        "detect": (dense_data.make_coco, dense_data.detection_recipe, DetectSession, "val/2.png"),
        "segment": (dense_data.make_label_maps, dense_data.segmentation_recipe, SegmentSession, "images/val/p1.jpg"),
    }
    make, write, kind, image = makers[command]
    root = make(tmp_path / "data")
    content = (root / image).read_bytes()
    (root / image).write_bytes(content[: len(content) // 2])
    recipe = write(tmp_path, root, data={"invalid": "skip"})
    for mode in ("train", "eval"):
        task = kind(recipe, dense_data.yaml.safe_load(recipe.read_text()), mode).task()
        assert len(task.samples) == 2, mode


def test_an_evaluation_set_of_which_nothing_is_left_is_refused(tmp_path):
    """Its scores were NaN, so that no weights were ever the best."""
    root = dense_data.make_label_maps(tmp_path / "data")
    for path in (root / "labels" / "val").iterdir():
        with Image.open(path) as labels:
            labels.convert("RGB").save(path)
    recipe = dense_data.segmentation_recipe(tmp_path, root, data={"invalid": "skip"})
    with pytest.raises(UserError, match=r"the evaluation set has no images left.*data\.val"):
        segment(["-opt", str(recipe)])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", MAINS)
def test_what_is_found_is_drawn(command, unbroken, recipes, tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (70, 50), (200, 40, 40)).save(folder / "a.jpg")
    Image.new("L", (40, 60), 90).save(folder / "sub" / "b.png")
    weights = str(unbroken[command] / "models" / "latest.safetensors")
    arguments = ["-opt", recipes(command, tmp_path, detector={"score": 0.0}) if command == "detect" else ""]
    arguments = arguments if command == "detect" else ["-opt", recipes(command, tmp_path)]
    arguments += ["--predict", str(folder), "-o", str(tmp_path / "out"), "--weights", weights]
    arguments += ["--threshold", "0.0"] if command == "detect" else ["--label-maps", str(tmp_path / "maps")]
    assert MAINS[command](arguments) == 0
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert set(found) == {"a.jpg", "sub/b.png"}
    with Image.open(tmp_path / "out" / "a.png") as drawn, Image.open(tmp_path / "out" / "sub" / "b.png") as other:
        assert drawn.size == (70, 50) and other.size == (40, 60)
        assert len(drawn.getcolors(70 * 50)) > 1
    if command == "detect":
        assert found["a.jpg"]["detections"] and set(found["a.jpg"]["detections"][0]) >= {"class", "bbox", "score"}
    else:
        assert sum(found["a.jpg"]["shares"].values()) == pytest.approx(1)
        with Image.open(tmp_path / "maps" / "a.png") as numbers:
            assert numbers.mode == "L" and numbers.getextrema()[1] < 3


@pytest.mark.parametrize("command", MAINS)
def test_one_odd_file_costs_no_findings(command, unbroken, recipes, tmp_path, capsys):
    """A folder as phones and file managers leave it, drawn into a folder below it, twice."""
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (70, 50), (200, 40, 40)).save(folder / "z.jpg")
    Image.new("RGB", (64, 48), (40, 40, 200)).save(folder / "b.png")
    for name in ("._z.jpg", "broken.png", "notes.txt"):
        (folder / name).write_bytes(b"no image")
    weights = str(unbroken[command] / "models" / "latest.safetensors")
    out = folder / "drawn"
    arguments = ["-opt", recipes(command, tmp_path), "--predict", str(folder), "-o", str(out), "--weights", weights]
    if command == "segment":
        arguments += ["--label-maps", str(folder / "maps")]
    for _ in range(2):
        assert MAINS[command](arguments) == 1
        said = capsys.readouterr()
        assert f"error: {folder / 'broken.png'}" in said.err and "skipped: 1 .txt" in said.err
        assert "2 images drawn into" in said.out and ", 1 failed, figures in" in said.out
        assert set(json.loads((out / "found.json").read_text())) == {"b.png", "z.jpg"}
        assert sorted(path.name for path in out.rglob("*")) == ["b.png", "found.json", "z.png"]


def test_images_of_phones_are_read(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="pip install 'vheatir[phone]'")
    for mode in ("RGB", "L"):
        heif.from_pillow(Image.new("RGB", (64, 48), (200, 90, 30)).convert(mode)).save(tmp_path / f"{mode}.heic")
        read = DenseSession.read_image(None, tmp_path / f"{mode}.heic")
        assert read.shape == (3, 48, 64) and read.dtype == torch.uint8
        wanted = torch.tensor([200.0, 90, 30]) if mode == "RGB" else torch.full((3,), 116.0)
        torch.testing.assert_close(read.float().mean((1, 2)), wanted, atol=4, rtol=0)


def test_what_is_found_is_written_whatever_ends_the_work(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)

    class Session:
        device, model = "cpu", torch.nn.Identity()

        def draw(self, file):
            if file.name == "b.png":
                raise KeyboardInterrupt
            return torch.zeros(3, 8, 8, dtype=torch.uint8), {"seen": file.name}

    with pytest.raises(KeyboardInterrupt):
        predict(Session(), tmp_path, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "found.json").read_text()) == {"a.png": {"seen": "a.png"}}


def test_masks_are_made_of_what_is_drawn_alone(unbroken, recipes, tmp_path, monkeypatch):
    """torchvision makes them at the size of the image, in float32: 100 of a photograph fill 5 GB."""
    from vheatir.detect import DetectSession

    Image.new("RGB", (70, 50), (200, 40, 40)).save(tmp_path / "a.jpg")
    recipe = Path(recipes("detect", tmp_path, detector={"score": 0.0}))
    options = dense_data.yaml.safe_load(recipe.read_text())
    session = DetectSession(recipe, options, "predict", str(unbroken["detect"] / "models" / "latest.safetensors"))
    session.model.eval()
    made = []
    finish = session.model.transform.postprocess
    monkeypatch.setattr(
        session.model.transform, "postprocess", lambda *given: made.append(len(given[0][0]["scores"])) or finish(*given)
    )
    _, everything = session.draw(tmp_path / "a.jpg", threshold=0.0)
    scores = sorted(one["score"] for one in everything["detections"])
    middle = scores[len(scores) // 2]
    _, found = session.draw(tmp_path / "a.jpg", threshold=middle)
    assert found["detections"] == [one for one in everything["detections"] if one["score"] >= middle]
    assert made[1] == len(found["detections"]) < made[0]


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("detect", ["--eval", "--pretrained", "w.pth"], "--pretrained starts a run"),
        ("segment", ["--predict", "in", "-o", "out", "--pretrained", "w.pth"], "--pretrained starts a run"),
        ("segment", ["--cost", "--rounds", "-1"], "--rounds must be 0 or more"),
        ("segment", ["--tta"], "--tta belongs to --eval and --predict"),
        ("segment", ["--eval", "--label-maps", "maps"], "--label-maps belongs to --predict"),
        ("detect", ["--eval", "--threshold", "0.3"], "--threshold belongs to --predict"),
    ],
)
def test_arguments_that_nothing_would_read_are_refused(command, arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        MAINS[command](["-opt", "x.yml", *arguments])
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("threshold", ["nan", "7", "-0.1", "half"])
def test_a_threshold_is_a_number_from_0_to_1(threshold, capsys):
    with pytest.raises(SystemExit) as ended:
        detect(["-opt", "x.yml", "--predict", "in", "-o", "out", f"--threshold={threshold}"])
    assert ended.value.code == 2
    assert f"--threshold: expected a number from 0 to 1, got {threshold}" in capsys.readouterr().err


@pytest.mark.parametrize("command", MAINS)
def test_an_output_that_is_no_folder_is_refused_before_weights_are_read(command, recipes, tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    arguments = ["-opt", recipes(command, tmp_path), "--predict", str(tmp_path), "-o", str(tmp_path / "taken")]
    with pytest.raises(UserError, match="taken: nothing can be written there"):
        MAINS[command]([*arguments, "--weights", str(tmp_path / "none.safetensors")])


@pytest.mark.parametrize(
    "names, out, maps, expected",
    [
        (["a.jpg", "a.png"], "out", None, "a.jpg and of .*a.png would both be"),
        (["a.jpg", "a.png"], "in", None, "a.png would be overwritten"),
        (["a.png"], "out", "in", "a.png would be overwritten"),
        (["a.png"], "out", "out", "would both be"),
    ],
)
def test_drawing_overwrites_neither_images_nor_what_it_has_drawn(names, out, maps, expected, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    maps = None if maps is None else tmp_path / maps
    with pytest.raises(UserError, match=expected):
        predict(None, folder, tmp_path / out, label_maps=maps)  # before a network is needed
    assert all((folder / name).read_bytes() == b"" for name in names)


@pytest.mark.parametrize("command", MAINS)
def test_costs_by_size(command, recipes, tmp_path):
    out, changes = tmp_path / "cost.json", {"data": {"num_classes": 2 if command == "detect" else 3}}
    arguments = ["--cost", "--sizes", "64", "64x96", "--rounds", "5", "--json", str(out)]
    assert MAINS[command](["-opt", recipes(command, tmp_path, **changes), *arguments]) == 0
    table = json.loads(out.read_text())["cost"]
    assert list(table) == ["64x64", "64x96"]
    square, wide = (table[size] for size in table)
    assert wide["training"]["macs"]["total"] > square["training"]["macs"]["total"] > 1e6
    assert square["merged"]["parameters"]["trainable"] < square["training"]["parameters"]["total"]
    assert square["merged"]["macs"]["heat_conduction"] == square["training"]["macs"]["heat_conduction"] > 0
    assert square["pass"]["median_s"] > 0 and square["pass"]["peak_mib"] > 0


def test_a_detectors_cost_is_that_of_the_padded_image():
    detector = build_detector(build_features(dict(dense_data.SMALL)), Detector(channels=8), 2)
    computed = []
    detector.backbone.register_forward_pre_hook(lambda module, inputs: computed.append(tuple(inputs[0].shape[2:])))
    detector.transform.min_size = (60,)
    with torch.no_grad():
        detector.eval()([torch.rand(3, 60, 97)])
    assert computed == [(64, 128)]
    assert cost_at(detector, (60, 97)) == cost_at(detector, (64, 128))


@pytest.mark.parametrize("embeddings", ["relative", "index"])
def test_a_classifiers_checkpoint_is_the_start_in_either_convention(embeddings, recipes, tmp_path):
    classifier = create_model("vheat_tiny", img_size=32, dims=8, depths=[1, 1, 1, 1], num_classes=4)
    torch.save({"model": classifier.state_dict()}, tmp_path / "classifier.pth")
    train = {"steps": 1, "lr": 1e-9, "ema_decay": None, "warmup_steps": 0, "schedule": "poly"}
    path = {"pretrained": str(tmp_path / "classifier.pth"), "pretrained_embeddings": embeddings}
    path["experiments_root"] = str(tmp_path / "runs")
    assert segment(["-opt", recipes("segment", tmp_path, train=train, val={"every": 1}, path=path)]) == 0
    state = load_file(tmp_path / "runs" / "small" / "models" / "latest.safetensors")
    given, got = classifier.freq_embed[0].detach(), state["body.freq_embed.0"]
    assert got.shape == (16, 16, 8)
    corner, rest = (got[:8, :8], got[8:]) if embeddings == "index" else (got[::2, ::2], None)
    torch.testing.assert_close(corner, given, atol=1e-5, rtol=0)
    assert rest is None or rest.abs().max() < 1e-5
    log = (tmp_path / "runs" / "small" / "train.log").read_text()
    assert "resized freq_embed.0: (8, 8, 8) -> (16, 16, 8)" in log and "outnorm0.weight" in log


@pytest.mark.parametrize("command", MAINS)
def test_a_run_does_not_start_from_folded_weights(command, recipes, tmp_path):
    """They fail at images of other sizes, and neither `--resume` nor `--eval` took the run."""
    arguments = {key: value for key, value in dense_data.SMALL.items() if key != "name"}
    torch.save({"model": create_model("vheat_tiny", **arguments).eval().fold().state_dict()}, tmp_path / "folded.pth")
    with pytest.raises(UserError, match=r"folded\.pth: weights in folded form"):
        MAINS[command](["-opt", recipes(command, tmp_path), "--pretrained", str(tmp_path / "folded.pth")])
    assert not (tmp_path / "runs").exists()


def test_resnet_starts_from_a_classifier_too(tmp_path):
    network = build_features({"name": "resnet18"})
    state = {**network.state_dict(), "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], 0.5)
    save_file(state, tmp_path / "resnet.safetensors")
    report = load_features(network, tmp_path / "resnet.safetensors", "model", "relative")
    assert report.unused == ["fc.weight", "fc.bias"] or set(report.unused) == {"fc.weight", "fc.bias"}
    assert (network.conv1.weight == 0.5).all() and network.dims == (64, 128, 256, 512)
    maps = network.eval()(torch.zeros(1, 3, 64, 64))
    assert [tuple(one.shape[1:]) for one in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    with pytest.raises(ValueError, match="lacks"):
        save_file({"conv1.weight": state["conv1.weight"]}, tmp_path / "part.safetensors")
        load_features(network, tmp_path / "part.safetensors", "model", "relative")


def test_code_of_the_guide_runs():
    guide = (Path(__file__).resolve().parent.parent.parent.parent / "docs" / "dense.md").read_text(encoding="utf-8")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL):
        exec(block, names)
    assert names["found"]["boxes"].shape[1] == 4 and names["scores"].shape == (1, 5, 60, 80)


def test_two_processes_train_and_evaluate_together(recipes, tmp_path):
    """Each process detects in its part of the images; the score is that of all."""
    train = {"epochs": 1, "ema_decay": None}
    recipe = recipes("detect", tmp_path, train=train, val={"every": 1}, data={"batch_size": 1})
    root = Path(__file__).resolve().parent.parent.parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "vheatir", "detect", "-opt", recipe]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    last = curves(tmp_path / "runs" / "small")[-1]
    assert last["iteration"] == 3 and last["val/images"] == 3 and "val/box_ap" in last


def test_images_without_objects_give_losses():
    model = build_detector(build_features(dense_data.SMALL), Detector(channels=8, proposals=(8, 8)), 2)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 64, 64)}
    losses = model.train()([torch.rand(3, 64, 64)], [nothing])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("masks", [False, True])
def test_annotated_boxes_keep_their_pixels_in_half_precision(masks, monkeypatch):
    model = build_detector(build_features(dense_data.SMALL), Detector(masks=masks, channels=8, proposals=(8, 8)), 2)
    learned = {}
    encode = model.roi_heads.box_coder.encode

    def spy(boxes, proposals):
        learned.update(boxes=boxes[0], proposals=proposals[0])
        return encode(boxes, proposals)

    monkeypatch.setattr(model.roi_heads.box_coder, "encode", spy)
    box = torch.tensor([[1205.0, 41.0, 1217.0, 51.0]])
    target = {"boxes": box, "labels": torch.tensor([1]), "masks": torch.ones(1, 64, 1300, dtype=torch.uint8)}
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()([torch.rand(3, 64, 1300)], [target])
    sum(losses.values()).backward()
    assert (learned["boxes"] == box).all()
    assert learned["proposals"].dtype == torch.float32 and (learned["proposals"] == box).all(1).any()


def test_training_images_keep_their_size_and_evaluated_ones_are_resized():
    model = build_detector(build_features(dense_data.SMALL), Detector(channels=8, short_side=96, long_side=120), 2)
    images = [torch.rand(3, 50, 70)]
    assert model.train().transform(images)[0].image_sizes == [(50, 70)]
    assert model.eval().transform(images)[0].image_sizes == [(85, 120)]


@pytest.mark.parametrize(
    "command, change, message",
    [
        ("detect", {"data": {"format": "voc"}}, "VOC's XML files hold boxes alone"),
        ("detect", {"train": {"steps": 5}}, "train needs either epochs or steps"),
        ("detect", {"backbone": {"name": "vheat_huge"}}, r"backbone\.name: unknown 'vheat_huge'; known: vheat_tiny"),
        ("detect", {"backbone": {"name": "resnet18"}}, "resnet18 takes no arguments"),
        ("detect", {"detector": {"mask": True}}, r"unknown key detector\.mask; did you mean masks"),
        ("detect", {"data": {"num_classes": 5}}, r"data\.num_classes is 5, but there are 2 classes"),
        ("segment", {"data": {"batch_size": 1}}, r"data\.batch_size must be at least 2"),
        ("segment", {"val": {"every": 4}}, "must be a multiple of val.every, 4 steps"),
        ("segment", {"val": {"stride": 50}}, "leaves gaps between windows"),
        ("segment", {"data": {"num_classes": 2, "classes": ["a", "b"]}}, "the data break 6 rules|unknown ids"),
        ("segment", {"train": {"amp": "fp16"}}, "fp16 needs a CUDA device"),
        ("segment", {"train": {"warmup_steps": 7}}, r"train\.warmup_steps is 7, but the run has 6 steps"),
        ("segment", {"augment": {"ratio": [2.0, 0.5]}}, r"augment\.ratio must be two numbers above 0, the smaller one"),
        ("segment", {"val": {"ratios": [0.5, 0]}}, r"val\.ratios must be numbers above 0"),
        ("segment", {"data": {"classes": [0, 1, 2]}}, r"data\.classes must be a list of texts, got \[0, 1, 2\]"),
        ("segment", {"data": {"classes": []}}, r"data\.classes must not be empty, got \[\]"),
        (
            "segment",
            {"data": {"classes": ["a", "b", "a"]}},
            r"data\.classes must name each but once, got \['a'",
        ),
        ("detect", {"data": {"classes": ["red", "red"]}}, r"data\.classes must name each but once"),
        ("segment", {"head": {"pool_scales": [0, 2]}}, r"head\.pool_scales must be numbers above 0"),
        ("detect", {"augment": {"short_sides": [0]}}, r"augment\.short_sides must be numbers above 0"),
        ("detect", {"augment": {"short_sides": []}}, r"augment\.short_sides must be numbers above 0"),
        ("detect", {"detector": {"anchors": [0, 8, 16, 32, 64]}}, r"detector\.anchors must be numbers above 0"),
        ("segment", {"data": {"ignore": [300]}}, r"data\.ignore must be numbers from 0 to 255.*, got 300"),
        ("segment", {"data": {"layout": "cityscapes"}}, r"num_classes is 3, but data\.layout cityscapes has 19"),
        ("segment", {"path": {"pretrained": "no.pth"}}, r"no checkpoint no\.pth"),
    ],
)
def test_what_cannot_work_is_said_before_a_folder_is_made(command, change, message, recipes, tmp_path):
    recipe = recipes(command, tmp_path, **{**change, "name": "refused"})
    with pytest.raises(UserError, match=message):
        MAINS[command](["-opt", recipe])
    assert not (tmp_path / "runs" / "refused").exists()


def test_files_that_may_not_be_read_are_named(recipes, tmp_path, monkeypatch):
    read = Path.read_bytes

    def refused(path):
        if path.name == "train.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(UserError, match=r"recipe\.yml: .*train\.json: Permission denied$"):
        detect(["-opt", recipes("detect", tmp_path)])


def test_lists_of_nothing_are_taken_where_they_mean_something():
    """No number that is ignored, no parameter without decay, no step of the rate."""
    train = {"epochs": 1, "milestones": [], "no_decay": []}
    table = {"name": "x", "backbone": {"name": "vheat_tiny"}, "data": {"root": "", "ignore": []}, "train": train}
    recipe = read_recipe(table)
    assert recipe.data.ignore == recipe.train.milestones == recipe.train.no_decay == ()
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    optimizer = make_optimizer(recipe.train, model)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4]
    recipe.train.warmup_steps = 0
    make_lr_schedule(recipe.train, optimizer, 100, 5)(99)
    assert optimizer.param_groups[0]["lr"] == recipe.train.lr


def test_classes_in_another_order_are_neither_scored_nor_learned_further(unbroken, recipes, tmp_path):
    recipe = recipes("segment", tmp_path, data={"classes": ["ground", "blue", "red"]})
    weights = unbroken["segment"] / "models" / "latest.safetensors"
    with pytest.raises(UserError, match=r"'blue' is number 2 in .*latest\.safetensors, and number 1 in this set"):
        segment(["-opt", recipe, "--eval", "--weights", str(weights)])
    shutil.copytree(unbroken["segment"], tmp_path / "runs" / "small")
    with pytest.raises(UserError, match="'blue' is number 2 in the run, and number 1 in this set"):
        segment(["-opt", recipe, "--resume"])


def test_weights_of_another_network_are_refused(unbroken, recipes, tmp_path):
    recipe = recipes("segment", tmp_path, head={"channels": 16})
    with pytest.raises(UserError, match="does not fit the recipe"):
        segment(["-opt", recipe, "--eval", "--weights", str(unbroken["segment"] / "models" / "latest.safetensors")])
    with pytest.raises(UserError, match="give --weights FILE"):
        segment(["-opt", recipe, "--eval"])
