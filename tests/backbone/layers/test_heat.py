"""The heat layer and block: every switch, checkpointing, folding, and how far a channel conducts."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.testing import assert_close

from vheatir.backbone import freeze
from vheatir.backbone.layers.common import DropPath, drop_path_rates, init_linear
from vheatir.backbone.layers.embedding import EmbeddingAt, init_diffusivity_reach, resize_embedding
from vheatir.backbone.layers.heat import HeatBlock, HeatLayer
from vheatir.backbone.layers.packed import ChannelsLastConv2d
from vheatir.kernels.dct import decay_map
from vheatir.kernels.reference import hco_reference

SHAPE = (2, 6, 9, 8)  # B, H, W, C


def maps(dtype=torch.float64, requires_grad=False):
    return torch.randn(SHAPE, dtype=dtype, requires_grad=requires_grad)


def embedding(dtype=torch.float64, height=SHAPE[1], width=SHAPE[2]):
    return torch.randn(height, width, SHAPE[3], dtype=dtype)


def expected(layer, x, embed):
    """The layer written out with the definition of the operator."""
    if layer.dwconv is not None:
        planes = F.conv2d(x.movedim(3, 1), layer.dwconv.weight, layer.dwconv.bias, padding=1, groups=x.shape[3])
        x = planes.movedim(1, 3)
    x, gate = layer.linear(x).chunk(2, -1) if layer.gate else (layer.linear(x), None)
    k = torch.relu(layer.to_k[0](embed)) if layer.learned_k else torch.full_like(embed[..., :1], layer.fixed_k)
    x = layer.out_norm(hco_reference(x, decay_map(k)))
    return layer.out_linear(x if gate is None else x * F.silu(gate))


@pytest.mark.parametrize("learned_k", [True, False], ids=["learned", "fixed"])
@pytest.mark.parametrize("dwconv", [True, False], ids=["dwconv", "bare"])
@pytest.mark.parametrize("gate", [True, False], ids=["gate", "open"])
def test_each_switch_changes_the_layer_as_it_says(gate, dwconv, learned_k):
    layer = HeatLayer(8, gate=gate, dwconv=dwconv, learned_k=learned_k, fixed_k=2.5).double()
    x, embed = maps(), embedding()
    assert_close(layer(x, embed), expected(layer, x, embed))
    keys = layer.state_dict().keys()
    assert ("dwconv.weight" in keys, "to_k.0.weight" in keys) == (dwconv, learned_k)
    assert layer.linear.out_features == (16 if gate else 8)


@pytest.mark.parametrize("post_norm", [True, False], ids=["post", "pre"])
@pytest.mark.parametrize("layer_scale", [None, 0.5, 1])
@pytest.mark.parametrize("mlp_ratio", [2.0, 0], ids=["mlp", "no-mlp"])
def test_block_adds_its_branches(post_norm, layer_scale, mlp_ratio):
    block = HeatBlock(8, post_norm=post_norm, layer_scale=layer_scale, mlp_ratio=mlp_ratio).double()
    x, embed = maps(), embedding()
    scale = 1 if layer_scale is None else layer_scale
    want = x + scale * (block.norm1(block.op(x, embed)) if post_norm else block.op(block.norm1(x), embed))
    if mlp_ratio:
        want = want + scale * (block.norm2(block.mlp(want)) if post_norm else block.mlp(block.norm2(want)))
    assert_close(block(x, embed), want)
    assert ("gamma1" in block.state_dict()) == (layer_scale is not None)


def test_layer_scale_of_zero_makes_the_block_the_identity():
    block, x = HeatBlock(8, layer_scale=0.0).double(), maps()
    assert torch.equal(block(x, embedding()), x)


def test_mlp_with_depthwise_convolution_has_its_key():
    assert "mlp.dwconv.weight" in HeatBlock(8, mlp_dwconv=True).state_dict()


@pytest.mark.parametrize("dim, hidden", [(49, 1), (49, 63), (180, 360), (7, 20), (93, 55)])
def test_mlp_ratio_read_from_shapes_gives_the_shapes_back(dim, hidden):
    assert (
        HeatBlock(dim, mlp_ratio=hidden / dim, gate=False, dwconv=False, learned_k=False).mlp.fc1.out_channels == hidden
    )


def test_drop_path_drops_whole_branches_and_keeps_the_mean():
    drop, x = DropPath(0.25), torch.ones(4000, 1, 1, 2)
    kept = drop.train()(x)
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (kept[..., 0] == kept[..., 1]).all() and kept.mean().item() == pytest.approx(1, abs=0.05)
    assert drop.eval()(x) is x
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        DropPath(1.0)


def test_drop_path_rates_grow_from_zero():
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3]) and drop_path_rates(0.3, 1) == [0]


def test_pointwise_convolution_equals_that_of_torch():
    conv, x = ChannelsLastConv2d(8, 5, 1).double(), maps()
    assert_close(conv(x), F.conv2d(x.movedim(3, 1), conv.weight, conv.bias).movedim(1, 3))


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize("resize", ["exact", "published"])
def test_checkpointing_changes_neither_value_nor_gradient(drop_path, resize):
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        block = HeatBlock(8, drop_path=drop_path, checkpointing=checkpointing).double().train()
        source = embedding(height=4, width=4).requires_grad_()
        x = maps(requires_grad=True)
        y = block(x, EmbeddingAt(source, SHAPE[1:3], resize))
        names = dict(block.named_parameters())
        grads = torch.autograd.grad(y.square().sum(), [x, source, *names.values()])
        results.append(dict(zip(["y", "x", "embedding", *names], [y, *grads])))
    for name, want in results[0].items():
        assert torch.equal(results[1][name], want), name


def test_checkpointing_stores_less():
    def saved(checkpointing):
        block, count = HeatBlock(8, checkpointing=checkpointing).train(), 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            block(maps(torch.float32, requires_grad=True), embedding(torch.float32))
        return count

    assert saved(True) < 0.5 * saved(False)


@pytest.mark.parametrize("learned_k", [True, False], ids=["learned", "fixed"])
def test_folding_keeps_the_output_and_unfolding_restores_the_state(learned_k):
    layer = HeatLayer(8, learned_k=learned_k).double().eval()
    x, embed = maps(), embedding()
    want, before = layer(x, embed), {key: value.clone() for key, value in layer.state_dict().items()}
    layer.fold(embed)
    assert "k_exp" in layer.state_dict() and "to_k.0.weight" not in layer.state_dict()
    assert_close(layer(x), want)
    with torch.no_grad():
        assert_close(layer(x), want)
        assert_close(layer(x), want)  # now from the cache
    layer.unfold()
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert_close(layer(x, embed), want)


def test_unfolding_follows_a_move_to_another_type():
    layer = HeatLayer(8)
    layer.fold(embedding(torch.float32))
    layer.double().unfold()
    assert layer.to_k[0].weight.dtype == torch.float64


def test_unfolding_keeps_16_bits():
    layer = HeatLayer(8).bfloat16()
    before = layer.state_dict()
    layer.fold(embedding(torch.bfloat16))
    assert layer.k_exp.dtype == torch.float32
    layer.unfold()
    assert {key: value.dtype for key, value in layer.state_dict().items()} == dict.fromkeys(before, torch.bfloat16)


def test_folding_refuses_what_makes_no_sense():
    layer, embed = HeatLayer(8).double(), embedding()
    with pytest.raises(ValueError, match=r"needs a frequency embedding: give it a parameter \(H, W, 8\)"):
        layer(maps())
    with pytest.raises(ValueError, match="not folded"):
        layer.unfold()
    layer.fold(embed)
    with pytest.raises(ValueError, match="already folded"):
        layer.fold(embed)
    with pytest.raises(ValueError, match="folded for maps of 6x9, got 5x9; unfold"):
        layer(maps()[:, :5])


@pytest.mark.parametrize("dwconv", [True, False])
@pytest.mark.parametrize(
    "shape, ending",
    [((2, 8, 6, 9), r"; bring .* by x\.permute\(0, 2, 3, 1\)"), ((6, 9, 8), ""), ((2, 6, 9, 7), "")],
)
def test_maps_of_other_shapes_are_refused(shape, ending, dwconv):
    layer = HeatLayer(8, dwconv=dwconv)
    got = re.escape(str(shape))
    with pytest.raises(ValueError, match=rf"channels-last maps \(B, H, W, 8\), got {got}{ending}$"):
        layer(torch.randn(shape), torch.randn(6, 9, 8))


@pytest.mark.parametrize("training", [True, False])
def test_embeddings_of_other_shapes_are_refused(training):
    layer, x = HeatLayer(8).train(training), maps(torch.float32)
    with torch.set_grad_enabled(training):
        for embed in (embedding(torch.float32, 16, 16), EmbeddingAt(embedding(torch.float32), (16, 16), "exact")):
            with pytest.raises(ValueError, match=r"for maps of 16x16, got maps of 6x9; EmbeddingAt\("):
                layer(x, embed)
        for embed in (torch.randn(6, 9, 7), torch.randn(6, 9)):
            with pytest.raises(ValueError, match=r"embedding here is \(H, W, 8\), got \(6, 9"):
                layer(x, embed)
        resized = EmbeddingAt(embedding(torch.float32, 16, 16), x.shape[1:3], "exact")
        assert layer(x, resized).shape == x.shape


def test_each_image_may_have_its_own_embedding():
    layer, x = HeatLayer(8, reach=(0.5, 8.0)).eval(), maps(torch.float32)
    embed = torch.stack([embedding(torch.float32) for _ in x])
    want = torch.cat([layer(one[None], own) for one, own in zip(x, embed, strict=True)]).detach()
    assert_close(layer(x, embed), want)
    for network in (layer, freeze(layer)):
        with torch.no_grad():
            assert_close(network(x, embed), want)
    with pytest.raises(ValueError, match=rf"one for each of {len(x)}"):
        layer.fold(embed)
    assert layer.k_exp is None


def test_bf16_autocast_keeps_diffusivities_in_float32():
    layer, embed = HeatLayer(8), embedding(torch.float32)
    want = layer.diffusivity(embed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        k, y = layer.diffusivity(embed), layer(maps(torch.float32), embed)
        resized = resize_embedding(embed, (12, 7), "exact")
    assert k.dtype == resized.dtype == torch.float32 and torch.equal(k, want)
    assert y.dtype == torch.bfloat16


def test_an_embedding_that_autocast_narrowed_is_taken():
    layer, x, embed = HeatLayer(8, reach=(0.5, 20.0)), maps(torch.float32), embedding(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = F.linear(embed, torch.eye(8).requires_grad_())
        assert narrow.dtype == torch.bfloat16
        k = layer.diffusivity(narrow)
        layer(x, narrow).float().sum().backward()
    assert k.dtype == torch.float32 and all(one.grad is not None for one in layer.parameters())
    assert_close(k, layer.diffusivity(narrow.float()))


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 5e-2), (torch.float16, 6e-3)], ids=str)
def test_sixteen_bit_layers_decay_in_float32(dtype, tolerance):
    layer, x, embed = HeatLayer(8, reach=(0.5, 20.0)), maps(torch.float32), embedding(torch.float32)
    layer.init_reach()
    want = layer(x, embed)
    layer, seen = layer.to(dtype).eval(), []
    assert layer._fresh_decay(embed.to(dtype)).dtype == torch.float32
    with torch.no_grad():
        seen = [layer(x.to(dtype), embed.to(dtype)) for _ in range(2)]
    assert seen[0].dtype == dtype and torch.equal(*seen)
    assert_close(seen[0].float(), want, rtol=0, atol=tolerance * want.abs().max().item())


@pytest.mark.parametrize("reach", [(1.0, 24.0), (2.0, 8.0)])
def test_an_impulse_spreads_over_the_pixels_that_reach_names(reach):
    """The standard deviation of the heat kernel along an axis is sqrt(2k), far from the borders."""
    layer = HeatLayer(6, reach=reach)
    layer.apply(init_linear)
    layer.init_reach()
    side = 257
    k = layer.double().diffusivity(torch.zeros(side, 1, 6, dtype=torch.float64))
    impulse = torch.zeros(1, side, 1, 6, dtype=torch.float64)
    impulse[0, side // 2] = 1
    response = hco_reference(impulse, decay_map(k))[0, :, 0]  # (side, C)
    distance = torch.arange(side, dtype=torch.float64)[:, None] - side // 2
    width = ((response * distance**2).sum(0) / response.sum(0)).sqrt().tolist()
    assert width == pytest.approx(torch.logspace(math.log10(reach[0]), math.log10(reach[1]), 6).tolist(), rel=0.02)


@pytest.mark.parametrize("kind", [HeatLayer, HeatBlock])
def test_reach_holds_in_a_layer_that_no_network_initializes(kind):
    made = kind(6, reach=(1.0, 24.0))
    layer = made if kind is HeatLayer else made.op
    k = layer.diffusivity(torch.zeros(3, 4, 6))
    want = torch.logspace(0, math.log10(24.0), 6).square() / 2
    assert_close(k, want.expand(3, 4, 6), rtol=1e-5, atol=0)


@pytest.mark.parametrize("reach", [(0, 1), (3, 2), (-1, 4), (1, math.inf), (1, 2, 3), 5, "15"])
def test_reach_must_rise_from_above_zero(reach):
    with pytest.raises(ValueError, match="reach must be two rising positive lengths in pixels"):
        init_diffusivity_reach(torch.nn.Linear(4, 4), reach)
    with pytest.raises(ValueError, match="rising"):
        HeatLayer(4, reach=reach)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("target", [(5, 9), (16, 16), (37, 64), (1, 3)], ids=str)
def test_exact_resize_keeps_a_linear_function_of_the_frequency(target, dtype):
    """k(w) = a + b w_h + c w_w is read at the same frequencies whatever the map's size; DC stays DC."""

    def table(height, width):
        rows = torch.arange(height, dtype=torch.float64)[:, None, None] * math.pi / height
        columns = torch.arange(width, dtype=torch.float64)[None, :, None] * math.pi / width
        return (torch.tensor([0.3, -1.0]) + torch.tensor([2.0, 0.5]) * rows + torch.tensor([-1.0, 4]) * columns).to(
            dtype
        )

    source = (16, 12)
    got, want = resize_embedding(table(*source), target, "exact"), table(*target)
    known = tuple(slice((side - 1) * new // side + 1) for side, new in zip(source, target))  # up to the last entry
    assert_close(got[known], want[known])
    assert torch.equal(got[0, 0], table(*source)[0, 0])
    assert got.isfinite().all() and got.shape == (*target, 2)


def test_exact_resize_holds_the_last_entry_above_the_highest_frequency():
    got = resize_embedding(torch.arange(4.0).view(4, 1, 1), (8, 1), "exact").flatten()
    assert got.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]


@pytest.mark.parametrize("target", [(5, 9), (16, 16), (33, 7)], ids=str)
def test_published_resize_is_bicubic_with_half_pixel_centres(target):
    table = torch.randn(8, 6, 4)
    want = F.interpolate(table.permute(2, 0, 1)[None], size=target, mode="bicubic", align_corners=False)
    assert torch.equal(resize_embedding(table, target, "published"), want[0].permute(1, 2, 0))


@pytest.mark.parametrize("mode", ["exact", "published"])
def test_resize_is_differentiable_and_leaves_the_right_size_alone(mode):
    table = torch.randn(5, 4, 2, dtype=torch.float64, requires_grad=True)
    assert resize_embedding(table, (5, 4), mode) is table
    assert torch.autograd.gradcheck(lambda t: resize_embedding(t, (7, 3), mode), table)


def test_unknown_resize_mode_is_refused_even_where_nothing_is_resized():
    with pytest.raises(ValueError, match=r"bilinear.*known: exact, published"):
        resize_embedding(torch.zeros(2, 2, 1), (2, 2), "bilinear")


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("mlp_ratio", [0.0, 2.0])
@pytest.mark.parametrize("norms", [False, True], ids=["branches", "norms"])
def test_what_a_hook_keeps_is_not_overwritten(post_norm, mlp_ratio, norms):
    """Without gradients a block writes into its branches' results, but not where someone holds them."""
    torch.manual_seed(0)
    block = HeatBlock(16, mlp_ratio=mlp_ratio, post_norm=post_norm).eval()
    embedding, maps = torch.randn(6, 5, 16), torch.randn(1, 6, 5, 16)
    kept = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.LayerNorm) == norms:
            module.register_forward_hook(lambda module, given, result, name=name: kept.update({name: result}))
    expected = block(maps, embedding).detach()
    with_gradients = {name: result.detach().clone() for name, result in kept.items()}
    kept.clear()
    with torch.no_grad():
        assert_close(block(maps, embedding), expected)
    assert kept.keys() == with_gradients.keys() and ("op.out_norm" if norms else "op") in kept
    for name, result in kept.items():
        assert_close(result, with_gradients[name], msg=name)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_diffusivity_from_quantized_weights():
    torch.manual_seed(0)
    layer, x, embed = HeatLayer(8, reach=(1, 4)).eval(), torch.randn(1, 5, 6, 8), torch.randn(5, 6, 8)
    quantized = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear})
    assert not list(quantized.to_k.parameters())
    with torch.no_grad():
        assert_close(quantized(x, embed), layer(x, embed), rtol=0, atol=0.05)


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.view(x.shape)], ids=["same", "view"])
@pytest.mark.parametrize("post_norm", [False, True])
def test_a_branch_that_returns_its_input_leaves_the_maps_alone(post_norm, view):
    class Skip(nn.Module):
        def forward(self, x, embedding):
            return view(x)

    block, x = HeatBlock(8, post_norm=post_norm).eval(), torch.randn(1, 4, 5, 8)
    block.op, block.mlp = Skip(), nn.Identity()
    if not post_norm:
        block.norm1 = nn.Identity()
    expected = block(x).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        before = x.clone()
        with mode():
            assert_close(block(x), expected)
        assert torch.equal(x, before)


@pytest.mark.parametrize("post_norm", [False, True])
def test_a_hook_of_all_modules_sees_the_norms(post_norm):
    block = HeatBlock(8, post_norm=post_norm).eval()
    called = []
    with torch.no_grad(), register_module_forward_hook(lambda module, given, result: called.append(module)):
        block(torch.randn(1, 4, 5, 8), torch.randn(4, 5, 8))
    assert {block.norm1, block.norm2, block.op.out_norm} <= set(called)


@pytest.mark.parametrize("post_norm", [False, True])
def test_norms_that_were_replaced_are_called(post_norm):
    class ScaledNorm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x) * 1.5

    torch.manual_seed(0)
    block, x, embed = HeatBlock(8, post_norm=post_norm), maps(torch.float32), embedding(torch.float32)
    scaled = HeatBlock(8, post_norm=post_norm)
    scaled.load_state_dict(block.state_dict())
    for name in ("norm1", "norm2", "op.out_norm"):
        scaled.set_submodule(name, ScaledNorm(8))
        with torch.no_grad():
            norm = block.get_submodule(name)
            norm.weight.mul_(1.5)
            norm.bias.mul_(1.5)
    with torch.no_grad():
        assert_close(scaled(x.clone(), embed), block(x.clone(), embed), atol=1e-5, rtol=1e-5)
    assert_close(scaled(x, embed), block(x, embed), atol=1e-5, rtol=1e-5)
