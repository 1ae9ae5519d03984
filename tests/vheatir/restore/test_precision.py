"""Precision: what is asked for runs, what nobody asked for only where it is fast and changes nothing seen."""

import json

import numpy as np
import pytest
import torch

import vheatir.restore.precision as precision
from vheatir import info, weights
from vheatir.cli import main as vheatir_main
from vheatir.data.degradations import add_gaussian_noise
from vheatir.errors import UserError
from vheatir.restore.precision import choose
from vheatir.restore.restorer import Restorer
from vheatir.utils.files import sha256

CPU = torch.device("cpu")
NAMES = weights.available()
GOOD = {"name": "x", "change_db": 0.004, "speedup": {"AVX512-BF16": 1.3, "AMX-BF16": 1.9}}


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Writes what was measured of the first shipped weights, and sets the processor's instructions."""

    def write(able, **changes):
        folder = tmp_path / "weights"
        folder.mkdir(exist_ok=True)
        path = folder / weights.find(NAMES[0]).name
        path.write_bytes(weights.find(NAMES[0]).read_bytes())
        (folder / "bf16.json").write_text(json.dumps({sha256(path): {**GOOD, **changes}}))
        monkeypatch.setattr(precision.store, "FOLDER", folder)
        monkeypatch.setattr(precision, "instructions", lambda device: able)
        return path

    return write


@pytest.mark.parametrize(
    "able, changes, expected, why",
    [
        ("AVX512-BF16", {}, True, "at most 0.004 dB"),
        ("AMX-BF16", {}, True, "1.9 times as fast"),
        (None, {}, False, "no instructions"),
        ("AVX512-BF16", {"change_db": 0.0102}, False, "up to 0.010 dB"),
        ("AVX512-BF16", {"speedup": {"AVX512-BF16": 1.02}}, False, "not faster with AVX512-BF16"),
        ("AVX512-BF16", {"speedup": {"AMX-BF16": 1.9}}, False, "not known to be faster"),
    ],
)
def test_auto_takes_bf16_only_where_it_was_measured_to_be_fast_and_harmless(able, changes, expected, why, record):
    choice = choose("auto", CPU, record(able, **changes))
    assert choice.bf16 is expected and why in choice.reason


def test_auto_leaves_other_weights_and_other_content_alone(record, tmp_path, tiny):
    path = record("AMX-BF16")
    own = tiny.write_weights(tmp_path / "own.safetensors")
    assert not choose("auto", CPU, own).bf16
    path.write_bytes(own.read_bytes())
    assert not choose("auto", CPU, path).bf16


def test_what_is_asked_for_runs():
    path = weights.find(NAMES[0])
    assert choose("bf16", CPU, path).bf16 and not choose("float32", CPU, path).bf16
    with pytest.raises(UserError, match="unknown precision 'half'; known: float32, bf16, auto"):
        Restorer(precision="half")


def test_bf16_has_sums_and_image_in_float32_and_is_near():
    clean = np.linspace(0, 1, 64 * 48 * 3, dtype=np.float32).reshape(64, 48, 3)
    noisy = add_gaussian_noise((clean * 255).astype(np.uint8) / np.float32(255), 25, np.random.RandomState(0))
    exact, near = (Restorer("denoise", precision=kind).restore(noisy) for kind in ("float32", "bf16"))
    assert near.dtype == np.float32 and not np.array_equal(exact, near)
    psnr = [-10 * np.log10(np.mean((one - clean) ** 2)) for one in (exact, near)]
    assert abs(psnr[0] - psnr[1]) < 0.1, psnr
    assert np.abs(exact - near).max() < 0.03


def test_tiles_of_bf16_agree_as_those_of_float32_do():
    image = np.random.default_rng(0).uniform(size=(96, 200, 3)).astype(np.float32)
    apart = {}
    for kind in ("float32", "bf16"):
        whole, tiled = (Restorer("denoise", tile=tile, precision=kind).restore(image) for tile in (0, 96))
        apart[kind] = np.abs(whole - tiled).mean()
        assert np.array_equal(tiled, Restorer("denoise", tile=96, precision=kind).restore(image))
    assert apart["bf16"] < apart["float32"] + 2e-3


def test_the_command_takes_it_and_info_says_what_runs(tmp_path, tiny, capsys):
    tiny.image(tmp_path / "in.png", (24, 20, 3))
    command = ["restore", str(tmp_path / "in.png"), "-o", str(tmp_path / "out"), "--precision", "bf16", "-q"]
    assert vheatir_main(command) == 0 and (tmp_path / "out" / "in.png").is_file()
    found = info.precision()
    assert set(found["auto"]) == set(NAMES)
    for name, one in found["auto"].items():
        choice = choose("auto", CPU, weights.find(name))
        assert (one["precision"], one["reason"]) == (choice.name, choice.reason)
    assert vheatir_main(["info"]) == 0
    assert f"{NAMES[0]:<22} {found['auto'][NAMES[0]]['precision']}" in capsys.readouterr().out
