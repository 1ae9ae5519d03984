"""The commands and the code that docs/restoration.md shows work as shown."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vheatir import weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.cli import main as vheatir_main
from vheatir.image_io import Image, write_image

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "restoration.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = re.findall(r"^\$ (.*)$", GUIDE, re.MULTILINE)
CHANNELS = {"color": 3, "gray": 1}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the guide names, and small weights in place of the shipped ones."""
    networks = {color: VHeatIR(n, dim=8, depths=[1], embed_size=8, downscale=2) for color, n in CHANNELS.items()}
    (tmp_path / "weights").mkdir()
    for task, names in weights.DEFAULTS.items():
        for color, name in names.items():
            metadata = {"task": task, "color": color, "levels": "none", "license": "none"}
            metadata["config"] = json.dumps(networks[color].config)
            weights.save(tmp_path / "weights" / f"{name}.safetensors", networks[color].state_dict(), metadata)
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    torch.save({"params": networks["color"].state_dict()}, "net_g_latest.pth")
    for name in ("photo.png", "scans/a.png", "more/b.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        write_image(name, Image(np.full((20, 24, 3), 0.5, np.float32)))
    return tmp_path


def test_commands(workplace):
    assert len(COMMANDS) >= 7
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        if program == "vheatir":
            assert vheatir_main(arguments) == 0, command
        else:
            arguments[0] = str(ROOT / arguments[0])
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    assert (
        Path("softer/photo.png").is_file() and Path("best/photo.png").is_file() and Path("batch/list.jsonl").is_file()
    )
    written = {path.as_posix() for path in Path("restored").iterdir()}
    assert written == {"restored/photo.png", "restored/a.png", "restored/b.jpg"}
    assert Path("mine.safetensors").is_file() and Path("mine.md").is_file()


@pytest.mark.parametrize("code", PYTHON, ids=["arrays", "files"])
def test_python(workplace, code):
    names = {}
    exec(compile(code, "restoration.md", "exec"), names)
    if "restored" in names:
        assert names["restored"].shape == names["noisy"].shape
    else:
        assert Path("photo_restored.png").is_file()


def test_exit_statuses_and_defaults_are_those_of_the_help(capsys):
    with pytest.raises(SystemExit):
        vheatir_main(["restore", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option in re.findall(r"`(--[a-z-]+)", GUIDE):
        assert option in text, option
