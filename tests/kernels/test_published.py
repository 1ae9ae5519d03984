"""The baseline computes what was published: it would be no use to be faster than something else."""

import numpy as np
import pytest
import torch

from vheatir.bench.published import PublishedConduction, PublishedHeatLayer
from vheatir.kernels.reference import hco_reference


@pytest.mark.parametrize("shape", [(2, 7, 14, 3), (1, 33, 16, 8), (1, 1, 9, 1)], ids=str)
def test_published_operator_is_the_same_operator(shape, maps, assert_near):
    x, decay = maps(shape, torch.float32)
    y = PublishedConduction(shape[1], shape[2], device=x.device)(x, decay)
    assert_near(y, hco_reference(x.double(), decay.double()))


@pytest.mark.parametrize("case", ["vheat/op_square", "vheat/op_rect"])
def test_published_layer_gives_the_golden_values(case, golden):
    inputs = {name: value.float() for name, value in golden.inputs(case).items()}
    _, channels, height, width = inputs["x"].shape
    layer = PublishedHeatLayer(channels, height, width).eval()
    golden.fill(layer)
    with torch.no_grad():
        got = layer(inputs["x"], inputs["freq_embed"]).numpy()
    want = golden.arrays(case)["out__f32"]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * max(1, np.abs(want).max()))
