"""Passes without gradients use the weights of now, whatever changed them; kept forms stand where nothing may change."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.backbone.layers.freezing import KeptInfo, freeze, frozen, kept_info, unfreeze
from vheatir.backbone.layers.heat import HeatLayer
from vheatir.backbone.layers.packed import ChannelsLastConv2d, Linear
from vheatir.backbone.models.vheat import VHeat

_MIXERS = ("halo", "pvt", "swin", "convnext", "dcn_v3", "heat")


def _timm(name: str, side: int) -> nn.Module:
    from vheatir.backbone import create_model

    return create_model(name, img_size=side, num_classes=5, drop_path_rate=0.0)


def _restoration() -> nn.Module:
    network = VHeatIR(dim=80, depths=(6, 6), downscale=2, embed_size=8, reach=(0.5, 4.0))
    nn.init.trunc_normal_(network.conv_last.weight, std=0.02)
    return network


def _small() -> nn.Module:
    return VHeat(img_size=32, num_classes=5, dims=8, depths=(1, 1, 1, 1), reach=(0.5, 4.0), drop_path_rate=0.0)


BUILDERS = {
    "vheat_tiny": lambda: _timm("vheat_tiny", 64),
    **{f"unified_{mixer}": lambda mixer=mixer: _timm(f"unified_{mixer}_micro", 64) for mixer in _MIXERS},
    "VHeatIR light": _restoration,
}


def passed(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(x).clone()


def stepped(network: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


def _adamw(network, x):
    stepped(network, torch.optim.AdamW(network.parameters(), lr=0.05, fused=True), x)


def _sgd_fused(network, x):
    stepped(network, torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, fused=True), x)


def _sgd_foreach(network, x):
    stepped(network, torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, foreach=True), x)


def _momentum_encoder(network, x):
    for parameter in network.parameters():
        parameter.data.mul_(0.9).add_(0.02)


def _foreach_data(network, x):
    torch._foreach_mul_([parameter.data for parameter in network.parameters()], 1.1)


def _foreach_lerp(network, x):
    averaged = [parameter.data for parameter in network.parameters()]
    torch._foreach_lerp_(averaged, [torch.full_like(one, 0.05) for one in averaged], 0.2)


def _new_data(network, x):
    for parameter in network.parameters():
        parameter.data = parameter.data * 1.1


def _vector(network, x):
    vector_to_parameters(parameters_to_vector(network.parameters()).detach() * 1.1, network.parameters())


def _numpy(network, x):
    for parameter in network.parameters():
        parameter.detach().numpy()[...] *= 1.1


def _one_entry(network, x):
    """The smallest change that the values of a table allow."""
    for layer in network.modules():
        if isinstance(layer, HeatLayer):
            layer.to_k[0].bias.data[-1] += 0.5
        elif isinstance(layer, Linear | ChannelsLastConv2d):
            layer.weight.data.flatten()[-1] += 0.5


def _broadcast(network, x):
    """As another process's weights arrive; a group of one has no other, so the received values are written first."""
    for parameter in network.parameters():
        parameter.data.mul_(1.1)
        dist.broadcast(parameter.data, 0)


CHANGES = [_adamw, _sgd_fused, _sgd_foreach, _momentum_encoder, _foreach_data, _foreach_lerp, _new_data]
CHANGES += [_vector, _numpy, _one_entry, _broadcast]


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('group')}/it", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def assert_now(network: nn.Module, build, x: torch.Tensor, before: torch.Tensor) -> None:
    """The network gives what a new one with its weights gives, and not what it gave."""
    other = build()
    other.load_state_dict(network.state_dict())
    after = passed(network, x)
    torch.testing.assert_close(after, passed(other.train(network.training), x), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(after, before, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_fused_step_between_passes_is_seen(name):
    torch.manual_seed(0)
    network, x = BUILDERS[name]().eval(), torch.rand(2, 3, 64, 64)
    before = passed(network, x)
    _adamw(network, x)
    assert_now(network, BUILDERS[name], x, before)
    before = passed(network, x)
    _momentum_encoder(network, x)
    assert_now(network, BUILDERS[name], x, before)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
@pytest.mark.parametrize("build", [_small, _restoration], ids=["vHeat", "VHeatIR"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_every_change_between_passes_is_seen(build, change, mode, group):
    torch.manual_seed(0)
    network, x = build().eval(), torch.rand(2, 3, 32, 32)
    with mode():
        before = network(x).clone()
        network(x)
    change(network, x)
    assert_now(network, build, x, before)


@pytest.mark.parametrize("training", [False, True])
def test_a_folded_network_and_one_in_training_mode_see_changes(training):
    network, x = _small().train(training), torch.rand(1, 3, 32, 32)
    if not training:
        network.fold()
    before = passed(network, x)
    _momentum_encoder(network, x)
    other = copy.deepcopy(network)
    assert torch.equal(passed(network, x), passed(other, x)) and not torch.allclose(passed(network, x), before)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_frozen_network_gives_the_same_values_and_keeps_forms(name):
    torch.manual_seed(0)
    network, x = BUILDERS[name]().eval(), torch.rand(2, 3, 64, 64)
    want = passed(network, x)
    assert freeze(network) is network
    for _ in range(2):
        torch.testing.assert_close(passed(network, x), want, rtol=1e-4, atol=1e-5)
    info = kept_info(network)
    assert info.frozen == info.layers > 0 and info.forms > 0
    assert kept_info(unfreeze(network)) == KeptInfo(info.layers, 0, 0)
    assert torch.equal(passed(network, x), want) and all(one.requires_grad for one in network.parameters())


def test_forms_are_kept_between_passes_of_a_frozen_network(monkeypatch):
    made, make = [], HeatLayer._fresh_decay
    monkeypatch.setattr(HeatLayer, "_fresh_decay", lambda self, e: made.append(self) or make(self, e))
    network, x = freeze(_small()), torch.rand(1, 3, 32, 32)
    for _ in range(3):
        passed(network, x)
    assert len(made) == len(network.heat_layers())


@pytest.mark.parametrize(
    "leave",
    [lambda network, x: network.train(), lambda network, x: unfreeze(network), lambda network, x: network(x).sum()],
    ids=["train", "unfreeze", "pass with gradients"],
)
@pytest.mark.parametrize("build", [_small, _restoration], ids=["vHeat", "VHeatIR"])
def test_the_frozen_state_is_left_by(build, leave):
    torch.manual_seed(0)
    network, x = freeze(build()), torch.rand(2, 3, 32, 32)
    before = passed(network, x)
    leave(network, x)
    assert kept_info(network)[1:] == (0, 0)
    _adamw(network, x)
    assert_now(network, build, x, before)


def test_gradients_to_the_image_alone_do_not_leave_the_frozen_state():
    network, x = freeze(_small().requires_grad_(False)), torch.rand(1, 3, 32, 32)
    passed(network, x)
    network(x.requires_grad_()).sum().backward()
    info = kept_info(network)
    assert x.grad.abs().sum() > 0 and info.frozen == info.layers and info.forms > 0


@pytest.mark.parametrize(
    "drop",
    [
        lambda network: network.eval(),
        lambda network: network.load_state_dict(network.state_dict()),
        lambda network: network.load_state_dict(network.state_dict(), assign=True),
        lambda network: network.to("cpu", torch.float32),
        lambda network: network.double().float(),
        lambda network: freeze(network),
    ],
    ids=["eval", "load", "assign", "to", "double", "freeze"],
)
def test_what_a_frozen_network_keeps_is_dropped_by(drop):
    network, x = freeze(_small()), torch.rand(1, 3, 32, 32)
    before = passed(network, x)
    for parameter in network.parameters():
        parameter.data.mul_(1.1)
    drop(network)
    info = kept_info(network)
    assert info.forms == 0 and info.frozen == info.layers
    assert_now(network, _small, x, before)


@pytest.mark.parametrize("change", [_new_data, lambda network, x: [p.mul_(1.1) for p in network.parameters()]])
def test_changes_that_pytorch_counts_are_seen_in_a_frozen_network(change):
    network, x = freeze(_small()), torch.rand(1, 3, 32, 32)
    before = passed(network, x)
    with torch.no_grad():
        change(network, x)
    assert kept_info(network).frozen
    torch.testing.assert_close(passed(network, x), passed(copy.deepcopy(network), x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(passed(network, x), before)


def test_folding_and_unfolding_a_frozen_network():
    network, x = freeze(_small()), torch.rand(1, 3, 32, 32)
    before = passed(network, x)
    for change in (network.fold, network.unfold):
        change()
        torch.testing.assert_close(passed(network, x), before, rtol=1e-5, atol=1e-5)
    assert kept_info(network).frozen


def test_within_frozen_and_after_it():
    torch.manual_seed(0)
    network, x = _small().train(), torch.rand(2, 3, 32, 32)
    network.classifier.eval()  # as fine-tuning does with a part
    for _ in range(2):
        with frozen(network) as same:
            assert same is network and not any(module.training for module in network.modules())
            before = passed(network, x)
            assert kept_info(network).forms
        assert kept_info(network)[1:] == (0, 0)
        assert network.training and network.layers[0].training and not network.classifier.training
        _adamw(network, x)
        assert not torch.allclose(passed(network, x), before)
    assert_now(network, _small, x, before)


def test_an_error_within_frozen_and_a_network_frozen_before():
    network = freeze(_small())
    with pytest.raises(KeyError), frozen(network):
        raise KeyError
    info = kept_info(network)
    assert info.frozen == info.layers and not network.training
    network.train()
    with pytest.raises(KeyError), frozen(network):
        raise KeyError
    assert not kept_info(network).frozen and network.training


def test_copies_are_not_frozen():
    network, x = freeze(_small()), torch.rand(2, 3, 32, 32)
    want = passed(network, x)
    twin = copy.deepcopy(network)
    assert kept_info(twin)[1:] == (0, 0) and kept_info(network).frozen
    torch.testing.assert_close(passed(twin, x), want, rtol=1e-4, atol=1e-5)
    _adamw(twin, x)
    assert_now(twin, _small, x, want)


def test_networks_of_others_are_brought_to_eval_mode():
    network = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    assert not freeze(network).training and kept_info(network) == KeptInfo(0, 0, 0)
    with frozen(network.train()):
        assert not network[1].training
    assert network.training


@pytest.mark.parametrize("no_grad", [False, True])
def test_a_frozen_network_compiles_in_one_graph_and_exports(no_grad):
    network, x = freeze(_small()), torch.rand(2, 3, 32, 32)
    want = passed(network, x)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    with torch.set_grad_enabled(not no_grad):
        torch.testing.assert_close(compiled(x).detach(), want, rtol=1e-4, atol=1e-5)
    freeze(network)
    program = torch.export.export(network, (x,))
    torch.testing.assert_close(program.module()(x).detach(), want, rtol=1e-4, atol=1e-5)


def test_a_compiled_pass_with_gradients_leaves_the_frozen_state():
    torch.manual_seed(0)
    network, x = freeze(_small()), torch.rand(2, 3, 32, 32)
    before = passed(network, x)
    compiled = torch.compile(network, backend="eager")
    stepped(compiled, torch.optim.AdamW(network.parameters(), lr=0.05, fused=True), x)
    assert_now(network, _small, x, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_cuda_graph(is_frozen):
    network, x = _small().cuda().eval(), torch.rand(1, 3, 64, 32, device="cuda")
    if is_frozen:
        freeze(network)
    with torch.inference_mode():
        for _ in range(3):
            want = network(x).clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = network(x)
        graph.replay()
        torch.testing.assert_close(y, want)


def test_the_networks_of_restorer_are_frozen():
    from vheatir.restore.restorer import Restorer

    restorer = Restorer("denoise", device="cpu")
    info = kept_info(restorer.network)
    assert info.frozen == info.layers > 0 and kept_info(restorer._network_for(True).module).frozen > 0
