"""The U-shaped network: shapes, stages, configuration from weights, gray from color, frozen and bf16 passes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils import prune
from torch.testing import assert_close

from vheatir.archs import networks
from vheatir.archs.heat_attention import HeatAttention
from vheatir.archs.vheatir_arch import padded
from vheatir.archs.vheatunet_arch import VHeatUNet, config_from_state_dict, gray_from_color
from vheatir.backbone import freeze, kept_info
from vheatir.backbone.layers.packed import Linear
from vheatir.export.graph import trace
from vheatir.kernels.reference import hco_reference

TINY = {"dim": 4, "encoder": [1, 1], "middle": 1, "decoder": [1, 1], "attention": ["heat"] * 3}


def network(**changes):
    """A small network whose branches all count; those scaled from zero would hide mistakes."""
    torch.manual_seed(0)
    net = VHeatUNet(**{**TINY, **changes})
    for name, parameter in net.named_parameters():
        if "scale" in name or name.startswith("conv_last"):
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def test_the_untrained_network_returns_its_input():
    image = torch.rand(1, 3, 13, 18)
    assert torch.equal(VHeatUNet(**TINY)(image), image)


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (4, 4), (13, 18)])
def test_any_size_keeps_its_shape(size, in_chans):
    net, image = network(in_chans=in_chans), torch.rand(2, in_chans, *size)
    restored = net(image)
    assert restored.shape == image.shape and restored.isfinite().all()
    assert not torch.allclose(restored, image, atol=1e-3)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_is_as_asked_for(mode):
    net, image = network(padding=mode), torch.rand(1, 3, 10, 14)
    larger = torch.nn.functional.pad(image, (0, 2, 0, 2), mode=mode)
    assert_close(net(image), net(larger)[..., :10, :14])


@pytest.mark.parametrize("exporting", [False, True])
@pytest.mark.parametrize("mode", ["reflect", "edge"])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 8, 9])
def test_padded_sides_are_those_of_numpy(side, mode, exporting, monkeypatch):
    if exporting and side < 3:
        pytest.skip("exported networks take sides of at least 3 pixels")
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    image = torch.rand(1, 2, side, 9)
    more = padded(image, 16, 16, {"edge": "replicate"}.get(mode, mode))
    assert np.array_equal(more, np.pad(image, ((0, 0), (0, 0), (0, 16 - side), (0, 7)), mode=mode))


def test_attention_is_the_operator():
    layer = HeatAttention(5, (0.7, 4.0)).double()
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    assert_close(layer(x), x * layer.linear(hco_reference(x, layer.decay(6, 7))))
    k = layer.log_k.exp()
    assert_close((2 * k[[0, -1]]).sqrt(), torch.tensor([0.7, 4.0], dtype=torch.float64), rtol=1e-4, atol=0)


def test_every_weight_gets_a_gradient():
    net = network().train()
    net(torch.rand(2, 3, 16, 16)).square().mean().backward()
    assert [name for name, one in net.named_parameters() if one.grad is None or not one.grad.any()] == []


def test_checkpointing_changes_no_gradient():
    image = torch.rand(1, 3, 16, 12)
    gradients = []
    for checkpointing in (False, True):
        net = network(checkpointing=checkpointing).train()
        net(image).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert_close(*gradients)


def test_level_map_is_an_input_plane():
    net, image = network(level_map=True), torch.rand(2, 3, 9, 12)
    low, high = net(image, torch.tensor([0.1, 0.1])), net(image, torch.tensor([0.1, 0.9]))
    assert_close(low[0], high[0])
    assert not torch.allclose(low[1], high[1], atol=1e-4)
    assert_close(net(image, torch.full((2, 1, 9, 12), 0.1)), low)
    with pytest.raises(ValueError, match="needs a level"):
        net(image)
    with pytest.raises(ValueError, match="takes no level"):
        network()(image, torch.tensor([0.1, 0.1]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"in_chans": 2}, "in_chans must be 1"),
        ({"dim": 0}, "dim must be"),
        ({"middle": -1}, "middle must be"),
        ({"encoder": []}, "encoder must be"),
        ({"decoder": [1]}, "decoder must have as many stages"),
        ({"attention": ["heat", "heat"]}, "attention must be"),
        ({"attention": ["heat", "heat", "warm"]}, "attention must be"),
        (
            {"attention": ["heat", "grid", "heat", "grid"], "encoder": [1] * 3, "decoder": [1] * 3},
            "three finest stages",
        ),
        ({"reach": [0, 4.0]}, "reach must be"),
        ({"reach": [5, 1]}, r"reach must be two rising .* got \[5, 1\]"),
        ({"reach": 5}, "reach must be two rising"),
    ],
)
def test_arguments_that_no_network_has_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VHeatUNet(**{**TINY, **changes})


@pytest.mark.parametrize("image", [torch.rand(3, 8, 8), torch.rand(1, 1, 8, 8), torch.rand(1, 3, 0, 8)])
def test_images_of_other_shapes_are_refused(image):
    with pytest.raises(ValueError, match="expected images"):
        network()(image)


@pytest.mark.parametrize("changes", [{}, {"in_chans": 1}, {"level_map": True}, {"attention": ["none", "mean", "heat"]}])
def test_configuration_is_read_from_the_weights(changes):
    net = network(**changes)
    config = config_from_state_dict(net.state_dict())
    wanted = {key: net.config[key] for key in config}
    assert config == wanted
    assert networks.config_from_state_dict(net.state_dict()) == ("VHeatUNet", config)
    VHeatUNet(**config).load_state_dict(net.state_dict())


def test_other_weights_are_named():
    with pytest.raises(ValueError, match=r"none of VHeatIR, VHeatUNet.*; the first keys are body"):
        networks.arch_of_state_dict({"body.0.weight": torch.zeros(1)})


def test_gray_network_does_what_the_color_network_does_to_gray():
    color, gray = network(), network(in_chans=1)
    gray.load_state_dict(gray_from_color(color.state_dict()))
    image = torch.rand(1, 1, 12, 20)
    assert_close(gray(image), color(image.expand(-1, 3, -1, -1)).mean(1, keepdim=True), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="color VHeatUNet"):
        gray_from_color(gray.state_dict())


@pytest.mark.parametrize("attention", [["heat"] * 3, ["mean"] * 3, ["none"] * 3])
def test_frozen_network_answers_the_same(attention):
    net, image = network(attention=attention, dim=16), torch.rand(2, 3, 37, 50)
    with torch.no_grad():
        wanted = network(attention=attention, dim=16).double()(image.double())
        freeze(net)
        for _ in range(2):  # what is kept is made, then used
            assert_close(net(image).double(), wanted, rtol=1e-4, atol=1e-5)
        assert kept_info(net).forms > 0


def test_frozen_network_in_bf16_stays_near(monkeypatch):
    net, image = freeze(network(dim=16)), torch.rand(1, 3, 37, 50)
    with torch.no_grad():
        wanted = net(image)
        with torch.autocast("cpu", torch.bfloat16):
            restored = net(image)
    error = (restored - wanted).square().mean().sqrt()
    assert restored.dtype == torch.float32 and 0 < error < 0.02 * (wanted - image).square().mean().sqrt()


def test_frozen_block_computes_in_the_type_that_autocast_asks_for():
    block, x = network(dim=16).encoder[0][0], torch.randn(1, 8, 8, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        wanted = block(x)
        assert_close(freeze(block)(x), wanted, rtol=1e-6, atol=1e-6)


AVX2_ALONE = """
import torch
from tests.vheatir.archs.test_vheatunet_arch import network
from vheatir.backbone import freeze

net, image = network(dim=16), torch.rand(1, 3, 16, 16)
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
    wanted = net(image)
    torch.testing.assert_close(freeze(net)(image), wanted, rtol=1e-2, atol=1e-2)
"""


def test_frozen_network_takes_bf16_where_onednn_does_not():
    """With AVX2 alone oneDNN refuses products of bfloat16, which PyTorch makes by other means."""
    variables = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    root = Path(__file__).parents[3]  # of the package `tests`, wherever the tests are started
    command = [sys.executable, "-c", AVX2_ALONE]
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_that_autocast_narrowed_are_summed_in_float32(dtype):
    block, x = network(dim=16).encoder[0][0], torch.randn(1, 8, 8, 16).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert block(x).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_another_type_run_under_autocast(dtype):
    net, image = network(), torch.rand(1, 3, 13, 18)
    with torch.no_grad():
        wanted = net(image)
        net = net.to(dtype)
        with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float64 else dtype):
            restored = net(image.to(dtype))
    assert restored.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.05
    assert_close(restored.float(), wanted, rtol=tolerance, atol=tolerance)


def test_weights_that_change_are_the_weights_used():
    net, image = network(), torch.rand(1, 3, 16, 16)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05, fused=True)
    with torch.no_grad():
        net(image)
    for _ in range(3):
        net(image).square().mean().backward()
        optimizer.step()
    fresh = VHeatUNet(**net.config).eval()
    fresh.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert_close(net(image), fresh(image), rtol=1e-6, atol=1e-6)


def test_exported_program_takes_any_size():
    net = network()
    program = trace(net).module()
    for size in [(1, 9, 33), (2, 40, 24)]:
        image = torch.rand(size[0], 3, *size[1:])
        assert_close(program(image), net(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_hooks_of_the_layers_of_a_block_are_called(frozen):
    """As feature extractors, pruning and the older norms of weights set them."""
    net = network()
    called = []
    for name, module in net.middle[0].named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        (freeze(net) if frozen else net)(image)
    assert set(called) == {name for name, _ in net.middle[0].named_modules()}


def test_a_pruned_network_trains():
    """Pruning computes the weight in a hook, anew for each pass."""
    net = network().train()
    layer = net.middle[0].dwconv
    prune.l1_unstructured(layer, "weight", 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    image = torch.rand(1, 3, 8, 8)
    for _ in range(2):
        before = layer.weight_orig.detach().clone()
        optimizer.zero_grad()
        net(image).square().mean().backward()
        optimizer.step()
        assert not torch.equal(before, layer.weight_orig)
    net(image)
    assert torch.equal(layer.weight, layer.weight_orig * layer.weight_mask)


class Adapter(torch.nn.Module):
    """A low-rank adapter around a layer, without attributes of that layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.inside = torch.nn.Linear(layer.in_features, 2, bias=False)
        self.outside = torch.nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.outside(self.inside(x))


class AdaptedLinear(Linear):
    """An adapter that is the layer itself, with its weight and bias."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features)
        self.load_state_dict(layer.state_dict())
        self.added = torch.nn.Linear(layer.in_features, layer.out_features)

    def forward(self, x):
        return super().forward(x) + self.added(x)


@pytest.mark.parametrize("adapter", [Adapter, AdaptedLinear])
@pytest.mark.parametrize("place", ["expand", "project", "fc1", "fc2", "attention.linear"])
def test_layers_that_were_replaced_are_called(place, adapter):
    model = network()
    block = model.middle[0]
    block.set_submodule(place, adapter(block.get_submodule(place)))
    image = torch.rand(1, 3, 12, 9)
    model(image).square().sum().backward()
    assert all(p.grad is not None for p in block.get_submodule(place).parameters())
    with torch.no_grad():
        free = model.eval()(image)
        assert not torch.equal(free, network()(image))
        assert_close(freeze(model)(image), free, atol=1e-5, rtol=1e-5)


class ScaledNorm(torch.nn.LayerNorm):
    """A norm with a factor behind it."""

    def forward(self, x):
        return super().forward(x) * 1.5


@pytest.mark.parametrize("kind", [ScaledNorm, lambda dim: torch.nn.RMSNorm(dim)], ids=["subclass", "RMSNorm"])
@pytest.mark.parametrize("place", ["norm1", "norm2"])
def test_norms_that_were_replaced_are_called(place, kind):
    model = network()
    block = model.middle[0]
    block.set_submodule(place, kind(block.norm1.normalized_shape[0]))
    calls = []
    image = torch.rand(1, 3, 12, 9)
    with torch.no_grad():
        free, frozen = model(image), freeze(model)(image)
        block.get_submodule(place).register_forward_hook(lambda *_: calls.append(1))
        assert_close(free, model(image), atol=1e-5, rtol=1e-5)  # with a hook nothing is fused
    assert_close(frozen, free, atol=1e-5, rtol=1e-5)
    assert calls
