"""Fused layer norms: values and gradients against their formulas in float64, and where they give way to PyTorch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from vheatir.kernels.cpu import fused_norms
from vheatir.kernels.cpu import kernel as cpu_kernel
from vheatir.kernels.cpu import library as native
from vheatir.kernels.cpu.fused_norms import add_norm, norm_add, norm_gate

needs_kernel = pytest.mark.skipif(native.refusal() is not None, reason=str(native.refusal()))
SHAPES = [(1, 1), (3, 5), (2, 3, 16), (2, 2, 3, 17), (1, 7, 9, 96), (600, 33)]


def norm_of(channels, dtype=torch.float32):
    norm = nn.LayerNorm(channels, dtype=dtype)
    with torch.no_grad():
        norm.weight.normal_(1, 0.5)
        norm.bias.normal_()
    return norm


FUSED = {
    "norm_gate": (norm_gate, lambda x, other, norm: norm(x) * F.silu(other)),
    "norm_add": (norm_add, lambda x, other, norm: other + norm(x)),
    "add_norm": (add_norm, lambda x, other, norm: (x + other, norm(x + other))),
}
every = pytest.mark.parametrize("name", FUSED)


def values_and_gradients(function, x, other, norm):
    x, other = x.detach().requires_grad_(), other.detach().requires_grad_()
    found = function(x, other, norm)
    found = found if isinstance(found, tuple) else (found,)
    loss = sum((y * torch.arange(1, y.numel() + 1).view_as(y).to(y).cos()).sum() for y in found)
    grads = torch.autograd.grad(loss, (x, other, norm.weight, norm.bias))
    return dict(zip(["y", "normed"], found)) | dict(zip(["dx", "dother", "dweight", "dbias"], grads))


@every
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(name, shape, instructions):
    torch.manual_seed(0)
    fused, formula = FUSED[name]
    x, other = 3 * torch.randn(shape) + 1, 5 * torch.randn(shape)
    norm = norm_of(shape[-1])
    wide = nn.LayerNorm(shape[-1], dtype=torch.float64)
    wide.load_state_dict(norm.state_dict())
    got = values_and_gradients(fused, x, other, norm)
    want = values_and_gradients(formula, x.double(), other.double(), wide)
    for key, value in want.items():
        error = (got[key] - value).abs().max().item()
        assert error <= 2e-5 * value.abs().max().item() + 1e-6, f"{key} is off by {error}"


@needs_kernel
@every
def test_without_gradients_the_same_values(name):
    torch.manual_seed(0)
    fused, formula = FUSED[name]
    wide, other, norm = torch.randn(2, 5, 7, 48), torch.randn(2, 5, 7, 24), norm_of(24)
    half = wide.chunk(2, -1)[1]  # rows lie apart
    with torch.no_grad():
        for x in (half, half.contiguous()):
            for one, two in zip(fused(x.clone(), other.clone(), norm), formula(x, other, norm)):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
        if name == "norm_gate":
            torch.testing.assert_close(norm_gate(other.clone(), half, norm), formula(other, half, norm))


@needs_kernel
@every
def test_second_derivatives(name):
    """Through the fused operators in float32: the formula's second derivatives, to float32."""
    torch.manual_seed(0)
    fused, formula = FUSED[name]
    found = []
    x, other, norm = torch.randn(4, 6), torch.randn(4, 6), norm_of(6)
    for function, dtype in ((fused, torch.float32), (formula, torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, other)]
        y = function(*leaves, norm.to(dtype))
        y = y[1] if isinstance(y, tuple) else y
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), leaves)
        found.append([*first, *second])
    for got, want in zip(*found):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-3)


@needs_kernel
@every
def test_what_depends_on_another_input_counts_once_in_gradients_that_are_differentiated_again(name):
    """The norm comes twice, and the second input is made of the first."""

    def loss(function, x, norm):
        for _ in range(2):
            y = function(x * 1, x * 2, norm)
            x = sum(y) if isinstance(y, tuple) else y
        return x.pow(3).sum()

    norm = norm_of(20)
    exact = copy.deepcopy(norm).double()
    x = torch.randn(2, 3, 20, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    found = torch.autograd.grad(loss(FUSED[name][0], x, norm), (x, *norm.parameters()), create_graph=True)
    wanted = torch.autograd.grad(loss(FUSED[name][1], wide, exact), (wide, *exact.parameters()))
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


@needs_kernel
@every
def test_batches_of_gradients(name):
    """As `jacobian(vectorize=True)` makes them: by vmap over the backward."""
    x, other = torch.randn(2, 2, 3, 20).requires_grad_().unbind()
    y = FUSED[name][0](x, other, norm_of(20))
    y = sum(y) if isinstance(y, tuple) else y
    grads = torch.randn(3, *y.shape)
    found = torch.autograd.grad(y, (x, other), grads, retain_graph=True, is_grads_batched=True)
    each = zip(*(torch.autograd.grad(y, (x, other), one, retain_graph=True) for one in grads), strict=True)
    for one, wanted in zip(found, each, strict=True):
        torch.testing.assert_close(one, torch.stack(wanted), atol=1e-5, rtol=1e-5)


@every
def test_gradcheck_in_float64(name):
    fused, _ = FUSED[name]
    x, other = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: fused(a, b, norm_of_five), (x, other))


norm_of_five = norm_of(5, torch.float64)


@needs_kernel
def test_the_operators_keep_the_rules_of_torch():
    x, other, weight, bias = torch.randn(3, 8), torch.randn(3, 8), torch.rand(8), torch.rand(8)
    leaves = [t.requires_grad_() for t in (x.clone(), weight.clone(), bias.clone(), other.clone())]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(fused_norms._norm, (*leaves[:3], 1e-5, leaves[3], None), test_utils=tests)
    torch.library.opcheck(fused_norms._add_norm, (leaves[0], leaves[3], *leaves[1:3], 1e-5), test_utils=tests)


@needs_kernel
def test_overwriting_what_a_backward_needs_is_an_error():
    norm, other = norm_of(16), torch.randn(3, 16)
    for overwrite in (lambda one: norm_gate(one, other, norm), lambda one: add_norm(other, one, norm)):
        kept = torch.randn(3, 16, requires_grad=True).sigmoid()  # its backward reads its result
        with torch.no_grad():
            overwrite(kept)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            kept.sum().backward()


@needs_kernel
def test_frozen_weights_and_unused_results():
    norm, x = norm_of(16).requires_grad_(False), torch.randn(3, 16, requires_grad=True)
    other = torch.randn(3, 16)
    total, _ = add_norm(x, other, norm)
    assert torch.equal(torch.autograd.grad(total.sum(), x)[0], torch.ones(3, 16))
    (first,) = torch.autograd.grad(norm_gate(x, other, norm).sum(), x, create_graph=True)
    (want,) = torch.autograd.grad((norm(x) * F.silu(other)).sum(), x)
    torch.testing.assert_close(first, want, rtol=1e-4, atol=1e-5)


@needs_kernel
def test_weights_gradients_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(cpu_kernel, "_LEAST_ELEMENTS_PER_THREAD", 1)
    x, gate, norm = torch.randn(1000, 24), torch.randn(1000, 24), norm_of(24)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(values_and_gradients(norm_gate, x, gate, norm))
    torch.set_num_threads(before)
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@needs_kernel
@pytest.mark.parametrize("value", [-1e30, -100.0, -88.0, 0.0, 88.0, 100.0, 1e30])
def test_gates_of_any_size(value):
    x, norm = torch.randn(2, 16), norm_of(16)
    gate = torch.full((2, 16), value)
    torch.testing.assert_close(norm_gate(x.clone(), gate, norm), norm(x) * F.silu(gate), rtol=1e-5, atol=1e-6)


def test_other_types_and_traced_graphs_take_pytorch(monkeypatch):
    monkeypatch.setattr(fused_norms, "_run", lambda *_, **__: pytest.fail("ran the kernel"))
    x, gate = torch.randn(2, 16), torch.randn(2, 16)
    for dtype in (torch.float64, torch.bfloat16):
        assert norm_gate(x.to(dtype), gate.to(dtype), norm_of(16, dtype)).dtype == dtype
    norm_gate(x.bfloat16().float(), gate.bfloat16(), norm_of(16))
    compiled = torch.compile(lambda a, b: norm_gate(a, b, compiled_norm), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, gate), compiled_norm(x) * F.silu(gate))


compiled_norm = norm_of(16)


@every
@torch.no_grad()
def test_without_gradients_but_with_tangents_or_in_vmap(name):
    fused, plain = FUSED[name]
    x, other, norm = torch.randn(3, 2, 16), torch.randn(3, 2, 16), norm_of(16)
    torch.testing.assert_close(
        torch.vmap(lambda x, other: fused(x.clone(), other.clone(), norm))(x, other), plain(x, other, norm)
    )
    tangents = []
    for function in (fused, plain):
        with forward_ad.dual_level():
            found = function(forward_ad.make_dual(x.clone(), torch.ones_like(x).cumsum(-1)), other.clone(), norm)
            tangents.append(forward_ad.unpack_dual(found[1] if isinstance(found, tuple) else found).tangent)
    torch.testing.assert_close(*tangents)


@needs_kernel
@every
def test_float32_and_the_cpu_whatever_the_defaults_are(name):
    fused, _ = FUSED[name]
    x, other, norm = torch.randn(2, 5, 16), torch.randn(2, 5, 16), norm_of(16)
    want = values_and_gradients(fused, x, other, norm)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = fused(x, other, norm)
        torch.testing.assert_close(found[1] if isinstance(found, tuple) else found, want.get("normed", want["y"]))
    finally:
        torch.set_default_dtype(torch.float32)


def test_second_gradients_where_only_what_is_added_needs_one():
    norm = norm_of(16).requires_grad_(False)
    other = torch.randn(2, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(norm_add(torch.randn(2, 16), other, norm).sum(), other, create_graph=True)
    torch.testing.assert_close(grad, torch.ones(2, 16))


@every
@pytest.mark.parametrize("gradients", [False, True])
def test_a_norm_of_other_channels_is_not_read_beyond_its_end(name, gradients):
    fused, formula = FUSED[name]
    x, other = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    planes = norm_of((3, 16))
    with torch.set_grad_enabled(gradients):
        with pytest.raises(RuntimeError, match="normalized_shape"):
            fused(x, other, norm_of(8))
        torch.testing.assert_close(fused(x.clone(), other.clone(), planes), formula(x, other, planes))


@pytest.mark.parametrize(
    "scale", [torch.rand(16).double(), torch.rand(1, 1, 16), torch.rand(1)], ids=lambda s: str(s.shape)
)
def test_a_scale_of_another_type_or_shape(scale):
    x, residual, norm = torch.randn(2, 3, 16), torch.randn(2, 3, 16), norm_of(16)
    scale.requires_grad_()
    found, wanted = norm_add(x, residual, norm, scale), residual + norm(x) * scale
    torch.testing.assert_close(found, wanted)
    for one, other in zip(*(torch.autograd.grad(y.sum(), (scale, norm.weight)) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(norm_add(x, residual, norm, scale), wanted)
