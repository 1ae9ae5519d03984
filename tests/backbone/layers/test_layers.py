"""Products and convolutions in inference: the values of plain torch, and the weights of now."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from vheatir.backbone.layers import packed
from vheatir.backbone.layers.freezing import freeze, kept_info
from vheatir.backbone.layers.mlp import Mlp
from vheatir.backbone.layers.packed import ChannelsLastConv2d, Linear

needs_onednn = pytest.mark.skipif(not packed.has_fast_onednn(), reason="needs a processor with AVX2 or AVX-512")


def value(module, x):
    with torch.no_grad():
        return module(x)


@pytest.fixture(params=[False, True], ids=["weight as it is", "frozen"])
def ready(request):
    """Brings a layer into eval mode, frozen or not."""
    return freeze if request.param else lambda layer: layer.eval()


@needs_onednn
@pytest.mark.parametrize("rows", [1, 49, packed.MOST_ROWS_PACKED + 1])
def test_values_without_gradients(rows, ready):
    torch.manual_seed(0)
    x, linear, mlp = torch.randn(1, 1, rows, 24), ready(Linear(24, 40)), Mlp(24, 48)
    want = F.linear(x.double(), linear.weight.double(), linear.bias.double())
    torch.testing.assert_close(value(linear, x).double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value(ready(mlp), x), mlp(x), rtol=1e-5, atol=1e-5)
    without_bias = Linear(24, 40, bias=False)
    torch.testing.assert_close(value(ready(without_bias), x), without_bias(x), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_a_weight_in_any_order_of_memory(ready):
    conv, linear, x = ChannelsLastConv2d(24, 40, 1), Linear(24, 40), torch.randn(1, 3, 5, 24)
    conv.to(memory_format=torch.channels_last)
    linear.weight = torch.nn.Parameter(torch.randn(24, 80)[:, ::2].T)
    for layer in (conv, linear):
        torch.testing.assert_close(value(ready(layer), x), layer(x), rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("inside", [False, True], ids=["GELU after it", "GELU inside"])
def test_a_part_of_wider_maps_and_gelu_far_from_zero(inside, monkeypatch):
    monkeypatch.setattr(packed, "_has_fast_onednn_gelu", lambda: inside)
    wide, conv = torch.linspace(-60, 60, 5 * 7 * 48).view(1, 5, 7, 48), ChannelsLastConv2d(24, 24, 1)
    part = wide.chunk(2, -1)[1]
    with torch.no_grad():
        want = F.gelu(F.linear(part.double(), conv.weight.flatten(1).double(), conv.bias.double()))
        torch.testing.assert_close(conv(part, gelu=True).double(), want, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=[False, True], ids=["channels-last weight", "oneDNN"])
def onednn(request, monkeypatch):
    """Convolutions with the weight kept in either order; both are right, and one of them fast, on any processor."""
    monkeypatch.setattr(packed, "has_fast_onednn", lambda: request.param)


@pytest.mark.parametrize("how", [{"padding_mode": "reflect"}, {"padding": "same"}, {"dilation": 2}], ids=str)
def test_other_convolutions_without_gradients(how, onednn, ready):
    conv, maps = ChannelsLastConv2d(8, 6, 3, **{"padding": 1, **how}), torch.randn(2, 9, 7, 8)
    want = conv(maps).detach()
    ready(conv)
    for _ in range(2):
        torch.testing.assert_close(value(conv, maps), want, rtol=1e-5, atol=1e-5)
    conv.stride, conv.padding = (2, 2), (0, 0)
    torch.testing.assert_close(value(conv, maps), conv(maps), rtol=1e-5, atol=1e-5)


def test_layers_compile_in_one_graph():
    for layer in (Linear(8, 3), ChannelsLastConv2d(8, 3, 3)):
        x = torch.randn(2, 5, 5, 8)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


@pytest.mark.parametrize("stride, groups, bias", [(1, 1, True), (2, 1, False), (1, 24, True)])
def test_convolutions_without_gradients(stride, groups, bias, onednn, ready):
    conv = ChannelsLastConv2d(24, 24, 3, stride=stride, padding=1, groups=groups, bias=bias)
    conv.requires_grad_(False)  # or the passes with gradients would leave the frozen state
    ready(conv)
    for size in ((7, 9), (1, 1), (16, 12)):  # the weight is packed for the first one
        maps = torch.randn(2, *size, 24)
        for one in (maps, torch.cat((maps, maps), -1)[..., 24:]):
            want = conv(one).detach()
            torch.testing.assert_close(value(conv, one), want, rtol=1e-5, atol=1e-5)
    assert value(conv, maps).is_contiguous()


def test_a_frozen_convolution_keeps_its_weight_in_another_order_until_it_changes(onednn, monkeypatch):
    made, keep = [], ChannelsLastConv2d.keep
    monkeypatch.setattr(ChannelsLastConv2d, "keep", lambda self, *given: made.append(keep(self, *given)) or made[-1])
    conv, maps = freeze(ChannelsLastConv2d(24, 16, 3, stride=2, padding=1)), torch.randn(1, 9, 8, 24)
    value(conv, maps)
    value(conv, maps)
    assert made[1] is made[0] and conv.weight.is_contiguous() and kept_info(conv).forms == 1
    with torch.no_grad():
        conv.weight.mul_(2)
    y = value(conv, maps)
    assert made[2] is not made[0] and kept_info(conv).forms == 1
    torch.testing.assert_close(y, conv(maps), rtol=1e-5, atol=1e-5)
    assert kept_info(conv)[1:] == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.weight.add_(1),
        lambda one: one.load_state_dict({"weight": torch.ones(3, 8), "bias": torch.ones(3)}),
        lambda one: setattr(one, "weight", torch.nn.Parameter(torch.ones(3, 8))),
        lambda one: setattr(one.weight, "data", torch.ones(3, 8)),
        lambda one: (one.weight.data.add_(1), one.eval()),
    ],
    ids=["in place", "loaded", "replaced", "new data", "data, then eval"],
)
def test_a_changed_weight_is_used(change, ready):
    linear, x = ready(Linear(8, 3)), torch.randn(5, 8)
    value(linear, x)
    with torch.no_grad():
        change(linear)
    torch.testing.assert_close(value(linear, x), F.linear(x, linear.weight, linear.bias))


def test_used_modules_can_be_copied_and_pickled(ready):
    linear, x = ready(Linear(8, 3)), torch.randn(5, 8)
    want = value(linear, x)
    for other in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        torch.testing.assert_close(value(other, x), want)
    assert value(linear.double(), x.double()).dtype == torch.float64


@needs_onednn
def test_a_weight_made_in_inference_mode_is_not_kept(ready):
    with torch.inference_mode():
        linear, x = ready(Linear(8, 3)), torch.randn(2, 8)
        linear(x)
        linear.load_state_dict({"weight": torch.ones(3, 8), "bias": torch.ones(3)})
        torch.testing.assert_close(linear(x), F.linear(x, torch.ones(3, 8), torch.ones(3)))


@torch.no_grad()
def test_without_gradients_but_with_tangents_batches_of_weights_and_counters(ready):
    linear, x = ready(Linear(8, 3)), torch.randn(2, 8)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(linear(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    torch.testing.assert_close(tangent, F.linear(torch.ones_like(x), linear.weight))
    weights = torch.randn(4, 3, 8)
    many = torch.vmap(lambda weight: functional_call(linear, {"weight": weight, "bias": linear.bias}, (x,)))(weights)
    torch.testing.assert_close(many, x @ weights.mT + linear.bias)
    with FlopCounterMode(display=False) as counter:
        linear(x)
    assert counter.get_total_flops() == 2 * 2 * 8 * 3


def test_gelu_follows_an_adapter_in_place_of_the_first_layer():
    class Adapter(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer
            self.added = ChannelsLastConv2d(8, 12, 1)

        def forward(self, x):
            return self.layer(x) + self.added(x)

    torch.manual_seed(0)
    x, mlp = torch.randn(1, 3, 5, 8), Mlp(8, 12)
    want = mlp.fc2(F.gelu(mlp.fc1(x) + (adapter := Adapter(mlp.fc1)).added(x)))
    mlp.fc1 = adapter
    torch.testing.assert_close(mlp(x), want)
