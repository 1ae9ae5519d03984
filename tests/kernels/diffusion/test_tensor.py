"""diffuse_tensor: rotated axes against the Gaussian inside the map, physics, convergence of the split, derivatives."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from vheatir.kernels.diffusion.ops import diffuse
from vheatir.kernels.diffusion.tensor import diffuse_tensor

F64 = torch.float64


def rotated(long, short, degrees):
    """Diffusivity `long` along the direction at that angle to the columns' axis, `short` across it."""
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=F64)
    tensor = turn @ torch.diag(torch.tensor([long, short], dtype=F64)) @ turn.T
    return (tensor + tensor.T) / 2


@pytest.mark.parametrize("boundary", ["insulated", "zero", "periodic"])
def test_along_the_axes_it_is_diffuse(boundary):
    x = torch.randn(2, 8, 11, 3, dtype=F64)
    tensor = torch.diag(torch.tensor([0.7, 3.0], dtype=F64))
    torch.testing.assert_close(diffuse_tensor(x, tensor, boundary=boundary), diffuse(x, (0.7, 3.0), boundary=boundary))


@pytest.mark.parametrize("degrees", [0, 22.5, 45, 70, 135, 160])
@pytest.mark.parametrize("boundary", ["insulated", "zero", "periodic"])
def test_a_point_inside_becomes_the_rotated_gaussian(boundary, degrees):
    tensor = rotated(4.0, 1.5, degrees)
    x = torch.zeros(1, 51, 51, 1, dtype=F64)
    x[0, 25, 25] = 1
    place = torch.arange(-25, 26, dtype=F64)
    offset = torch.stack(torch.meshgrid(place, place, indexing="ij"), -1)
    exponent = torch.einsum("hwi,ij,hwj->hw", offset, torch.linalg.inv(tensor), offset) / 4
    want = torch.exp(-exponent) / (4 * math.pi * torch.linalg.det(tensor).sqrt())
    got = diffuse_tensor(x, tensor, boundary=boundary)[0, ..., 0]
    assert (got - want).abs().max() < 2e-3 * want.max()


def test_periodic_ends_take_any_anisotropy():
    """What the split has to refuse, the Fourier basis can."""
    tensor = rotated(9.0, 0.01, 22.5)
    place = torch.arange(16, dtype=F64)
    for sign in (1, -1):
        w = torch.tensor([math.pi / 4, sign * math.pi / 8], dtype=F64)
        wave = torch.cos(w[0] * place[:, None] + w[1] * place)[None, ..., None]
        torch.testing.assert_close(diffuse_tensor(wave, tensor, boundary="periodic"), torch.exp(-w @ tensor @ w) * wave)


def test_heat_is_kept_and_the_operator_is_its_own_adjoint():
    x, y = torch.randn(2, 1, 9, 12, 2, dtype=F64)
    tensor = torch.stack([rotated(4.0, 1.0, 30), rotated(3.0, 1.0, 120)])
    for boundary in ("insulated", "periodic"):
        kept = diffuse_tensor(x, tensor, boundary=boundary)
        torch.testing.assert_close(kept.sum((1, 2)), x.sum((1, 2)))
        torch.testing.assert_close((kept * y).sum(), (x * diffuse_tensor(y, tensor, boundary=boundary)).sum())
    flat = torch.ones(1, 9, 12, 2, dtype=F64)
    torch.testing.assert_close(diffuse_tensor(flat, tensor), flat)


def test_the_error_of_the_split_falls_with_the_square_of_the_steps():
    x = torch.zeros(1, 12, 15, 1, dtype=F64)
    x[0, 0, 3] = 1  # at the rim: inside the parts commute
    tensor = rotated(4.0, 1.0, 30)
    limit = diffuse_tensor(x, tensor, steps=64)
    errors = [(diffuse_tensor(x, tensor, steps=steps) - limit).abs().max().item() for steps in (4, 8, 16)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0


def test_each_channel_and_image_has_its_own():
    x = torch.randn(2, 7, 9, 2, dtype=F64)
    tensors = torch.stack([rotated(3.0, 1.0, angle) for angle in (20, 110, 45, 160)]).view(2, 2, 2, 2)
    got = diffuse_tensor(x, tensors)
    for image in range(2):
        for channel in range(2):
            alone = diffuse_tensor(x[image : image + 1, ..., channel : channel + 1], tensors[image, channel])
            torch.testing.assert_close(got[image : image + 1, ..., channel : channel + 1], alone)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 8e-3)], ids=str)
def test_types(dtype, tolerance):
    x = torch.randn(1, 20, 24, 16, dtype=F64).to(dtype)
    tensor = rotated(3.0, 1.0, 30)
    for boundary in ("insulated", "periodic"):
        got = diffuse_tensor(x, tensor.float(), boundary=boundary)
        assert got.dtype == dtype
        want = diffuse_tensor(x.double(), tensor, boundary=boundary)
        assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("boundary", ["insulated", "zero", "periodic"])
def test_derivatives(boundary):
    x = torch.randn(1, 3, 4, 2, dtype=F64, requires_grad=True)
    parts = torch.tensor([[2.0, 3.0, 0.8], [1.5, 1.2, -0.5]], dtype=F64, requires_grad=True)

    def conducted(x, parts):
        rows = torch.stack([parts[:, 0], parts[:, 2], parts[:, 2], parts[:, 1]], 1).view(2, 2, 2)
        return diffuse_tensor(x, rows, boundary=boundary)

    assert gradcheck(conducted, (x, parts))
    assert gradgradcheck(conducted, (x, parts))


@pytest.mark.parametrize("boundary", ["insulated", "zero", "periodic"])
@pytest.mark.parametrize("axes", [2, 3])
def test_a_tensor_without_off_diagonal_values_gets_gradients_to_them(boundary, axes):
    """Of a point far from the rim, where heat does not see the boundary: the difference quotient, on both sides."""
    x = torch.zeros(1, *[17] * axes, 1, dtype=F64)
    x[(0, *[8] * axes, 0)] = 1
    weights = torch.randn(5, *[5] * axes, dtype=F64)
    weights = torch.nn.functional.pad(weights[:1].unsqueeze(-1), (0, 0, *[6] * (2 * axes)))

    def loss(tensor):
        return (diffuse_tensor(x, tensor, boundary=boundary) * weights).sum()

    tensor = torch.eye(axes, dtype=F64, requires_grad=True)
    (got,) = torch.autograd.grad(loss(tensor), tensor)
    for row, column in [(0, 1), (0, 2), (1, 2)][: 1 if axes == 2 else 3]:
        step = torch.zeros(axes, axes, dtype=F64)
        step[row, column] = step[column, row] = 1e-5
        want = (loss(tensor.detach() + step) - loss(tensor.detach() - step)) / 2e-5
        assert want.abs() > 1e-3
        torch.testing.assert_close(got[row, column] + got[column, row], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("boundary", ["insulated", "periodic"])
def test_no_images(boundary):
    tensor = rotated(3.0, 1.0, 30).requires_grad_()
    y = diffuse_tensor(torch.zeros(0, 7, 9, 2, dtype=F64), tensor, boundary=boundary)
    assert y.shape == (0, 7, 9, 2)
    assert torch.equal(torch.autograd.grad(y.sum(), tensor)[0], torch.zeros(2, 2, dtype=F64))


def rotated_in_space(diffusivities, seed=0):
    """Along three axes turned at random, (3, 3); diagonally dominant where the diffusivities are alike enough."""
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(seed)))
    tensor = turn @ torch.diag(torch.tensor(diffusivities, dtype=F64)) @ turn.T
    return (tensor + tensor.T) / 2


@pytest.mark.parametrize("boundary", ["insulated", "zero", "periodic"])
def test_clips_along_the_axes_are_diffuse(boundary):
    x = torch.randn(2, 4, 6, 5, 3, dtype=F64)
    tensor = torch.diag(torch.tensor([0.7, 3.0, 1.5], dtype=F64))
    want = diffuse(x, (0.7, 3.0, 1.5), boundary=boundary)
    torch.testing.assert_close(diffuse_tensor(x, tensor, boundary=boundary), want)


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("boundary", ["insulated", "periodic"])
def test_a_plane_turned_by_itself_is_the_form_in_two_dimensions(boundary, pair):
    x = torch.randn(1, 6, 7, 8, 2, dtype=F64)
    (other,) = {0, 1, 2} - set(pair)
    tensor = torch.zeros(3, 3, dtype=F64)
    inside = rotated(3.0, 1.0, 30)
    tensor[torch.tensor(pair)[:, None], torch.tensor(pair)] = inside
    planes = x.movedim(other + 1, 1)
    want = diffuse_tensor(planes.flatten(0, 1), inside, boundary=boundary).view(planes.shape).movedim(1, other + 1)
    torch.testing.assert_close(diffuse_tensor(x, tensor, boundary=boundary), want)


@pytest.mark.parametrize("boundary", ["insulated", "zero", "periodic"])
def test_a_point_inside_a_clip_becomes_the_rotated_gaussian(boundary):
    tensor = rotated_in_space([2.2, 1.6, 1.2])
    x = torch.zeros(1, 25, 25, 25, 1, dtype=F64)
    x[0, 12, 12, 12] = 1
    place = torch.arange(-12, 13, dtype=F64)
    offset = torch.stack(torch.meshgrid(place, place, place, indexing="ij"), -1)
    exponent = torch.einsum("abci,ij,abcj->abc", offset, torch.linalg.inv(tensor), offset) / 4
    want = torch.exp(-exponent) / ((4 * math.pi) ** 1.5 * torch.linalg.det(tensor).sqrt())
    got = diffuse_tensor(x, tensor, boundary=boundary)[0, ..., 0]
    assert tensor[[0, 0, 1], [1, 2, 2]].abs().min() > 0.1, "all three planes are turned"
    assert (got - want).abs().max() < 4e-3 * want.max()


def test_in_clips_heat_is_kept_and_the_operator_is_its_own_adjoint():
    x, y = torch.randn(2, 1, 4, 5, 6, 2, dtype=F64)
    tensor = torch.stack([rotated_in_space([2.2, 1.6, 1.2]), rotated_in_space([2.0, 1.5, 1.4], seed=1)])
    for boundary in ("insulated", "periodic"):
        kept = diffuse_tensor(x, tensor, boundary=boundary)
        torch.testing.assert_close(kept.sum((1, 2, 3)), x.sum((1, 2, 3)))
        torch.testing.assert_close((kept * y).sum(), (x * diffuse_tensor(y, tensor, boundary=boundary)).sum())


def test_in_clips_too_the_error_falls_with_the_square_of_the_steps():
    x = torch.zeros(1, 6, 7, 8, 1, dtype=F64)
    x[0, 0, 0, 3] = 1
    tensor = rotated_in_space([2.2, 1.6, 1.2])
    limit = diffuse_tensor(x, tensor, steps=64)
    errors = [(diffuse_tensor(x, tensor, steps=steps) - limit).abs().max().item() for steps in (4, 8, 16)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0


def test_each_clip_has_its_own_tensor():
    x = torch.randn(2, 3, 4, 5, 1, dtype=F64)
    tensors = torch.stack([rotated_in_space([2.2, 1.6, 1.2], seed) for seed in (0, 1)])[:, None]
    got = diffuse_tensor(x, tensors)
    for clip in range(2):
        torch.testing.assert_close(got[clip : clip + 1], diffuse_tensor(x[clip : clip + 1], tensors[clip, 0]))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_diagonal_values_may_be_as_small_as_the_sizes_of_the_others_together(dtype):
    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        half = torch.randn(3, 3, generator=generator, dtype=dtype).triu(1)
        tensor = half + half.T
        tensor += torch.diag(tensor.abs().sum(1))
        diffuse_tensor(torch.zeros(1, 2, 2, 2, 1, dtype=dtype), tensor)


@pytest.mark.parametrize("boundary", ["insulated", "periodic"])
def test_derivatives_in_clips(boundary):
    x = torch.randn(1, 2, 3, 2, 1, dtype=F64, requires_grad=True)
    parts = torch.tensor([2.0, 2.5, 2.2, 0.4, -0.5, 0.3], dtype=F64, requires_grad=True)

    def conducted(x, parts):
        tt, hh, ww, th, tw, hw = parts
        rows = torch.stack([tt, th, tw, th, hh, hw, tw, hw, ww]).view(3, 3)
        return diffuse_tensor(x, rows, boundary=boundary)

    assert gradcheck(conducted, (x, parts))


X = torch.zeros(2, 4, 6, 3)
EYE = torch.eye(2)
REFUSED = {
    "rank": (ValueError, r"x must be \(B, H, W, C\)", lambda: diffuse_tensor(X[0], EYE)),
    "shape": (ValueError, r"tensor must be \(2, 2\), \(3, 2, 2\) or \(2, 3, 2, 2\)", lambda: diffuse_tensor(X, X[0])),
    "type": (TypeError, "tensor must be torch.float32 beside", lambda: diffuse_tensor(X, EYE.double())),
    "steps": (ValueError, "steps must be a whole number of 1 or more, got 0", lambda: diffuse_tensor(X, EYE, steps=0)),
    "not symmetric": (
        ValueError,
        "must be symmetric",
        lambda: diffuse_tensor(X, torch.tensor([[2.0, 1.0], [0.5, 2.0]])),
    ),
    "too anisotropic": (
        ValueError,
        "no larger than either",
        lambda: diffuse_tensor(X, rotated(9.0, 0.5, 22.5).float()),
    ),
    "clip of the form for images": (
        ValueError,
        r"tensor must be \(3, 3\), \(3, 3, 3\) or \(1, 3, 3, 3\)",
        lambda: diffuse_tensor(torch.zeros(1, 2, 4, 6, 3), EYE),
    ),
    "too anisotropic in a clip": (
        ValueError,
        "no diagonal value may be smaller",
        lambda: diffuse_tensor(torch.zeros(1, 2, 4, 6, 3), torch.eye(3) + 0.6 * (1 - torch.eye(3))),
    ),
    "boundary": (ValueError, "unknown boundary", lambda: diffuse_tensor(X, EYE, boundary="open")),
    "half a step": (ValueError, "a whole number of 1 or more, got 1.5", lambda: diffuse_tensor(X, EYE, steps=1.5)),
    "NaN": (ValueError, "tensor must be finite", lambda: diffuse_tensor(X, EYE * float("nan"))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_misfits_are_refused(case):
    error, message, call = REFUSED[case]
    with pytest.raises(error, match=message):
        call()
