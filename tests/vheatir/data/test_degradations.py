"""Noise, JPEG and gray conversions: what the protocol says, reproducibility, and errors."""

import cv2
import numpy as np
import pytest

from vheatir.data.degradations import add_gaussian_noise, draw_grid_phase, jpeg_crop, jpeg_roundtrip
from vheatir.image_io.arrays import gray_opencv, luma_bt601, to_float, to_uint8

GRAY, COLOR = (53, 70), (53, 70, 3)


def random_image(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (7, 9, *shape[2:]), dtype=np.uint8)
    return cv2.resize(coarse, shape[1::-1], interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("shape", [GRAY, COLOR], ids=str)
def test_noise_is_the_protocols_to_the_bit(shape):
    image = to_float(random_image(shape))
    np.random.seed(0)  # noqa: NPY002 (the published scripts seed the global state)
    expected = image.copy()
    expected += np.random.normal(0, 25 / 255.0, image.shape)  # noqa: NPY002
    found = add_gaussian_noise(image, 25, np.random.RandomState(0))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("sigma", [0.5, 15, 50, 75])
def test_noise_has_the_stated_level_and_is_not_clipped(sigma):
    image = np.zeros((200, 300, 3), np.float32)
    noise = add_gaussian_noise(image, sigma, np.random.default_rng(1)) * 255
    assert noise.std() == pytest.approx(sigma, rel=0.01)
    assert noise.mean() == pytest.approx(0, abs=0.02 * sigma)
    assert noise.min() < -3 * sigma


def test_noise_leaves_the_input_alone_and_level_zero_changes_nothing():
    image = to_float(random_image(COLOR))
    before = image.copy()
    np.testing.assert_array_equal(add_gaussian_noise(image, 0, np.random.default_rng(0)), image)
    add_gaussian_noise(image, 50, np.random.default_rng(0))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(("sigma", "error"), [(-1, ValueError), (np.nan, ValueError), (np.inf, ValueError)])
def test_wrong_noise_levels_are_refused(sigma, error):
    with pytest.raises(error, match="sigma must be"):
        add_gaussian_noise(np.zeros((4, 4), np.float32), sigma, np.random.default_rng(0))


@pytest.mark.parametrize("quality", [1, 10, 75, 100])
def test_gray_jpeg_is_one_plane_of_libjpeg(quality):
    image = random_image(GRAY)
    coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    np.testing.assert_array_equal(jpeg_roundtrip(image, quality), cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE))


@pytest.mark.parametrize("quality", [10, 40, 90])
def test_color_jpeg_is_420_and_takes_rgb(quality):
    image = random_image(COLOR)
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    coded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality, *sampling])[1]
    expected = cv2.imdecode(coded, cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(jpeg_roundtrip(image, quality), expected)


def test_color_jpeg_keeps_the_order_of_channels():
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0] = 200
    np.testing.assert_allclose(jpeg_roundtrip(image, 95).mean(axis=(0, 1)), [200, 0, 0], atol=4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (7, 9), (8, 17, 3)], ids=str)
def test_jpeg_takes_any_size_and_views(shape):
    image = random_image((shape[0] + 1, 2 * shape[1], *shape[2:]))[1:, ::2]
    assert jpeg_roundtrip(image, 50).shape == shape


@pytest.mark.parametrize(
    ("quality", "error"), [(0, ValueError), (101, ValueError), (-5, ValueError), (10.5, TypeError), ("10", TypeError)]
)
def test_wrong_qualities_are_refused(quality, error):
    with pytest.raises(error):
        jpeg_roundtrip(random_image(GRAY), quality)


def test_more_pixels_than_jpeg_can_hold_are_refused():
    assert jpeg_roundtrip(np.zeros((1, 65500), np.uint8), 50).shape == (1, 65500)
    with pytest.raises(ValueError, match="at most 65500 pixels a side"):
        jpeg_roundtrip(np.zeros((65501, 1), np.uint8), 50)


@pytest.mark.parametrize("function", [lambda image: jpeg_roundtrip(image, 10), luma_bt601, gray_opencv, to_float])
@pytest.mark.parametrize(
    ("image", "error"),
    [
        (np.zeros((8, 8, 3), np.float32), TypeError),
        (np.zeros((8, 8, 4), np.uint8), ValueError),
        (np.zeros((0, 8, 3), np.uint8), ValueError),
        (None, TypeError),
    ],
    ids=["float", "alpha", "empty", "none"],
)
def test_wrong_images_are_refused(function, image, error):
    with pytest.raises(error):
        function(image)


@pytest.mark.parametrize("phases", [[(0, 0)], [(3, 5)], [(0, 0), (4, 4)], [(7, 1), (2, 6)]], ids=str)
@pytest.mark.parametrize("shape", [GRAY, COLOR], ids=str)
def test_jpeg_crop_is_a_chain_of_roundtrips_and_cuts(shape, phases):
    image, qualities = random_image(shape), [20, 60][: len(phases)]
    expected = image
    for quality, (y, x) in zip(qualities, phases):
        expected = jpeg_roundtrip(expected, quality)[y:, x:]
    top, left = np.sum(phases, axis=0)
    degraded, clean = jpeg_crop(image, 32, qualities, phases)
    np.testing.assert_array_equal(degraded, expected[:32, :32])
    np.testing.assert_array_equal(clean, image[top : top + 32, left : left + 32])
    assert degraded.flags.c_contiguous and clean.flags.c_contiguous


def test_jpeg_crop_stores_chroma_as_asked_for_in_each_step():
    image = random_image(COLOR)
    expected = jpeg_roundtrip(jpeg_roundtrip(image, 20, "4:4:4"), 60, "4:2:2")[:32, :32]
    degraded, _ = jpeg_crop(image, 32, [20, 60], [(0, 0), (0, 0)], ["4:4:4", "4:2:2"])
    np.testing.assert_array_equal(degraded, expected)
    assert not np.array_equal(expected, jpeg_crop(image, 32, [20, 60], [(0, 0), (0, 0)])[0])


@pytest.mark.parametrize("phase", [(0, 0), (3, 5), (7, 0)], ids=str)
def test_jpeg_crop_moves_the_block_grid(phase):
    degraded, _ = jpeg_crop(random_image((80, 80)), 48, [5], [phase])
    for axis in (0, 1):
        steps = np.abs(np.diff(degraded.astype(float), axis=axis)).mean(axis=1 - axis)
        strongest = max(range(8), key=lambda start: steps[start::8].mean())
        assert (strongest + 1 + phase[axis]) % 8 == 0


@pytest.mark.parametrize(
    ("size", "qualities", "phases", "message"),
    [
        (48, [10], [(6, 0)], "needs an image of at least"),
        (48, [10], [(0, 23)], "needs an image of at least"),
        (32, [10, 20], [(0, 0)], "one phase for each quality"),
        (32, [], [], "one phase for each quality"),
        (32, [10], [(-1, 0)], "phases >= 0"),
        (0, [10], [(0, 0)], "size must be >= 1"),
    ],
)
def test_impossible_crops_are_refused(size, qualities, phases, message):
    with pytest.raises(ValueError, match=message):
        jpeg_crop(random_image(GRAY), size, qualities, phases)


@pytest.mark.parametrize("period", [8, 16])
def test_grid_phases_are_aligned_in_half_the_cases_and_cover_the_rest(period):
    rng = np.random.default_rng(0)
    drawn = [draw_grid_phase(rng, period) for _ in range(8000)]
    assert drawn.count((0, 0)) / len(drawn) == pytest.approx(0.5 + 0.5 / period**2, abs=0.03)
    assert set(drawn) == {(y, x) for y in range(period) for x in range(period)}
    assert draw_grid_phase(np.random.default_rng(1)) == draw_grid_phase(np.random.default_rng(1), 8) != (0, 0)


@pytest.mark.parametrize(
    ("rgb", "luma"),
    [
        ((0, 0, 0), 16),
        ((255, 255, 255), 235),
        ((255, 0, 0), 81),  # 16 + 65.481
        ((0, 255, 0), 145),  # 16 + 128.553
        ((0, 0, 255), 41),  # 16 + 24.966
        ((128, 128, 128), 126),  # 16 + 128 * 219 / 255
    ],
)
def test_luma_is_limited_range_bt601(rgb, luma):
    assert luma_bt601(np.array([[rgb]], np.uint8)).tolist() == [[luma]]


def test_luma_and_gray_are_two_conversions():
    image = random_image(COLOR)
    exact = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(gray_opencv(image) - exact).max() <= 0.51
    assert np.abs(luma_bt601(image) - (16 + exact * 219 / 255)).max() <= 0.51
    with pytest.raises(ValueError, match="no luma to take"):
        luma_bt601(image[:, :, 0])


def test_float_and_back_is_exact_for_all_values():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(to_uint8(to_float(values)), values)


def test_output_is_clamped_and_rounded_to_nearest():
    image = np.array([[-0.2, 1.3, 0.4 / 255, 0.6 / 255, 254.6 / 255]], np.float32)
    assert to_uint8(image).tolist() == [[0, 255, 0, 1, 255]]


@pytest.mark.parametrize(
    ("image", "error"), [(np.full((2, 2), np.nan), ValueError), (np.zeros((2, 2), np.uint8), TypeError)]
)
def test_what_has_no_rounding_is_refused(image, error):
    with pytest.raises(error):
        to_uint8(image)
