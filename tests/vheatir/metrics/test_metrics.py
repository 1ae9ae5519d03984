"""PSNR, SSIM and PSNR-B: against scikit-image, against a slow twin, and at their edges."""

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vheatir.data.degradations import add_gaussian_noise, jpeg_roundtrip
from vheatir.image_io.arrays import luma_bt601, to_float, to_uint8
from vheatir.metrics.fidelity import psnr, psnrb, scores, scores_of_degraded, ssim

SHAPES = [(11, 11), (32, 48), (61, 37), (16, 9999), (11, 11, 3), (40, 40, 3), (57, 90, 3)]


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image with texture, and the same with noise; uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = np.stack([np.sin(rows / (5 + c)) + np.cos(columns / (7 - c)) for c in range(3)], axis=2)
    clean = 120 + 45 * waves + rng.normal(0, 6, waves.shape)
    clean = clean if len(shape) == 3 else clean[:, :, 0]
    noisy = clean + rng.normal(0, 12, clean.shape)
    return tuple(np.clip(np.rint(image), 0, 255).astype(np.uint8) for image in (noisy, clean))


def cut(image: np.ndarray, border: int) -> np.ndarray:
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


def slow_psnrb(restored: np.ndarray, target: np.ndarray) -> float:
    """PSNR-B pair by pair, for whole images (no border), written from the formula."""
    values = []
    for channel in range(restored.shape[2] if restored.ndim == 3 else 1):
        plane = restored.reshape(*restored.shape[:2], -1)[:, :, channel].astype(float).tolist()
        other = target.reshape(*target.shape[:2], -1)[:, :, channel].astype(float).tolist()
        height, width = len(plane), len(plane[0])
        across = inside = squares = 0.0
        for y in range(height):
            for x in range(width):
                squares += (plane[y][x] - other[y][x]) ** 2
                for dy, dx in ((0, 1), (1, 0)):
                    if y + dy < height and x + dx < width:
                        step = (plane[y + dy][x + dx] - plane[y][x]) ** 2
                        if ((x + 1) % 8 == 0 and dx) or ((y + 1) % 8 == 0 and dy):
                            across += step
                        else:
                            inside += step
        down, along = (side // 8 - 1 if side >= 16 else (side - 1) // 8 for side in (height, width))
        edges = height * along + width * down
        pairs = height * (width - 1) + width * (height - 1)
        excess = across / edges - inside / (pairs - edges)
        penalty = 3 / math.log2(min(height, width)) * max(excess, 0)
        values.append(10 * math.log10(255**2 / (squares / (height * width) + penalty)))
    return sum(values) / len(values)


@pytest.mark.parametrize("border", [0, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_psnr_equals_scikit_image(shape, border):
    restored, target = pair(shape)
    expected = peak_signal_noise_ratio(cut(target, border), cut(restored, border), data_range=255)
    assert psnr(restored, target, border=border) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("border", [0, 3])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if min(shape[:2]) >= 17], ids=str)
def test_ssim_equals_scikit_image(shape, border):
    restored, target = pair(shape)
    protocol = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    axis = 2 if len(shape) == 3 else None
    expected = structural_similarity(cut(restored, border), cut(target, border), channel_axis=axis, **protocol)
    assert ssim(restored, target, border=border) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_the_smallest_image_is_one_window():
    restored, target = pair((11, 11))
    protocol = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert ssim(restored, target) == pytest.approx(structural_similarity(restored, target, **protocol), abs=1e-9)


@pytest.mark.parametrize("quality", [5, 40, None])
@pytest.mark.parametrize(
    "shape", [(16, 16), (24, 40), (17, 31), (9, 30), (45, 61, 3), (32, 16, 3), (12, 12), (8, 80)], ids=str
)
def test_psnrb_equals_a_slow_twin(shape, quality):
    restored, target = pair(shape)
    restored = restored if quality is None else jpeg_roundtrip(target, quality)
    assert psnrb(restored, target) == pytest.approx(slow_psnrb(restored, target), abs=1e-9)


def test_psnrb_punishes_blocks_of_the_restored_image_only():
    target = pair((64, 64))[1]
    blocky = jpeg_roundtrip(target, 5)
    assert psnrb(blocky, target) < psnr(blocky, target) - 0.5
    assert psnrb(target, blocky) == pytest.approx(psnr(target, blocky), abs=0.2)


@pytest.mark.parametrize("border", [0, 4, 11])
@pytest.mark.parametrize("shape", [(12, 512), (512, 15), (9, 9), (8, 64), (24, 48)], ids=str)
def test_psnrb_is_psnr_where_all_neighbors_differ_alike(shape, border):
    """Also of narrow and cut images: every step across an edge is divided by the pairs that it is among."""
    shape = tuple(side + 2 * border for side in shape)
    board = (100 + 10 * (np.indices(shape).sum(axis=0) % 2)).astype(np.uint8)
    assert psnrb(board, board + 1, border=border) == pytest.approx(psnr(board, board + 1, border=border), abs=1e-9)


@pytest.mark.parametrize("shape", [(9, 9), (12, 64), (64, 15)], ids=str)
def test_psnrb_punishes_the_one_edge_of_a_narrow_image(shape):
    target = np.full(shape, 90, np.uint8)
    blocky = target + np.where(np.indices(shape)[shape.index(min(shape))] < 8, 10, 0).astype(np.uint8)
    assert psnrb(blocky, target) < psnr(blocky, target) - 1


def test_psnrb_is_psnr_where_a_cut_leaves_pairs_across_edges_alone():
    restored, target = pair((16, 16))
    assert psnrb(restored, target, border=7) == psnr(restored, target, border=7)


@pytest.mark.parametrize("border", [3, 5, 8, 12])
def test_psnrb_keeps_the_grid_of_the_uncut_image(border):
    target = np.full((64, 64), 100, np.uint8)
    blocky = target + (np.indices((64, 64)) // 8).sum(axis=0).astype(np.uint8) % 2 * 20  # steps at block edges only
    assert psnrb(blocky, target, border=border) < psnr(blocky, target, border=border) - 1
    shifted = np.roll(blocky, 4, axis=(0, 1))  # the same steps in the middle of the blocks: nothing to punish
    assert psnrb(shifted, target, border=border) == pytest.approx(psnr(shifted, target, border=border), abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (7, 5), (8, 8), (15, 15, 3)], ids=str)
def test_psnrb_of_images_without_two_blocks_is_finite(shape):
    target = np.zeros(shape, np.uint8)
    target[..., 0] = 9
    restored = target + 1
    expected = psnr(restored, target)
    if max(shape[:2]) < 16:
        assert psnrb(restored, target) == pytest.approx(expected, abs=1e-12)
    else:
        assert math.isfinite(psnrb(restored, target))


def test_psnrb_of_one_row_of_pixels_is_psnr():
    """The logarithm of its shorter side, by which the penalty is divided, is zero."""
    restored = np.where(np.arange(40) < 8, 0, 9).astype(np.uint8)[None]
    assert psnrb(restored, restored + 1) == psnr(restored, restored + 1)


@pytest.mark.parametrize("shape", [(32, 32), (33, 47, 3)], ids=str)
def test_identical_images(shape):
    flat = np.full(shape, 77, np.uint8)
    assert scores(flat, flat) == {"psnr": math.inf, "ssim": pytest.approx(1.0), "psnrb": math.inf}
    clean = pair(shape)[1]
    assert psnr(clean, clean) == math.inf
    assert ssim(clean, clean) == pytest.approx(1.0, abs=1e-12)


def test_psnr_of_a_known_error():
    target = np.full((20, 20, 3), 100, np.uint8)
    assert psnr(target + 5, target) == pytest.approx(20 * math.log10(255 / 5), abs=1e-12)
    assert psnr(np.full((20, 20), 255, np.uint8), np.zeros((20, 20), np.uint8)) == 0


def test_scores_are_the_three_figures():
    restored, target = pair((40, 50, 3))
    expected = {figure.__name__: figure(restored, target, border=2) for figure in (psnr, ssim, psnrb)}
    assert scores(restored, target, border=2) == expected


def test_luma_compares_rounded_y():
    restored, target = pair((40, 50, 3))
    expected = scores(luma_bt601(restored), luma_bt601(target))
    assert scores(restored, target, luma=True) == expected
    assert scores(luma_bt601(restored), luma_bt601(target), luma=True) == expected  # gray is compared as it is


@pytest.mark.parametrize("shape", [(40, 40), (41, 30, 3)], ids=str)
def test_degraded_images_are_neither_clipped_nor_rounded(shape):
    target = pair(shape)[1]
    degraded = add_gaussian_noise(to_float(target), 50, np.random.RandomState(0))
    mse = np.mean((degraded.astype(np.float64) * 255 - target) ** 2)
    found = scores_of_degraded(degraded, target)
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-9)
    assert found["psnr"] < scores(to_uint8(degraded), target)["psnr"] - 0.05


def test_luma_of_a_degraded_image_is_not_rounded():
    target = pair((41, 30, 3))[1]
    degraded = add_gaussian_noise(to_float(target), 50, np.random.RandomState(0))
    y = degraded.astype(np.float64) @ [65.481, 128.553, 24.966] + 16
    mse = np.mean((y - luma_bt601(target))[4:-4, 4:-4] ** 2)
    found = scores_of_degraded(degraded, target, border=4, luma=True)
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-9)
    gray = to_float(luma_bt601(target))
    assert scores_of_degraded(gray, target[..., 0], luma=True) == scores_of_degraded(gray, target[..., 0])


def test_degraded_eight_bit_images_score_as_uint8():
    restored, target = pair((41, 30, 3))
    found = scores_of_degraded(to_float(restored), target)
    assert found == pytest.approx(scores(restored, target), abs=1e-5)


def test_views_give_the_same_figures():
    restored, target = pair((40, 50, 3))
    flipped = scores(restored[::-1, ::-1, ::-1], target[::-1, ::-1, ::-1])
    assert flipped == pytest.approx(scores(*(np.ascontiguousarray(i[::-1, ::-1, ::-1]) for i in (restored, target))))


@pytest.mark.parametrize("figure", [psnr, ssim, psnrb, scores])
@pytest.mark.parametrize(
    ("restored", "target", "error", "message"),
    [
        (np.zeros((20, 20)), np.zeros((20, 20), np.uint8), TypeError, "restored must be a uint8 array, got float64"),
        (np.zeros((20, 20), np.uint8), [[0]], TypeError, "target must be a uint8 array, got list"),
        (np.zeros((20, 20), np.uint8), np.zeros((20, 21), np.uint8), ValueError, "shapes differ"),
        (np.zeros((20, 20), np.uint8), np.zeros((20, 20, 3), np.uint8), ValueError, "shapes differ"),
        (np.zeros((20, 20, 4), np.uint8), np.zeros((20, 20, 4), np.uint8), ValueError, "HWC with 3 channels or HW"),
    ],
    ids=["float", "list", "size", "channels", "alpha"],
)
def test_wrong_images_are_refused(figure, restored, target, error, message):
    with pytest.raises(error, match=message):
        figure(restored, target)


@pytest.mark.parametrize("border", [-1, 10, 11])
def test_borders_that_leave_nothing_are_refused(border):
    image = np.zeros((20, 30), np.uint8)
    with pytest.raises(ValueError, match=f"border {border}"):
        psnr(image, image, border=border)


@pytest.mark.parametrize(("shape", "border"), [((10, 40), 0), ((40, 10, 3), 0), ((16, 16), 3)], ids=str)
def test_ssim_refuses_images_below_its_window(shape, border):
    image = np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match="SSIM needs at least 11x11"):
        ssim(image, image, border=border)


@pytest.mark.parametrize(
    ("degraded", "error", "message"),
    [
        (np.zeros((20, 20), np.uint8), TypeError, "use scores for uint8"),
        (np.full((20, 20), np.nan), ValueError, "NaN"),
        (np.zeros((20, 21)), ValueError, "shapes differ"),
    ],
    ids=["uint8", "nan", "size"],
)
def test_wrong_degraded_images_are_refused(degraded, error, message):
    with pytest.raises(error, match=message):
        scores_of_degraded(degraded, np.zeros((20, 20), np.uint8))
