"""The definition, against scipy's transforms: an implementation that shares no code with ours."""

import numpy as np
import pytest
import scipy.fft
import torch

from vheatir.kernels.reference import hco_reference

SHAPES = [(1, 1, 1, 1), (2, 1, 9, 3), (2, 9, 1, 3), (3, 7, 14, 5), (1, 13, 17, 1), (2, 33, 16, 8), (1, 129, 64, 2)]


def conduct_by_scipy(x: np.ndarray, decay: np.ndarray) -> np.ndarray:
    spectrum = scipy.fft.dctn(x, type=2, axes=(1, 2), norm="ortho")
    return scipy.fft.idctn(spectrum * decay, type=2, axes=(1, 2), norm="ortho")


@pytest.mark.parametrize("shared", [False, True], ids=["decay-per-channel", "decay-shared"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_is_scipys_transform(shape, shared, maps, assert_near):
    x, decay = maps(shape, shared=shared)
    want = torch.from_numpy(conduct_by_scipy(x.cpu().numpy(), decay.cpu().numpy()))
    assert_near(hco_reference(x, decay).cpu(), want)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_gradients_of_the_reference_follow_from_scipys_transform(shape, maps, value_and_gradients, assert_near):
    """In x the operator is its own adjoint; in the decay the gradient is the product of two spectra."""
    x, decay = maps(shape)
    cotangent = torch.randn_like(x)
    got = value_and_gradients(hco_reference, x, decay, cotangent)
    spectra = [scipy.fft.dctn(t.cpu().numpy(), axes=(1, 2), norm="ortho") for t in (x, cotangent)]
    want_dx = conduct_by_scipy(cotangent.cpu().numpy(), decay.cpu().numpy())
    assert_near(got["dx"].cpu(), torch.from_numpy(want_dx), "dx")
    assert_near(got["ddecay"].cpu(), torch.from_numpy((spectra[0] * spectra[1]).sum(0)), "ddecay")


def test_reference_in_float32_stays_in_float32(maps, assert_near):
    x, decay = maps((2, 7, 14, 3), torch.float32)
    y = hco_reference(x, decay)
    assert y.dtype == torch.float32
    assert_near(y, hco_reference(x.double(), decay.double()))
