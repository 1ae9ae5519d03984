"""docs/howto.md: every command and the degradation shown there, run with few steps on small pictures."""

import re
import shlex
import sys
from pathlib import Path

import cv2
import pytest
import skimage.data
import yaml

from vheatir.cli import main as vheatir_main

pytest.importorskip("basicsr", reason="training needs BasicSR")
from basicsr.utils.registry import DATASET_REGISTRY

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
SNIPPET = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
SHORT = [
    "datasets.train.gt_size=16",
    "datasets.train.batch_size_per_gpu=2",
    "train.total_iter=2",
    "train.warmup_iter=-1",
]
SHORT += ["val.val_freq=2", "logger.save_checkpoint_freq=2", "logger.use_tb_logger=false"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The folders and files that the page names."""
    picture = skimage.data.chelsea()[..., ::-1]
    names = ["photos/a.png", "photos/b.png", "held_out/c.png", "photo.png"]
    names += ["datasets/test/CBSD68/d.png", "datasets/test/Classic5/e.png"]
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), picture[20 * number :, 30 * number :][:40, :48].copy())
    recipe = yaml.safe_load((ROOT / "options" / "denoise_light.yml").read_text(encoding="utf-8"))
    for phase, folder in (("train", "photos"), ("val", "held_out")):
        table = {key: value for key, value in recipe["datasets"][phase].items() if key in ("gt_size", "augment")}
        recipe["datasets"][phase] = table | {"type": "SaltAndPepper", "share": 0.2, "dataroot_gt": folder}
    recipe["network_g"] |= {"dim": 8, "depths": [1], "reach": [0.5, 4.0]}
    (tmp_path / "salt.yml").write_text(yaml.safe_dump(recipe | {"name": "salt"}), encoding="utf-8")
    (tmp_path / "salt.py").write_text(SNIPPET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("salt", None)
    DATASET_REGISTRY._obj_map.pop("SaltAndPepper", None)


def test_every_command_does_what_the_page_says(workplace, capsys):
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "vheatir"
        if arguments[0] == "train":
            arguments += [text for item in SHORT for text in ("--set", item)]
        assert vheatir_main(arguments) == 0, f"{command}\n{capsys.readouterr().err}"
    assert (workplace / "experiments" / "salt" / "models" / "best.safetensors").exists()
    assert (workplace / "restored" / "photo.png").exists()
    assert {path.name for path in (workplace / "results").iterdir()} >= {"cbsd68.json", "classic5.json"}


class TestPlugin:
    def test_the_degradation_is_a_function_of_seed_and_sample(self, workplace):
        from vheatir.registry import load_plugins, register_all

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
        (workplace / "salt.py").write_text(SNIPPET.replace("SaltAndPepper", "PairedDataset"))
        assert vheatir_main(["train", "-opt", "salt.yml", "--plugin", "salt.py"]) == 2
        assert "there is a dataset PairedDataset already" in capsys.readouterr().err

    def test_a_wrong_shape_is_named(self, workplace, capsys):
        (workplace / "salt.py").write_text(SNIPPET.replace("return image", "return image[:4]"))
        short = [text for item in SHORT for text in ("--set", item)]
        assert vheatir_main(["train", "-opt", "salt.yml", "--plugin", "salt.py", *short]) == 2
        assert "SaltAndPepper.degrade gave (4, " in capsys.readouterr().err
