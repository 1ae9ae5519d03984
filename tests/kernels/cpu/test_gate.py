"""Layers of gated blocks: the native kernel against float64, its gradients by PyTorch, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from vheatir.kernels.cpu import gate, library
from vheatir.kernels.cpu.gate import depthwise_gate, norm_to

# Rims only, one inner pixel, several blocks of pixels, channels that fill no vector.
SHAPES = [(1, 1, 1, 2), (2, 3, 3, 32), (1, 2, 33, 34), (1, 17, 2, 40), (2, 7, 131, 64), (1, 8, 9, 262)]
needs_kernel = pytest.mark.skipif(library.refusal() is not None, reason="no native CPU kernel on this machine")


def tensors(shape, dtype=torch.float32):
    torch.manual_seed(sum(shape))
    return torch.randn(shape).to(dtype), torch.randn(shape[3], 1, 3, 3), torch.randn(shape[3])


def in_float64(x, weight, bias):
    x, weight, bias = x.double(), weight.double(), bias.double()
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)
    one, other = y.chunk(2, dim=-1)
    return one * other


@pytest.fixture
def calls(monkeypatch):
    """Which of the native functions were called."""
    made = []
    functions = library.library().functions

    class Spy:
        def __getattr__(self, name):
            made.append(name)
            return getattr(functions, name)

    monkeypatch.setattr(gate.native, "library", lambda: library.Library(Spy(), None))
    return made


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_gate_is_the_formula(shape, dtype, threads, calls, monkeypatch):
    monkeypatch.setattr(gate, "_LEAST_ELEMENTS_PER_THREAD", 1)
    x, weight, bias = tensors(shape, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            y = depthwise_gate(x, weight, bias)
    finally:
        torch.set_num_threads(before)
    assert calls == ["vheatir_gate"] and y.dtype == dtype and y.is_contiguous()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-5}
    assert_close(y.double(), in_float64(x, weight, bias), **tolerance)


@needs_kernel
def test_native_gate_takes_maps_that_are_not_contiguous(calls):
    x, weight, bias = tensors((2, 9, 10, 12))
    with torch.no_grad():
        y = depthwise_gate(x.transpose(1, 2), weight, bias)
    assert calls == ["vheatir_gate"]
    assert_close(y.double(), in_float64(x.transpose(1, 2), weight, bias), rtol=1e-5, atol=1e-5)


@needs_kernel
def test_nan_and_infinity_stay_in_bfloat16():
    x, weight, bias = tensors((1, 5, 5, 4), torch.bfloat16)
    x[0, 2, 2, 0], x[0, 0, 0, 1] = float("nan"), float("inf")
    with torch.no_grad():
        y = depthwise_gate(x, weight, bias)
    assert y[0, 1:4, 1:4, 0].isnan().all() and y[0, 4, :, 0].isfinite().all()
    assert y[0, 0, 0, 1].isinf()


def test_gradients_are_those_of_the_formula():
    x, weight, bias = (one.double().requires_grad_() for one in tensors((1, 4, 5, 6)))
    assert torch.autograd.gradcheck(depthwise_gate, (x, weight, bias))


def test_bfloat16_maps_beside_float32_weights_without_the_kernel(monkeypatch):
    monkeypatch.setenv("VHEATIR_CPU_KERNEL", "0")
    x, weight, bias = tensors((1, 6, 7, 8), torch.bfloat16)
    with torch.no_grad():
        y = depthwise_gate(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert_close(y.double(), in_float64(x, weight, bias), rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"x": 3}, {"weight": 8}, {"bias": 8}])
def test_shapes_that_do_not_fit_are_refused(wrong):
    sizes = {"x": 4, "weight": 4, "bias": 4} | wrong
    with pytest.raises(ValueError, match="expected maps"):
        depthwise_gate(
            torch.randn(1, 3, 3, sizes["x"]), torch.randn(sizes["weight"], 1, 3, 3), torch.randn(sizes["bias"])
        )


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 16, 37, 64])
def test_native_norm_is_layer_norm(channels, dtype, calls):
    torch.manual_seed(channels)
    x, norm = torch.randn(3, 5, 7, channels) * 3 + 100, torch.nn.LayerNorm(channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    with torch.no_grad():
        y = norm_to(x, norm, dtype)
        wanted = F.layer_norm(x.double(), (channels,), norm.weight.double(), norm.bias.double(), norm.eps)
    assert calls == ["vheatir_rescale"] and y.dtype == dtype
    assert_close(y.double(), wanted, rtol=1e-4 if dtype == torch.float32 else 2**-8, atol=1e-4)


def test_norm_with_gradients_is_that_of_torch():
    x, norm = torch.randn(2, 3, 3, 8), torch.nn.LayerNorm(8)
    assert norm_to(x, norm, torch.float32).requires_grad
