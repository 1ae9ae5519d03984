"""A device that is not there is named, by every command that takes one."""

import importlib

import pytest
import torch
from PIL import Image

from vheatir.errors import UserError
from vheatir.utils.devices import device_named

COMMANDS = {
    "analyze cost": ("vheatir.analyze.command", ["cost", "--model", "vheat_tiny", "--rounds", "0", "-o", "OUT"]),
    "analyze heat": ("vheatir.analyze.command", ["heat", "--model", "vheat_tiny", "-o", "OUT"]),
    "analyze receptive-field": (
        "vheatir.analyze.command",
        ["receptive-field", "--model", "vheat_tiny", "--limit", "1", "-o", "OUT"],
    ),
    "bench hco": ("vheatir.bench.command", ["hco", "--shape", "1x8x8x4"]),
    "receptive-field": ("vheatir.receptive_field", ["a.png", "--task", "denoise", "-o", "OUT.png"]),
}


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "gpu", "mps", ""])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_a_device_that_is_not_there(tmp_path, command, name):
    if (torch.cuda.is_available() and name == "cuda") or (torch.backends.mps.is_available() and name == "mps"):
        pytest.skip(f"this machine has {name}")
    module, argv = COMMANDS[command]
    if "analyze" in command:
        pytest.importorskip("timm")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    names = {"OUT": str(tmp_path / "out"), "OUT.png": str(tmp_path / "out.png"), "a.png": str(tmp_path / "a.png")}
    argv = [names.get(one, one) for one in argv]
    with pytest.raises(UserError, match=r"the device .* cannot be used|sees no CUDA device"):
        importlib.import_module(module).main([*argv, "--device", name])


def test_devices_that_are_there():
    assert device_named("cpu") == device_named(torch.device("cpu")) == torch.device("cpu")
    assert device_named(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
