"""DCNv3, deformable convolution with softmax weights, in plain PyTorch: the mixer named dcn_v3."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vheatir.backbone.layers.packed import ChannelsLastConv2d
from vheatir.backbone.mixers.block import AttentionBlock, BlockPosition, cached_table
from vheatir.kernels.plain import full_precision


def sample_weighted(value: Tensor, location: Tensor, weight: Tensor) -> Tensor:
    """Sum over points of weight times the bilinear sample of value, zero outside the map.

    Args:
        value: (B, H, W, G, D), D channels for each of G groups.
        location: (B, Q, G, P, 2), x then y; [0, 1] spans the map, the center of pixel i lies at (i + 1/2) / side.
        weight: (B, Q, G, P).

    Returns:
        (B, Q, G * D), dtype of value; computed in float32 for 16-bit types.
    """
    batch, _, _, groups, _ = value.shape
    wide = value.dtype if value.dtype in (torch.float32, torch.float64) else torch.float32
    with full_precision(value):
        planes = rearrange(value, "b y x g d -> (b g) d y x").to(wide)
        grid = rearrange(2 * location.to(wide) - 1, "b q g p i -> (b g) q p i")
        samples = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weights = rearrange(weight.to(wide), "b q g p -> (b g) 1 q p")
        mixed = (samples * weights).sum(-1)
    return rearrange(mixed, "(b g) d q -> b q (g d)", b=batch, g=groups).to(value.dtype)


@cached_table
def pixel_centres(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(H * W, 2): x and y of each pixel, counted in pixels.

    Args:
        height: of the map.
        width: of the map.
        dtype: of the result.
        device: of the result.
    """
    rows = torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    return grid.flatten(0, 1).to(dtype)


@cached_table
def base_offsets(
    side: int, heads: int, dilation_rates: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(heads, side^2, 2): x and y offset of each point before learning; x varies slowest, heads cycle through rates.

    Args:
        side: points along one side of the grid.
        heads: of the operator.
        dilation_rates: spacing of the points, in pixels.
        dtype: of the result.
        device: of the result.
    """
    steps = torch.arange(side, device=device) - (side - 1) // 2
    points = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).flatten(0, 1)
    rates = torch.tensor([dilation_rates[head % len(dilation_rates)] for head in range(heads)], device=device)
    return (points[None] * rates[:, None, None]).to(dtype)


class DeformableSampling(nn.Module):
    """Each pixel gathers `points` samples from places that it chooses, with softmax weights.

    Args:
        dim: channels C.
        num_heads: groups with their own places and weights.
        points: samples for each head, a square number.
        kernel_size: of the depthwise convolution that the places and weights are computed from.
        dilation_rates: spacing of the points before learning; heads cycle through them.
        offset_scale: factor on all offsets.
        ratio: channels of the sampled values over C.

    Maps (B, H, W, C) to the same shape. Source: InternImage, arXiv 2211.05778, as unified in arXiv 2211.05781.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        points: int = 9,
        kernel_size: int = 3,
        dilation_rates: Sequence[int] = (1,),
        offset_scale: float = 1.0,
        ratio: float = 1.0,
    ):
        super().__init__()
        inner = int(dim * ratio)
        self.side = round(points**0.5)
        if inner % num_heads or self.side**2 != points:
            raise ValueError(f"need a square number of points and heads that divide {inner}, got {points}, {num_heads}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd to keep the map's size, got {kernel_size}")
        self.num_heads = num_heads
        self.dilation_rates = tuple(dilation_rates)
        self.offset_scale = offset_scale
        conv = ChannelsLastConv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        # The norm lies one module deeper in the published files.
        self.dw_conv = nn.Sequential(conv, nn.Sequential(OrderedDict(norm=nn.LayerNorm(dim))))
        self.sampling_offsets = nn.Linear(dim, num_heads * points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * points)
        self.value_proj = nn.Linear(dim, inner)
        self.output_proj = nn.Linear(inner, dim)

    def locations(self, offsets: Tensor, height: int, width: int) -> Tensor:
        """(B, H*W, heads, points, 2) learned offsets in pixels to places in the map, [0, 1] from side to side.

        Args:
            offsets: (B, H*W, heads, points, 2), x before y.
            height: of the map.
            width: of the map.
        """
        wide = torch.float64 if offsets.dtype == torch.float64 else torch.float32
        base = base_offsets(self.side, self.num_heads, self.dilation_rates, wide, offsets.device)
        centers = pixel_centres(height, width, wide, offsets.device)
        places = centers[:, None, None] + self.offset_scale * (base + offsets.to(wide))
        return (places + 0.5) / torch.tensor([width, height], dtype=wide, device=offsets.device)

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[1:3]
        query = F.gelu(self.dw_conv(maps))
        offsets = rearrange(self.sampling_offsets(query), "b y x (h p i) -> b (y x) h p i", h=self.num_heads, i=2)
        weights = rearrange(self.attention_weights(query), "b y x (h p) -> b (y x) h p", h=self.num_heads)
        value = rearrange(self.value_proj(maps), "b y x (h d) -> b y x h d", h=self.num_heads)
        mixed = sample_weighted(value, self.locations(offsets, height, width), weights.softmax(-1))
        return self.output_proj(rearrange(mixed, "b (y x) c -> b y x c", y=height))


class DeformableBlock(AttentionBlock):
    """DCNv3, then an MLP.

    Args:
        dim: channels C.
        place: where the block stands.
        num_heads: groups of channels with their own offsets and weights.
        mlp_ratio: hidden over outer channels.
        **sampling: points, kernel_size, dilation_rates, offset_scale, ratio; see `DeformableSampling`.
    """

    per_stage: ClassVar = ("num_heads",)

    def __init__(self, dim: int, place: BlockPosition, *, num_heads: int, mlp_ratio: float = 4.0, **sampling: Any):
        attn = DeformableSampling(dim, num_heads, **sampling)
        super().__init__(dim, place, attn, mlp_ratio=mlp_ratio, factors=("gamma1", "gamma2"))
