"""Subnormal numbers: decays hold them as zeros, kernels compute without them, and threads get their own state back."""

import math

import pytest
import torch
import torch.nn.functional as F

from vheatir.kernels.cpu import fused_norms
from vheatir.kernels.cpu import kernel as cpu_kernel
from vheatir.kernels.cpu import library as native
from vheatir.kernels.dct import decay_map, squared_frequencies
from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.kernels.reference import hco_reference

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
TINY = torch.finfo(F32).tiny
SHAPES = [(1, 200, 300, 16), (2, 24, 40, 32), (1, 33, 130, 5)]
needs_kernel = pytest.mark.skipif(native.refusal() is not None, reason=str(native.refusal()))
BACKENDS = [pytest.param("cpu_kernel", marks=needs_kernel), "torch"]


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request, monkeypatch):
    """Runs the test with one and with two threads, however small the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(cpu_kernel, "_LEAST_ELEMENTS_PER_THREAD", 1)
    yield request.param
    torch.set_num_threads(before)


def diffusivities(shape):
    _, height, width, channels = shape
    return torch.logspace(math.log10(0.14), math.log10(400), channels, dtype=F64).expand(height, width, channels)


def subnormal_decay(shape, dtype=F32):
    """The heat kernel of such diffusivities as the exponential makes it, with subnormal numbers of the type."""
    frequencies = squared_frequencies(*shape[1:3])[..., None]
    if dtype == F64:  # in float64 the same place of the spectrum is reached by more heat
        frequencies = frequencies * 8
    decay = torch.exp(-diffusivities(shape) * frequencies).to(dtype)
    assert ((decay > 0) & (decay < torch.finfo(dtype).tiny)).float().mean() > 1e-3
    return decay


def conduct_natively(x, decay):
    return heat_conduction(x, decay, backend="cpu_kernel")


def products_are_subnormal():
    """Whether a thread of torch's that multiplies finds subnormal numbers, for all threads that take part."""
    many = torch.full((1 << 20,), 1e-38)
    return ((many * 0.125) != 0).unique().tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_with_subnormal_decays(
    shape, dtype, backend, threads, value_and_gradients, assert_near, nan_filled
):
    if (dtype, backend) == (F64, "cpu_kernel"):
        pytest.skip("the CPU kernel has no float64")
    x, cotangent = (torch.randn(shape, dtype=F64).to(dtype) for _ in range(2))
    decay = subnormal_decay(shape, F64 if dtype == F64 else F32)
    got = value_and_gradients(lambda *inputs: heat_conduction(*inputs, backend=backend), x, decay, cotangent)
    want = value_and_gradients(hco_reference, x.double(), decay.double(), cotangent.double())
    for name in ("y", "dx", "ddecay"):
        assert_near(got[name], want[name], name)
    gone = (decay > 0) & (decay < torch.finfo(decay.dtype).tiny)
    assert (got["ddecay"][gone] != 0).all()  # what counts as zero has the gradient of any other number
    assert_near(got["ddecay"][gone], want["ddecay"][gone], "gradient of subnormal decays")
    prepared = prepare_decay(decay, backend=backend)
    maps = x.clone().requires_grad_()
    y = heat_conduction(maps, prepared)
    assert_near(y.detach(), want["y"], "prepared y")
    assert_near(torch.autograd.grad(y, maps, cotangent)[0], want["dx"], "prepared dx")


@needs_kernel
@pytest.mark.parametrize("channels", [7, 32])
def test_every_version_of_the_kernel_computes_without_subnormal_numbers(channels, threads, instructions):
    """As operands, the decays below the limit, and as results, on maps of one pixel, where nothing is added to them."""
    decay = torch.logspace(-44, -30, channels).view(1, 1, -1)
    x = torch.logspace(-8, 8, 64).view(-1, 1, 1, 1).expand(-1, 1, 1, channels)
    want = x * torch.where(decay < TINY, 0, decay)
    want = torch.where(want < TINY, 0, want)
    torch.testing.assert_close(conduct_natively(x, decay), want, rtol=1e-6, atol=0)
    grown = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(conduct_natively(grown, decay), grown, x)
    torch.testing.assert_close(grad, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prepared", [False, True], ids=["raw", "prepared"])
def test_a_subnormal_decay_is_zero_and_the_smallest_normal_one_is_not(prepared, backend):
    decay = torch.tensor([TINY / 2, -TINY / 2, 1e-45, TINY, -TINY, 1.0, math.nan]).view(1, 1, -1)
    x = torch.full((1, 1, 1, 7), 1024.0)
    y = heat_conduction(x, prepare_decay(decay, backend=backend) if prepared else decay, backend=backend).view(-1)
    assert y[:6].tolist() == [0, 0, 0, 1024 * TINY, -1024 * TINY, 1024] and y[6].isnan()


def test_a_prepared_decay_of_float64_has_no_subnormal_numbers_as_float32():
    decay = torch.tensor([1e-39, 1e-30, 1.0], dtype=F64).expand(4, 5, 3)
    prepared = prepare_decay(decay)
    assert prepared.folded.min() == 1e-39
    assert prepared.to_dtype(F32).folded[0, 0].tolist() == torch.tensor([0, 1e-30, 1.0]).tolist()


def use_kernels(decay):
    """Every kind of call, forward and backward."""
    x, decay = torch.randn(1, *decay.shape, requires_grad=True), decay.clone().requires_grad_()
    heat_conduction(x, decay, backend="cpu_kernel").sum().backward()
    with torch.no_grad():
        heat_conduction(x, prepare_decay(decay, backend="cpu_kernel"))
        heat_conduction(x.bfloat16(), decay.detach(), backend="cpu_kernel")
    fused_norms.norm_gate(x, torch.randn(x.shape), torch.nn.LayerNorm(x.shape[3])).sum().backward()


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_every_thread_gets_its_state_back(shape, threads, instructions):
    decay, small = subnormal_decay(shape), torch.full((4,), 1e-38)
    use_kernels(decay)  # threads that start later would inherit what is set below
    assert products_are_subnormal() == [True]
    use_kernels(decay)
    assert products_are_subnormal() == [True]
    try:
        assert torch.set_flush_denormal(True)
        use_kernels(decay)
        assert (small * 0.125).tolist() == [0] * 4
    finally:
        torch.set_flush_denormal(False)
    use_kernels(decay)
    assert products_are_subnormal() == [True]


@needs_kernel
def test_norms_compute_without_subnormal_numbers(threads, instructions):
    norm = torch.nn.LayerNorm(24)
    with torch.no_grad():
        norm.weight.fill_(1.5 * TINY)
        norm.bias.zero_()
        got = fused_norms.norm_add(torch.randn(64, 24) * 0.5, torch.zeros(64, 24), norm)
    assert ((got == 0) | (got.abs() >= TINY)).all() and (got == 0).any() and (got != 0).any()


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
def test_a_decay_map_has_zeros_in_place_of_subnormal_numbers(dtype):
    shape = (1, 200, 300, 16) if dtype != F64 else (1, 64, 96, 16)
    k = (diffusivities(shape) * (1 if dtype != F64 else 8)).to(dtype).contiguous().requires_grad_()
    decay = decay_map(k)
    exact = torch.exp(-k.detach().double() * squared_frequencies(*shape[1:3], dtype=dtype).double()[..., None])
    tiny = torch.finfo(dtype).tiny
    gone = decay == 0
    assert decay[~gone].min() >= tiny and decay.dtype == dtype
    # Next to the limit the exponent's rounding decides.
    near = {F32: 1e-4, F64: 1e-12, BF16: 0.5}[dtype]
    assert (exact[gone] < tiny * (1 + near)).all() and (exact[~gone] > tiny * (1 - near)).all() and gone.any()
    (grad,) = torch.autograd.grad(decay.sum(), k)
    assert (grad[gone] == 0).all()
    want = -squared_frequencies(*shape[1:3], dtype=dtype).double()[..., None] * exact
    error = (grad.double() - want).abs().max() / want.abs().max()
    assert error < {F32: 1e-5, F64: 1e-12, BF16: 2.0**-6}[dtype]


def test_a_decay_map_that_reaches_zero_can_be_differentiated_traced_and_transformed():
    k = torch.tensor([0.5, 30.0, 3e3], dtype=F64).expand(4, 6, 3).contiguous().requires_grad_()
    assert torch.autograd.gradcheck(decay_map, k) and torch.autograd.gradgradcheck(decay_map, k)
    _, tangent = torch.func.jvp(decay_map, (k.detach(),), (torch.ones_like(k),))
    (grad,) = torch.autograd.grad(decay_map(k).sum(), k)
    torch.testing.assert_close(tangent, grad)
    together = torch.func.vmap(decay_map)(torch.stack((k, 2 * k)))
    torch.testing.assert_close(together[1], decay_map(2 * k))
    compiled = torch.compile(decay_map, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(k), decay_map(k))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_an_infinite_diffusivity_and_one_that_is_not_a_number(dtype):
    k = torch.tensor([math.inf, math.nan, -1.0], dtype=dtype).expand(2, 2, 3)
    decay = decay_map(k)
    assert (decay[1, 1, 0] == 0) and decay[1, 1, 1].isnan() and decay[1, 1, 2] > 1
    want = F.hardshrink(torch.exp(-k * squared_frequencies(2, 2, dtype=dtype)[..., None]), 0.0)
    torch.testing.assert_close(decay, want, equal_nan=True)
