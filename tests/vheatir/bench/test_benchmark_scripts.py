"""Scripts of benchmarks/ measure what they say, on every system and with every network."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.archs.vheatunet_arch import VHeatUNet
from vheatir.errors import UserError
from vheatir.utils import run_metadata

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """`script(name)`: a file of benchmarks/ as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


FLAT = {"dim": 8, "depths": [1], "embed_size": 8, "downscale": 2}
SMALL = {"dim": 8, "encoder": [1], "middle": 1, "decoder": [1], "attention": ["heat", "heat"]}


@pytest.mark.parametrize(
    "network, modes",
    [(lambda: VHeatIR(**FLAT), {"exact", "published"}), (lambda: VHeatUNet(**SMALL), {None})],
    ids=["with a frequency embedding", "without"],
)
def test_only_a_network_with_an_embedding_has_two_ways_to_resize_it(script, network, modes):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    rows = script("beyond_crop").measure(network().eval(), [image], "denoise", 25, 16)
    assert {row["resize"] for row in rows} == modes
    assert len({(row["side"], row["way"], row["resize"]) for row in rows}) == len(rows) == 6 * len(modes)


def test_images_that_are_too_small_for_the_largest_cut_are_named(script):
    image = np.zeros((63, 80, 3), np.uint8)
    with pytest.raises(SystemExit, match="at least 64 pixels"):
        script("beyond_crop").measure(VHeatUNet(**SMALL).eval(), [image], "denoise", 25, 16)


WITH_OUTPUT = [
    path for path in sorted(BENCHMARKS.glob("*.py")) if "prepare_output(" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", WITH_OUTPUT, ids=lambda path: path.stem)
def test_a_place_that_cannot_be_written_is_no_traceback(path):
    """`run` says what a `UserError` says; half of the scripts let it out."""
    assert path.read_text(encoding="utf-8").endswith("    raise SystemExit(run(main))\n")


def test_a_benchmark_says_what_is_wrong(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "decays.py"), "--json", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}: is a folder"), done.stderr


@pytest.mark.parametrize("system, unit", [("darwin", 1), ("linux", 1024)])
def test_resident_memory_is_in_mib_on_every_system(script, monkeypatch, system, unit):
    """macOS counts bytes, Linux kibibytes."""
    usage = SimpleNamespace(ru_maxrss=300 * 2**20 // unit, ru_utime=1.0, ru_stime=0.5)
    side_by_side = script("side_by_side")
    mixers = script("cifar_mixers")
    monkeypatch.setattr(sys, "platform", system)
    assert run_metadata.resident_mib(usage) == 300
    stand_in = SimpleNamespace(wait4=lambda pid, options: (pid, 0, usage), waitstatus_to_exitcode=lambda status: 0)
    monkeypatch.setattr(side_by_side, "os", stand_in)
    assert side_by_side.measured("true", None)["peak_mib"] == 300
    monkeypatch.setattr(mixers, "os", stand_in)
    monkeypatch.setattr(mixers.subprocess, "Popen", lambda *_, **__: SimpleNamespace(pid=1, returncode=None))
    assert mixers.call()["training_peak_rss_mib"] == 300


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["true"], "'true': expected NAME=COMMAND"),
        (["=true"], "'=true': expected NAME=COMMAND"),
        (["a="], "'a=': expected NAME=COMMAND"),
        (["a=true", "a=false"], "two commands are called a;"),
        (["a=true", "--rounds", "0"], "--rounds: expected at least 1, got 0"),
    ],
    ids=str,
)
def test_commands_that_cannot_be_measured_side_by_side_are_explained(script, tmp_path, arguments, message):
    """The first was a traceback; of two commands of one name the former was not measured."""
    file = tmp_path / "times.json"
    with pytest.raises(UserError, match=message):
        script("side_by_side").main(["--json", str(file), *arguments])
    assert not file.exists()


def test_commands_are_measured_side_by_side(script, tmp_path):
    file = tmp_path / "times.json"
    assert script("side_by_side").main(["a=true", "b=sh -c x=y", "--rounds", "1", "--json", str(file)]) == 0
    assert {one["name"]: one["command"] for one in json.loads(file.read_text())["results"]} == {
        "a": "true",
        "b": "sh -c x=y",
    }


def test_the_peak_of_a_network_of_the_speeds_is_in_mib_too(script, monkeypatch, capsys):
    speeds = script("speed_networks")
    network = VHeatUNet(**SMALL)
    monkeypatch.setattr(speeds, "build", lambda name, light: network)
    monkeypatch.setattr(speeds, "images_of", lambda data: [])
    monkeypatch.setattr(speeds, "validate", lambda *_, **__: {"restored": {"psnr": 1.0}, "images": 0})
    monkeypatch.setattr(speeds.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=300 * 2**20))
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sys, "stdin", [json.dumps({"do": "psnr", "threads": 1})])
    speeds.work("vheatunet", "float32", "", None)
    assert json.loads(capsys.readouterr().out)["peak_mib"] == 300
