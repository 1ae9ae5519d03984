"""heat_conduction: value and gradients against the float64 definition, layouts, refusals, physics."""

from functools import partial

import pytest
import torch

from vheatir.kernels import dispatch, torch_path
from vheatir.kernels.dct import decay_map
from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.kernels.reference import hco_reference

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPES = [(F64, F64), (F32, F32), (BF16, BF16), (F16, F16), (BF16, F32), (F16, F32)]
DTYPE_IDS = [f"{x}-{decay}".replace("torch.", "") for x, decay in DTYPES]
# Single points and lines, primes, odd sides, and both sides of the lengths where the even/odd split begins.
SHAPES = [
    (1, 1, 1, 1),
    (2, 1, 9, 3),
    (2, 9, 1, 3),
    (3, 7, 14, 5),
    (1, 13, 17, 1),
    (2, 33, 16, 8),
    (1, 95, 5, 2),
    (1, 96, 5, 3),
    (1, 127, 5, 2),
    (1, 128, 6, 2),
    (2, 129, 4, 3),
    (1, 4, 130, 2),
    (1, 131, 258, 1),
    (2, 128, 128, 2),
    (1, 255, 3, 2),
    (1, 3, 256, 2),
    (1, 257, 2, 5),
    (1, 512, 3, 1),
    (1, 514, 1, 7),
    (1, 1, 1028, 1),
]


def prepared_conduction(x, decay):
    return heat_conduction(x, prepare_decay(decay))


@pytest.mark.parametrize("shared", [False, True], ids=["decay-per-channel", "decay-shared"])
@pytest.mark.parametrize("x_dtype, decay_dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(
    shape, x_dtype, decay_dtype, shared, maps, value_and_gradients, assert_near, device, nan_filled
):
    x, decay = maps(shape, x_dtype, decay_dtype, shared)
    cotangent = torch.randn(shape, dtype=F64).to(device, x_dtype)
    got = value_and_gradients(heat_conduction, x, decay, cotangent)
    want = value_and_gradients(hco_reference, x.double(), decay.double(), cotangent.double())
    for name in ("y", "dx", "ddecay"):
        # A gradient of a float32 decay is computed in float32 whatever the maps are.
        assert_near(got[name], want[name], name)
    assert (got["y"].dtype, got["dx"].dtype, got["ddecay"].dtype) == (x_dtype, x_dtype, decay_dtype)
    assert got["y"].is_contiguous()


@pytest.mark.parametrize("shared", [False, True], ids=["decay-per-channel", "decay-shared"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prepared_decay_gives_the_same_value_and_gradient(shape, dtype, shared, maps, assert_near, nan_filled):
    x, decay = maps(shape, dtype, shared=shared)
    x.requires_grad_()
    cotangent = torch.randn_like(x)
    y = prepared_conduction(x, decay)
    (dx,) = torch.autograd.grad(y, x, cotangent)
    want = hco_reference(x.detach().double(), decay.double())
    assert_near(y.detach(), want, "y")
    assert_near(dx, hco_reference(cotangent.double(), decay.double()), "dx")
    assert (y.dtype, dx.dtype) == (dtype, dtype) and y.is_contiguous()


@pytest.mark.parametrize("shared", [False, True], ids=["decay-per-channel", "decay-shared"])
@pytest.mark.parametrize("x_dtype, decay_dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("shape", [(3, 7, 14, 5), (2, 16, 8, 16), (2, 130, 6, 3), (0, 5, 6, 2)], ids=str)
def test_a_decay_for_each_image(shape, x_dtype, decay_dtype, shared, maps, value_and_gradients, assert_near, device):
    x, _ = maps(shape, x_dtype)
    decay = torch.rand(*shape[:3], 1 if shared else shape[3], dtype=F64).to(device, decay_dtype)
    cotangent = torch.randn(shape, dtype=F64).to(device, x_dtype)
    got = value_and_gradients(heat_conduction, x, decay, cotangent)
    want = value_and_gradients(hco_reference, x.double(), decay.double(), cotangent.double())
    for name in ("y", "dx", "ddecay"):
        assert_near(got[name], want[name], name)
    assert got["ddecay"].shape == decay.shape and got["ddecay"].dtype == decay_dtype
    for one, own, expected in zip(x, decay, want["y"]):
        assert_near(heat_conduction(one[None], own)[0], expected)


@pytest.mark.parametrize("chunk", [1, 100, 4096])
@pytest.mark.parametrize("halvings", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 16, 24, 3), (1, 20, 9, 2), (2, 3, 50, 1), (1, 31, 33, 70)], ids=str)
def test_every_depth_of_split_in_pieces_of_any_size(
    shape, halvings, chunk, maps, value_and_gradients, assert_near, monkeypatch, nan_filled
):
    monkeypatch.setattr(dispatch, "_SPLIT_FROM", 2 if halvings else 1 << 30)
    monkeypatch.setattr(dispatch, "_MAX_HALVINGS", halvings)
    monkeypatch.setattr(torch_path, "_CHUNK", chunk)
    x, decay = maps(shape)
    cotangent = torch.randn_like(x)
    got = value_and_gradients(heat_conduction, x, decay, cotangent)
    want = value_and_gradients(hco_reference, x, decay, cotangent)
    for name in want:
        assert_near(got[name], want[name], name)
    assert_near(prepared_conduction(x, decay), want["y"], "prepared y")
    assert_near(heat_conduction(x, decay), want["y"], "y without gradients")


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Views with the values of x, none of them contiguous."""
    wide = torch.full((*x.shape[:3], 2 * x.shape[3] + 1), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., 1::2] = x
    half = torch.cat((x, torch.full_like(x, torch.nan)), 3)
    return {
        "channel slice": half[..., : x.shape[3]],
        "every second channel": wide[..., 1::2],
        "channels first": x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "transposed sides": x.transpose(1, 2).contiguous().transpose(1, 2),
        "flipped batch order": x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "image within a border": torch.nn.functional.pad(x, (0, 0, 2, 1, 1, 3), value=torch.nan)[:, 1:-3, 2:-1],
    }


@pytest.mark.parametrize("conduct", [heat_conduction, prepared_conduction], ids=["raw", "prepared"])
@pytest.mark.parametrize("dtype", [F64, BF16], ids=str)
@pytest.mark.parametrize("shape", [(2, 7, 14, 4), (2, 130, 6, 3), (1, 5, 129, 2)], ids=str)
def test_any_strides_of_x(shape, dtype, conduct, maps, assert_near, nan_filled):
    x, decay = maps(shape, dtype)
    want = hco_reference(x.double(), decay.double())
    for name, view in layouts(x).items():
        assert torch.equal(view, x), name
        y = conduct(view, decay)
        assert_near(y, want, name)
        assert y.is_contiguous(), name


@pytest.mark.parametrize("shape", [(2, 7, 14, 4), (2, 130, 6, 3)], ids=str)
def test_any_strides_of_decay_and_of_the_incoming_gradient(shape, maps, value_and_gradients, assert_near, nan_filled):
    x, decay = maps(shape)
    cotangent = torch.randn_like(x)
    want = value_and_gradients(hco_reference, x, decay, cotangent)
    for (name, odd_cotangent), odd_decay in zip(layouts(cotangent).items(), layouts(decay[None]).values()):
        got = value_and_gradients(heat_conduction, x, odd_decay[0], odd_cotangent)
        for key in want:
            assert_near(got[key], want[key], f"{name}: {key}")


def test_expanded_maps_decay_and_gradient(maps, value_and_gradients, assert_near):
    x, decay = maps((1, 6, 130, 1))
    one = torch.ones((), dtype=x.dtype, device=x.device)
    got = value_and_gradients(
        heat_conduction, x.expand(3, -1, -1, 5), decay.expand(-1, -1, 5), one.expand(3, 6, 130, 5)
    )
    want = hco_reference(x, decay).expand(3, -1, -1, 5)
    assert_near(got["y"], want)


def test_inputs_are_left_as_they_were(maps):
    for shape in ((2, 7, 14, 3), (1, 130, 9, 2)):
        x, decay = maps(shape)
        before = x.clone(), decay.clone()
        heat_conduction(x, decay)
        prepared_conduction(x, decay)
        assert torch.equal(x, before[0]) and torch.equal(decay, before[1])


@pytest.mark.parametrize("x_needs, decay_needs", [(True, False), (False, True)], ids=["only-x", "only-decay"])
@pytest.mark.parametrize("dtype", [F64, BF16], ids=str)
def test_a_gradient_nobody_asks_for_is_not_made(x_needs, decay_needs, dtype, maps, assert_near):
    x, decay = maps((2, 7, 14, 3), dtype)
    x.requires_grad_(x_needs)
    decay.requires_grad_(decay_needs)
    cotangent = torch.randn_like(x)
    heat_conduction(x, decay).backward(cotangent)
    assert (x.grad is None, decay.grad is None) == (not x_needs, not decay_needs)
    full_x, full_decay = (t.detach().double().requires_grad_() for t in (x, decay))
    hco_reference(full_x, full_decay).backward(cotangent.double())
    for got, want in ((x, full_x), (decay, full_decay)):
        if got.grad is not None:
            assert_near(got.grad, want.grad)


@pytest.mark.parametrize("conduct", [heat_conduction, prepared_conduction], ids=["raw", "prepared"])
@pytest.mark.parametrize("shape", [(0, 5, 6, 2), (0, 130, 6, 2)], ids=str)
def test_an_empty_batch_gives_an_empty_batch_and_zero_gradients(shape, conduct, maps):
    x, decay = maps(shape)
    x.requires_grad_()
    decay.requires_grad_(conduct is heat_conduction)
    y = conduct(x, decay)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape
    if decay.requires_grad:
        assert torch.equal(decay.grad, torch.zeros_like(decay))


X = torch.zeros(2, 4, 6, 3)
REFUSED = {
    "x is no tensor": (TypeError, r"x must be a torch.Tensor, got list", lambda: ([[1.0]], X[0])),
    "x of integers": (TypeError, r"x must be float64.*got torch.int64", lambda: (X.long(), X[0])),
    "x complex": (TypeError, r"x must be float64.*complex64", lambda: (X.to(torch.complex64), X[0])),
    "x of rank 3": (ValueError, r"\(B, H, W, C\).*got \(4, 6, 3\)", lambda: (X[0], X[0])),
    "x without rows": (ValueError, r"H, W, C >= 1, got \(2, 0, 6, 3\)", lambda: (X[:, :0], X[0])),
    "x without channels": (ValueError, r"got \(2, 4, 6, 0\)", lambda: (X[..., :0], X[0])),
    "decay is no tensor": (TypeError, r"decay must be a torch.Tensor, got float", lambda: (X, 0.5)),
    "decay of integers": (TypeError, r"decay must be float64", lambda: (X, X[0].int())),
    "decay of rank 2": (ValueError, r"\(4, 6, 3\) or \(4, 6, 1\).*got \(6, 3\)", lambda: (X, X[0, 0])),
    "decays of another batch": (ValueError, r"each of the 2 images.*got \(1, 4, 6, 3\)", lambda: (X, X[:1])),
    "decay with an empty side": (ValueError, r"\(4, 6, 3\) or \(4, 6, 1\).*got \(0, 6, 3\)", lambda: (X, X[0, :0])),
    "decay transposed": (ValueError, r"\(4, 6, 3\) or \(4, 6, 1\).*got \(6, 4, 3\)", lambda: (X, X[0].transpose(0, 1))),
    "decay of other channels": (ValueError, r"got \(4, 6, 2\).*resize", lambda: (X, X[0, ..., :2])),
    "x channels-first": (
        ValueError,
        r"channels-first; give x.permute\(0, 2, 3, 1\)",
        lambda: (X.permute(0, 3, 1, 2), X[0]),
    ),
    "decay elsewhere": (ValueError, r"x is on cpu, decay on meta", lambda: (X, X[0].to("meta"))),
    "float64 decay beside float32": (
        TypeError,
        r"like x, got .*; give decay.to\(torch.float32\)",
        lambda: (X, X[0].double()),
    ),
    "16-bit decay beside float32": (TypeError, r"decay must be torch.float32 like x", lambda: (X, X[0].bfloat16())),
    "float32 decay beside float64": (TypeError, r"must be torch.float64 like x", lambda: (X.double(), X[0])),
    "mixed 16-bit types": (TypeError, r"torch.bfloat16 like x or float32", lambda: (X.bfloat16(), X[0].half())),
    "prepared for another size": (ValueError, r"got \(4, 4, 3\)", lambda: (X, prepare_decay(X[0, :, :4]))),
    "prepared in another type": (TypeError, r"prepare it again", lambda: (X.double(), prepare_decay(X[0]))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_misfits_are_refused_with_what_was_expected(case):
    error, message, inputs = REFUSED[case]
    with pytest.raises(error, match=message):
        heat_conduction(*inputs())


@pytest.mark.parametrize("function", [partial(heat_conduction, X), prepare_decay], ids=["conduct", "prepare"])
def test_an_unknown_backend_is_refused_with_the_known_ones(function):
    with pytest.raises(ValueError, match=r"unknown backend 'abacus'; known: auto, torch"):
        function(X[0], backend="abacus")


@pytest.mark.parametrize("decay, error", [(None, TypeError), (X[0].long(), TypeError), (X, ValueError)])
def test_prepare_refuses_what_conduct_would(decay, error):
    with pytest.raises(error, match="decay must be"):
        prepare_decay(decay)


def test_named_backend_is_the_same_operator(maps):
    x, decay = maps((2, 7, 14, 3))
    assert torch.equal(heat_conduction(x, decay, backend="torch"), heat_conduction(x, decay))


PHYSICS = [(2, 7, 14, 3), (1, 13, 1, 2), (1, 130, 9, 2)]


@pytest.fixture(params=PHYSICS, ids=str)
def heated(request, device):
    """Maps and the heat kernel of a random diffusivity, which lies in (0, 1] with 1 at frequency zero."""
    _, *sides = shape = request.param
    return torch.randn(shape, dtype=F64).to(device), decay_map(torch.rand(sides, dtype=F64).to(device))


def test_constants_are_kept(heated, assert_near):
    x, decay = heated
    constant = x[:, :1, :1].expand_as(x)
    assert_near(heat_conduction(constant, decay), constant)


def test_the_mean_is_kept(heated, assert_near):
    x, decay = heated
    assert_near(heat_conduction(x, decay).mean((1, 2)), x.mean((1, 2)))


def test_energy_never_grows(heated):
    x, decay = heated
    for weights in (decay, -decay, torch.ones_like(decay), decay * torch.randn_like(decay).sign()):
        assert heat_conduction(x, weights).square().sum() <= x.square().sum() * (1 + 1e-12)


def test_no_decay_is_the_identity(heated, assert_near):
    x, decay = heated
    assert_near(heat_conduction(x, torch.ones_like(decay)), x)


def test_two_steps_equal_one_longer_step(heated, assert_near):
    x, decay = heated
    assert_near(heat_conduction(heat_conduction(x, decay), decay), heat_conduction(x, decay * decay))


@pytest.mark.parametrize("dims", [(1,), (2,), (1, 2)], ids=["vertical", "horizontal", "both"])
def test_a_flip_before_equals_a_flip_after(dims, heated, assert_near):
    x, decay = heated
    assert_near(heat_conduction(x.flip(dims), decay), heat_conduction(x, decay).flip(dims))


def test_transposing_maps_and_decay_transposes_the_result(heated, assert_near):
    x, decay = heated
    assert_near(heat_conduction(x.transpose(1, 2), decay.transpose(0, 1)), heat_conduction(x, decay).transpose(1, 2))


def test_the_operator_is_its_own_adjoint(heated):
    x, decay = heated
    y = torch.randn_like(x)
    torch.testing.assert_close((heat_conduction(x, decay) * y).sum(), (x * heat_conduction(y, decay)).sum())


def test_linear_in_the_maps_and_in_the_decay(heated, assert_near):
    x, decay = heated
    other, more = torch.randn_like(x), torch.randn_like(decay)
    assert_near(heat_conduction(2 * x - other, decay), 2 * heat_conduction(x, decay) - heat_conduction(other, decay))
    assert_near(heat_conduction(x, decay + 3 * more), heat_conduction(x, decay) + 3 * heat_conduction(x, more))


def test_images_and_channels_do_not_mix(heated, assert_near):
    x, decay = heated
    alone = torch.cat([heat_conduction(x[..., c : c + 1], decay[..., c : c + 1]) for c in range(x.shape[3])], 3)
    assert_near(heat_conduction(x, decay), alone)
    assert_near(heat_conduction(torch.cat((x, -x, x.flip(1))), decay)[: len(x)], heat_conduction(x, decay))
