"""Attention of every pixel to a coarser map: the mixer named pvt."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vheatir.backbone.layers.packed import ChannelsLastConv2d
from vheatir.backbone.mixers.block import AttentionBlock, BlockPosition, attend, padding_to_multiple
from vheatir.kernels.plain import full_precision


def resize_positions(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(1, C, H, W) position embedding to another H, W: bilinear, corners aligned, as published."""
    if table.shape == torch.Size(shape):
        return table
    with full_precision(table):
        return F.interpolate(table, size=tuple(shape[2:]), mode="bilinear", align_corners=True)


def _extend(maps: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column up to a multiple, so that the reduction leaves no pixel out."""
    down, right = (padding_to_multiple(side, multiple) for side in maps.shape[1:3])
    if down:
        maps = torch.cat([maps, maps[:, -1:].expand(-1, down, -1, -1)], 1)
    if right:
        maps = torch.cat([maps, maps[:, :, -1:].expand(-1, -1, right, -1)], 2)
    return maps


class ReducedAttention(nn.Module):
    """Queries from the map, keys and values from the map reduced by a convolution of stride `sr_ratio`.

    Args:
        dim: channels C.
        num_heads: of the attention.
        sr_ratio: stride of the reduction; 1 for none.
        qkv_bias: queries, keys and values have a bias.
        extend: pad maps to multiples of the stride; otherwise what is left over is not seen.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, qkv_bias: bool, extend: bool):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels do not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.extend = extend
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        reduced = sr_ratio > 1
        self.sr = ChannelsLastConv2d(dim, dim, sr_ratio, stride=sr_ratio) if reduced else None
        self.norm = nn.LayerNorm(dim) if reduced else None

    def forward(self, maps: Tensor) -> Tensor:
        query = rearrange(self.q(maps), "b y x (h d) -> b h (y x) d", h=self.num_heads)
        source = maps
        if self.sr is not None and self.norm is not None:
            # The published dense backbone leaves the rest out; where nothing would be left, it fails.
            if self.extend or min(maps.shape[1:3]) < self.sr_ratio:
                source = _extend(maps, self.sr_ratio)
            source = self.norm(self.sr(source))
        keys = rearrange(self.kv(source), "b y x (t h d) -> t b h (y x) d", t=2, h=self.num_heads)
        mixed = attend(query, keys[0], keys[1])
        return self.proj(rearrange(mixed, "b h (y x) d -> b y x (h d)", y=maps.shape[1]))


class SpatialReductionBlock(AttentionBlock):
    """Spatial-reduction attention; the first block of a stage adds a position embedding, resized to the map.

    Args:
        dim: channels C.
        place: where the block stands.
        num_heads: attention heads.
        sr_ratio: stride between the pixels that are attended to.
        mlp_ratio: hidden over outer channels.
        qkv_bias: biases for queries, keys and values.

    Source: PVT, arXiv 2102.12122, as unified in arXiv 2211.05781.
    """

    per_stage: ClassVar = ("num_heads", "sr_ratio", "mlp_ratio")
    resizers: ClassVar = {"pos_embed": resize_positions}

    def __init__(
        self,
        dim: int,
        place: BlockPosition,
        *,
        num_heads: int,
        sr_ratio: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
    ):
        extend = place.mask_padding or not place.dense
        attn = ReducedAttention(dim, num_heads, sr_ratio, qkv_bias, extend)
        super().__init__(dim, place, attn, mlp_ratio=mlp_ratio)
        first = place.index == 0
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, *place.map_size)) if first else None

    def init_tables(self) -> None:
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def set_map_size(self, size: tuple[int, int]) -> None:
        if self.pos_embed is not None:
            table = self.pos_embed
            resized = resize_positions(table.detach(), (1, table.shape[1], *size))
            self.pos_embed = nn.Parameter(resized.clone(), requires_grad=table.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        placed = x
        if self.pos_embed is not None:
            positions = resize_positions(self.pos_embed, (1, x.shape[3], x.shape[1], x.shape[2]))
            placed = x + rearrange(positions, "b c h w -> b h w c").to(x.dtype)
        # The published dense backbone adds the positions to the attention's input only.
        x = self.add_branch(x if self.place.dense else placed, self.attn(self.norm1(placed)), 0)
        return self.add_branch(x, self.mlp(self.norm2(x)), 1)
