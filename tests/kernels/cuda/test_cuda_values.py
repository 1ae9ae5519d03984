"""The CUDA kernels against float64: values and gradients at tile edges, range, layouts; emulated and on a GPU."""

import math

import pytest
import torch

from vheatir.kernels.cuda import kernel as cuda_kernel
from vheatir.kernels.cuda.launch_plan import Machine
from vheatir.kernels.dct import dct_matrix, decay_map
from vheatir.kernels.ops import heat_conduction, prepare_decay
from vheatir.kernels.reference import hco_reference

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Root mean square error allowed: for bfloat16 that of rounding the exact result, times this; for others as a share.
OVER_ROUNDING, SHARE = 1.2, {F32: 1e-6, F16: 1e-3}
# With any real decay the error stays below this times 2^-11 max|decay| rms(x); rounding to bfloat16 alone takes 3.4.
ANY_DECAY = 4.0
# In shared memory: single points and lines, sides around 8, 16, 32 and 64, channels around tiles of 8 and 16. In three
# passes: both sides of 64, lines that fill no tile, more than one tile.
PLANES = [(1, 1, 1, 1), (2, 1, 9, 3), (2, 9, 1, 17), (3, 7, 7, 8), (1, 8, 14, 9), (2, 15, 16, 16), (1, 17, 31, 7)]
PLANES += [(1, 32, 33, 24), (1, 34, 5, 15), (1, 63, 2, 16), (1, 3, 64, 31), (1, 56, 56, 8)]
LINES = [(1, 65, 1, 3), (2, 1, 66, 5), (2, 5, 97, 4), (1, 128, 7, 18), (1, 131, 65, 1), (1, 4, 257, 16)]


def conduct(x, decay):
    return heat_conduction(x, decay, backend="cuda")


def check(x, decay, cotangent, value_and_gradients, rms_error, function=conduct):
    """Value and gradients within what is promised for the type of x, and finite."""
    got = value_and_gradients(function, x, decay, cotangent)
    want = value_and_gradients(hco_reference, x.double(), decay.double(), cotangent.double())
    for name in ("y", "dx", "ddecay"):
        assert got[name].isfinite().all(), name
        error, rounding = rms_error(got[name], want[name])
        limit = (
            OVER_ROUNDING * rounding if x.dtype == BF16 else SHARE[x.dtype] * want[name].square().mean().sqrt().item()
        )
        assert error <= limit + 1e-44, f"{name}: rms error {error:.3g}, allowed {limit:.3g}"
    return got


@pytest.mark.parametrize("shared", [False, True], ids=["decay-per-channel", "decay-shared"])
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("shape", [*PLANES, *LINES], ids=str)
def test_value_and_gradients(shape, dtype, shared, cuda, maps, value_and_gradients, rms_error, nan_filled):
    x, decay = (t.to(cuda) for t in maps(shape, dtype, F32, shared))
    check(x, decay, torch.randn_like(x), value_and_gradients, rms_error)
    y = conduct(x, decay)
    prepared = prepare_decay(decay, backend="cuda")
    assert prepared.path == "cuda"
    assert torch.equal(heat_conduction(x, prepared), y)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("shape", [(2, 9, 12, 3), (1, 33, 12, 24), (2, 5, 70, 6)], ids=str)
def test_spectrum_in_natural_order(shape, dtype, cuda, nan_filled):
    x = torch.randn(shape, device=cuda).to(dtype)
    rows, columns = (dct_matrix(n, device=cuda) for n in shape[1:3])
    want = torch.einsum("nh,bhwc,mw->bnmc", rows, x.double(), columns)
    error = (cuda_kernel.transform(x).double() - want).square().mean().sqrt()
    assert error <= (1e-6 if dtype == F32 else 1e-3) * want.square().mean().sqrt()


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1.0, 1e5])
@pytest.mark.parametrize("c, k", [(1.0, 0.0), (-3.0, 0.5), (1e30, 50.0), (1e-28, 4.0), (1.0, 1e4)])
@pytest.mark.parametrize("side", [13, 66])
def test_range_of_inputs_and_decays(side, c, k, scale, cuda, value_and_gradients, rms_error):
    """Maps with a mean of three standard deviations, decays c exp(-k w^2) of any strength and size."""
    shape = (2, side, 9, 8)
    x, cotangent = ((scale * (torch.randn(shape, device=cuda) + 3)).to(BF16) for _ in range(2))
    decay = c * decay_map(torch.full(shape[1:], k, device=cuda))
    check(x, decay, cotangent * (1e-4 if abs(c) > 1e9 and scale > 1 else 1), value_and_gradients, rms_error)


@pytest.mark.parametrize("c", [1.0, 1e30])
@pytest.mark.parametrize("side, damping", [(20, 18), (70, 10)])
def test_maps_without_mean_keep_what_little_the_decay_leaves(side, damping, c, cuda, rms_error):
    """The constant frequency, with the only large decay, is zero: exp(-damping) c is left of the lowest other one.

    In three passes a sum of float32 is not exactly zero, so the damping must not come near their precision.
    """
    k = damping * (side / math.pi) ** 2
    half = torch.randn(1, side // 2, 6, 8, device=cuda).to(BF16)
    x = torch.cat((half, -half.flip(1)), 1)
    decay = c * decay_map(torch.full((side, 6, 8), k, device=cuda))
    want = hco_reference(x.double(), decay.double())
    error, rounding = rms_error(conduct(x, decay), want)
    assert 0 < want.abs().max() < 3 * math.exp(-damping) * c
    assert error <= OVER_ROUNDING * rounding


def decays(shape, device):
    """Real decays of no particular form: one frequency alone, alternating signs, all sizes of floats, no constant."""
    single, sizes, no_constant = (
        torch.zeros(shape),
        torch.logspace(-30, 20, shape[0] * shape[1] * shape[2]),
        torch.ones(shape),
    )
    single[shape[0] // 2, shape[1] // 3] = 1.0
    no_constant[0, 0] = 0
    signs = torch.randn(shape).sign()
    named = {"single": single, "signs": signs, "sizes": sizes.view(shape), "no constant": no_constant}
    return {name: decay.to(device) for name, decay in named.items()}


@pytest.mark.parametrize("name", ["single", "signs", "sizes", "no constant"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("side", [20, 70])
def test_error_with_any_real_decay(side, offset, name, cuda):
    shape = (1, side, 12, 8)
    x = (torch.randn(shape, device=cuda) + offset).to(BF16)
    decay = decays(shape[1:], cuda)[name]
    want = hco_reference(x.double(), decay.double())
    error = (conduct(x, decay).double() - want).square().mean().sqrt()
    limit = ANY_DECAY * 2.0**-11 * decay.abs().max().double() * x.double().square().mean().sqrt()
    assert error <= limit


def test_nothing_overflows_that_float32_would_hold(cuda):
    """Large maps with a decay that makes them small again, and the reverse."""
    for size, factor in ((1e37, 1e-30), (1e-30, 1e37)):
        for side in (12, 70):
            x = (size * torch.randn(1, side, 6, 8, device=cuda)).to(BF16)
            y = conduct(x, torch.full((side, 6, 8), factor, device=cuda))
            want = factor * x.double()
            assert (y.double() - want).square().mean().sqrt() <= 2.0**-8 * want.square().mean().sqrt()


@pytest.mark.parametrize("side", [12, 70])
def test_a_channel_of_zeros_or_nan_or_another_size_leaves_its_neighbours_alone(side, cuda):
    x = torch.randn(1, side, 6, 8, device=cuda)
    x[..., 1], x[..., 3], x[..., 5], x[0, 2, 2, 7] = 0, 5, x[..., 5] * 1e-8, math.nan
    x = x.to(BF16)
    y = conduct(x, torch.ones(side, 6, 8, device=cuda))
    assert y[..., 7].isnan().all()
    error = (y - x)[..., :7].double().square().mean((0, 1, 2)).sqrt()
    assert (error <= 2.0**-8 * x[..., :7].double().square().mean((0, 1, 2)).sqrt()).all()


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("channels", [5, 8])
@pytest.mark.parametrize("side", [10, 67])
def test_any_strides(side, channels, dtype, cuda, nan_filled):
    """Halves of a wider map, every second channel, channels first, transposed sides, a part of a larger image."""
    x = torch.randn(2, side, 9, channels, device=cuda).to(dtype)
    decay = torch.rand(side, 9, channels, device=cuda)
    want = conduct(x, decay)
    wide = torch.full((2, side + 3, 12, 2 * channels), math.nan, dtype=dtype, device=cuda)
    views = {
        "part": wide[:, 2 : side + 2, 1:10, channels:],
        "every second channel": wide[:, :side, :9, ::2],
        "channels first": torch.empty(2, channels, side, 9, dtype=dtype, device=cuda).permute(0, 2, 3, 1),
        "transposed": torch.empty(2, 9, side, channels, dtype=dtype, device=cuda).transpose(1, 2),
    }
    for name, view in views.items():
        view.copy_(x)
        y = conduct(view, decay.transpose(0, 1).contiguous().transpose(0, 1))
        assert torch.equal(y, want) and y.is_contiguous(), name


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_images_and_channels_in_pieces(dtype, cuda, maps, value_and_gradients, rms_error, monkeypatch, nan_filled):
    """Pieces of some images, of some channels of one image, and of one image at a time in the decay's gradient."""
    for scratch, shape in ((1 << 14, (5, 2, 66, 4)), (1 << 13, (2, 2, 67, 18)), (1, (3, 6, 5, 9))):
        x, decay = (t.to(cuda) for t in maps(shape, dtype, F32))
        cotangent = torch.randn_like(x)
        whole = check(x, decay, cotangent, value_and_gradients, rms_error)
        with monkeypatch.context() as patch:
            patch.setattr(cuda_kernel, "_SCRATCH_BYTES", scratch)
            pieces = check(x, decay, cotangent, value_and_gradients, rms_error)
        assert torch.equal(pieces["y"], whole["y"])


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("shape", [(3, 14, 15, 20), (2, 5, 70, 12)], ids=str)
def test_repeated_runs_are_equal_bit_for_bit(shape, dtype, cuda, maps, value_and_gradients):
    x, decay = (t.to(cuda) for t in maps(shape, dtype, F32))
    cotangent = torch.randn_like(x)
    first, *others = (value_and_gradients(conduct, x, decay, cotangent) for _ in range(3))
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in other)


def test_an_empty_batch(cuda):
    x, decay = torch.zeros(0, 5, 6, 3, device=cuda), torch.ones(5, 6, 3, device=cuda)
    y = conduct(x.requires_grad_(), decay.requires_grad_())
    y.sum().backward()
    assert y.shape == x.shape and torch.equal(decay.grad, torch.zeros_like(decay))


def test_second_derivatives(cuda, assert_near, maps):
    def second(function):
        x, decay = (t.clone().requires_grad_() for t in inputs)
        first = torch.autograd.grad(function(x, decay).square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), (x, decay))

    inputs = [t.to(cuda) for t in maps((2, 5, 6, 3), F32)]
    for got, want in zip(second(conduct), second(hco_reference)):
        assert_near(got, want, dtype=F32)


def test_compiled_forward_and_backward(cuda, maps, value_and_gradients, rms_error):
    x, decay = (t.to(cuda) for t in maps((2, 7, 12, 3), BF16, F32))
    compiled = torch.compile(conduct, fullgraph=True, backend="aot_eager")
    check(x, decay, torch.randn_like(x), value_and_gradients, rms_error, compiled)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("name", ["conduct", "conduct_with_spectrum", "cosine_transform"])
def test_opcheck(name, dtype, cuda, maps):
    x, decay = (t.to(cuda) for t in maps((2, 3, 4, 2), dtype, F32))
    arguments = (x, False, "cuda") if name == "cosine_transform" else (x.requires_grad_(), decay, "cuda")
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.vheatir, name).default, arguments, test_utils=tests)


MACHINES = {
    "many multiprocessors": Machine(227 << 10, 10_000),
    "one multiprocessor": Machine(227 << 10, 1),
    "little shared memory": Machine(99 << 10, 1),
}


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_kernel_whatever_the_device(machine, dtype, emulator, maps, value_and_gradients, rms_error, nan_filled):
    """Devices differ in the tiles they get; all of them are run here."""
    emulator.machine = MACHINES[machine]
    for shape in ((1, 20, 6, 16), (1, 40, 3, 16), (1, 2, 130, 33)):
        x, decay = maps(shape, dtype, F32)
        check(x, decay, torch.randn_like(x), value_and_gradients, rms_error)


def test_16_bit_lines_too_long_for_tensor_cores_go_through_float32(emulator):
    """The longest ones four at a time."""
    emulator.machine = Machine(shared_memory=12 << 10, multiprocessors=1)
    x = torch.randn(1, 2, 200, 8).to(BF16)
    y = conduct(x, torch.ones(2, 200, 8))
    assert {plan.kernel for plan in emulator.launched} == {"vheatir_lines_floats_4", "vheatir_lines_floats_32"}
    assert (y - x).abs().max() <= 2.0**-7 * x.abs().max()


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("shape", [(1, 14, 33, 9), (1, 40, 5, 16), (1, 5, 70, 12)], ids=str)
def test_no_result_depends_on_the_order_of_threads(shape, dtype, emulator, maps, value_and_gradients):
    """A missing barrier would show: in each run the emulator lets the threads go ahead in another order."""
    x, decay = maps(shape, dtype, F32)
    cotangent = torch.randn_like(x)
    results = []
    for emulator.seed in (0, 1, 12345):
        results.append(value_and_gradients(conduct, x, decay, cotangent))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)
