"""Forms of heat in gated blocks: values against the definition, gradients, any size, levels, export, frozen passes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

from vheatir.archs.heat_attention import ATTENTION, build_attention
from vheatir.archs.vheatunet_arch import VHeatUNet, config_from_state_dict
from vheatir.backbone import freeze
from vheatir.export.graph import trace
from vheatir.kernels.dct import dct_matrix
from vheatir.kernels.reference import hco_reference

FORMS = ("quarter", "pooled", "frequency", "adaptive", "grid", "gate")
REACH = (0.7, 4.0)
DIM = 8


def squares(height, width):
    """w_h^2 + w_w^2 as (H, W, 1)."""
    rows, columns = (torch.pi * torch.arange(side, dtype=torch.float64) / side for side in (height, width))
    return (rows[:, None] ** 2 + columns[None] ** 2)[..., None]


def cosine_transform(x):
    """DCT-II over H and W of (B, H, W, C)."""
    rows, columns = (dct_matrix(side, dtype=torch.float64) for side in x.shape[1:3])
    return torch.einsum("nh,bhwc,mw->bnmc", rows, x, columns)


def layer_of(form, window=8):
    """One layer in float64 whose parameters are all of some size; those that start at zero would hide mistakes."""
    torch.manual_seed(0)
    layer = build_attention(form, DIM, REACH, window).double()
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return layer


def wanted(layer, x, form):
    """What the layer gives, from the definition of the operator."""
    height, width = x.shape[1:3]
    omega = squares(height, width)
    if form == "gate":
        return hco_reference(x, 1 + layer.share * (torch.exp(-layer.log_k.exp() * omega) - 1))
    if form == "quarter":
        part = x[..., : DIM // 4]
        return x * layer.linear(hco_reference(part, torch.exp(-layer.log_k.exp() * omega)))
    if form == "frequency":
        table = layer.embedding.detach()
        rows = torch.arange(height) * 16 / height
        columns = torch.arange(width) * 16 / width
        low_r, low_c = rows.long(), columns.long()
        share_r, share_c = (rows - low_r)[:, None, None], (columns - low_c)[None, :, None]
        high_r, high_c = (low_r + 1).clamp(max=15), (low_c + 1).clamp(max=15)
        upper = table[low_r][:, low_c] * (1 - share_c) + table[low_r][:, high_c] * share_c
        lower = table[high_r][:, low_c] * (1 - share_c) + table[high_r][:, high_c] * share_c
        k = F.relu(layer.to_k(upper * (1 - share_r) + lower * share_r))
        return x * layer.linear(hco_reference(x, torch.exp(-k * omega)))
    if form == "adaptive":
        images = []
        for image in x:
            k = (layer.log_k + 2 * torch.tanh(layer.to_scale(image.mean((0, 1))))).exp()
            images.append(hco_reference(image[None], torch.exp(-k * omega)))
        return x * layer.linear(torch.cat(images))
    if form == "grid":
        decay = torch.exp(-layer.grid_log_k.exp() * squares(8, 8))
        heat = torch.empty_like(x)
        for row in range(0, height, 8):
            for column in range(0, width, 8):
                block = slice(row, row + 8), slice(column, column + 8)
                heat[:, *block] = hco_reference(x[:, *block], decay)
        return x * layer.linear(heat)
    sums = F.pad(x.permute(0, 3, 1, 2), (0, width % 2, 0, height % 2)).unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2))
    ones = F.pad(torch.ones(1, 1, height, width), (0, width % 2, 0, height % 2))
    count = ones.unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2))
    pooled = (sums / count).permute(0, 2, 3, 1)
    heat = hco_reference(pooled, torch.exp(-layer.pooled_log_k.exp() * squares(*pooled.shape[1:3])))
    gain = layer.linear(heat).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width]
    return x * gain


def size_of(form):
    return (16, 24) if form == "grid" else (9, 14)


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_the_definition(form):
    layer, x = layer_of(form), torch.randn(2, *size_of(form), DIM, dtype=torch.float64)
    assert_close(layer(x), wanted(layer, x, form), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_definition(form):
    layer, x = layer_of(form), torch.randn(2, *size_of(form), DIM, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, *size_of(form), DIM, dtype=torch.float64)
    trained = [parameter for name, parameter in layer.named_parameters() if name != "embedding"]
    ours = torch.autograd.grad((layer(x) * weight).sum(), [x, *trained])
    theirs = torch.autograd.grad((wanted(layer, x, form) * weight).sum(), [x, *trained])
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert all(gradient.any() for gradient in ours)


def test_the_table_of_frequencies_learns():
    layer, x = layer_of("frequency"), torch.randn(1, 16, 16, DIM, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda table: torch.func.functional_call(layer, {"embedding": table}, (x[:, :3, :3],)).sum(),
        layer.embedding.detach().requires_grad_(),
        fast_mode=True,
    )


@pytest.mark.parametrize("form", ["quarter", "pooled", "frequency", "gate", "grid"])
def test_lengths_start_between_those_of_reach(form):
    torch.manual_seed(0)
    layer = build_attention(form, DIM, REACH, 8)
    if form == "gate":
        nn.init.ones_(layer.share)
    decay = layer.decay(8, 8).double()
    pixels = (2 * -decay[1, 0].log()).sqrt() / (torch.pi / 8)
    pixels *= 2 if form == "pooled" else 1  # a pixel of its map is two of the block's
    assert_close(pixels[[0, -1]], torch.tensor(REACH, dtype=torch.float64), rtol=0.05, atol=0)


@pytest.mark.parametrize("form", ["heat", *FORMS])
def test_falling_lengths_are_refused(form):
    with pytest.raises(ValueError, match="reach must be two rising"):
        build_attention(form, DIM, REACH[::-1], 8)


def test_the_gate_starts_without_heat_and_sharpens_with_a_negative_share():
    layer, x = build_attention("gate", DIM, REACH, 8).double(), torch.randn(1, 8, 8, DIM, dtype=torch.float64)
    assert_close(layer(x), x)
    nn.init.constant_(layer.share, -0.5)
    before, after = (cosine_transform(maps) for maps in (x, layer(x)))
    assert_close(after[:, 0, 0], before[:, 0, 0])
    assert (after[:, 1:, 1:].abs() > before[:, 1:, 1:].abs()).all()


def test_adaptive_heat_depends_on_its_image_alone():
    layer, x = layer_of("adaptive"), torch.randn(2, 8, 9, DIM, dtype=torch.float64)
    assert_close(layer(x)[:1], layer(x[:1]))
    brighter = layer(torch.stack([x[0], x[1] + 3]))
    assert_close(brighter[0], layer(x)[0])


def test_grid_windows_do_not_see_each_other():
    layer, x = layer_of("grid"), torch.randn(1, 16, 16, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[:, :8, :8] += 1
    before, after = layer(x), layer(changed)
    assert torch.equal(after[:, 8:], before[:, 8:]) and torch.equal(after[:, :8, 8:], before[:, :8, 8:])


def network(form, **changes):
    torch.manual_seed(0)
    attention = [form, form, "heat"]
    net = VHeatUNet(**{"dim": 16, "encoder": [1, 1], "decoder": [1, 1], "middle": 1, "attention": attention, **changes})
    for name, parameter in net.named_parameters():
        if "scale" in name or "share" in name or name.startswith("conv_last"):
            nn.init.normal_(parameter, std=0.3)
    return net.eval()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (13, 18)])
def test_any_size_in_a_network(form, size):
    restored = network(form, in_chans=1)(torch.rand(2, 1, *size))
    assert restored.shape == (2, 1, *size) and restored.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_level_map_and_gradients_in_a_network(form):
    net, image = network(form, level_map=True).train(), torch.rand(2, 3, 16, 24)
    low, high = net(image, torch.tensor([0.1, 0.1])), net(image, torch.tensor([0.1, 0.9]))
    assert_close(low[0], high[0])
    assert not torch.allclose(low[1], high[1], atol=1e-4)
    low.square().mean().backward()
    assert [name for name, one in net.named_parameters() if one.grad is None or not one.grad.any()] == []


@pytest.mark.parametrize("form", FORMS)
def test_configuration_is_read_from_the_weights(form):
    net = network(form)
    config = config_from_state_dict(net.state_dict())
    assert config == {key: net.config[key] for key in config}
    VHeatUNet(**config).load_state_dict(net.state_dict())


@pytest.mark.parametrize("form", FORMS)
def test_frozen_network_answers_the_same(form):
    net, image = network(form), torch.rand(1, 3, 37, 50)
    with torch.no_grad():
        exact = network(form).double()(image.double())
        freeze(net)
        for _ in range(2):  # what is kept is made, then used
            assert_close(net(image).double(), exact, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            narrow = net(image)
    error = (narrow - exact).square().mean().sqrt()
    assert narrow.dtype == torch.float32 and 0 < error < 0.03 * (exact - image).square().mean().sqrt()


def _pruned(layer):
    prune.random_unstructured(layer, "weight", 0.8)


@pytest.mark.parametrize("mode", [lambda layer: layer.eval(), freeze], ids=["compared", "frozen"])
@pytest.mark.parametrize(
    "first, then",
    [
        (_pruned, _pruned),
        (lambda layer: None, lambda layer: layer.register_forward_hook(lambda *_: torch.ones(4, 5, 8))),
    ],
    ids=["pruned", "hook"],
)
def test_what_a_diffusivity_of_frequencies_depends_on_beside_parameters_is_seen(first, then, mode):
    torch.manual_seed(0)
    layer, x = build_attention("frequency", 8, (1.0, 4.0), 8), torch.randn(1, 4, 5, 8)
    first(layer.to_k)
    mode(layer)
    with torch.no_grad():
        before = layer(x)
        then(layer.to_k)
        assert not torch.equal(layer(x), before)
        assert torch.equal(layer(x), copy.deepcopy(layer)(x))


@pytest.mark.parametrize("form", FORMS)
def test_exported_program_takes_any_size(form):
    net = network(form, dim=8)
    program = trace(net).module()
    for size in [(1, 9, 33), (2, 40, 24)]:
        image = torch.rand(size[0], 3, *size[1:])
        assert_close(program(image), net(image), rtol=1e-4, atol=1e-5)


def test_names_are_all_there():
    assert set(ATTENTION) == {"heat", "mean", "none", *FORMS}
    assert build_attention("none", DIM, REACH, 8) is None
