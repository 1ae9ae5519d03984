"""The tables: against scipy, against the golden values, and safe to share."""

import math

import numpy as np
import pytest
import scipy.fft
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vheatir.kernels.dct import dct_matrix, decay_map, squared_frequencies
from vheatir.kernels.diffusion.ops import diffuse
from vheatir.kernels.diffusion.reference import diffuse_reference
from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.kernels.reference import hco_reference

SIZES = [1, 2, 3, 5, 7, 8, 14, 56, 97, 127, 128, 129, 321, 512, 1000]


@pytest.mark.parametrize("n", SIZES)
def test_table_is_scipys_orthonormal_dct2(n):
    want = scipy.fft.dct(np.eye(n), type=2, norm="ortho", axis=0)
    np.testing.assert_allclose(dct_matrix(n).numpy(), want, rtol=0, atol=2e-15 * math.sqrt(n))


@pytest.mark.parametrize("n", SIZES)
def test_transpose_of_the_table_is_its_inverse(n):
    table = dct_matrix(n)
    torch.testing.assert_close(table @ table.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", SIZES)
def test_even_rows_are_symmetric_and_odd_rows_antisymmetric(n):
    """To the last bits: the even/odd split relies on it."""
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(n)[:n, None]
    torch.testing.assert_close(dct_matrix(n).flip(1), sign * dct_matrix(n), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_table_is_rounded_once_from_float64(dtype):
    assert torch.equal(dct_matrix(56, dtype=dtype), dct_matrix(56).to(dtype))


def test_no_stand_in_of_a_fake_mode_is_kept():
    with FakeTensorMode():
        assert isinstance(dct_matrix(83), FakeTensor)
        prepare_decay(torch.ones(83, 149, 2), backend="torch")
        diffuse_reference(torch.ones(1, 83, 149, 2), torch.ones(2, 1, 2))
    assert type(dct_matrix(83)) is torch.Tensor
    x = torch.randn(1, 83, 149, 2)
    decay = torch.rand(83, 149, 2)
    kept = prepare_decay(decay, backend="torch")
    torch.testing.assert_close(heat_conduction(x, kept), hco_reference(x, decay), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(diffuse(x, 2.0, backend="torch"), diffuse(x, 2.0), atol=1e-5, rtol=1e-5)


def test_table_may_be_changed_by_its_owner():
    dct_matrix(6).zero_()
    assert dct_matrix(6).abs().sum() > 0


@pytest.mark.parametrize("n", [0, -3])
def test_empty_table_is_refused(n):
    with pytest.raises(ValueError, match=f"n >= 1, got {n}"):
        dct_matrix(n)


def test_table_lies_on_the_device_asked_for(device):
    assert dct_matrix(5, device=device).device.type == device.type


def test_default_device_does_not_reach_the_tables():
    with torch.device("meta"):
        table = dct_matrix(11)
    assert table.device.type == "cpu"
    torch.testing.assert_close(table @ table.T, torch.eye(11, dtype=torch.float64))


def test_table_first_built_in_inference_mode_can_be_trained_through():
    with torch.inference_mode():
        dct_matrix(23)
    x = torch.randn(23, dtype=torch.float64, requires_grad=True)
    (dct_matrix(23) @ x).sum().backward()
    assert x.grad is not None


def test_exporting_leaves_no_stand_in_behind_in_the_cache():
    class Spectrum(torch.nn.Module):
        def forward(self, x):
            return dct_matrix(19, dtype=x.dtype) @ x

    x = torch.randn(19)
    exported = torch.export.export(Spectrum(), (x,), strict=False)
    assert type(dct_matrix(19)) is torch.Tensor
    torch.testing.assert_close(exported.module()(x), dct_matrix(19, dtype=torch.float32) @ x)


@pytest.mark.parametrize("n", [1, 5, 8, 14])
def test_table_matches_the_golden_values(n, golden):
    want = golden.arrays("vheat/tables")[f"cos_{n}__f64"]
    np.testing.assert_allclose(dct_matrix(n).numpy(), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("height, width", [(8, 8), (6, 10)])
def test_decay_of_diffusivity_one_matches_the_golden_values(height, width, golden):
    want = golden.arrays("vheat/tables")[f"decay_{height}x{width}__f64"]
    got = decay_map(torch.ones(height, width, 1, dtype=torch.float64))[..., 0]
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_decay_keeps_type_and_the_mean(dtype, device):
    decay = decay_map(torch.rand(5, 7, 3, dtype=dtype, device=device))
    assert decay.dtype == dtype and decay.device.type == device.type
    assert (decay[0, 0] == 1).all()
    assert ((decay > 0) & (decay <= 1)).all()


def test_decay_of_half_precision_keeps_what_is_below_its_normal_numbers():
    faint = decay_map(torch.full((1, 2, 1), 4.0, dtype=torch.float16))[0, 1, 0]
    assert faint.item() == pytest.approx(math.exp(-4 * (math.pi / 2) ** 2), rel=0.01)  # 5.2e-5; 6.1e-5 is normal


def test_frequencies_are_those_of_the_laplacian():
    """pi n / N per axis, squared and added."""
    got = squared_frequencies(3, 4)
    assert got.shape == (3, 4) and got[0, 0] == 0
    torch.testing.assert_close(got[2, 3].item(), (2 * math.pi / 3) ** 2 + (3 * math.pi / 4) ** 2)


class NoFloat64(TorchDispatchMode):
    """Stands for a device that has no float64, as Apple's: "meta" refuses it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(
            isinstance(one, torch.Tensor) and one.is_meta and one.dtype == torch.float64 for one in tree_leaves(out)
        ):
            raise TypeError(f"float64 is not there ({func})")
        return out


def test_decay_on_a_device_without_float64():
    with NoFloat64():
        k = torch.empty(5, 7, 3, device="meta")
        assert decay_map(k).shape == k.shape
        assert diffuse(k[None], 2.0).shape == (1, 5, 7, 3)
        assert heat_conduction(k[None], decay_map(k)).shape == (1, 5, 7, 3)


def test_decay_is_differentiable():
    k = torch.rand(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(decay_map, k)


@pytest.mark.parametrize("shape", [(4,), (4, 4), (1, 1, 4, 4, 2)], ids=str)
def test_decay_of_another_rank_is_refused(shape):
    with pytest.raises(ValueError, match=r"\(H, W, C\)"):
        decay_map(torch.ones(shape))


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0, 3)], ids=str)
def test_decay_without_frequencies_is_refused(shape):
    with pytest.raises(ValueError, match=r"H, W >= 1, got \("):
        decay_map(torch.ones(shape))


@pytest.mark.parametrize(
    "k, message", [(2.0, r"got float; .*torch\.full"), (torch.full((4, 6, 1), 2), r"got torch\.int64; .*k\.float\(\)")]
)
def test_decay_of_another_type_is_refused(k, message):
    with pytest.raises(TypeError, match=message):
        decay_map(k)
