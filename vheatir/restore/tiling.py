"""Large images in overlapping tiles, blended by smooth windows that add up to one at every pixel.

Tiles stand on a grid, so plan and windows are made per axis: the weight of a tile at a pixel is the product of its row
and its column window.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MIN_TILE = 16  # pixels; below it the borders of the tiles are most of the work
ALIGNMENT = 8  # tiles start on the block grid of JPEG and on the coarser grids on which networks work

# An image is restored whole up to these sizes. The second bounds the cosine matrices, which grow with a side's square.
WHOLE_PIXELS = 512 * 512
WHOLE_SIDE = 1024
DEFAULT_TILE = 256
DEFAULT_OVERLAP = 32


class Span(NamedTuple):
    """One tile's part of an axis, `start:stop`, and its blending weight at each of these pixels (float64)."""

    start: int
    stop: int
    window: np.ndarray


def default_tile(height: int, width: int) -> int:
    """The tile for an image of this size; 0 means the whole image at once."""
    whole = height * width <= WHOLE_PIXELS and max(height, width) <= WHOLE_SIDE
    return 0 if whole else DEFAULT_TILE


def check_tile(tile: int, overlap: int) -> None:
    """Raise ValueError when tiles of this size and overlap cannot be laid out."""
    if tile != 0 and tile < MIN_TILE:
        raise ValueError(f"tile must be 0 (whole image) or at least {MIN_TILE} pixels, got {tile}")
    if overlap < 0 or (tile and overlap > tile // 2):
        raise ValueError(f"overlap must lie between 0 and half the tile ({tile // 2} pixels), got {overlap}")


def plan_axis(length: int, tile: int, overlap: int) -> list[Span]:
    """Cover an axis by tiles that overlap by at least `overlap`, spread evenly; the windows add up to one.

    An axis no longer than the tile, or a tile of 0, gives one span. Tiles start at multiples of `ALIGNMENT` and have
    one size, so that a network which prepares tables per size prepares them once; only the last may be up to
    `ALIGNMENT - 1` pixels shorter.

    Args:
        length: of the axis in pixels.
        tile: length of a tile; 0 for the whole axis.
        overlap: least overlap of neighbors in pixels.
    """
    check_tile(tile, overlap)
    if tile == 0 or length <= tile:
        return [Span(0, length, np.ones(length))]
    last = -(-(length - tile) // ALIGNMENT)  # start of the last tile, in units of the alignment
    steps = -(-last // ((tile - overlap) // ALIGNMENT))
    starts = [step * last // steps * ALIGNMENT for step in range(steps + 1)]
    ends = [(start, min(start + tile, length)) for start in starts]
    spans = [Span(start, stop, _window(start, stop, length, overlap)) for start, stop in ends]
    total = np.zeros(length)
    for start, stop, window in spans:
        total[start:stop] += window
    return [Span(start, stop, window / total[start:stop]) for start, stop, window in spans]


def _window(start: int, stop: int, length: int, overlap: int) -> np.ndarray:
    """One inside the tile; rises as sin² over `overlap` pixels from each end that is not the image's own."""
    position = np.arange(stop - start) + 0.5
    window = np.ones(stop - start)
    if overlap and start > 0:
        window *= np.sin(0.5 * np.pi * np.minimum(1.0, position / overlap)) ** 2
    if overlap and stop < length:
        window *= np.sin(0.5 * np.pi * np.minimum(1.0, position[::-1] / overlap)) ** 2
    return window


def tiled_rows(
    function: Callable[[Tensor], Tensor],
    read: Callable[[int, int], Tensor],
    size: tuple[int, int],
    tile: int,
    overlap: int,
    *,
    on_tile: Callable[[float], None] | None = None,
) -> Iterator[Tensor]:
    """Blocks of rows of `function` of an image, from the top, computed in overlapping tiles and blended.

    `function` may compute on another device, but returns to the image's. Only two rows of tiles are ever held.

    Args:
        function: (B, C, h, w) to (B, C', h, w).
        read: gives rows start:stop of the image as (B, C, rows, W); asked for one row of tiles at a time, in order.
        size: height and width of the image.
        tile: side in pixels, 0 for the whole image.
        overlap: least overlap of neighbors in pixels.
        on_tile: called after each tile with the share of all tiles done.
    """
    height, width = size
    rows = plan_axis(height, tile, overlap)
    columns = plan_axis(width, tile, overlap)
    count = len(rows) * len(columns)
    carried = None  # what the tiles above have added to the next row of tiles
    for index, row in enumerate(rows):
        image = read(row.start, row.stop)
        band = None
        for column_index, column in enumerate(columns):
            patch = function(image[..., column.start : column.stop])
            if patch.shape[-2:] != (row.stop - row.start, column.stop - column.start):
                raise ValueError(
                    f"the function must keep height and width; it made {tuple(patch.shape[-2:])} "
                    f"of {(row.stop - row.start, column.stop - column.start)}"
                )
            if count == 1:
                band = patch
            else:
                band = _band(patch, row.stop - row.start, width, carried) if band is None else band
                weight = torch.from_numpy(np.outer(row.window, column.window)).to(patch)
                band[..., column.start : column.stop] += patch * weight
            if on_tile is not None:
                on_tile((index * len(columns) + column_index + 1) / count)
        assert band is not None, "a row has at least one tile"
        ready = (rows[index + 1].start if index + 1 < len(rows) else height) - row.start
        yield band[..., :ready, :]
        carried = band[..., ready:, :]


def _band(like: Tensor, height: int, width: int, carried: Tensor | None) -> Tensor:
    """Zeros for a row of tiles, channels-last in memory, with what is carried from above at the top."""
    band = torch.zeros((like.shape[0], height, width, like.shape[1]), dtype=like.dtype, device=like.device)
    band = band.permute(0, 3, 1, 2)
    if carried is not None:
        band[..., : carried.shape[-2], :] = carried
    return band


def apply_tiled(
    function: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: int,
    overlap: int,
    *,
    on_tile: Callable[[float], None] | None = None,
) -> Tensor:
    """`function` of an image in memory, computed in overlapping tiles and blended; see `tiled_rows`.

    Args:
        function: (B, C, h, w) to (B, C', h, w).
        image: (B, C, H, W).
        tile: side in pixels, 0 for the whole image.
        overlap: least overlap of neighbors in pixels.
        on_tile: called after each tile with the share of all tiles done.

    Returns:
        (B, C', H, W), channels-last in memory where there are several tiles.
    """
    size = (image.shape[-2], image.shape[-1])
    result = None
    top = 0

    def read(start: int, stop: int) -> Tensor:
        return image[..., start:stop, :]

    for band in tiled_rows(function, read, size, tile, overlap, on_tile=on_tile):
        if band.shape[-2] == size[0]:
            return band
        result = _band(band, *size, None) if result is None else result
        result[..., top : top + band.shape[-2], :] = band
        top += band.shape[-2]
    if result is None:
        raise ValueError(f"expected an image with rows, got {tuple(image.shape)}")
    return result
