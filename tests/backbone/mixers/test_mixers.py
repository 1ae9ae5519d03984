"""The mixers against slow twins that look at one pair of pixels, or one sample, at a time."""

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("timm", reason="the backbones need the extra `backbone`")
pytest.importorskip("torchvision", reason="the backbones need the extra `backbone`")

from torchvision.ops import deform_conv2d

from vheatir.backbone.mixers import MIXERS, BlockPosition, Place, block, mixer_named
from vheatir.backbone.mixers.deformable import DeformableSampling
from vheatir.backbone.mixers.depthwise import DepthwiseBlock
from vheatir.backbone.mixers.halo import HaloAttention
from vheatir.backbone.mixers.shifted_window import ShiftedWindowBlock

DIM, HEADS = 8, 2


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def pairwise(query, key, value, allowed, bias) -> torch.Tensor:
    """Attention of N pixels to N pixels (N, C) with a mask (N, N) and a bias (heads, N, N)."""
    query, key, value = (one.unflatten(1, (HEADS, -1)).transpose(0, 1) for one in (query, key, value))
    logits = query @ key.mT * query.shape[-1] ** -0.5 + bias
    return (logits.masked_fill(~allowed, -torch.inf).softmax(-1) @ value).transpose(0, 1).flatten(1)


def pixels(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return rows.flatten(), columns.flatten()


@pytest.mark.parametrize("index", [0, 1], ids=["plain", "shifted"])
@pytest.mark.parametrize("size", [(8, 12), (9, 6), (5, 7), (3, 10), (1, 1)], ids=str)
def test_windows_attend_to_pixels_of_the_map_alone(size, index):
    window = 4
    block = randomized(ShiftedWindowBlock(DIM, BlockPosition(index=index), num_heads=HEADS, window_size=window))
    attention, maps = block.attn, torch.randn(1, *size, DIM, dtype=torch.float64)
    shift = window // 2 if index and min(size) > window else 0
    same, offset = torch.tensor(True), []
    for side, position in zip(size, pixels(*size), strict=True):
        padded = side + -side % window
        moved = (position - shift) % padded
        part = moved // window * 2 + (position < shift)  # what came round from the other side stays apart
        same = same & (part[:, None] == part[None])
        offset.append(moved[:, None] - moved[None] + window - 1)
    row = (offset[0] * (2 * window - 1) + offset[1]).clamp(0, (2 * window - 1) ** 2 - 1)
    bias = attention.relative_position_bias_table[row].permute(2, 0, 1)
    flat = maps.flatten(1, 2)[0]
    want = attention.proj(pairwise(*attention.qkv(flat).chunk(3, -1), same, bias))
    assert_close(block._attend(maps)[0].flatten(0, 1), want)


@pytest.mark.parametrize("kind", ["query_related", "query_free"])
@pytest.mark.parametrize("size", [(8, 4), (5, 7), (1, 3)], ids=str)
def test_halo_attends_to_pixels_of_the_map_alone(size, kind):
    block, halo = 4, 1
    attention = randomized(HaloAttention(DIM, HEADS, block, halo, kind))
    window, head = block + 2 * halo, DIM // HEADS
    flat = torch.randn(size[0] * size[1], DIM, dtype=torch.float64)
    allowed, offsets = torch.tensor(True), []
    for position in pixels(*size):
        start = position // block * block
        from_start = position[None] - start[:, None]
        allowed = allowed & (from_start >= -halo) & (from_start < block + halo)
        offsets.append(position[None] - position[:, None] + halo)  # key minus query, both counted in the window
    query, both = attention.q(flat), attention.kv(flat[None, None])[0, 0].unflatten(1, (HEADS, 2, head))
    rows, columns = ((one + window - 1).clamp(0, 2 * window - 2) for one in offsets)
    if kind == "query_related":
        heads, tables = query.unflatten(1, (HEADS, head)), attention.pos_embed
        bias = torch.einsum("qhd,qkd->hqk", heads, tables.height_rel[rows] + tables.width_rel[columns])
    else:
        # Read by query minus key, the query moved by the halo.
        row, column = ((halo + window - 1 - one).clamp(0, 2 * window - 2) for one in offsets)
        bias = attention.pos_embed.relative_position_bias_table[row * (2 * window - 1) + column].permute(2, 0, 1)
    want = attention.proj(pairwise(query, both[:, :, 0].flatten(1), both[:, :, 1].flatten(1), allowed, bias))
    got = attention(flat.view(1, *size, DIM))[0].flatten(0, 1)
    assert_close(got, want)


@pytest.mark.parametrize("size", [(6, 9), (1, 1)], ids=str)
def test_deformable_sampling_equals_torchvision(size):
    """torchvision samples in (y, x) order with rows of points first; ours is (x, y) with columns first."""
    layer = randomized(DeformableSampling(DIM, HEADS))
    maps = torch.randn(2, *size, DIM, dtype=torch.float64)
    query = torch.nn.functional.gelu(layer.dw_conv(maps))
    offsets = layer.sampling_offsets(query).unflatten(-1, (HEADS, 3, 3, 2)).transpose(4, 5).flip(-1)
    weights = layer.attention_weights(query).unflatten(-1, (HEADS, 9)).softmax(-1)
    weights = weights.unflatten(-1, (3, 3)).transpose(4, 5)
    offsets, weights = (one.flatten(3).permute(0, 3, 1, 2) for one in (offsets, weights))
    value = layer.value_proj(maps).permute(0, 3, 1, 2)
    ones = torch.ones(DIM, 1, 3, 3, dtype=torch.float64)
    want = deform_conv2d(value, offsets, ones, padding=1, mask=weights).permute(0, 2, 3, 1)
    assert_close(layer(maps), layer.output_proj(want))


@pytest.mark.parametrize("name", sorted(MIXERS))
def test_without_layer_scale_no_factor_is_learned(name):
    args = {"num_heads": HEADS} if "num_heads" in MIXERS[name].per_stage else {}
    args |= {"sr_ratio": 2} if "sr_ratio" in MIXERS[name].per_stage else {}
    block = MIXERS[name](DIM, BlockPosition(layer_scale=0), **args)
    assert [key for key in block.state_dict() if "gamma" in key] == []
    block = MIXERS[name](DIM, BlockPosition(layer_scale=1), **args)  # a whole number makes no weights of integers
    assert [bool((one == 1.0).all()) for key, one in block.named_parameters() if "gamma" in key] == [True, True]


@pytest.mark.parametrize(("name", "arguments"), [("halo", {}), ("swin", {}), ("pvt", {"sr_ratio": 2})])
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of PyTorch, for operators without a batching rule
def test_attention_under_vmap_and_with_tangents(name, arguments):
    """Where PyTorch's fused attention would raise."""
    block = randomized(mixer_named(name)(DIM, BlockPosition(index=1), num_heads=HEADS, **arguments))
    parameters = list(block.parameters())
    maps = torch.randn(2, 1, 9, 8, DIM, dtype=torch.float64)
    one_by_one = torch.stack([block(one) for one in maps])
    together = torch.vmap(block)(maps)
    assert_close(together, one_by_one)
    found = torch.autograd.grad(together.square().sum(), parameters)
    assert_close(found, torch.autograd.grad(one_by_one.square().sum(), parameters))
    tangent = torch.randn_like(maps[0])
    step = 1e-6
    with torch.no_grad():
        _, got = torch.func.jvp(block, (maps[0],), (tangent,))
        want = (block(maps[0] + step * tangent) - block(maps[0] - step * tangent)) / (2 * step)
    assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"unknown token mixer 'no_such_mixer'; known: .*convnext"):
        mixer_named("no_such_mixer")
    with pytest.raises(ValueError, match="do not divide into 3 heads"):
        HaloAttention(DIM, 3)
    with pytest.raises(ValueError, match="pos_embed_type must be one of"):
        HaloAttention(DIM, HEADS, pos_embed_type="none")
    with pytest.raises(ValueError, match="square number of points"):
        DeformableSampling(DIM, HEADS, points=8)
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        DepthwiseBlock(DIM, BlockPosition(), kernel_size=4)
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        DeformableSampling(DIM, HEADS, kernel_size=4)


def test_the_former_name_of_a_position_works():
    assert Place is BlockPosition and block.Place is BlockPosition
