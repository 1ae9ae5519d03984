"""Weights files: what is saved comes back, what is foreign or damaged is refused, and nothing in a file is run."""

import json
import pickle
import struct

import pytest
import safetensors.torch
import torch

from vheatir import weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.backbone.models.checkpoint import read_state
from vheatir.errors import UserError
from vheatir.evaluate.api import evaluate
from vheatir.export.api import export

CONFIG = {"in_chans": 3, "dim": 8, "depths": [1, 1], "embed_size": 8, "downscale": 2}
METADATA = {"task": "denoise", "color": "color", "levels": "sigma 0-55", "license": "non-commercial research"}


def tiny(**changes):
    network = VHeatIR(**CONFIG | changes).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def saved(path, network=None, **metadata):
    network = network or tiny()
    weights.save(path, network.state_dict(), {"config": json.dumps(network.config), **METADATA, **metadata})
    return network


@pytest.mark.parametrize("config", [{}, {"in_chans": 1}, {"gate": False, "level_map": True}], ids=str)
def test_what_is_saved_comes_back_in_float32(tmp_path, config):
    network = saved(tmp_path / "a.safetensors", tiny(**config))
    loaded, metadata = weights.load(tmp_path / "a.safetensors")
    assert not loaded.training and loaded.config == network.config
    assert {key: metadata[key] for key in METADATA} == METADATA
    assert (metadata["vheatir_format"], metadata["arch"]) == ("1", "VHeatIR")
    for key, value in loaded.state_dict().items():
        wanted = network.state_dict()[key]
        assert value.dtype == wanted.dtype
        torch.testing.assert_close(
            value, wanted.half().float() if wanted.is_floating_point() else wanted, atol=0, rtol=0
        )


def test_the_file_holds_float16_and_equal_content_gives_equal_bytes(tmp_path):
    network = saved(tmp_path / "a.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert {value.dtype for value in tensors.values() if value.is_floating_point()} == {torch.float16}
    for attempt in range(5):
        saved(tmp_path / f"{attempt}.safetensors", network)
        assert (tmp_path / f"{attempt}.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 6, "no temporary file is left"


def test_names_are_files_of_the_package_and_paths_are_files(tmp_path, monkeypatch):
    monkeypatch.setattr("vheatir.weights.store.FOLDER", tmp_path)
    saved(tmp_path / "mine.safetensors")
    assert weights.available() == ["mine"]
    assert weights.find("mine") == weights.find(tmp_path / "mine.safetensors") == tmp_path / "mine.safetensors"
    with pytest.raises(UserError, match="shipped: mine"):
        weights.find("yours")
    with pytest.raises(UserError, match="the package holds no file denoise_color_blind"):
        weights.find("denoise_color_blind")


def test_a_tilde_is_the_home_of_the_user(tmp_path, monkeypatch):
    """As in the folders of a recipe; no shell expands it in `--set path.pretrain_network_g=~/mine.safetensors`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    network = saved(tmp_path / "mine.safetensors")
    torch.save({"params": network.state_dict()}, tmp_path / "mine.pth")
    assert weights.find("~/mine.safetensors") == tmp_path / "mine.safetensors"
    assert weights.configured({"type": "VHeatIR"}, "~/mine.safetensors")["dim"] == 8
    assert weights.load_checkpoint("~/mine.pth")[1] == "params"
    assert weights.checkpoint_metadata("~/mine.pth") == {}
    torch.save({"model": network.state_dict()}, tmp_path / "model.pth")
    assert set(read_state("~/model.pth")[0]) == set(network.state_dict())
    export("~/mine.pth", tmp_path / "again.safetensors", task="denoise")
    assert weights.load(tmp_path / "again.safetensors")[1]["task"] == "denoise"


def test_a_tilde_before_an_unknown_name_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "~nobody_here.safetensors")
    assert weights.find("~nobody_here.safetensors").is_file()
    (tmp_path / "~nobody_here").mkdir()
    with pytest.raises(UserError, match="~nobody_here"):  # holds no image
        evaluate("~nobody_here", "denoise", 25, gray=True, method=None)


def foreign(path, metadata):
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, metadata)


def header_only(path, header):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def cut(path):
    saved(path)
    path.write_bytes(path.read_bytes()[:-10])


def not_finite(path):
    """save() refuses such weights, so they are made by hand."""
    state = {key: torch.full_like(value.half(), torch.nan) for key, value in tiny().state_dict().items()}
    metadata = {"vheatir_format": "1", "arch": "VHeatIR", "config": json.dumps(tiny().config), **METADATA}
    safetensors.torch.save_file(state, path, metadata)


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
    "text": (lambda path: path.write_text("weights, honestly"), "not a whole safetensors file"),
    "cut": (cut, "not a whole safetensors file"),
    "huge header": (lambda path: path.write_bytes(b"\xff" * 64), "not a whole safetensors file"),
    "no metadata": (lambda path: foreign(path, None), "expected weights of VHeatIR"),
    "other network": (lambda path: foreign(path, {"vheatir_format": "1", "arch": "SwinIR"}), "'SwinIR'"),
    "newer format": (lambda path: foreign(path, {"vheatir_format": "2", "arch": "VHeatIR"}), "format '2'"),
    "no config": (lambda path: foreign(path, {"vheatir_format": "1", "arch": "VHeatIR"}), "lacks config, task"),
    "no JSON": (lambda path: saved(path, config="{"), "not JSON"),
    "nested config": (lambda path: saved(path, config="[" * 100_000), "not JSON that can be read"),
    "list for config": (lambda path: saved(path, config="[1]"), "not a table"),
    "unknown argument": (lambda path: saved(path, config='{"width": 8}'), "do not fit"),
    "other sizes": (lambda path: saved(path, config=json.dumps(CONFIG | {"dim": 16})), "do not fit"),
    "wrong type": (lambda path: saved(path, config=json.dumps(CONFIG | {"dim": "wide"})), "do not fit"),
    "huge numbers": (lambda path: saved(path, config=json.dumps(CONFIG | {"dim": 10**9})), "1000000000"),
    "large numbers": (lambda path: saved(path, config=json.dumps(CONFIG | {"dim": 4096})), "do not fit"),
    "not finite": (not_finite, "NaN or infinite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_user_errors_that_name_the_file(tmp_path, case):
    make, reason = BAD[case]
    path = tmp_path / "bad.safetensors"
    make(path)
    with pytest.raises(UserError, match=reason) as caught:
        weights.load(path)
    assert str(path) in str(caught.value)


class Hostile:
    """Unpickling it would create the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickles_are_never_run(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"params": Hostile(str(trace))}, tmp_path / "hostile.pth")
    (tmp_path / "plain.safetensors").write_bytes(pickle.dumps(Hostile(str(trace))))
    with pytest.raises(UserError, match="without running code"):
        weights.load_checkpoint(tmp_path / "hostile.pth")
    for name in ("hostile.pth", "plain.safetensors"):
        with pytest.raises(UserError, match="not a whole safetensors file"):
            weights.load(tmp_path / name)
    assert not trace.exists()


def test_a_checkpoint_given_for_restoring_says_how_to_turn_it_into_weights(tmp_path):
    torch.save({"params": tiny().state_dict()}, tmp_path / "net_g.pth")
    with pytest.raises(UserError, match=r"vheatir export .*net_g.pth --to safetensors"):
        weights.load(tmp_path / "net_g.pth")


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (lambda ema, raw: {"params": raw, "params_ema": ema}, "params_ema"),
        (lambda ema, raw: {"params": ema}, "params"),
        (lambda ema, raw: ema, "state dict"),
        (lambda ema, raw: {"params": {f"module.{name}": value for name, value in ema.items()}}, "params"),
        (lambda ema, raw: {"iteration": 5, "model": {"network": ema, "scaler": {}}}, "params"),
        (lambda ema, raw: {"iteration": 5, "model": {"network": raw, "network_ema": ema}}, "params_ema"),
    ],
    ids=["averaged", "plain", "bare", "from data parallel", "of a run", "of a run with an average"],
)
def test_training_checkpoints_are_read_in_all_their_forms(tmp_path, content, key):
    ema, raw = tiny().state_dict(), tiny().state_dict()
    torch.save(content(ema, raw), tmp_path / "net_g.pth")
    state, found = weights.load_checkpoint(tmp_path / "net_g.pth")
    assert found == key and list(state) == list(ema)
    assert all(torch.equal(state[name], ema[name]) for name in ema)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"params": {}}], ids=str)
def test_a_checkpoint_without_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "net_g.pth")
    with pytest.raises(UserError, match="expected tensors by name"):
        weights.load_checkpoint(tmp_path / "net_g.pth")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e6])
def test_weights_that_float16_cannot_hold_are_not_saved(tmp_path, value):
    with pytest.raises(ValueError, match="float16"):
        weights.save(tmp_path / "a.safetensors", {"a": torch.tensor([value])}, {"config": "{}", **METADATA})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("metadata", [METADATA, {"config": {}, **METADATA}], ids=["no config", "not text"])
def test_incomplete_metadata_is_refused(tmp_path, metadata):
    with pytest.raises(ValueError, match="config"):
        weights.save(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, metadata)
