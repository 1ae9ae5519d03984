"""Attention inside windows, shifted in every other block: the mixer named swin."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vheatir.backbone.mixers.block import AttentionBlock, BlockPosition, attend, cached_table, padding_to_multiple


def resize_bias_table(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """((2w-1)^2, heads) bias of a square window to another window: bicubic, as published."""
    old = round(table.shape[0] ** 0.5)
    new = round(shape[0] ** 0.5)
    grid = rearrange(table, "(y x) h -> 1 h y x", y=old)
    resized = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return rearrange(resized, "1 h y x -> (y x) h")


@cached_table
def relative_index(window: int, device: torch.device) -> Tensor:
    """(w^2, w^2): row of the bias table for each query and key, by query minus key."""
    rows = torch.arange(window**2, device=device) // window
    columns = torch.arange(window**2, device=device) % window
    dy = rows[:, None] - rows[None] + window - 1
    dx = columns[:, None] - columns[None] + window - 1
    return dy * (2 * window - 1) + dx


@cached_table
def window_mask(size: tuple[int, int], window: int, shift: int, masked: bool, device: torch.device) -> Tensor | None:
    """(windows, w^2, w^2): which keys each query may attend to in the padded, shifted map; None for all.

    After the shift a window may hold parts from opposite sides of the map, which must not mix. With `masked`, the
    padding is kept out too; its own queries, whose results are cut off, see everything in their part.

    Args:
        size: height and width of the map before padding.
        window: side of a window in pixels.
        shift: pixels by which the map is shifted, 0 for none.
        masked: keep out the padding.
        device: of the result.
    """
    if not shift and not (masked and any(side % window for side in size)):
        return None
    parts = []
    inside = []
    for side in size:
        padded = side + padding_to_multiple(side, window)
        position = torch.arange(padded, device=device)
        part = (position >= padded - window).int() + (position >= padded - shift).int()
        parts.append(part if shift else torch.zeros_like(part))
        inside.append((position + shift) % padded < side)
    part = 3 * parts[0][:, None] + parts[1][None]
    real = inside[0][:, None] & inside[1][None]
    part, real = (rearrange(one, "(y r) (x c) -> (y x) (r c)", r=window, c=window) for one in (part, real))
    allowed = part[:, :, None] == part[:, None, :]
    if masked:
        allowed &= real[:, None, :] | ~real[:, :, None]
    return allowed


class WindowAttention(nn.Module):
    """Self-attention of each window of `window` x `window` pixels, with a bias by relative position.

    Args:
        dim: channels C.
        num_heads: of the attention.
        window: side of a window in pixels.
    """

    def __init__(self, dim: int, num_heads: int, window: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels do not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, maps: Tensor, allowed: Tensor | None) -> Tensor:
        """Maps whose sides are multiples of the window; `allowed` as from `window_mask`."""
        window = {"r": self.window, "c": self.window}
        index = relative_index(self.window, maps.device)
        bias = rearrange(self.relative_position_bias_table[index], "q k h -> h q k")
        # With one mask for each window, windows lie beside the heads, so that the mask is shared by the batch.
        outer = "(b y x) h (r c) d" if allowed is None else "b (y x h) (r c) d"
        if allowed is not None:
            bias = torch.where(allowed[:, None], bias, -torch.inf).flatten(0, 1)
        qkv = rearrange(self.qkv(maps), f"b (y r) (x c) (t h d) -> t {outer}", t=3, h=self.num_heads, **window)
        mixed = attend(qkv[0], qkv[1], qkv[2], bias[None].to(qkv.dtype))
        sides = {"y": maps.shape[1] // self.window, "x": maps.shape[2] // self.window, "h": self.num_heads}
        return self.proj(rearrange(mixed, f"{outer} -> b (y r) (x c) (h d)", **sides, **window))


class ShiftedWindowBlock(AttentionBlock):
    """Attention in windows, which every odd block of a stage shifts by half a window.

    In a classifier the window is at most the shorter side of the stage's map at the network's image size, and a map
    that comes in with a side of one window is not shifted; a dense backbone does neither.

    Args:
        dim: channels C.
        place: where the block stands.
        num_heads: attention heads.
        window_size: side of the windows in pixels.
        mlp_ratio: hidden over outer channels.

    Source: Swin Transformer, arXiv 2103.14030, as unified in arXiv 2211.05781. Maps are padded to whole windows.
    """

    per_stage: ClassVar = ("num_heads",)
    resizers: ClassVar = {"relative_position_bias_table": resize_bias_table}
    not_decayed: ClassVar = ("relative_position_bias_table",)
    structural: ClassVar = ("relative_position_index", "attn_mask")
    attn: WindowAttention

    def __init__(self, dim: int, place: BlockPosition, *, num_heads: int, window_size: int = 7, mlp_ratio: float = 4.0):
        self.window_size = window_size
        window = window_size if place.dense else min(window_size, *place.map_size)
        super().__init__(dim, place, WindowAttention(dim, num_heads, window), eps=1e-6, mlp_ratio=mlp_ratio)

    def init_tables(self) -> None:
        nn.init.trunc_normal_(self.attn.relative_position_bias_table, std=0.02)

    def set_map_size(self, size: tuple[int, int]) -> None:
        window = self.window_size if self.place.dense else min(self.window_size, *size)
        if window != self.attn.window:
            table = self.attn.relative_position_bias_table
            resized = resize_bias_table(table.detach(), ((2 * window - 1) ** 2, table.shape[1]))
            self.attn.window = window
            self.attn.relative_position_bias_table = nn.Parameter(resized, requires_grad=table.requires_grad)

    def _attend(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[1:3]
        window = self.attn.window
        shifted = self.place.index % 2 == 1 and (self.place.dense or min(height, width) > window)
        shift = window // 2 if shifted else 0
        allowed = window_mask((height, width), window, shift, self.place.mask_padding, maps.device)
        down = padding_to_multiple(height, window)
        right = padding_to_multiple(width, window)
        if down or right:
            maps = F.pad(maps, (0, 0, 0, right, 0, down))
        if shift:
            maps = maps.roll((-shift, -shift), (1, 2))
        maps = self.attn(maps, allowed)
        if shift:
            maps = maps.roll((shift, shift), (1, 2))
        return maps[:, :height, :width]

    def forward(self, x: Tensor) -> Tensor:
        x = self.add_branch(x, self._attend(self.norm1(x)), 0)
        return self.add_branch(x, self.mlp(self.norm2(x)), 1)
