"""Tiles cover the image, their windows add up to one, and a local function of tiles equals that of the whole image."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vheatir.restore.tiling import ALIGNMENT, DEFAULT_TILE, WHOLE_SIDE, apply_tiled, default_tile, plan_axis

AXES = [(1, 16, 0), (16, 16, 8), (17, 16, 8), (33, 16, 0), (100, 32, 7), (100, 32, 16), (257, 64, 32), (1000, 96, 31)]
AXES += [(100, 17, 1)]  # one pixel in two tiles


@pytest.mark.parametrize(("length", "tile", "overlap"), AXES)
def test_windows_add_up_to_one(length, tile, overlap):
    total = np.zeros(length)
    for span in plan_axis(length, tile, overlap):
        assert len(span.window) == span.stop - span.start
        total[span.start : span.stop] += span.window
    np.testing.assert_allclose(total, 1, atol=1e-12)


@pytest.mark.parametrize(("length", "tile", "overlap"), AXES)
def test_tiles_are_aligned_of_one_size_and_overlap_enough(length, tile, overlap):
    spans = plan_axis(length, tile, overlap)
    assert (spans[0].start, spans[-1].stop) == (0, length)
    assert all(span.start % ALIGNMENT == 0 for span in spans)
    assert {span.stop - span.start for span in spans[:-1]} <= {tile}
    assert min(length, tile) - ALIGNMENT < spans[-1].stop - spans[-1].start <= tile
    assert all(before.stop - after.start >= overlap for before, after in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "count"), [(256, 256, 32, 1), (257, 256, 32, 2), (480, 256, 32, 2)]
)
def test_tiles_are_as_few_as_possible(length, tile, overlap, count):
    assert len(plan_axis(length, tile, overlap)) == count


def test_windows_are_smooth_and_vanish_towards_inner_edges():
    for span in plan_axis(1000, 96, 32):
        steps = np.abs(np.diff(span.window)).max()
        assert steps < 0.06 and span.window.min() >= 0
        assert span.start == 0 or span.window[0] < 0.001
        assert span.stop == 1000 or span.window[-1] < 0.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1), (1, 257), (257, 1), (40, 50), (100, 33)], ids=str)
def test_identity_in_tiles_is_the_image(size, dtype):
    image = torch.randn(2, 3, *size, dtype=dtype)
    result = apply_tiled(lambda patch: patch, image, 32, 8)
    torch.testing.assert_close(result, image, atol=1e-6, rtol=0)
    assert result.dtype == dtype


@pytest.mark.parametrize("size", [(70, 90), (33, 200)], ids=str)
def test_convolution_in_tiles_equals_the_whole_image(size):
    """A 3x3 filter meets the tile's padding in one pixel at each inner edge, where the window is near zero."""
    kernel = torch.randn(3, 3, 3, 3, dtype=torch.float64)
    image = torch.rand(1, 3, *size, dtype=torch.float64)

    def convolve(patch):
        return F.conv2d(F.pad(patch, (1, 1, 1, 1), mode="replicate"), kernel)

    tiled, whole = apply_tiled(convolve, image, 32, 16), convolve(image)
    assert (tiled - whole).abs().max() < 0.02 * whole.abs().max()
    assert (tiled - whole).abs().median() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("tile", [0, 64])
def test_channels_may_change_and_one_tile_is_the_plain_call(tile):
    image = torch.rand(1, 3, 20, 64)
    result = apply_tiled(lambda patch: patch.mean(1, keepdim=True), image, tile, 8)
    torch.testing.assert_close(result, image.mean(1, keepdim=True), atol=0, rtol=0)


def test_progress_ends_at_one():
    shares = []
    apply_tiled(lambda patch: patch, torch.rand(1, 1, 40, 100), 32, 8, on_tile=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 8


def test_no_patch_is_larger_than_the_tile():
    seen = set()

    def look(patch):
        seen.add(tuple(patch.shape[-2:]))
        return patch

    apply_tiled(look, torch.rand(1, 3, 100, 1000), 48, 16)
    assert max(height for height, _ in seen) == max(width for _, width in seen) == 48 and len(seen) <= 4


@pytest.mark.parametrize(("tile", "overlap"), [(15, 0), (-1, 0), (32, 17), (32, -1)])
def test_impossible_tiles_are_refused(tile, overlap):
    with pytest.raises(ValueError, match="tile"):
        apply_tiled(lambda patch: patch, torch.rand(1, 3, 100, 100), tile, overlap)


def test_a_function_that_changes_the_size_is_refused():
    with pytest.raises(ValueError, match="keep height and width"):
        apply_tiled(lambda patch: patch[..., 1:], torch.rand(1, 3, 40, 40), 32, 8)


@pytest.mark.parametrize(
    ("size", "tile"),
    [((1, 1), 0), ((481, 321), 0), ((512, 512), 0), ((3000, 4000), DEFAULT_TILE), ((1, WHOLE_SIDE + 1), DEFAULT_TILE)],
    ids=str,
)
def test_default_is_the_whole_image_while_it_is_small(size, tile):
    assert default_tile(*size) == tile
