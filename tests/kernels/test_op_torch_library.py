"""The operator as a citizen of torch: derivatives, schema, compile, export, autocast, inference mode, pickling."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from vheatir.kernels.diffusion.ops import diffuse
from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.kernels.prepared import PreparedDecay
from vheatir.kernels.reference import hco_reference

OPERATORS = torch.ops.vheatir
SMALL = [(2, 3, 4, 2), (1, 5, 1, 2)]


@pytest.fixture(params=[False, True], ids=["dense", "split"])
def way(request):
    """Runs the test twice: with dense products, and with the even/odd split on the same small maps."""
    if request.param:
        request.getfixturevalue("split_small")


@pytest.mark.parametrize("shared", [False, True], ids=["decay-per-channel", "decay-shared"])
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_first_and_second_derivatives(shape, shared, way, maps):
    x, decay = (t.requires_grad_() for t in maps(shape, shared=shared))
    assert gradcheck(heat_conduction, (x, decay))
    assert gradgradcheck(heat_conduction, (x, decay))


@pytest.mark.parametrize("shared", [False, True], ids=["decay-per-channel", "decay-shared"])
def test_first_and_second_derivatives_with_a_decay_for_each_image(shared, way, maps):
    x, _ = maps((2, 3, 4, 2))
    decay = torch.rand(2, 3, 4, 1 if shared else 2, dtype=torch.float64).requires_grad_()
    assert gradcheck(heat_conduction, (x.requires_grad_(), decay))
    assert gradgradcheck(heat_conduction, (x, decay))


@pytest.mark.parametrize("name", ["conduct", "conduct_with_spectrum"])
@pytest.mark.parametrize("x_needs, decay_needs", [(True, True), (True, False), (False, True)])
def test_derivatives_of_the_operators_with_a_decay(name, x_needs, decay_needs, way, maps):
    x, decay = maps((2, 3, 4, 2))
    inputs = (x.requires_grad_(x_needs), decay.requires_grad_(decay_needs))
    operator = getattr(OPERATORS, name)
    assert gradcheck(lambda x, decay: operator(x, decay, "auto"), inputs)
    assert gradgradcheck(lambda x, decay: operator(x, decay, "auto"), inputs)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_derivatives_of_the_transform(inverse, way, maps):
    x = maps((2, 3, 4, 2))[0].requires_grad_()
    assert gradcheck(lambda x: OPERATORS.cosine_transform(x, inverse), x)
    assert gradgradcheck(lambda x: OPERATORS.cosine_transform(x, inverse), x)


def test_derivatives_with_a_prepared_decay(way, maps):
    x, decay = maps((2, 3, 4, 2))
    prepared = prepare_decay(decay)
    assert gradcheck(lambda x: heat_conduction(x, prepared), x.requires_grad_())
    assert gradgradcheck(lambda x: heat_conduction(x, prepared), x)


def test_a_gradient_of_a_folded_decay_is_refused(maps):
    x, decay = maps((1, 3, 4, 2))
    with pytest.raises(RuntimeError, match="a prepared decay has no gradient: pass the decay itself"):
        OPERATORS.conduct_prepared(x, decay.requires_grad_(), "torch:0,0").sum().backward()


def test_third_derivatives_agree_with_the_definition(maps, assert_near):
    def third(function):
        x, decay = (t.clone().requires_grad_() for t in inputs)
        value = function(x, decay).pow(3).sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = gradient.pow(2).sum()
        return torch.autograd.grad(value, (x, decay))

    inputs = maps((1, 3, 5, 2))
    for name, got, want in zip(("x", "decay"), third(heat_conduction), third(hco_reference)):
        assert_near(got, want, name, torch.float32)


def test_transform_and_its_inverse_meet(way, maps, assert_near):
    x, _ = maps((2, 7, 12, 3))
    for view in (x, x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)):
        assert_near(OPERATORS.cosine_transform(OPERATORS.cosine_transform(view, False), True), x)
        assert_near(OPERATORS.cosine_transform(OPERATORS.cosine_transform(view, True), False), x)


def operator_calls(maps, shape, dtype, decay_dtype):
    x, decay = maps(shape, dtype, decay_dtype)
    x.requires_grad_()
    prepared = prepare_decay(decay)
    decay.requires_grad_()
    return {
        "conduct": (x, decay, "auto"),
        "conduct_with_spectrum": (x, decay, "torch"),
        "conduct_prepared": (x, prepared.folded, prepared.path),
        "cosine_transform": (x, True),
    }


@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (1, 130, 5, 3), (0, 3, 4, 2)], ids=str)
@pytest.mark.parametrize("name", ["conduct", "conduct_with_spectrum", "conduct_prepared", "cosine_transform"])
def test_opcheck_in_float32(name, shape, maps):
    arguments = operator_calls(maps, shape, torch.float32, torch.float32)[name]
    torch.library.opcheck(getattr(OPERATORS, name).default, arguments)


@pytest.mark.parametrize("decay_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["conduct", "conduct_with_spectrum", "conduct_prepared", "cosine_transform"])
def test_opcheck_in_16_bits(name, decay_dtype, maps):
    arguments = operator_calls(maps, (2, 3, 4, 2), torch.bfloat16, decay_dtype)[name]
    torch.library.opcheck(
        getattr(OPERATORS, name).default,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_in_one_graph_forward_and_backward(dtype, maps, value_and_gradients, assert_near):
    compiled = torch.compile(lambda x, decay: heat_conduction(2 * x, decay) + x, fullgraph=True, backend="aot_eager")
    for shape in ((2, 7, 14, 3), (3, 9, 130, 2)):
        x, decay = maps(shape, dtype)
        cotangent = torch.randn_like(x)
        got = value_and_gradients(compiled, x, decay, cotangent)
        want = value_and_gradients(
            lambda x, decay: hco_reference(2 * x, decay) + x, x.double(), decay.double(), cotangent.double()
        )
        for name in want:
            assert_near(got[name], want[name], name, torch.bfloat16 if dtype == torch.bfloat16 else None)
        assert got["ddecay"].dtype == dtype


def test_compiled_with_every_size_open_does_not_compile_again(maps, assert_near):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(heat_conduction, fullgraph=True, backend=counter, dynamic=True)
    for shape in ((2, 7, 14, 3), (3, 9, 131, 5), (4, 128, 6, 2)):
        x, decay = (t.requires_grad_() for t in maps(shape))
        y = compiled(x, decay)
        y.sum().backward()
        assert_near(y.detach(), hco_reference(x, decay).detach())
        assert_near(decay.grad[0, 0], x.detach().sum((0, 1, 2)), "ddecay[0, 0]")
    assert counter.frame_count == 1


def test_compiled_by_inductor(maps, value_and_gradients, assert_near):
    compiled = torch.compile(lambda x, decay: heat_conduction(2 * x, decay), fullgraph=True)
    x, decay = maps((2, 6, 10, 3), torch.float32)
    cotangent = torch.randn_like(x)
    try:
        got = value_and_gradients(compiled, x, decay, cotangent)
    except torch._inductor.exc.InductorError as error:
        if "InvalidCxxCompiler" in str(error) or "compiler" in str(error).lower():
            pytest.skip(f"inductor finds no working compiler: {error}")
        raise
    want = value_and_gradients(
        lambda x, decay: hco_reference(2 * x, decay), x.double(), decay.double(), cotangent.double()
    )
    for name in want:
        assert_near(got[name], want[name], name)


def test_compiled_with_a_prepared_decay(maps, assert_near):
    x, decay = maps((2, 7, 130, 3))
    compiled = torch.compile(heat_conduction, fullgraph=True, backend="aot_eager")
    assert_near(compiled(x, prepare_decay(decay)), hco_reference(x, decay))


class Conduction(nn.Module):
    def forward(self, x, decay):
        return heat_conduction(x, decay)


class Preparing(nn.Module):
    def forward(self, x, decay):
        return heat_conduction(x, prepare_decay(decay))


@pytest.mark.parametrize("decay_needs", [False, True], ids=["frozen", "trained"])
def test_exported_with_open_sides(decay_needs, maps, assert_near):
    batch, height, width = (torch.export.Dim(name, min=2, max=4096) for name in ("batch", "height", "width"))
    x, decay = maps((2, 8, 12, 3), torch.float32)
    sizes = {"x": {0: batch, 1: height, 2: width}, "decay": {0: height, 1: width}}
    exported = torch.export.export(Conduction(), (x, decay.requires_grad_(decay_needs)), dynamic_shapes=sizes)
    for shape in ((3, 5, 9, 3), (2, 130, 7, 3), (2, 33, 257, 3)):
        x, decay = maps(shape, torch.float32)
        assert_near(exported.module()(x, decay), hco_reference(x.double(), decay.double()), str(shape))


@pytest.mark.filterwarnings("ignore")  # of PyTorch: tracing is deprecated, and our checks look at sizes
@pytest.mark.parametrize("decay_needs", [False, True], ids=["frozen", "trained"])
def test_traced_by_torchscript(decay_needs, maps, assert_near):
    x, decay = maps((2, 9, 7, 4), torch.float32, torch.float32)
    decay.requires_grad_(decay_needs)
    traced = torch.jit.trace(heat_conduction, (x, decay))
    other = torch.randn_like(x)
    assert_near(traced(other, decay), heat_conduction(other, decay))
    if decay_needs:
        (got,) = torch.autograd.grad(traced(other, decay).square().sum(), decay)
        (want,) = torch.autograd.grad(heat_conduction(other, decay).square().sum(), decay)
        assert_near(got, want)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_preparing_inside_an_export_leaves_nothing_behind(strict, maps, assert_near):
    """What the exporter traces carries no data; it must not stay in the tables' caches."""
    x, decay = maps((1, 6, 133, 2))
    exported = torch.export.export(Preparing(), (x, decay), strict=strict)
    want = hco_reference(x, decay)
    assert_near(exported.module()(x, decay), want, "exported")
    assert_near(heat_conduction(x, prepare_decay(decay)), want, "prepared afterwards")
    assert_near(heat_conduction(x, decay), want, "raw afterwards")


@pytest.mark.parametrize("form", ["raw", "trained", "prepared"])
def test_autocast_keeps_type_and_precision(form, maps, assert_near, device):
    """No product inside is narrowed to bfloat16: the value is that of float32."""
    x, decay = maps((2, 7, 14, 3), torch.float32)
    x.requires_grad_(form == "trained")
    decay.requires_grad_(form == "trained")
    with torch.autocast(device.type, torch.bfloat16):
        assert (torch.eye(2, device=device) @ torch.eye(2, device=device)).dtype == torch.bfloat16
        y = heat_conduction(x, prepare_decay(decay) if form == "prepared" else decay)
    assert y.dtype == torch.float32
    assert_near(y.detach(), hco_reference(x.double(), decay.double()).detach())
    if form == "trained":
        y.sum().backward()
        assert x.grad.dtype == decay.grad.dtype == torch.float32


@pytest.mark.parametrize("device_key", ["AutocastCPU", "AutocastCUDA", "AutocastMPS", "AutocastXPU"])
@pytest.mark.parametrize(
    "name", ["conduct", "conduct_with_spectrum", "conduct_prepared", "cosine_transform", "diffuse"]
)
def test_autocast_of_every_device_has_the_rule(name, device_key):
    diffuse(torch.ones(1, 2, 1), 1.0)  # registers its operators
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"vheatir::{name}", device_key)


def test_autocast_keeps_a_backward_inside_it_wide(maps, value_and_gradients, assert_near, device):
    x, decay = maps((2, 7, 14, 3), torch.float32)
    cotangent = torch.randn_like(x)
    with torch.autocast(device.type, torch.bfloat16):
        got = value_and_gradients(heat_conduction, x, decay, cotangent)
    want = value_and_gradients(hco_reference, x.double(), decay.double(), cotangent.double())
    for name in want:
        assert_near(got[name], want[name], name)


@pytest.mark.parametrize("side", [11, 134])
def test_training_after_inference_mode(side, maps, value_and_gradients, assert_near):
    """Tables first built, and a decay prepared, in inference mode serve a later training step."""
    x, decay = maps((1, side, 3, 2))
    with torch.inference_mode():
        prepared = prepare_decay(decay.clone())
        heat_conduction(x, decay)
        heat_conduction(x, prepared)
    assert not prepared.folded.is_inference()
    cotangent = torch.randn_like(x)
    want = value_and_gradients(hco_reference, x, decay, cotangent)
    got = value_and_gradients(heat_conduction, x, decay, cotangent)
    for name in want:
        assert_near(got[name], want[name], name)
    heat_conduction(x.requires_grad_(), prepared).backward(cotangent)
    assert_near(x.grad, want["dx"], "dx through the prepared decay")


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_training_after_a_conversion_in_inference_mode(backend, maps, assert_near):
    x, decay = maps((1, 11, 3, 2), torch.float32)
    with torch.inference_mode():
        wide = prepare_decay(decay.clone(), backend=backend).to_dtype(torch.float64)
    assert not wide.folded.is_inference()
    x = x.double().requires_grad_()
    cotangent = torch.randn_like(x)
    heat_conduction(x, wide).backward(cotangent)
    assert_near(x.grad, hco_reference(cotangent, decay.double()))


def through_pickle(value):
    return pickle.loads(pickle.dumps(value))


def through_torch_save(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals([PreparedDecay]):
        return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("travel", [copy.copy, copy.deepcopy, through_pickle, through_torch_save])
def test_a_prepared_decay_can_be_copied_and_stored(travel, maps):
    x, decay = maps((2, 7, 130, 3))
    prepared = prepare_decay(decay)
    other = travel(prepared)
    assert isinstance(other, PreparedDecay) and (other.path, other.shape) == (prepared.path, prepared.shape)
    assert torch.equal(heat_conduction(x, other), heat_conduction(x, prepared))


def test_a_prepared_decay_does_not_follow_the_decay_it_was_made_of(maps):
    for shape in ((1, 5, 6, 2), (1, 130, 6, 2)):
        x, decay = maps(shape)
        prepared = prepare_decay(decay)
        before = heat_conduction(x, prepared)
        decay.zero_()
        assert torch.equal(heat_conduction(x, prepared), before)


def test_a_prepared_decay_tells_what_it_is(maps, assert_near):
    x, decay = maps((1, 5, 6, 2), torch.bfloat16)
    prepared = prepare_decay(decay.requires_grad_())
    assert prepared.shape == (5, 6, 2) and prepared.dtype == torch.float32 and prepared.nbytes() == 5 * 6 * 2 * 4
    assert prepared.device.type == x.device.type and not prepared.folded.requires_grad
    assert prepared != prepare_decay(decay) and prepared == prepared
    assert prepared.to_dtype(x.dtype) is prepared.to_dtype(torch.float16) is prepared
    wide = prepared.to_dtype(torch.float64)
    assert_near(heat_conduction(x.double(), wide), hco_reference(x.double(), decay.detach().double()))


def test_autocast_keeps_tangents_wide(maps, assert_near, device):
    """Where the formula itself runs."""
    x, decay = maps((2, 7, 14, 3), torch.float32)
    tangent = torch.randn_like(x)
    with torch.autocast(device.type, torch.bfloat16):
        y, of_tangent = torch.func.jvp(lambda x: heat_conduction(x, decay), (x,), (tangent,))
    assert_near(y, hco_reference(x.double(), decay.double()))
    assert_near(of_tangent, hco_reference(tangent.double(), decay.double()))
