"""diffuse: value and gradients against the definition in float64, boundaries, shapes of k, refusals, physics."""

import math
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

from vheatir.kernels.cpu import kernel as cpu_kernel
from vheatir.kernels.dct import decay_map
from vheatir.kernels.diffusion import torch_path
from vheatir.kernels.diffusion.boundaries import BOUNDARIES, basis_of
from vheatir.kernels.diffusion.checks import per_axis
from vheatir.kernels.diffusion.ops import diffuse
from vheatir.kernels.diffusion.reference import diffuse_reference
from vheatir.kernels.ops import heat_conduction
from vheatir.kernels.reference import hco_reference

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
SHAPES = [
    *[(2, 9, 3), (3, 64, 16), (1, 481, 5), (2, 1, 4), (0, 5, 2)],
    *[(1, 1, 1, 1), (2, 7, 14, 5), (2, 16, 32, 16), (3, 40, 64, 32), (1, 33, 100, 19), (2, 6, 1, 3), (1, 300, 90, 48)],
    *[(2, 4, 9, 8, 16), (1, 5, 6, 7, 3), (2, 1, 17, 5, 2), (0, 3, 4, 5, 2)],
]


def inputs(shape, dtype=F64, rows=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, cotangent = (torch.randn(shape, generator=generator, dtype=F64).to(dtype) for _ in range(2))
    arithmetic = F64 if dtype == F64 else F32
    k = tuple(
        (torch.rand(max(rows, 1), shape[-1], generator=generator, dtype=F64) * 4).to(arithmetic) for _ in shape[1:-1]
    )
    return x, k, cotangent


def run(function, x, k, cotangent):
    leaves = [one.clone().requires_grad_() for one in (x, *k)]
    y = function(leaves[0], tuple(leaves[1:]))
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]


def definition(x, k, boundary):
    return diffuse_reference(x, per_axis(k, x), boundary)


def assert_near(got, want, dtype, least=1e-2):
    """Within the type's tolerance of the largest value, or of `least`."""
    tolerance = {F64: 1e-11, F32: 4e-6, BF16: 5e-3, F16: 7e-4}[dtype]
    if want.numel():
        assert (got.double() - want).abs().max() <= tolerance * max(want.abs().max().item(), least)


def assert_all_near(got, want, dtype, k):
    for one, other in zip(got[:2], want[:2], strict=True):
        assert_near(one, other, dtype)
    for one, other, of_axis in zip(got[2:], want[2:], k, strict=True):
        # A sum of many numbers of either sign, which may be much smaller than they are.
        terms = got[0].double().norm().item() * math.pi**2
        assert one.shape == other.shape
        assert_near(one, other, of_axis.dtype, least=terms)


@pytest.mark.parametrize("rows", ["shared", "per image"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(shape, dtype, boundary, rows, nan_filled):
    x, k, cotangent = inputs(shape, dtype, shape[0] if rows == "per image" else 1)
    got = run(lambda x, k: diffuse(x, k, boundary=boundary), x, k, cotangent)
    exact = [x.double(), tuple(one.double() for one in k), cotangent.double()]
    want = run(lambda x, k: definition(x, k, boundary), *exact)
    assert got[0].is_contiguous()
    assert [one.dtype for one in got] == [dtype, dtype, *(one.dtype for one in k)]
    assert_all_near(got, want, dtype, k)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("boundary", ["insulated", "zero"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("shape", [(2, 20, 24, 32), (1, 70, 130, 19), (2, 3, 8, 20, 16), (2, 96, 16)], ids=str)
def test_every_version_of_the_kernel(shape, dtype, boundary, threads, instructions, monkeypatch, nan_filled):
    monkeypatch.setattr(cpu_kernel, "_LEAST_ELEMENTS_PER_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, k, cotangent = inputs(shape, dtype)
        got = run(lambda x, k: diffuse(x, k, boundary=boundary, backend="cpu_kernel"), x, k, cotangent)
    finally:
        torch.set_num_threads(before)
    exact = [x.double(), tuple(one.double() for one in k), cotangent.double()]
    want = run(lambda x, k: definition(x, k, boundary), *exact)
    assert_all_near(got, want, dtype, k)


@pytest.mark.parametrize("backend", ["torch", "cpu_kernel"])
def test_it_is_heat_conduction_with_the_decay_of_the_same_diffusivity(backend):
    x, (k, _), _ = inputs((2, 24, 40, 16), F32)
    want = heat_conduction(x, decay_map(k[0].expand(24, 40, -1)))
    torch.testing.assert_close(diffuse(x, k[0], backend=backend), want, atol=1e-5, rtol=1e-5)


def test_anisotropic_along_the_axes_is_exact():
    x, (vertical, horizontal), _ = inputs((2, 9, 12, 3))
    rows = (torch.arange(9, dtype=F64) * math.pi / 9).square()[:, None, None]
    columns = (torch.arange(12, dtype=F64) * math.pi / 12).square()[None, :, None]
    want = hco_reference(x, torch.exp(-vertical * rows - horizontal * columns))
    torch.testing.assert_close(diffuse(x, (vertical, horizontal)), want)


@pytest.mark.parametrize("shape", [(2, 9, 3), (2, 5, 6, 3), (2, 2, 5, 4, 3)], ids=str)
def test_every_shape_of_k(shape):
    x, _, _ = inputs(shape)
    axes = len(shape) - 2
    want = diffuse(x, torch.full((2, 3), 1.5, dtype=F64))
    ones = [1] * axes
    for k in (1.5, torch.tensor(1.5, dtype=F64), torch.full((3,), 1.5, dtype=F64), torch.full((1, 1), 1.5, dtype=F64)):
        torch.testing.assert_close(diffuse(x, k), want)
    torch.testing.assert_close(diffuse(x, torch.full((2, *ones, 3), 1.5, dtype=F64)), want)
    torch.testing.assert_close(diffuse(x, [1.5] * axes), want)
    each = torch.rand(2, 3, dtype=F64)
    alone = torch.cat([diffuse(x[i : i + 1], each[i]) for i in range(2)])
    torch.testing.assert_close(diffuse(x, each), alone)


def test_strides_and_inputs_are_left_alone():
    x, k, _ = inputs((2, 12, 20, 32), F32)
    wide = torch.cat((x, torch.full_like(x, torch.nan)), 3)[..., :32]
    for view in (wide, x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)):
        before = view.clone()
        assert_near(diffuse(view, k), definition(x.double(), tuple(one.double() for one in k), "insulated"), F32)
        assert torch.equal(view, before)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", [(2, 4, 2), (2, 3, 4, 2), (1, 2, 3, 2, 2)], ids=str)
def test_first_and_second_derivatives(shape, boundary):
    x, k, _ = inputs(shape)
    leaves = [one.requires_grad_() for one in (x, *k)]
    assert gradcheck(lambda x, *k: diffuse(x, k, boundary=boundary), leaves)
    assert gradgradcheck(lambda x, *k: diffuse(x, k, boundary=boundary), leaves)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_no_images_have_second_derivatives(boundary, backend):
    x = torch.zeros(0, 4, 5, 3, requires_grad=True)
    k = torch.ones(3, requires_grad=True)
    y = diffuse(x, k, boundary=boundary, backend=backend)
    (first,) = torch.autograd.grad(y.square().sum(), k, create_graph=True)
    second = torch.autograd.grad(first.sum(), (x, k), materialize_grads=True)
    assert [one.shape for one in second] == [x.shape, k.shape] and not first.any() and not second[1].any()


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_no_images_have_diffusivities_of_their_own_beside_one_for_all(boundary):
    x = torch.zeros(0, 4, 5, 3, requires_grad=True)
    own = torch.zeros(0, 3, requires_grad=True)
    y = diffuse(x, (own, 2.0), boundary=boundary)
    assert y.shape == x.shape
    assert [one.shape for one in torch.autograd.grad(y.sum(), (x, own))] == [x.shape, own.shape]


def test_second_derivatives_of_the_kernel():
    x, k, _ = inputs((1, 6, 8, 2), F32)

    def second(function, x, k):
        leaves = [one.clone().requires_grad_() for one in (x, *k)]
        first = torch.autograd.grad(function(leaves[0], leaves[1:]).pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in first), leaves)

    got = second(lambda x, k: diffuse(x, k, backend="cpu_kernel"), x, k)
    want = second(lambda x, k: definition(x, k, "insulated"), x.double(), [one.double() for one in k])
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_opcheck(boundary, dtype):
    x, k, cotangent = inputs((2, 3, 4, 2), dtype)
    x.requires_grad_()
    kept = torch.stack(k).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    tests += ("test_aot_dispatch_dynamic",) if dtype == F32 else ()
    torch.library.opcheck(torch.ops.vheatir.diffuse.default, (x, kept, boundary, "auto"), test_utils=tests)
    arguments = (cotangent, x.detach(), x.detach(), kept.detach(), boundary, "auto")
    torch.library.opcheck(torch.ops.vheatir.diffuse_gradients.default, arguments, test_utils=tests[:1] + tests[2:3])


@pytest.mark.parametrize("shape", [(2, 9, 3), (2, 7, 14, 3), (1, 3, 6, 5, 2)], ids=str)
def test_compiled_in_one_graph_forward_and_backward(shape):
    compiled = torch.compile(lambda x, k: diffuse(2 * x, k) + x, fullgraph=True, backend="aot_eager")
    x, k, cotangent = inputs(shape)
    got = run(compiled, x, k, cotangent)
    want = run(lambda x, k: definition(2 * x, k, "insulated") + x, x, k, cotangent)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


def test_exported_with_open_sizes():
    class Layer(torch.nn.Module):
        def forward(self, x, k):
            return diffuse(x, k)

    x, k, _ = inputs((2, 8, 10, 3), F32)
    sizes = {"x": {1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)}, "k": None}
    program = torch.export.export(Layer(), (x, k[0][0]), dynamic_shapes=sizes)
    other, _, _ = inputs((2, 12, 7, 3), F32)
    torch.testing.assert_close(program.module()(other, k[0][0]), diffuse(other, k[0][0]))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_under_autocast_nothing_is_narrowed(backend):
    x, k, tangent = inputs((2, 8, 10, 3), F32)
    k = k[0][0].requires_grad_()

    def results():
        y = diffuse(x, k, backend=backend)
        (first,) = torch.autograd.grad((y * tangent).sum(), k, create_graph=True)
        return y, first, jvp(lambda x: diffuse(x, k.detach()), (x,), (tangent,))[1]

    want = results()
    with torch.autocast("cpu", torch.bfloat16):
        got = results()
    for one, other in zip(got, want, strict=True):
        assert one.dtype == F32
        torch.testing.assert_close(one, other)


DEFAULT_DEVICE = """
import torch
from vheatir.kernels.diffusion.ops import diffuse

x, k = torch.randn(2, 6, 5, 8), torch.rand(8)
want = {boundary: diffuse(x, k, boundary=boundary) for boundary in ("insulated", "zero", "periodic")}
k.requires_grad_()
torch.set_default_device("meta")
for boundary, one in want.items():
    y = diffuse(x, k, boundary=boundary)
    (y * x).sum().backward()
    assert torch.equal(y, one) and k.grad.device == x.device
"""


def test_the_default_device_is_not_where_results_go():
    done = subprocess.run([sys.executable, "-c", DEFAULT_DEVICE], capture_output=True, text=True)  # it crashed
    assert done.returncode == 0, done.stderr


def test_tangents_and_derivatives_of_functions():
    x, (k, _), tangent = inputs((2, 4, 5, 3))
    k = k[0]
    want = jvp(lambda x, k: definition(x, k, "insulated"), (x, k), (tangent, k))[1]
    torch.testing.assert_close(jvp(diffuse, (x, k), (tangent, k))[1], want)
    with forward_ad.dual_level():
        dual = diffuse(forward_ad.make_dual(x, tangent), k)
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, diffuse(tangent, k))

    def loss(function):
        return lambda k, one: function(one[None], k).square().sum()

    got = vmap(grad(loss(diffuse)), (None, 0))(k, x)
    torch.testing.assert_close(got, vmap(grad(loss(lambda x, k: definition(x, k, "insulated"))), (None, 0))(k, x))
    torch.testing.assert_close(vmap(lambda one: diffuse(one[None], k)[0])(x), diffuse(x, k))


X = torch.zeros(2, 4, 6, 3)
K = torch.ones(3)
REFUSED = {
    "x is no tensor": (TypeError, "x must be a torch.Tensor, got list", lambda: diffuse([[1.0]], K)),
    "x of integers": (TypeError, "x must be float64.*got torch.int64", lambda: diffuse(X.long(), K)),
    "x of rank 2": (ValueError, r"x must be \(B, L, C\).*got \(6, 3\)", lambda: diffuse(X[0, 0], K)),
    "x without rows": (ValueError, r"no empty side, got \(2, 0, 6, 3\)", lambda: diffuse(X[:, :0], K)),
    "k of other channels": (
        ValueError,
        r"k must be a number, \(3,\), \(2, 3\) or.*got \(2,\)",
        lambda: diffuse(X, K[:2]),
    ),
    "k no number": (ValueError, r"k must be a finite number.*got nan", lambda: diffuse(X, float("nan"))),
    "infinite k of an axis": (ValueError, r"finite number.*got inf", lambda: diffuse(X, (1.0, float("inf")))),
    "k a set": (TypeError, "k must be a number or a torch.Tensor.*got set", lambda: diffuse(X, {1.0})),
    "k a decay": (ValueError, r"got \(4, 6, 3\)", lambda: diffuse(X, X[0])),
    "k of another batch": (ValueError, r"got \(4, 3\)", lambda: diffuse(X, torch.ones(4, 3))),
    "k along an axis, as long as the batch": (
        ValueError,
        r"got \(1, 2, 1, 3\)",
        lambda: diffuse(X, torch.ones(1, 2, 1, 3)),
    ),
    "k for one axis of two": (ValueError, "each of the 2 axes of x, got 1", lambda: diffuse(X, (K,))),
    "float64 k": (
        TypeError,
        r"k must be torch.float32 like x, got torch.float64; give k.to\(torch.float32\)",
        lambda: diffuse(X, K.double()),
    ),
    "float64 k of narrow maps": (TypeError, "or float32, got torch.float64", lambda: diffuse(X.half(), K.double())),
    "k elsewhere": (ValueError, "x is on cpu, k on meta", lambda: diffuse(X, K.to("meta"))),
    "boundary": (
        ValueError,
        "unknown boundary 'open'; known: insulated, zero, periodic",
        lambda: diffuse(X, K, boundary="open"),
    ),
    "backend": (ValueError, "unknown backend 'abacus'", lambda: diffuse(X, K, backend="abacus")),
    "CUDA": (ValueError, "backend 'cuda' has no kernel of this operator", lambda: diffuse(X, K, backend="cuda")),
    "float64 by kernel": (ValueError, "maps are float64", lambda: diffuse(X.double(), 1.0, backend="cpu_kernel")),
    "periodic by kernel": (ValueError, "periodic", lambda: diffuse(X, K, boundary="periodic", backend="cpu_kernel")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_misfits_are_refused_with_what_was_expected(case):
    error, message, call = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 30])
def test_bases_are_orthonormal_and_heat_is_an_exponential_of_the_second_difference_at_low_frequencies(n, boundary):
    basis, squares = basis_of(n, boundary, F64, torch.device("cpu"))
    torch.testing.assert_close(basis @ basis.T, torch.eye(n, dtype=F64))
    assert squares.min() >= 0 and squares.max() <= math.pi**2 + 1e-9


def wave(n, half_waves, boundary):
    """So many half-waves over n samples, (1, n, 1), which the boundary condition allows, and their w."""
    place = torch.arange(n, dtype=F64) + 0.5
    w = math.pi * half_waves / n
    return (torch.sin if boundary == "zero" else torch.cos)(w * place)[None, :, None], w


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_long_axis_needs_no_table_of_the_square_of_its_length(boundary):
    x, w = wave(300_007, 50_000, boundary)  # the square would take 720 GB
    torch.testing.assert_close(diffuse(x, 3.0, boundary=boundary), math.exp(-3 * w**2) * x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 6, 9, 3), (1, 5, 6, 8, 2)], ids=str)
def test_what_long_axes_take_gives_the_same(shape, boundary, monkeypatch):
    monkeypatch.setattr(torch_path, "_LONGEST_DENSE", 4)
    x, k, cotangent = inputs(shape, rows=shape[0])
    got = run(lambda x, k: diffuse(x, k, boundary=boundary), x, k, cotangent)
    assert_all_near(got, run(lambda x, k: definition(x, k, boundary), x, k, cotangent), F64, k)


def second_difference(n, boundary):
    """Of samples with ghost samples beyond the ends: mirrored, mirrored with the other sign, or from the other end."""
    matrix = -2 * torch.eye(n, dtype=F64) + torch.ones(n, n, dtype=F64).tril(1).triu(-1) - torch.eye(n, dtype=F64)
    corner = {"insulated": 1, "zero": -1, "periodic": 0}[boundary]
    matrix[0, 0] += corner
    matrix[-1, -1] += corner
    if boundary == "periodic":
        matrix[0, -1] += 1
        matrix[-1, 0] += 1
    return matrix


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_smooth_heat_solves_the_heat_equation(boundary):
    """Against the exponential of the second difference, which approaches the derivative as maps get finer."""
    n, k = 256, 200.0
    point = torch.zeros(1, n, 1, dtype=F64)
    point[0, 20] = 1
    got = diffuse(point, k, boundary=boundary)[0, :, 0]
    want = torch.linalg.matrix_exp(k * second_difference(n, boundary)) @ point[0, :, 0]
    assert (got - want).abs().max() < 2e-3 * want.max()


def test_boundaries_keep_what_they_should():
    x = torch.rand(2, 9, 12, 3, dtype=F64)
    for boundary in ("insulated", "periodic"):
        torch.testing.assert_close(diffuse(x, 2.0, boundary=boundary).sum((1, 2)), x.sum((1, 2)))
    assert (diffuse(x, 2.0, boundary="zero").sum((1, 2)) < x.sum((1, 2))).all()
    moved = diffuse(x.roll((2, 5), (1, 2)), 2.0, boundary="periodic")
    torch.testing.assert_close(moved, diffuse(x, 2.0, boundary="periodic").roll((2, 5), (1, 2)))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_two_steps_equal_one_longer_step_and_none_changes_nothing(boundary):
    x, k, _ = inputs((2, 4, 9, 8, 3))
    twice = diffuse(diffuse(x, k, boundary=boundary), k, boundary=boundary)
    torch.testing.assert_close(twice, diffuse(x, [2 * one for one in k], boundary=boundary))
    torch.testing.assert_close(diffuse(x, 0.0, boundary=boundary), x)


def test_strong_conduction_and_amplification_end_in_numbers():
    x = torch.rand(1, 64, 64, 16)
    torch.testing.assert_close(diffuse(x, 1e9), x.mean((1, 2), keepdim=True).expand_as(x))
    got = diffuse(x, -0.5)
    torch.testing.assert_close(got.double(), diffuse(x.double(), -0.5), rtol=1e-4, atol=2e-2)
    assert diffuse(x, torch.full((16,), torch.nan)).isnan().all()


def test_flops_are_those_of_the_definition():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        diffuse(torch.zeros(2, 4, 6, 3), 1.0)
    forward = 2 * 4 * 6 * 3 * (4 * 4 + 4 * 6 + 2)
    assert counter.get_total_flops() == forward
    x, k = torch.zeros(2, 4, 6, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        diffuse(x, k).sum().backward()
    # For each axis two spectra and a way back, and four products with what lies between them.
    assert counter.get_total_flops() == forward + 2 * 4 * 6 * 3 * (6 * 4 + 6 * 6 + 8)
