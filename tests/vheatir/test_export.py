"""Exported networks give PyTorch's results at any size, without vheatir; folders for the Hub load by its mixin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from vheatir import weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.archs.vheatunet_arch import VHeatUNet
from vheatir.backbone.layers.heat import HeatLayer
from vheatir.cli import main as vheatir_main
from vheatir.errors import UserError
from vheatir.export import api, decompositions, save
from vheatir.export.graph import _basis, _diffuse
from vheatir.kernels.diffusion.boundaries import BOUNDARIES, basis_of
from vheatir.kernels.diffusion.ops import diffuse

SIZES = [(1, 37, 53), (3, 64, 48), (1, 121, 96), (1, 3, 3)]
KINDS = {
    "color": {},
    "level": {"level_map": True, "in_chans": 1, "downscale": 3},
    "published": {"resize": "published", "post_norm": True, "layer_scale": 0.5, "mlp_dwconv": True, "gate": False},
    "plain": {"downscale": 1, "learned_k": False, "dwconv": False, "mlp_ratio": 0},
}


def saved(path, kind):
    torch.manual_seed(0)
    network = VHeatIR(**{"dim": 8, "depths": [1], "embed_size": 8, "downscale": 2} | KINDS[kind])
    torch.nn.init.normal_(network.conv_last.weight, std=0.1)
    metadata = {"task": "denoise", "color": "color", "levels": "none", "license": "none"}
    weights.save(path, network.state_dict(), metadata | {"config": json.dumps(network.config)})
    return weights.load(path)[0]


def inputs(network, batch, height, width):
    image = torch.rand(batch, network.config["in_chans"], height, width)
    return [image, torch.rand(batch)] if network.level_map else [image]


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_agrees_with_pytorch_at_any_size(tmp_path, monkeypatch, capsys, kind):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    monkeypatch.chdir(tmp_path)
    network = saved("net.safetensors", kind)
    assert vheatir_main(["export", "net.safetensors", "-o", "out/net.onnx", "--time", "32"]) == 0
    said = capsys.readouterr().out
    assert "differs from PyTorch by" in said and "32x32 pixels" in said
    assert sorted(path.name for path in Path("out").iterdir()) == ["net.onnx"]
    nodes = pytest.importorskip("onnx").load("out/net.onnx").graph.node
    assert "Cos" not in {node.op_type for node in nodes}  # onnxruntime 1.20 to 1.24 have none for float64
    session = onnxruntime.InferenceSession("out/net.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["task"] == "denoise"
    assert [item.name for item in session.get_inputs()] == ["image", "level"][: 1 + network.level_map]
    for size in [*SIZES, (2, 1, 1)]:
        given = inputs(network, *size)
        named = {item.name: value.numpy() for item, value in zip(session.get_inputs(), given)}
        with torch.no_grad():
            expected = network(*given)
        (found,) = session.run(["restored"], named)
        torch.testing.assert_close(
            torch.from_numpy(found), expected, atol=1e-5, rtol=0, msg=lambda m, size=size: f"{size}: {m}"
        )


LOADED = """
import sys
import torch

program = torch.export.load("net.pt2").module()
for image, expected in torch.load("cases.pt"):
    torch.testing.assert_close(program(*image), expected, atol=1e-5, rtol=0)
assert "vheatir" not in sys.modules
"""


def test_a_program_agrees_with_pytorch_and_runs_without_vheatir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = saved("net.safetensors", "color")
    assert vheatir_main(["export", "net.safetensors", "-o", "net.pt2"]) == 0
    with torch.no_grad():
        cases = [(given, network(*given)) for given in (inputs(network, *size) for size in SIZES)]
    torch.save(cases, "cases.pt")
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_program_takes_images_whose_coarsest_maps_exceed_one_pixel(tmp_path):
    """Three stages halve the sides, as in the shipped weights: from 9x9 on, which docs/export.md says."""
    torch.manual_seed(0)
    shape = {"encoder": [0, 0, 0], "middle": 1, "decoder": [0, 0, 0], "attention": ["none", "none", "none", "heat"]}
    network = VHeatUNet(dim=8, **shape).eval()
    for value in network.parameters():
        if not value.any():
            torch.nn.init.normal_(value, std=0.3)
    _, run = save.export_network(network, tmp_path / "net.pt2", {})
    for size in [(1, 9, 9), (3, 9, 100), (2, 17, 31)]:
        given = inputs(network, *size)
        with torch.no_grad():
            torch.testing.assert_close(run(given), network(*given), atol=1e-5, rtol=0)
    with pytest.raises(AssertionError, match=">= 9"):
        run(inputs(network, 1, 8, 9))
    with pytest.raises(UserError, match=r"is written, but does not run for --time 8: .*>= 9"):
        api._timed(run, network, 8, tmp_path / "net.pt2")


def test_an_onnx_file_that_does_not_run_is_said(tmp_path):
    """As where the memory is too small; here for a size that the file does not take."""
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    network = VHeatIR(dim=8, depths=(1,)).eval()
    run = save.save_onnx(network, tmp_path / "net.onnx", {})
    with pytest.raises(UserError, match=r"is written, but does not run for --time 8: .*ONNXRuntimeError"):
        api._timed(lambda inputs: run([one[0] for one in inputs]), network, 8, tmp_path / "net.onnx")


def test_a_folder_for_the_hub_loads_by_the_mixin(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    from vheatir.integrations.huggingface import HubVHeatIR

    monkeypatch.chdir(tmp_path)
    network = saved("net.safetensors", "level")
    assert vheatir_main(["export", "net.safetensors", "--hub", "hub"]) == 0
    loaded = HubVHeatIR.from_pretrained("hub")
    assert not loaded.training and loaded.config == network.config
    given = inputs(network, 2, 19, 23)
    with torch.no_grad():
        torch.testing.assert_close(loaded(*given), network(*given), atol=0, rtol=0)
    assert json.loads(Path("hub/config.json").read_text())["vheatir"]["task"] == "denoise"
    assert weights.read("hub/model.safetensors")[1]["license"] == "none", "restoring takes the same file"
    loaded.save_pretrained("again")
    assert HubVHeatIR.from_pretrained("again").config == network.config
    assert vheatir_main(["export", "net.safetensors", "--hub", "hub"]) == 2, "it is there"


def test_weights_of_another_network_are_no_untrained_network(tmp_path):
    """The mixin alone loads what fits, nothing here, and says nothing."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    from vheatir import hub

    for name in ("denoise_video_blind", "denoise_color_blind"):
        assert vheatir_main(["export", name, "--hub", str(tmp_path / name)]) == 0
    with pytest.raises(UserError, match="HubVHeatUNet: the weights do not fit"):
        hub.HubVHeatUNet.from_pretrained(tmp_path / "denoise_video_blind")
    with pytest.raises(UserError, match="are for HubVHeatUNet"):
        hub.HubVHeatIR.from_pretrained(str(tmp_path / "denoise_color_blind"))
    loaded = hub.HubVHeatVideoNet.from_pretrained(str(tmp_path / "denoise_video_blind"))
    clip = torch.rand(1, 15, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(clip), weights.load("denoise_video_blind")[0](clip), atol=0, rtol=0)


def test_shipped_weights_for_the_hub_carry_their_card(tmp_path):
    name = weights.DEFAULTS["jpeg"]["color"]
    assert vheatir_main(["export", name, "--hub", str(tmp_path / "hub")]) == 0
    assert (tmp_path / "hub" / "LICENSE-WEIGHTS").read_bytes() == (weights.FOLDER / "LICENSE-WEIGHTS").read_bytes()
    card = (tmp_path / "hub" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vheatir\nlicense: other\nlicense_link: LICENSE-WEIGHTS\n---\n")
    assert name in card


def test_the_terms_of_other_weights_are_not_those_of_the_free_ones(tmp_path):
    """Their card says that the license of the others does not hold for them."""
    assert vheatir_main(["export", "photo_color_blind_free", "--hub", str(tmp_path / "hub")]) == 0
    card = (tmp_path / "hub" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vheatir\n---\n") and "none of whose licenses forbids" in card
    assert not (tmp_path / "hub" / "LICENSE-WEIGHTS").exists()


@pytest.mark.parametrize("target", ["net.pt2", "net.onnx"])
def test_a_full_disk_is_named_and_does_not_end_the_process(tmp_path, target):
    """torch's own writer of programs ends it."""
    if target.endswith("onnx"):
        pytest.importorskip("onnxscript", reason="needs onnxscript")
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    saved(tmp_path / "net.safetensors", "color")
    done = subprocess.run(
        [sys.executable, "-m", "vheatir", "export", "net.safetensors", "-o", target],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and f"error: {target}: cannot be written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_places_that_are_none_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved("net.safetensors", "color")
    Path("file").touch()
    Path("net.pt2").mkdir()
    for where in (["-o", "file/net.pt2"], ["-o", "net.pt2"], ["--hub", "file/hub"], ["-o", "x.pt2", "--time", "-1"]):
        assert vheatir_main(["export", "net.safetensors", *where]) == 2
    said = capsys.readouterr().err
    assert said.count("nothing can be written there") == 2 and "is a folder" in said and "at least 1 pixel" in said
    assert not Path("x.pt2").exists()


def test_nan_at_one_size_is_a_difference(tmp_path, monkeypatch):
    """The largest of some numbers and NaN was whichever came first."""
    network = saved(tmp_path / "net.safetensors", "color")

    def run(given):
        return network(*given) * (torch.nan if given[0].shape[-2:] == (64, 48) else 1)

    monkeypatch.setattr(save, "save_program", lambda network, path: path.touch() or run)
    with pytest.raises(UserError, match="differ from PyTorch's by nan, nothing was written"):
        save.export_network(network, tmp_path / "net.pt2", {})
    assert not (tmp_path / "net.pt2").exists()


def test_unsuitable_targets_are_refused_and_leave_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network = saved("net.safetensors", "color")
    for target, reason in (("net.pb", ".onnx, .pt2"), ("net", ".onnx, .pt2")):
        assert vheatir_main(["export", "net.safetensors", "-o", target]) == 2
        assert reason in capsys.readouterr().err
    assert vheatir_main(["export", "none", "-o", "net.pt2"]) == 2
    monkeypatch.setattr(save, "save_program", lambda network, path: path.touch() or (lambda given: given[0] + 1))
    with pytest.raises(UserError, match="differ from PyTorch's by"):
        save.export_network(network, Path("net.pt2"), {})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"vheatir\[export\]"):
        save.export_network(network, Path("net.onnx"), {})
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_bases_made_while_a_program_runs_are_those_of_the_operator(boundary):
    for side in (1, 2, 5, 8, 33):
        basis, squares = _basis(side, boundary, torch.zeros(1, dtype=torch.float64))
        want, squared = basis_of(side, boundary, torch.float64, torch.device("cpu"))
        assert_close(basis, want, atol=1e-12, rtol=0)
        assert_close(squares[:, 0], squared, atol=1e-12, rtol=1e-12)
    x, k = torch.randn(2, 3, 4, 5, 6), torch.rand(3, 2, 6)
    assert_close(_diffuse(x, k, boundary, "auto"), diffuse(x, tuple(k), boundary=boundary), atol=1e-5, rtol=1e-5)


class Own(torch.nn.Module):
    """A network of a user, whose decays need gradients."""

    def __init__(self):
        super().__init__()
        self.layer = HeatLayer(3, reach=(0.5, 4.0))
        self.embedding = torch.nn.Parameter(torch.randn(8, 10, 3))
        self.k = torch.nn.Parameter(torch.rand(3))

    def forward(self, maps):
        maps = diffuse(self.layer(maps, self.embedding), self.k)
        return diffuse(maps.bfloat16(), (1.0, 0.5), boundary="zero")


def test_a_network_of_ones_own_becomes_operations_of_pytorch_alone():
    torch.manual_seed(0)
    network, maps = Own().eval(), torch.randn(2, 8, 10, 3)
    program = torch.export.export(network, (maps,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert "vheatir" in str(program.graph)
    program = program.run_decompositions(decompositions())
    assert "vheatir" not in str(program.graph)
    assert_close(program.module()(maps[:1]), network(maps[:1]), atol=1e-2, rtol=1e-2)
