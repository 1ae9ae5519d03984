"""All kinds of training run on one loop, in which an option means one thing."""

from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("basicsr", reason="training needs BasicSR")
pytest.importorskip("timm", reason="training backbones needs the extra `backbone`")
pytest.importorskip("pycocotools", reason="detection needs the extra `detection`")

from tests.backbone import dense_data
from tests.backbone.classification import small
from vheatir.backbone.training import precision
from vheatir.backbone.training.loop import Loop
from vheatir.backbone.training.processes import Processes
from vheatir.detect import main as detect
from vheatir.pretrain import PretrainSession
from vheatir.pretrain import main as pretrain
from vheatir.segment import main as segment
from vheatir.tasks.session import build_loop
from vheatir.train.build import complete_options
from vheatir.train.command import main
from vheatir.train.options import read_options
from vheatir.train.registry import register_all
from vheatir.train.trainer import Trainer


@pytest.fixture
def backbones(tmp_path):
    """`backbones(command)`: a small recipe of one step or epoch."""
    short = {"epochs": 1, "ema_decay": None}

    def make(command: str) -> str:
        folder, data = tmp_path / command, tmp_path / f"{command}_data"
        if command == "pretrain":
            images = small.make_images(data, train=4, val=1)
            return str(small.make_recipe(folder, images, train={"epochs": 1}))
        if command == "detect":
            dense_data.make_coco(data)
            return str(dense_data.detection_recipe(folder, data, train=short, val={"every": 1}))
        dense_data.make_label_maps(data)
        train = {"steps": 1, "ema_decay": None, "warmup_steps": 0}
        return str(dense_data.segmentation_recipe(folder, data, train=train, val={"every": 1}))

    return make


def test_every_kind_of_training_is_a_task_of_the_one_loop(train, recipe, backbones, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib", reason="the comparison draws a figure")
    kinds, run = [], Loop.run

    def spy(self):
        kinds.append(type(self.task).__name__)
        before = self.step
        finished = run(self)
        assert self.step > before, "the loop made the steps"
        return finished

    monkeypatch.setattr(Loop, "run", spy)
    train("train.total_iter=2", "val.val_freq=2")
    options = yaml.safe_load(recipe.read_text())
    options |= {"name": "plain", "network_g": {"type": "DnCNN", "dim": 8, "depth": 3}}
    other = recipe.with_name("plain.yml")
    other.write_text(yaml.safe_dump(options))
    out = str(tmp_path / "comparison")
    assert main(["--compare", str(recipe), str(other), "--minutes", "0.002", "--out", out]) == 0
    for command in (pretrain, detect, segment):
        name = command.__module__.rpartition(".")[2]
        assert command(["-opt", backbones(name)]) == 0
    assert kinds == ["RestorationTask", "TimedTask", "TimedTask", "Classification", "Detection", "Segmentation"]


@pytest.mark.parametrize("fast, want", [(True, torch.bfloat16), (False, None)])
def test_amp_auto_is_the_same_in_restoration_and_in_backbones(recipe, backbones, monkeypatch, fast, want):
    monkeypatch.setattr(precision, "is_fast_in_bf16", lambda _: fast)
    register_all()
    options = complete_options(recipe, read_options(recipe, ["train.amp=auto"]), is_train=True)
    restoration = Trainer(recipe, options, None).loop.update
    path = Path(backbones("pretrain"))
    table = yaml.safe_load(path.read_text())
    table["train"]["amp"] = "auto"
    classification = build_loop(PretrainSession(path, table, Processes()), None)[0].update
    assert restoration.dtype is want and classification.dtype is want


def test_both_refuse_a_wrong_value_in_the_same_words(recipe, backbones, train):
    from vheatir.errors import UserError

    path = backbones("pretrain")
    said = []
    for command, file in ((main, str(recipe)), (pretrain, path)):
        for change in ("train.amp=fp8", "train.accumulate=0", "train.accumulate=many", "train.ema_decay=1.5"):
            with pytest.raises(UserError) as caught:
                command(["-opt", file, "--set", change])
            said.append(str(caught.value).removeprefix(f"{file}: "))
    assert said[:4] == said[4:], said
    assert said[0] == "train.amp must be one of auto, none, bf16, fp16, got 'fp8'"
