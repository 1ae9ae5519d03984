"""Attention of blocks of queries to a window around the block: the mixer named halo."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vheatir.backbone.layers.packed import ChannelsLastConv2d
from vheatir.backbone.mixers.block import AttentionBlock, BlockPosition, attend, cached_table, padding_to_multiple
from vheatir.backbone.mixers.shifted_window import resize_bias_table


def resize_relative_rows(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(2w-1, d) relative positions to another window: linear, ends aligned, as published."""
    resized = F.interpolate(table.t()[None], size=shape[0], mode="linear", align_corners=True)
    return resized[0].t().contiguous()


def _by_key(offsets: Tensor, window: int) -> Tensor:
    """(..., b, 2w-1) by offset to (..., b, w) by key: entry [r, s] is offsets[r, s - r + w - 1].

    In memory, going one query down and one key back is a step of 2w-2: a view of the flattened rows.
    """
    queries, length = offsets.shape[-2:]
    flat = F.pad(offsets.flatten(-2), (0, window))
    flat = flat[..., window - 1 : window - 1 + queries * (length - 1)]
    return flat.unflatten(-1, (queries, length - 1))[..., :window]


class QueryRelatedPosition(nn.Module):
    """Logits q . height_rel[row offset] + q . width_rel[column offset].

    Args:
        head_dim: channels of a head.
        num_heads: of the attention.
        block: side of a block in pixels.
        halo: pixels around a block that its window has too.
    """

    def __init__(self, head_dim: int, num_heads: int, block: int, halo: int):
        super().__init__()
        self.block = block
        self.window = block + 2 * halo
        self.height_rel = nn.Parameter(torch.zeros(2 * self.window - 1, head_dim))
        self.width_rel = nn.Parameter(torch.zeros(2 * self.window - 1, head_dim))

    def init_tables(self) -> None:
        for table in (self.height_rel, self.width_rel):
            nn.init.normal_(table, std=table.shape[1] ** -0.5)

    def forward(self, query: Tensor) -> Tensor:
        """(B, blocks, heads, b*b, d) unscaled queries to logits (B, blocks, heads, b*b, w*w)."""
        query = query.unflatten(3, (self.block, self.block))
        columns = _by_key(query @ self.width_rel.t(), self.window)  # (..., r, c, w)
        rows = _by_key(query.transpose(3, 4) @ self.height_rel.t(), self.window).transpose(3, 4)
        return (rows[..., :, None] + columns[..., None, :]).flatten(5).flatten(3, 4)


@cached_table
def _bias_index(block: int, halo: int, device: torch.device) -> Tensor:
    """(b^2, w^2) rows of the bias table, by query, moved by the halo, minus key."""
    window = block + 2 * halo
    query = torch.arange(block, device=device) + halo
    key = torch.arange(window, device=device)
    offset = query[:, None] - key[None] + window - 1  # (b, w)
    index = offset[:, None, :, None] * (2 * window - 1) + offset[None, :, None, :]
    return index.flatten(2).flatten(0, 1)


class QueryFreePosition(nn.Module):
    """A learned logit for each relative position and head.

    Args:
        head_dim: channels of a head.
        num_heads: of the attention.
        block: side of a block in pixels.
        halo: pixels around a block that its window has too.
    """

    def __init__(self, head_dim: int, num_heads: int, block: int, halo: int):
        super().__init__()
        self.block = block
        self.halo = halo
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * (block + 2 * halo) - 1) ** 2, num_heads))

    def init_tables(self) -> None:
        """The table starts at zero."""

    def forward(self, query: Tensor) -> Tensor:
        """Logits (heads, b*b, w*w), the same for all queries."""
        bias = self.relative_position_bias_table[_bias_index(self.block, self.halo, query.device)]
        return rearrange(bias, "q k h -> h q k")


POSITIONS: dict[str, type[QueryRelatedPosition | QueryFreePosition]] = {
    "query_related": QueryRelatedPosition,
    "query_free": QueryFreePosition,
}


@cached_table
def key_mask(size: tuple[int, int], block: int, halo: int, masked: bool, device: torch.device) -> Tensor:
    """(blocks, w*w): which pixels of each block's window are pixels of the map.

    Without `masked`, the padding to whole blocks counts as map, and only what lies beyond it is kept out.

    Args:
        size: height and width of the map.
        block: side of a block in pixels.
        halo: pixels around a block that its window has too.
        masked: keep out the padding to whole blocks.
        device: of the result.
    """
    window = block + 2 * halo
    sides = []
    for side in size:
        padded = side + padding_to_multiple(side, block)
        position = torch.arange(-halo, padded + halo, device=device)
        sides.append(((position >= 0) & (position < (side if masked else padded))).unfold(0, window, block))
    inside = sides[0][:, None, :, None] & sides[1][None, :, None, :]
    return inside.flatten(2).flatten(0, 1)


class HaloAttention(nn.Module):
    """Queries of each `block_size` square attend to it and `halo_size` pixels around it.

    Args:
        dim: channels C.
        num_heads: attention heads.
        block_size: side of the query blocks.
        halo_size: how far the window of keys reaches beyond the block.
        pos_embed_type: "query_related" or "query_free".
        mask_padding: keep the padding to whole blocks out.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        block_size: int = 7,
        halo_size: int = 3,
        pos_embed_type: str = "query_related",
        mask_padding: bool = True,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels do not divide into {num_heads} heads")
        if pos_embed_type not in POSITIONS:
            raise ValueError(f"pos_embed_type must be one of {', '.join(POSITIONS)}, got {pos_embed_type!r}")
        self.num_heads = num_heads
        self.block_size = block_size
        self.halo_size = halo_size
        self.mask_padding = mask_padding
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = ChannelsLastConv2d(dim, 2 * dim, 1, bias=False)
        self.pos_embed = POSITIONS[pos_embed_type](dim // num_heads, num_heads, block_size, halo_size)
        self.proj = nn.Linear(dim, dim)

    def _windows(self, maps: Tensor) -> Tensor:
        """Keys and values (2, B, blocks, heads, w*w, d) of every block's window."""
        block = self.block_size
        halo = self.halo_size
        maps = F.pad(maps, (0, 0, halo, halo, halo, halo))
        windows = maps.unfold(1, block + 2 * halo, block).unfold(2, block + 2 * halo, block)
        return rearrange(windows, "b y x (h t d) r c -> t b (y x) h (r c) d", t=2, h=self.num_heads)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        height, width = maps.shape[1:3]
        block = self.block_size
        down = padding_to_multiple(height, block)
        right = padding_to_multiple(width, block)
        if down or right:
            maps = F.pad(maps, (0, 0, 0, right, 0, down))
        sides = {"r": block, "c": block, "h": self.num_heads}
        query = rearrange(self.q(maps), "b (y r) (x c) (h d) -> b (y x) h (r c) d", **sides)
        keys, values = self._windows(self.kv(maps))
        inside = key_mask((height, width), block, self.halo_size, self.mask_padding, maps.device)
        bias = torch.where(inside[:, None, None], self.pos_embed(query), -torch.inf).to(query.dtype)
        bias = bias.expand(query.shape[0], *bias.shape[-4:])  # len() would fix the batch of an exported graph
        mixed = attend(*(one.flatten(0, 1) for one in (query, keys, values, bias)))
        if torch.compiler.is_exporting():  # up to torch 2.9 a traced result has other strides than a real one
            mixed = mixed.clone(memory_format=torch.contiguous_format)
        blocks = {"y": maps.shape[1] // block, "x": maps.shape[2] // block}
        mixed = rearrange(mixed, "(b y x) h (r c) d -> b (y r) (x c) (h d)", **sides, **blocks)
        return self.proj(mixed[:, :height, :width])


class HaloBlock(AttentionBlock):
    """Halo attention, then an MLP.

    Args:
        dim: channels C.
        place: where the block stands.
        num_heads: attention heads.
        block_size: side of a block of queries.
        halo_size: pixels around it that are keys too.
        pos_embed_type: see `HaloAttention`.
        mlp_ratio: hidden over outer channels.

    Source: HaloNet, arXiv 2103.12731, as unified in arXiv 2211.05781. Maps are padded to whole blocks.
    """

    per_stage: ClassVar = ("num_heads", "block_size", "halo_size")
    resizers: ClassVar = {
        "height_rel": resize_relative_rows,
        "width_rel": resize_relative_rows,
        "relative_position_bias_table": resize_bias_table,
    }
    not_decayed: ClassVar = ("relative_position_bias_table",)
    structural: ClassVar = ("relative_position_index",)
    attn: HaloAttention

    def __init__(
        self,
        dim: int,
        place: BlockPosition,
        *,
        num_heads: int,
        block_size: int = 7,
        halo_size: int = 3,
        pos_embed_type: str = "query_related",
        mlp_ratio: float = 4.0,
    ):
        attn = HaloAttention(dim, num_heads, block_size, halo_size, pos_embed_type, place.mask_padding)
        super().__init__(dim, place, attn, mlp_ratio=mlp_ratio, factor_shape=(1, 1, 1, -1))

    def init_tables(self) -> None:
        self.attn.pos_embed.init_tables()
