"""The decays that a heat layer keeps in eval, frozen and not: used, bounded, never stale, and gone from copies."""

import copy
import io
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

from vheatir.backbone.layers import heat
from vheatir.backbone.layers.embedding import EmbeddingAt
from vheatir.backbone.layers.freezing import freeze, kept_info
from vheatir.backbone.layers.heat import HeatLayer


class Net(nn.Module):
    """One heat layer with the embedding it reads, as a network holds it."""

    def __init__(self, size: int = 6, dim: int = 4):
        super().__init__()
        self.layer, self.embedding, self.resize = HeatLayer(dim), nn.Parameter(torch.randn(size, size, dim)), "exact"

    def forward(self, x):
        return self.layer(x, EmbeddingAt(self.embedding, x.shape[1:3], self.resize))


@pytest.fixture(params=[False, True], ids=["compared", "frozen"])
def net(request):
    return freeze(Net()) if request.param else Net().eval()


def kept(layer):
    """The decays that a heat layer keeps, without the weights in another order that the layers in it keep."""
    return kept_info(layer).forms - sum(kept_info(inner).forms for inner in layer.children())


@pytest.fixture
def x():
    return torch.randn(1, 5, 7, 4)


@pytest.fixture
def computed(monkeypatch):
    """The diffusivities computed since the start of the test."""
    calls, diffusivity = [], HeatLayer.diffusivity
    monkeypatch.setattr(HeatLayer, "diffusivity", lambda self, e: calls.append(e.shape) or diffusivity(self, e))
    return calls


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def fresh(net, x):
    """What a network gives that keeps nothing yet."""
    twin = copy.deepcopy(net)
    return (freeze(twin) if kept_info(net).frozen else twin)(x)


def test_second_call_reads_the_cache(net, x, computed, no_grad):
    assert torch.equal(net(x), net(x)) and len(computed) == 1


def test_cached_decay_gives_what_training_gives(net, x):
    want = net(x)
    with torch.no_grad():
        net(x)
        assert_close(net(x), want)


@pytest.mark.parametrize("mode", ["train", "grad"])
def test_nothing_is_cached_where_gradients_may_be_wanted(net, x, computed, mode):
    net.train(mode == "train")
    for _ in range(2):
        net(x).sum().backward()
    assert len(computed) == 2 and not kept(net.layer) and net.embedding.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "drop",
    [
        lambda net: net.train().eval(),
        lambda net: net.eval(),
        lambda net: net.load_state_dict(net.state_dict()),
        lambda net: net.load_state_dict(net.state_dict(), assign=True),
        lambda net: net.to("cpu", torch.float32),
        lambda net: net.double().float(),
        lambda net: net.layer.drop_kept(),
    ],
    ids=["train", "eval", "load", "assign", "to", "double", "drop_kept"],
)
def test_cache_is_dropped_by(net, x, drop, no_grad):
    net(x)
    assert kept(net.layer) == 1
    drop(net)
    assert kept(net.layer) == 0


def test_float64_after_float32_is_computed_in_float64(net, x, no_grad):
    net(x)
    assert_close(net.double()(x.double()), fresh(net, x.double()), rtol=0, atol=0)


def test_state_dict_with_other_weights_is_in_force(net, x, no_grad):
    other = Net()
    before = net(x)
    net.load_state_dict(other.state_dict())
    assert torch.equal(net(x), other.eval()(x)) and not torch.equal(net(x), before)


@pytest.mark.parametrize("name", ["embedding", "layer.to_k.0.weight", "layer.to_k.0.bias"])
def test_update_in_place_is_seen(net, x, name, no_grad):
    before = net(x)
    net.get_parameter(name).add_(1)
    assert torch.equal(net(x), fresh(net, x)) and not torch.equal(net(x), before)


def test_optimizer_step_between_two_evaluations_is_seen(net, x):
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with torch.no_grad():
        before = net(x)
    net(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(net(x), fresh(net, x)) and not torch.equal(net(x), before)


def test_another_temporary_embedding_of_the_same_shape_is_seen(x, no_grad):
    """Freed memory is reused: a second tensor may have the address, the version and the shape of the first."""
    layer = HeatLayer(4).eval()
    for number in range(6):
        embedding = torch.full((5, 7, 4), float(number))
        want = copy.deepcopy(layer)(x, embedding)
        assert torch.equal(layer(x, embedding), want), number
        del embedding


def test_another_resize_mode_is_seen(net, x, no_grad):
    exact = net(x)
    net.resize = "published"
    assert torch.equal(net(x), fresh(net, x)) and not torch.equal(net(x), exact)
    net.resize = "exact"
    assert torch.equal(net(x), exact)


@pytest.mark.parametrize("mode", [lambda layer: layer.eval(), freeze], ids=["compared", "frozen"])
def test_another_fixed_diffusivity_is_seen(mode, x, no_grad):
    layer = mode(HeatLayer(4, learned_k=False, fixed_k=1.0))
    embedding = torch.randn(5, 7, 4)
    before = layer(x, embedding)
    layer.fixed_k = 9.0
    assert torch.equal(layer(x, embedding), mode(copy.deepcopy(layer))(x, embedding))
    assert not torch.equal(layer(x, embedding), before)


def with_another_mask(layer):
    prune.random_unstructured(layer.to_k[0], "weight", 0.8)


class Adapter(nn.Module):
    """A linear layer and what is added to it while that is switched on."""

    def __init__(self, base):
        super().__init__()
        self.base, self.added, self.on = base, nn.Linear(4, 4), True

    def forward(self, x):
        return self.base(x) + self.added(x) if self.on else self.base(x)


@pytest.mark.parametrize("mode", [lambda layer: layer.eval(), freeze], ids=["compared", "frozen"])
@pytest.mark.parametrize(
    "first, then",
    [
        (with_another_mask, with_another_mask),
        (lambda layer: None, lambda layer: layer.to_k[0].register_forward_hook(lambda *_: torch.full((5, 7, 4), 9.0))),
        (
            lambda layer: layer.to_k.insert(0, Adapter(layer.to_k.pop(0))),
            lambda layer: setattr(layer.to_k[0], "on", False),
        ),
    ],
    ids=["pruned", "hook", "adapter"],
)
def test_what_a_diffusivity_depends_on_beside_parameters_is_seen(first, then, mode, x, no_grad):
    layer = HeatLayer(4, reach=(1, 4))
    first(layer)
    mode(layer)
    embedding = torch.randn(5, 7, 4)
    before = layer(x, embedding)
    then(layer)
    assert not torch.equal(layer(x, embedding), before)
    assert torch.equal(layer(x, embedding), copy.deepcopy(layer)(x, embedding))


def test_swapped_parameters_are_seen(net, x, no_grad):
    other = {name: value + 1 for name, value in net.named_parameters()}
    mine = net(x)
    swapped = torch.func.functional_call(net, other, (x,))
    assert not torch.equal(swapped, mine) and torch.equal(net(x), mine)


def test_validating_twice_around_stock_ema_updates_sees_them(x):
    """BasicSR's model_ema writes through `.data`, which raises no version; its test() calls eval() each time."""
    pytest.importorskip("basicsr")
    from basicsr.models.sr_model import SRModel

    net_g, net_g_ema = Net(), Net()
    model = SimpleNamespace(net_g=net_g, net_g_ema=net_g_ema, get_bare_model=lambda net: net, lq=x)
    SRModel.model_ema(model, 0)
    seen = []
    for _ in range(3):
        with torch.no_grad():
            for parameter in net_g.parameters():
                parameter.add_(0.5)
        version = net_g_ema.embedding._version
        SRModel.model_ema(model, 0.5)
        assert net_g_ema.embedding._version == version, "the update has become visible: this test tests nothing"
        SRModel.test(model)
        with torch.no_grad():
            assert torch.equal(model.output, fresh(net_g_ema, x))
        seen.append(model.output)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_cache_holds_few_resolutions_and_keeps_the_latest(net, computed, no_grad):
    for side in (3, 4, 5, 6, 4, 4):
        net(torch.randn(1, side, side, 4))
    assert kept(net.layer) == HeatLayer._most_kept
    assert [shape[0] for shape in computed] == [3, 4, 5, 6, 4]


def test_decays_too_large_are_not_kept(net, x, monkeypatch, no_grad):
    monkeypatch.setattr(heat, "_MOST_KEPT_BYTES", 5 * 7 * 4 * 4 - 1)
    net(x)
    assert kept(net.layer) == 0


@pytest.mark.parametrize("clone", [copy.deepcopy, copy.copy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_start_without_the_cache(net, x, clone, no_grad):
    want = net(x)
    twin = clone(net.layer)
    assert not kept(twin) and kept(net.layer) == 1
    assert torch.equal(twin(x, EmbeddingAt(net.embedding, (5, 7), "exact")), want)


def test_saving_the_whole_module_leaves_the_cache_behind(net, x, no_grad):
    def size():
        torch.save(net, buffer := io.BytesIO())
        return buffer.tell()

    empty = size()
    net(torch.randn(1, 40, 40, 4))
    assert abs(size() - empty) < 200


def test_training_after_inference_mode_works(net, x):
    with torch.inference_mode():
        want = net(x)
        net(x)
    with torch.no_grad():
        assert torch.equal(net(x), want)
    y = net(x.clone().requires_grad_())  # still in eval: the cache must not be used for gradients
    y.sum().backward()
    net.train()(x).sum().backward()
    assert net.embedding.grad.isfinite().all()


def test_a_network_made_in_inference_mode_works(x):
    with torch.inference_mode():
        net = Net().eval()
        assert torch.equal(net(x), net(x))


def test_threads_share_a_network(net, no_grad):
    from concurrent.futures import ThreadPoolExecutor

    inputs = [torch.randn(1, side, 5, 4) for side in (3, 4, 5, 6)] * 15
    want = {x.shape[1]: [] for x in inputs}
    for x in inputs[:4]:
        want[x.shape[1]] = x, fresh(net, x)

    def call(side):
        with torch.no_grad():
            return torch.equal(net(want[side][0]), want[side][1])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, [x.shape[1] for x in inputs]))
