"""Layers of gated blocks: the native kernel against float64, its gradients by PyTorch, refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from vheatir.kernels.cpu import gate, library
from vheatir.kernels.cpu import kernel as cpu_kernel
from vheatir.kernels.cpu.gate import depthwise_gate, fork_norm, halves_product, residual_sum

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
    monkeypatch.setattr(cpu_kernel, "_LEAST_ELEMENTS_PER_THREAD", 1)
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


def relative(found, wanted):
    """Largest difference as a share of the largest value."""
    return ((found.double() - wanted).abs().max() / wanted.abs().max()).item()


LIMITS = {torch.float32: 5e-6, torch.bfloat16: 2**-7}  # results in bfloat16 are rounded once


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 8, 4, 6), (2, 16, 5, 36), (1, 25, 3, 2)])
def test_native_gradients_of_the_gate(shape, dtype, threads, calls, monkeypatch):
    monkeypatch.setattr(cpu_kernel, "_LEAST_ELEMENTS_PER_THREAD", 1)
    inputs = tensors(shape, dtype)
    grad = torch.randn(*shape[:3], shape[3] // 2).to(dtype)
    native = [one.requires_grad_() for one in inputs]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        depthwise_gate(*native).backward(grad)
    finally:
        torch.set_num_threads(before)
    assert calls == ["vheatir_gate", "vheatir_gate_gradient"]
    exact = [one.detach().double().requires_grad_() for one in inputs]
    in_float64(*exact).backward(grad.double())
    for one, wanted, limit in zip(native, exact, (LIMITS[dtype], 5e-6, 5e-6), strict=True):
        assert one.grad.dtype == one.dtype and one.grad.shape == one.shape
        assert relative(one.grad, wanted.grad) < limit


@needs_kernel
def test_native_gradients_fill_what_they_return_and_repeat(monkeypatch):
    def filled(self, *size, **options):
        return torch.full(size if isinstance(size[0], int) else tuple(size[0]), float("nan"), **options).to(
            options.get("dtype", self.dtype)
        )

    inputs = [one.requires_grad_() for one in tensors((2, 9, 5, 38))]
    grad = torch.randn(2, 9, 5, 19)
    first = torch.autograd.grad(depthwise_gate(*inputs), inputs, grad)
    monkeypatch.setattr(torch.Tensor, "new_empty", filled)
    second = torch.autograd.grad(depthwise_gate(*inputs), inputs, grad)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@needs_kernel
@pytest.mark.parametrize("needed", [0, 1, 2])
def test_gradients_of_some_inputs_and_second_order(needed):
    """Every second derivative as in float64, also where only some inputs need gradients."""

    def second_order(function, inputs):
        inputs = [one.detach().requires_grad_(number >= needed) for number, one in enumerate(inputs)]
        wanted = inputs[needed:]
        first = torch.autograd.grad(function(*inputs).square().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in first), wanted)

    inputs = tensors((1, 4, 5, 6))
    exact = second_order(in_float64, [one.double() for one in inputs])
    for found, wanted in zip(second_order(depthwise_gate, inputs), exact, strict=True):
        assert relative(found, wanted) < 1e-5


@needs_kernel
@pytest.mark.parametrize("name", ["gate", "product", "fork_norm", "fork_norm of a sum"])
def test_batches_of_gradients(name):
    """As `jacobian(vectorize=True)` makes them: by vmap over the backward."""
    x, weight, bias = (one.requires_grad_() for one in tensors((1, 3, 4, 6)))
    norm = torch.nn.LayerNorm(6)
    branch = (x * 2).detach().requires_grad_()
    y, inputs = {
        "gate": lambda: (depthwise_gate(x, weight, bias), (x, weight, bias)),
        "product": lambda: (halves_product(x), (x,)),
        "fork_norm": lambda: (sum(fork_norm(x, norm, torch.float32)), (x, norm.weight)),
        "fork_norm of a sum": lambda: (sum(fork_norm(x, norm, torch.float32, branch)), (x, branch, norm.bias)),
    }[name]()
    grads = torch.randn(3, *y.shape)
    found = torch.autograd.grad(y, inputs, grads, retain_graph=True, is_grads_batched=True)
    each = zip(*(torch.autograd.grad(y, inputs, one, retain_graph=True) for one in grads), strict=True)
    for one, wanted in zip(found, each, strict=True):
        assert relative(one, torch.stack(wanted).double()) < 1e-5


def gated_twice(x, weight, bias, norm):
    y = depthwise_gate(x, weight, bias)
    return depthwise_gate(torch.cat([y, y], -1), weight, bias)


def normed_twice(x, weight, bias, norm):
    total, y = fork_norm(x, norm, x.dtype)
    total, y = fork_norm(total, norm, x.dtype, y.tanh())
    return y * total.sin()


@needs_kernel
@pytest.mark.parametrize("function", [gated_twice, normed_twice])
def test_shared_weights_count_once_in_gradients_that_are_differentiated_again(function):
    norm = torch.nn.LayerNorm(8)
    exact = copy.deepcopy(norm).double()
    inputs = [one.requires_grad_() for one in tensors((1, 4, 5, 8))]
    wide = [one.detach().double().requires_grad_() for one in inputs]
    found = torch.autograd.grad(
        function(*inputs, norm).square().sum(), [*inputs, *norm.parameters()], create_graph=True, allow_unused=True
    )
    wanted = torch.autograd.grad(function(*wide, exact).square().sum(), [*wide, *exact.parameters()], allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert one is other is None or relative(one, other) < 1e-5


def test_gradients_are_those_of_the_formula():
    x, weight, bias = (one.double().requires_grad_() for one in tensors((1, 4, 5, 6)))
    assert torch.autograd.gradcheck(depthwise_gate, (x, weight, bias))
    assert torch.autograd.gradcheck(halves_product, (x,))


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (3, 2), (2, 3, 5, 34), (1, 9, 9, 262), (400, 64)])
def test_native_product_and_its_gradient(shape, dtype, calls):
    torch.manual_seed(0)
    shape = (*shape[:-1], shape[-1] + shape[-1] % 2)
    x = torch.randn(shape).to(dtype).requires_grad_()
    grad = torch.randn(*shape[:-1], shape[-1] // 2).to(dtype)
    y = halves_product(x)
    y.backward(grad)
    assert calls == ["vheatir_product"] * 2 and y.dtype == dtype
    one, other = x.detach().double().chunk(2, dim=-1)
    assert_close(y.double(), one * other, rtol=2**-8, atol=1e-5)
    wanted = torch.cat([grad.double() * other, grad.double() * one], -1)
    assert_close(x.grad.double(), wanted, rtol=2**-8, atol=1e-5)


def test_an_odd_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="even number of channels"):
        halves_product(torch.randn(2, 3))


@needs_kernel
@pytest.mark.parametrize("sides", ["both", "branch", "norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adds", [False, True], ids=["alone", "with_branch"])
@pytest.mark.parametrize("shape", [(5, 1), (3, 5, 7, 16), (2, 11, 37), (600, 64)])
def test_native_gradients_of_a_forked_norm(shape, adds, dtype, sides, calls):
    torch.manual_seed(sum(shape))
    norm = torch.nn.LayerNorm(shape[-1])
    torch.nn.init.normal_(norm.weight)
    exact = torch.nn.LayerNorm(shape[-1], dtype=torch.float64)
    exact.load_state_dict(norm.state_dict())
    x = (torch.randn(shape) * 3 + 5).requires_grad_()
    in_64 = x.detach().double().requires_grad_()
    branch = torch.randn(shape).to(dtype).requires_grad_() if adds else None
    total = in_64 * 1 if branch is None else in_64 + branch.detach().double()
    grads = torch.randn(shape), torch.randn(shape).to(dtype)
    chosen = {"both": [0, 1], "branch": [0], "norm": [1]}[sides]
    found, wanted = fork_norm(x, norm, dtype, branch), (total, exact(total))
    assert_close(found[0].double(), total, rtol=1e-6, atol=1e-6)
    assert_close(found[1].double(), wanted[1], rtol=1e-3 if dtype == torch.float32 else 2**-7, atol=1e-3)
    torch.autograd.backward([found[i] for i in chosen], [grads[i] for i in chosen])
    torch.autograd.backward([wanted[i] for i in chosen], [grads[i].double() for i in chosen])
    assert calls == ["vheatir_rescale", *["vheatir_rescale_gradient"] * (1 in chosen)]
    assert_close(x.grad.double(), in_64.grad, rtol=1e-4, atol=1e-4)  # one channel alone multiplies errors by 300
    if branch is not None:
        assert branch.grad.dtype == dtype
        assert_close(branch.grad.double(), in_64.grad, rtol=1e-4 if dtype == torch.float32 else 2**-8, atol=1e-4)
    for one, other in zip(norm.parameters(), exact.parameters(), strict=True):
        if 1 in chosen:
            assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-4)
        else:
            assert one.grad is None


@needs_kernel
@pytest.mark.parametrize("adds", [False, True], ids=["alone", "with_branch"])
def test_a_forked_norm_can_be_differentiated_twice(adds):
    def second_order(x, norm):
        x = x.detach().requires_grad_()
        branch = x.sin() if adds else None
        if x.dtype == torch.float32:
            total, normal = fork_norm(x, norm, torch.float32, branch)
        else:
            total = x if branch is None else x + branch
            normal = norm(total)
        (first,) = torch.autograd.grad((total * normal).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    torch.manual_seed(0)
    x, norm = torch.randn(3, 8), torch.nn.LayerNorm(8)
    assert relative(second_order(x, norm), second_order(x.double(), torch.nn.LayerNorm(8).double())) < 1e-5


@needs_kernel
@pytest.mark.parametrize("channels", [1, 16, 37])
def test_a_narrow_branch_is_added_in_one_pass(channels, calls):
    torch.manual_seed(channels)
    x = torch.randn(2, 5, 3, channels).requires_grad_()
    branch = torch.randn(2, 5, 3, channels).bfloat16().requires_grad_()
    grad = torch.randn(2, 5, 3, channels)
    y = residual_sum(x, branch)
    y.backward(grad)
    assert calls == ["vheatir_rescale"] and torch.equal(y, x + branch.float())
    assert torch.equal(x.grad, grad) and torch.equal(branch.grad, grad.bfloat16())
    with torch.no_grad():
        assert torch.equal(residual_sum(x, branch), y)
        assert torch.equal(residual_sum(x, x), x + x)
    assert len(calls) == 2


@needs_kernel
def test_a_branch_of_another_type_is_added_before_the_norm():
    torch.manual_seed(0)
    x, norm = torch.randn(2, 3, 3, 8), torch.nn.LayerNorm(8)
    for branch in (torch.randn(2, 3, 3, 8), torch.randn(8)):
        total, y = fork_norm(x, norm, torch.bfloat16, branch)
        assert_close(total, x + branch)
        assert_close(y.float(), norm(x + branch), rtol=2**-8, atol=1e-2)


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
        y = fork_norm(x, norm, dtype)[1]
        wanted = F.layer_norm(x.double(), (channels,), norm.weight.double(), norm.bias.double(), norm.eps)
    assert calls == ["vheatir_rescale"] and y.dtype == dtype
    assert_close(y.double(), wanted, rtol=1e-4 if dtype == torch.float32 else 2**-8, atol=1e-4)


def test_norm_with_gradients_is_that_of_torch():
    x, norm = torch.randn(2, 3, 3, 8), torch.nn.LayerNorm(8)
    total, y = fork_norm(x, norm, torch.float32)
    assert y.requires_grad and torch.equal(total, x)
    assert_close(y, norm(x))


@needs_kernel
def test_a_norm_of_other_channels_is_not_read_beyond_its_end():
    x = torch.randn(2, 3, 16)
    with pytest.raises(RuntimeError, match="normalized_shape"):
        fork_norm(x, torch.nn.LayerNorm(8), torch.float32)
    planes = torch.nn.LayerNorm((3, 16))
    torch.nn.init.normal_(planes.weight)
    assert_close(fork_norm(x, planes, torch.float32)[1], planes(x))


@needs_kernel
def test_a_weight_that_is_not_contiguous():
    x, weight, bias = tensors((1, 5, 6, 4))
    weight = weight.transpose(2, 3).requires_grad_()
    y = depthwise_gate(x, weight, bias)
    assert_close(y.double(), in_float64(x, weight, bias), rtol=1e-5, atol=1e-5)
    (found,) = torch.autograd.grad(y.sum(), weight)
    (wanted,) = torch.autograd.grad(in_float64(x, weight, bias).sum(), weight)
    assert_close(found, wanted, rtol=1e-4, atol=1e-4)
