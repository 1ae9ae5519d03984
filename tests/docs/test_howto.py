"""The degradation that docs/howto.md adds: reproducible, and told what is wrong where something is."""

import re
import shutil
import sys
from pathlib import Path

import cv2
import pytest
import skimage.data
import yaml

from tests.docs import shown_place
from tests.docs.shown import ROOT
from vheatir.cli import main as vheatir_main

pytest.importorskip("basicsr", reason="training needs BasicSR")
from basicsr.utils.registry import DATASET_REGISTRY

SHORT = [
    "datasets.train.gt_size=16",
    "datasets.train.batch_size_per_gpu=2",
    "train.total_iter=2",
    "train.warmup_iter=-1",
]
SHORT += ["val.val_freq=2", "logger.save_checkpoint_freq=2", "logger.use_tb_logger=false"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An image to train on and one to validate on, the page's file and a recipe."""
    for number, name in enumerate(("photos/a.png", "held_out/c.png")):
        (tmp_path / name).parent.mkdir()
        crop = skimage.data.chelsea()[20 * number :, 30 * number :][:40, :48, ::-1]
        assert cv2.imwrite(str(tmp_path / name), crop.copy())
    shown_place.make_degradation(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("salt", None)
    DATASET_REGISTRY._obj_map.pop("SaltAndPepper", None)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_recipe_for_pairs_has_what_the_page_says(workplace):
    page = " ".join((ROOT / "docs" / "howto.md").read_text(encoding="utf-8").split())
    (words,) = re.findall(r"For pairs of degraded and clean images .*? and remove (.*?)\.", page)
    taken_out = re.findall(r"`(\w+)`", words)
    recipe = yaml.safe_load((ROOT / "options" / "denoise_light.yml").read_text(encoding="utf-8"))
    for phase, folder in (("train", "photos"), ("val", "held_out")):
        table = {key: value for key, value in recipe["datasets"][phase].items() if key not in taken_out}
        shutil.copytree(folder, f"{folder}_lq")
        places = {"type": "PairedDataset", "dataroot_gt": folder, "dataroot_lq": f"{folder}_lq"}
        recipe["datasets"][phase] = table | places | {"exclude": None, "include": None}
    recipe["network_g"] |= shown_place.SMALL
    Path("pairs.yml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    short = [text for item in SHORT for text in ("--set", item)]
    assert vheatir_main(["train", "-opt", "pairs.yml", *short]) == 0


class TestPlugin:
    def test_the_degradation_is_a_function_of_seed_and_sample(self, workplace):
        from vheatir.train.registry import load_plugins, register_all

        register_all()
        load_plugins(["salt.py"])
        load_plugins(["salt.py"])
        kind = DATASET_REGISTRY.get("SaltAndPepper")
        options = {"phase": "train", "dataroot_gt": "photos", "gt_size": 32, "share": 0.5, "seed": 3}
        first, again, other = kind(options)[0], kind(options)[0], kind(options | {"seed": 4})[0]
        assert (first["lq"] == again["lq"]).all() and first["lq"].shape == other["lq"].shape == (3, 32, 32)
        assert 0.3 < (first["lq"] != first["gt"]).any(0).float().mean() < 0.6
        assert (first["lq"] != other["lq"]).any()

    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            ("missing.py", None, "expected a Python file"),
            ("broken.py", "import nothing_of_that_name", "ModuleNotFoundError"),
            ("json.py", "", "rename the file"),
        ],
    )
    def test_what_cannot_be_loaded_is_named(self, name, text, expected, workplace, capsys):
        if text is not None:
            (workplace / name).write_text(text)
        assert vheatir_main(["train", "-opt", "salt.yml", "--plugin", name]) == 2
        assert expected in capsys.readouterr().err

    def test_the_name_of_a_built_in_set_is_refused(self, workplace, capsys):
        change(workplace / "salt.py", "SaltAndPepper", "PairedDataset")
        assert vheatir_main(["train", "-opt", "salt.yml", "--plugin", "salt.py"]) == 2
        assert "there is a dataset PairedDataset already" in capsys.readouterr().err

    def test_a_wrong_shape_is_named(self, workplace, capsys):
        change(workplace / "salt.py", "return image", "return image[:4]")
        short = [text for item in SHORT for text in ("--set", item)]
        assert vheatir_main(["train", "-opt", "salt.yml", "--plugin", "salt.py", *short]) == 2
        assert "SaltAndPepper.degrade gave (4, " in capsys.readouterr().err
