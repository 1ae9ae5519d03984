"""Scripts of benchmarks/ measure what they say, on every system and with every network."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.archs.vheatunet_arch import VHeatUNet

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
