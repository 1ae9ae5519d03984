"""The core dependencies suffice for the operator, the network and `Restorer`; for all else the extra is named."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from vheatir.utils import extras

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TORCH_BRINGS = {"fsspec", "setuptools", "numpy"}


def normalized(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-").replace(".", "-")


def modules_of_extras() -> set[str]:
    """Top-level modules of the libraries that stand in an extra and not among the core dependencies."""
    core = {normalized(text) for text in PROJECT["dependencies"]} | TORCH_BRINGS
    listed = {normalized(text) for texts in PROJECT["optional-dependencies"].values() for text in texts}
    unwanted = listed - core - {"vheatir"}
    found = importlib.metadata.packages_distributions().items()
    return {module for module, names in found if {normalized(name) for name in names} & unwanted}


HIDE = """
import importlib.machinery

found = importlib.machinery.PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {hidden} else found(name, path, target)

importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
"""


def requirements() -> list[str]:
    """As the metadata of an installation state them."""
    groups = PROJECT["optional-dependencies"].items()
    return [*PROJECT["dependencies"], *(f'{text}; extra == "{name}"' for name, texts in groups for text in texts)]


@pytest.fixture
def run(tmp_path) -> Callable[[str], subprocess.CompletedProcess]:
    """Runs code in a Python that has this version of the package and none of the libraries of the extras."""
    metadata = tmp_path / "vheatir-0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    lines = ["Metadata-Version: 2.4", "Name: vheatir", "Version: 0", *(f"Requires-Dist: {r}" for r in requirements())]
    metadata.write_text("\n".join(lines) + "\n")
    paths = os.pathsep.join(filter(None, (str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH"))))
    hide = HIDE.format(hidden=sorted(modules_of_extras()))

    def run(code: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", hide + code]
        environment = os.environ | {"PYTHONPATH": paths}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_the_extras_hold_what_is_hidden():
    assert {"PIL", "skimage", "yaml"} <= modules_of_extras()
    assert not {"torch", "numpy", "cv2", "einops", "safetensors"} & modules_of_extras()


@pytest.mark.parametrize(
    "code",
    [
        "import torch, vheatir\n"
        "x = torch.rand(1, 8, 9, 4, requires_grad=True)\n"
        "vheatir.heat_conduction(x, vheatir.decay_map(torch.rand(8, 9, 4))).sum().backward()\n"
        "assert x.grad.shape == x.shape",
        "import torch, vheatir\n"
        "net = vheatir.VHeatIR(dim=8, depths=[1], embed_size=8, downscale=2)\n"
        "assert net(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)",
        "import sys, vheatir\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "net = vheatir.VHeatUNet(dim=8, encoder=[1], middle=1, decoder=[1], attention=['heat', 'heat'])\n"
        "assert net(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)",
        "import numpy, vheatir\n"
        "image = numpy.random.default_rng(0).random((24, 32, 3), dtype='float32')\n"
        "restored = vheatir.Restorer('denoise', device='cpu').restore(image)\n"
        "assert restored.shape == image.shape and restored.std() < image.std()",
    ],
    ids=["operator", "flat network", "U-shaped network", "Restorer"],
)
def test_core_dependencies_suffice(code, run):
    done = run(code)
    assert done.returncode == 0, done.stderr


COMMAND = "from vheatir.cli import main\nraise SystemExit(main({}))"


def test_a_command_names_the_extra_that_it_needs(run):
    done = run(COMMAND.format(["restore", "a.png", "-o", "out", "--task", "jpeg"]))
    assert done.returncode == 2, done.stderr
    assert "pip install 'vheatir[cli]'" in done.stderr and "Traceback" not in done.stderr


def test_the_table_of_commands_needs_no_extra(run):
    done = run(COMMAND.format(["--help"]))
    assert done.returncode == 0 and "restore" in done.stdout


@pytest.mark.parametrize(
    "module, extra",
    [("PIL.Image", "cli"), ("skimage", "cli"), ("timm", "backbone"), ("pycocotools.mask", "detection"), ("json", None)],
)
def test_extras_are_found_by_the_module(module, extra, monkeypatch):
    monkeypatch.setattr(extras.importlib.metadata, "requires", lambda name: requirements())
    assert extras.extra_of(module) == extra


def test_another_missing_module_is_not_excused():
    assert extras.advice(ModuleNotFoundError("No module named 'nothing'", name="nothing")) is None
