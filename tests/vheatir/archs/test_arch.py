"""VHeatIR: any size, gray and color, levels, precisions, compilers, copies; arguments read back from weights."""

import copy
import itertools
import json
import pickle

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close

from vheatir.archs.networks import build
from vheatir.archs.vheatir_arch import VHeatIR, config_from_state_dict, gray_from_color
from vheatir.archs.vheatunet_arch import VHeatUNet

TINY = {"dim": 8, "depths": (1, 1), "embed_size": 6}
LIGHT = {"dim": 80, "depths": [6, 6], "mlp_ratio": 2.0, "embed_size": 32, "downscale": 2}


def network(**changes):
    """A small network whose random last layer really changes the image."""
    torch.manual_seed(0)
    net = VHeatIR(**TINY | changes)
    torch.nn.init.normal_(net.conv_last.weight, std=0.05)
    return net.eval()


SIZES = [(1, 1), (1, 2), (2, 1), (1, 17), (3, 5), (7, 7), (8, 8), (13, 24), (31, 1), (40, 33)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("downscale", [1, 2, 3])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_any_size_comes_back(in_chans, downscale, size):
    net, x = network(in_chans=in_chans, downscale=downscale), torch.rand(2, in_chans, *size)
    with torch.no_grad():
        y = net(x)
    assert y.shape == x.shape and y.dtype == x.dtype and y.isfinite().all() and not torch.equal(x, y)


SHAPE = {"dim": 8, "encoder": [1], "middle": 1, "decoder": [1]}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("arch", "arguments", "planes"),
    [
        ("VHeatIR", TINY, 3),
        ("VHeatIR", {**TINY, "downscale": 2}, 3),
        ("VHeatIR", {**TINY, "downscale": 2, "level_map": True}, 3),
        ("VHeatUNet", {**SHAPE, "attention": ["heat", "heat"]}, 3),
        ("VHeatUNet", {**SHAPE, "attention": ["adaptive", "grid"], "level_map": True}, 3),
        ("VHeatVideoNet", {**SHAPE, "attention": ["none", "heat"]}, 3),
        ("VHeatVideoNet", {**SHAPE, "attention": ["none", "heat"]}, 15),
    ],
    ids=str,
)
def test_a_batch_of_no_images_comes_back(arch, arguments, planes, training):
    net = build(arch, arguments).train(training)
    level = [torch.zeros(0)] if net.level_map else []
    y = net(torch.zeros(0, planes, 9, 14), *level)
    assert y.shape == (0, 3, 9, 14) and y.dtype == torch.float32


@pytest.mark.parametrize("downscale", [1, 2, 3])
@pytest.mark.parametrize("post_norm", [True, False])
def test_untrained_network_returns_its_input(downscale, post_norm):
    net, x = VHeatIR(**TINY, downscale=downscale, post_norm=post_norm), torch.randn(1, 3, 7, 10)
    assert torch.equal(net(x), x)


def test_padding_mirrors_the_border():
    net, x = network(downscale=3), torch.rand(1, 3, 7, 8)
    larger = torch.nn.functional.pad(x, (0, 1, 0, 2), mode="reflect")
    assert_close(net(x), net(larger)[:, :, :7, :8])


def test_images_of_a_batch_do_not_mix():
    net, x = network(), torch.rand(3, 3, 9, 6)
    assert_close(net(x), torch.cat([net(image[None]) for image in x]))


@pytest.mark.parametrize("downscale, size", [(1, (5, 6)), (2, (5, 6)), (3, (1, 4))])
def test_level_as_one_number_equals_a_constant_map(downscale, size):
    net, x = network(level_map=True, downscale=downscale), torch.rand(2, 3, *size)
    level = torch.tensor([0.1, 0.7])
    y = net(x, level)
    assert_close(y, net(x, level.view(2, 1, 1, 1).expand(2, 1, *size)))
    assert_close(y, net(x, level.double()))
    assert not torch.allclose(y, net(x, level + 0.2))


def test_level_that_varies_in_the_image_is_used_where_it_stands():
    net, x = network(level_map=True, depths=[1]), torch.rand(1, 3, 24, 24)
    level = torch.zeros(1, 1, 24, 24)
    level[..., :12] = 1
    low, high, both = (net(x, value) for value in (torch.zeros(1), torch.ones(1), level))
    assert (both - high)[..., 0].abs().mean() < (both - low)[..., 0].abs().mean()
    assert (both - low)[..., -1].abs().mean() < (both - high)[..., -1].abs().mean()


@pytest.mark.parametrize(
    "net, arguments, error, message",
    [
        ({}, [torch.zeros(3, 4, 4)], ValueError, r"\(B, 3, H, W\), got \(3, 4, 4\)"),
        ({}, [torch.zeros(1, 1, 4, 4)], ValueError, r"\(B, 3, H, W\)"),
        ({"in_chans": 1}, [torch.zeros(1, 3, 4, 4)], ValueError, r"\(B, 1, H, W\)"),
        ({}, [torch.zeros(1, 3, 0, 4)], ValueError, r"got \(1, 3, 0, 4\)"),
        ({}, [torch.zeros(1, 3, 4, 4, dtype=torch.uint8)], TypeError, "divide 8-bit images by 255"),
        ({}, [torch.zeros(1, 3, 4, 4).numpy()], TypeError, r"as a torch.Tensor \(B, 3, H, W\), got ndarray"),
        ({"level_map": True}, [torch.zeros(2, 3, 4, 4), 0.1], TypeError, r"got float; .* torch.full\(\(B,\), number\)"),
        ({}, [torch.zeros(1, 3, 4, 4), torch.zeros(1)], ValueError, "takes no level"),
        ({"level_map": True}, [torch.zeros(1, 3, 4, 4)], ValueError, "needs a level"),
        ({"level_map": True}, [torch.zeros(2, 3, 4, 4), torch.zeros(1)], ValueError, r"level must be \(2,\)"),
        ({"level_map": True}, [torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 5)], ValueError, r"\(1, 1, 4, 4\)"),
    ],
)
def test_wrong_inputs_are_refused(net, arguments, error, message):
    with pytest.raises(error, match=message):
        network(**net)(*arguments)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"in_chans": 2}, "in_chans must be 1"),
        ({"dim": 0}, "dim must be a whole number"),
        ({"dim": "80"}, "dim must be a whole number.*'80'"),
        ({"dim": 8.0}, "dim must be"),
        ({"embed_size": 0}, "embed_size must be"),
        ({"downscale": True}, "downscale must be"),
        ({"depths": 6}, "depths must be"),
        ({"depths": []}, "depths must be"),
        ({"depths": [2, 0]}, "depths must be"),
        ({"mlp_ratio": -1}, "mlp_ratio must be"),
        ({"layer_scale": "small"}, "layer_scale must be"),
        ({"reach": 3}, "reach must be two lengths"),
        ({"reach": [5, 2]}, "reach must be two rising"),
        ({"resize": "bilinear"}, "resize must be one of exact, published"),
        ({"drop_path_rate": 1.0}, r"drop path rate must be in \[0, 1\)"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VHeatIR(**TINY | changes)


def test_gradient_checkpointing_changes_neither_value_nor_gradient():
    results = []
    for checkpointing in (False, True):
        net = network(checkpointing=checkpointing, drop_path_rate=0.3).train()
        torch.manual_seed(1)
        y = net(torch.rand(2, 3, 9, 11))
        y.square().sum().backward()
        results.append({"y": y, **{name: parameter.grad for name, parameter in net.named_parameters()}})
    for name, want in results[0].items():
        assert torch.equal(results[1][name], want), name


@pytest.mark.parametrize(
    "changes",
    [{}, {"level_map": True}, {"gate": False, "dwconv": False, "reach": [1, 4]}, {"learned_k": False}],
    ids=str,
)
def test_every_weight_learns(changes):
    """Those that do not must not ask for gradients: DistributedDataParallel raises where one never comes."""
    net = network(**changes).train()
    y = net(torch.rand(1, 3, 9, 11), *([torch.rand(1)] if net.level_map else []))
    y.square().sum().backward()
    asking = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in asking.items() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("downscale", [1, 2])
def test_bf16_autocast_stays_close_and_returns_float32(downscale):
    net, x = network(downscale=downscale, reach=(0.5, 8.0)).train(), torch.rand(1, 3, 14, 10)
    want = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.float32
    assert_close(y - x, want - x, rtol=0, atol=0.05 * (want - x).abs().max().item())
    y.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in net.parameters())


def test_float64_agrees_with_float32():
    net, x = network(downscale=2), torch.rand(1, 3, 9, 10, dtype=torch.float64)
    want = net(x.float())
    y = net.double()(x)
    assert y.dtype == torch.float64
    assert_close(y.float(), want, rtol=1e-5, atol=1e-5)


def test_channels_last_and_strided_input_give_the_same():
    net, x = network(), torch.rand(1, 3, 20, 16)
    want = net(x[..., ::2, ::2].contiguous())
    assert_close(net(x[..., ::2, ::2]), want)
    assert_close(net(x[..., ::2, ::2].contiguous(memory_format=torch.channels_last)), want)


def test_compiled_network_agrees_in_value_and_gradient():
    net, x = network(downscale=2, depths=[1]), torch.rand(1, 3, 9, 14)
    want = net(x)
    (want_grad,) = torch.autograd.grad(want.square().sum(), net.freq_embed)
    y = torch.compile(net, backend="aot_eager", fullgraph=True)(x)
    assert_close(y, want)
    assert_close(torch.autograd.grad(y.square().sum(), net.freq_embed)[0], want_grad)


@pytest.mark.parametrize("downscale", [1, 2])
def test_exported_network_takes_other_sizes(downscale):
    """At full resolution any size; on a coarser grid any multiple of `downscale`."""
    net = network(downscale=downscale, depths=[1])
    dynamic = {axis: downscale * torch.export.Dim(f"side{axis}", min=2, max=512) for axis in (2, 3)}
    with torch.no_grad():
        exported = torch.export.export(net, (torch.rand(1, 3, 24, 20),), dynamic_shapes={"image": dynamic}).module()
        for size in ((12, 34), (6, 6), (30, 8)):  # (6, 6) / 1 is the size of the embedding
            x = torch.rand(1, 3, *size)
            assert_close(exported(x), net(x))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_independent(clone):
    net, x = network(), torch.rand(1, 3, 8, 9)
    with torch.no_grad():
        want = net(x)
        twin = clone(net)
        net.freq_embed.add_(1)
        net.groups[0].blocks[0].op.to_k[0].bias.add_(1)
        assert torch.equal(twin(x), want) and not torch.equal(net(x), want)
    assert twin.config == net.config


def test_folding_for_one_size_keeps_the_output_and_is_undone():
    net, x = network(downscale=2), torch.rand(1, 3, 9, 14)
    with torch.no_grad():
        want, keys = net(x), list(net.state_dict())
        net.fold(9, 14)
        assert_close(net(x), want)
        with pytest.raises(ValueError, match="folded for maps of 5x7"):
            net(x[..., :12])
        with pytest.raises(ValueError, match="unfolded VHeatIR"):
            config_from_state_dict(net.state_dict())
        net.unfold()
        assert list(net.state_dict()) == keys and torch.equal(net(x), want)


def test_parameter_counts_of_the_named_sizes():
    """Light ships with at most a million; base has SwinIR's 11.5 million."""
    with torch.device("meta"):
        light, base = VHeatIR(**LIGHT), VHeatIR()
    counts = [sum(parameter.numel() for parameter in net.parameters()) for net in (light, base)]
    assert 0.5e6 < counts[0] <= 1e6
    assert counts[1] == pytest.approx(11.5e6, rel=0.1)


OPTIONS = {
    "in_chans": [1, 3],
    "downscale": [1, 2, 3],
    "level_map": [False, True],
    "gate": [True, False],
    "dwconv": [True, False],
    "learned_k": [True, False],
    "post_norm": [True, False],
    "layer_scale": [None, 1.0],
    "mlp_dwconv": [False, True],
    "mlp_ratio": [2.0, 0, 1.3],
    "depths": [[1], [2, 1]],
    "embed_size": [6, 4],
}


def combinations():
    """Each option switched alone, and each pair of neighbors in the table."""
    singles = [{key: value} for key, values in OPTIONS.items() for value in values]
    pairs = [{**a, **b} for a, b in itertools.pairwise(singles) if a.keys() != b.keys()]
    return singles + pairs + [{key: values[-1] for key, values in OPTIONS.items()}]


@pytest.mark.parametrize("changes", combinations(), ids=str)
def test_arguments_are_read_back_from_the_weights(changes):
    net = network(**changes)
    config = config_from_state_dict(net.state_dict())
    rebuilt = VHeatIR(**config).eval()
    rebuilt.load_state_dict(net.state_dict())
    x = torch.rand(1, net.config["in_chans"], 7, 6)
    level = [torch.rand(1)] if net.level_map else []
    with torch.no_grad():
        assert torch.equal(rebuilt(x, *level), net(x, *level))
    assert {key: config[key] for key in config if key != "mlp_ratio"} == {
        key: net.config[key] for key in config if key != "mlp_ratio"
    }


@pytest.mark.parametrize(
    "state",
    [{}, {"weight": torch.zeros(1)}, {"conv_last.weight": torch.zeros(3, 8, 3, 3)}],
    ids=["empty", "other", "part"],
)
def test_foreign_weights_are_refused(state):
    with pytest.raises(ValueError, match=r"no VHeatIR weights: key .* is missing"):
        config_from_state_dict(state)


def test_configuration_survives_json():
    net = network(reach=(0.5, 4.0), depths=(1, 2))
    config = json.loads(json.dumps(net.config))
    assert VHeatIR(**config).config == config == net.config


@pytest.mark.parametrize(("downscale", "level_map"), [(1, False), (2, False), (2, True)])
def test_gray_from_color_does_what_the_color_network_does_to_gray(downscale, level_map):
    config = {"dim": 8, "depths": (1,), "embed_size": 4, "downscale": downscale, "level_map": level_map}
    color, gray = VHeatIR(3, **config).double().eval(), VHeatIR(1, **config).double().eval()
    torch.nn.init.normal_(color.conv_last.weight)
    torch.nn.init.normal_(color.conv_last.bias)
    gray.load_state_dict(gray_from_color(color.state_dict()))
    image, level = torch.rand(2, 1, 9, 7).double(), [torch.rand(2).double()] if level_map else []
    expected = color(image.expand(-1, 3, -1, -1), *level).mean(1, keepdim=True)
    assert_close(gray(image, *level), expected)
    with pytest.raises(ValueError, match="color VHeatIR"):
        gray_from_color(gray.state_dict())


@pytest.mark.parametrize("kind", [VHeatIR, VHeatUNet])
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of PyTorch, for operators without a batching rule
def test_gradients_of_each_sample_by_vmap(kind):
    torch.manual_seed(0)
    small = {
        VHeatIR: TINY,
        VHeatUNet: {"dim": 8, "encoder": [1], "middle": 1, "decoder": [1], "attention": ["heat"] * 2},
    }
    net = kind(**small[kind])
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.rand(2, 3, 9, 8)
    with torch.no_grad():
        assert_close(vmap(lambda image: net(image[None])[0])(images), net(images), rtol=1e-4, atol=1e-5)
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    loss = grad(lambda given, image: functional_call(net, given, (image[None],)).square().mean())
    found = vmap(loss, (None, 0))(parameters, images)
    for number in range(2):
        net.zero_grad()
        net(images[number : number + 1]).square().mean().backward()
        for name, parameter in net.named_parameters():
            assert_close(found[name][number], parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["VHeatIR", "VHeatUNet", "VHeatVideoNet"])
def test_shapes_on_the_meta_device(kind, autocast):
    """As a summary of layers asks for them; autocast of the CPU is none of another device."""
    net = build(kind, {"dim": 8}).to("meta")
    planes = 15 if kind == "VHeatVideoNet" else 3
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        restored = net(torch.empty(2, planes, 9, 7, device="meta"))
    assert restored.is_meta and restored.shape == (2, 3, 9, 7) and restored.dtype == torch.float32
