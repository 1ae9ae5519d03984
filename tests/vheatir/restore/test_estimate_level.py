"""The estimated noise level and JPEG quality are those that the image was made with."""

import io

import cv2
import numpy as np
import pytest
import pywt
import skimage.data
from PIL import Image as Pillow

from vheatir.data.degradations import add_gaussian_noise, jpeg_roundtrip
from vheatir.restore.estimate_level import (
    estimate_noise,
    estimate_quality,
    luminance_table,
    quality_of_tables,
    sample_patches,
)

PHOTOS = ["astronaut", "coffee", "chelsea"]


def photo(name, gray=False):
    image = getattr(skimage.data, name)()[:296, :392]
    return np.ascontiguousarray(image[..., 1]) if gray else image


@pytest.mark.parametrize("gray", [False, True], ids=["color", "gray"])
@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
@pytest.mark.parametrize("name", PHOTOS)
def test_noise_level_is_found(name, sigma, gray):
    noisy = add_gaussian_noise(photo(name, gray).astype(np.float32) / 255, sigma, np.random.default_rng(0))
    assert estimate_noise([noisy]) == pytest.approx(sigma, abs=3 + 0.05 * sigma)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (1, 300), (300, 2, 3), (7, 7)], ids=str)
def test_flat_and_tiny_images_have_no_noise(shape):
    assert estimate_noise([np.full(shape, 0.5, np.float32)]) == pytest.approx(0, abs=1e-9)


def test_noise_is_the_median_of_patches_the_mean_of_channels_and_not_that_of_black():
    rng = np.random.default_rng(0)

    def patch(*sigmas):
        return 0.5 + np.stack([rng.normal(0, sigma / 255, (128, 128)) for sigma in sigmas], 2).astype(np.float32)

    assert estimate_noise([patch(60), patch(10), patch(12)]) == pytest.approx(12, rel=0.1)
    assert estimate_noise([patch(10, 20, 60)]) == pytest.approx(30, rel=0.1)
    half = patch(20)
    half[:, 64:] = 0
    assert estimate_noise([half]) == pytest.approx(20, rel=0.1)
    assert estimate_noise([patch(400)]) == 255


def old_estimate(image):
    """The median of all diagonal coefficients but exact zeros, flat or not."""
    planes = np.moveaxis(np.atleast_3d(image.astype(np.float32)), 2, 0)
    details = [pywt.dwt2(plane, "db2")[1][2] for plane in planes]
    return 255 * np.mean([np.median(np.abs(detail[detail != 0])) for detail in details]) / 0.6744897501960817


@pytest.mark.parametrize("background", [1.0, 0.7, "ramp"], ids=str)
@pytest.mark.parametrize("sigma", [1, 20])
def test_large_flat_parts_do_not_hide_the_noise_of_the_rest(sigma, background):
    noisy = 0.5 + np.random.default_rng(0).normal(0, sigma / 255, (256, 256, 3)).astype(np.float32)
    noisy = np.rint(noisy * 255) / 255
    flat = noisy.copy()
    flat[:, :160] = np.linspace(0.2, 0.8, 256)[:, None, None] if background == "ramp" else background
    assert estimate_noise([flat]) == pytest.approx(sigma, rel=0.1)
    whole = np.ones_like(flat) if background == "ramp" else np.full_like(flat, background)
    assert estimate_noise([whole, noisy, whole]) == pytest.approx(sigma, rel=0.1), "patches that are flat throughout"
    flat = noisy.copy()
    flat[..., 0] = 1
    assert estimate_noise([flat]) == pytest.approx(sigma, rel=0.1), "a channel that is saturated"


@pytest.mark.parametrize("turned", [0, 1, 2, 3])
def test_several_large_flat_parts_do_not_hide_it_either(turned):
    """Nothing flat may be left over at their rims."""
    noisy = 0.5 + np.random.default_rng(0).normal(0, 20 / 255, (256, 256)).astype(np.float32)
    for left in range(0, 256, 64):
        noisy[:, left : left + 44] = 1
    assert estimate_noise([np.rot90(noisy, turned)]) == pytest.approx(20, rel=0.15)


def test_photographs_drawings_and_flat_images_keep_their_estimate():
    photographs = [photo(name)[:256, :256] for name in PHOTOS]
    photographs += [jpeg_roundtrip(one, quality) for one in photographs for quality in (30, 75, 90)]
    for image in photographs:
        assert estimate_noise([image / 255]) == pytest.approx(old_estimate(image / 255), rel=1e-6)
    text = np.full((256, 256), 255, np.uint8)
    for row in range(20, 256, 20):
        cv2.putText(text, "The quick brown fox", (4, row), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 0, 1, cv2.LINE_AA)
    text[:, 150:] = 255
    assert estimate_noise([text / 255, np.ones((256, 256)), np.zeros((256, 256))]) < 0.1
    assert estimate_noise([np.ones((256, 256, 3))]) == pytest.approx(0, abs=1e-3)


def test_quality_is_found_where_much_is_black_or_white():
    harsh = np.clip(2 * photo("coffee").astype(float) - 128, 0, 255).astype(np.uint8)
    decoded = jpeg_roundtrip(harsh, 40)
    assert 0.3 < ((decoded == 0) | (decoded == 255)).any(2).mean() < 0.9
    assert estimate_quality([decoded]) == pytest.approx(40, abs=1)


@pytest.mark.parametrize("quality", [5, 10, 23, 40, 60, 75, 90, 95])
@pytest.mark.parametrize("gray", [False, True], ids=["color", "gray"])
@pytest.mark.parametrize("name", PHOTOS)
def test_quality_is_found_in_pixels(name, gray, quality):
    decoded = jpeg_roundtrip(photo(name, gray), quality)
    assert estimate_quality([decoded]) == pytest.approx(quality, abs=1)


@pytest.mark.parametrize("name", PHOTOS)
def test_images_that_are_no_jpeg_show_no_quality(name):
    noisy = photo(name) + np.random.default_rng(0).normal(0, 4, photo(name).shape)
    assert estimate_quality([np.clip(noisy, 0, 255).astype(np.uint8)]) is None
    assert estimate_quality([jpeg_roundtrip(photo(name), 40)[3:, 5:]]) is None, "another grid"
    assert estimate_quality([np.full((64, 64, 3), 90, np.uint8)]) is None


@pytest.mark.parametrize("gray", [False, True], ids=["color", "gray"])
@pytest.mark.parametrize("quality", [1, 10, 49, 50, 77, 95, 100])
def test_quality_is_read_from_the_tables_of_a_file(quality, gray):
    file = io.BytesIO()
    Pillow.fromarray(photo("coffee", gray)).save(file, "JPEG", quality=quality)
    with Pillow.open(file) as image:
        assert quality_of_tables(image.quantization) == (quality, True)


def test_tables_of_other_encoders_get_the_nearest_quality():
    tables = {0: (luminance_table(80) * 1.1).round().astype(int).ravel().tolist()}
    quality, exact = quality_of_tables(tables)
    assert 75 <= quality <= 82 and not exact


@pytest.mark.parametrize("size", [(1, 1), (40, 3000), (256, 256), (768, 769), (5000, 7000)], ids=str)
def test_samples_lie_inside_on_the_grid_of_jpeg_and_are_few(size):
    places = list(sample_patches(*size))
    assert 1 <= len(places) <= 9
    for rows, columns in places:
        assert rows.start % 8 == columns.start % 8 == 0
        assert 0 < rows.stop - rows.start <= 256 and rows.stop <= size[0]
        assert 0 < columns.stop - columns.start <= 256 and columns.stop <= size[1]
