"""Dense-prediction backbones beyond the golden cases: any size, any stages, padding kept out on request."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("timm", reason="the backbones need the extra `backbone`")

from vheatir.backbone.models.dense_backbones import dense_backbone

NETWORK = {"dims": (16, 32, 64, 128), "depths": (2, 2, 1, 1), "img_size": 64}
HEADS = {"num_heads": (1, 2, 4, 8)}
PADDED = {
    "unified_halo_micro": {**HEADS, "block_size": 4, "halo_size": 1},
    "unified_swin_micro": {**HEADS, "window_size": 4},
}
OTHERS = {"vheat_tiny": None, "unified_pvt_micro": HEADS, "unified_dcn_v3_micro": HEADS, "unified_heat_micro": {}}


def build(name: str, padding: str = "published", **arguments) -> torch.nn.Module:
    torch.manual_seed(0)
    mixer_args = {**PADDED, **OTHERS}[name]
    more = {} if mixer_args is None else {"mixer_args": mixer_args, "layer_scale": 0.5}
    return dense_backbone(name, padding, **{**NETWORK, **more, **arguments}).eval()


@pytest.mark.parametrize("padding", ["published", "masked"])
@pytest.mark.parametrize("name", [*PADDED, *OTHERS])
def test_any_size(name, padding):
    model = build(name, padding)
    with torch.no_grad():
        for height, width in ((64, 64), (97, 130), (1, 1)):
            maps = model(torch.randn(1, 3, height, width))
            want = [(-(-height // 2**n), -(-width // 2**n)) for n in (2, 3, 4, 5)]
            assert [tuple(one.shape[2:]) for one in maps] == want
            assert all(one.isfinite().all() for one in maps)


@pytest.mark.parametrize("name", PADDED)
def test_padding_matters_only_where_there_is_some(name):
    published, masked = build(name), build(name, "masked")
    with torch.no_grad():
        whole, rest = torch.randn(1, 3, 128, 128), torch.randn(1, 3, 72, 64)
        for a, b in zip(published(whole), masked(whole), strict=True):
            assert_close(a, b)
        assert any((a - b).abs().max() > 1e-3 for a, b in zip(published(rest), masked(rest), strict=True))


@pytest.mark.parametrize("name", ["vheat_tiny", "unified_swin_micro"])
def test_some_stages_are_those_of_all(name):
    every, some = build(name), build(name, out_indices=(3, 1))
    some.load_state_dict({k: v for k, v in every.state_dict().items() if k in some.state_dict()})
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for got, want in zip(some(x), (every(x)[1], every(x)[3]), strict=True):
            assert_close(got, want)


def test_refusals():
    with pytest.raises(ValueError, match="unknown backbone 'vheat_huge'; known: vheat_tiny"):
        dense_backbone("vheat_huge")
    with pytest.raises(ValueError, match="padding must be one of published, masked"):
        dense_backbone("vheat_tiny", padding="zeros")
    with pytest.raises(ValueError, match="out_indices must name some of the stages 0 to 3"):
        build("vheat_tiny", out_indices=(4,))


def test_the_heat_layer_needs_no_timm():
    code = "import sys; sys.modules['timm'] = None; import vheatir.backbone.layers.heat, vheatir.archs.vheatir_arch"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
