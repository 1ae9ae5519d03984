"""Every bad file is refused by name: empty, truncated, damaged, mislabelled, of a kind that cannot be restored."""

import io
import os

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from tests.vheatir.image_io.png_by_hand import png
from vheatir.errors import UserError
from vheatir.image_io import Image, read_image, write_image

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp"}
DTYPES = {8: np.uint8, 16: np.uint16, 32: np.float32}


def integers(shape, depth, seed=0):
    """Random pixels as a file of that depth holds them."""
    rng = np.random.default_rng(seed)
    if depth == 32:
        return rng.uniform(0, 1, shape).astype(np.float32)
    return rng.integers(0, 2**depth, shape).astype(DTYPES[depth])


def smooth(height, width):
    """A soft color ramp."""
    ramp = np.add.outer(np.linspace(20, 120, height), np.linspace(0, 100, width))
    return np.rint(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1)).astype(np.uint8)


def encoded(kind, image=None, **options):
    buffer = io.BytesIO()
    image = smooth(40, 30) if image is None else image
    image = image if isinstance(image, Pillow.Image) else Pillow.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def frames(kind):
    images = [Pillow.fromarray(integers((10, 10, 3), 8, seed)) for seed in range(3)]
    buffer = io.BytesIO()
    images[0].save(buffer, kind, save_all=True, append_images=images[1:])
    return buffer.getvalue()


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


BAD = {
    "empty.png": (lambda: b"", "empty"),
    "empty.jpg": (lambda: b"", "empty"),
    "noise.webp": (lambda: integers(500, 8).tobytes(), "no known image format"),
    "signature_only.png": (lambda: b"\x89PNG\r\n\x1a\n", "too early"),
    "signature_only.bmp": (lambda: b"BM", "damaged"),
    "signature_only.jpg": (lambda: b"\xff\xd8\xff", "damaged"),
    "signature_only.tif": (lambda: b"II*\0", "damaged"),
    "signature_only.webp": (lambda: b"RIFF\x10\0\0\0WEBP", "damaged"),
    "truncated.png": (lambda: encoded("PNG")[:-20], "too early"),
    "truncated16.png": (lambda: png(integers((9, 9, 3), 16), 2)[:-40], "too early"),
    "checksum.png": (lambda: flipped(encoded("PNG"), -20), "checksum"),
    "short_data.png": (lambda: png(integers((9, 9, 3), 8), 2, height=99), "fewer pixels"),
    "short_data16.png": (lambda: png(integers((9, 9, 3), 16), 2, height=99), "fewer pixels"),
    "truncated.jpg": (lambda: encoded("JPEG")[:-100], "damaged"),
    "truncated.bmp": (lambda: encoded("BMP")[:-100], "damaged"),
    "truncated.webp": (lambda: encoded("WEBP")[:-20], "damaged"),
    "truncated8.tif": (lambda: tiff(integers((40, 30), 8))[:-100], "too early"),
    "truncated16.tif": (lambda: tiff(integers((40, 30), 16))[:-100], "too early"),
    "truncated_zlib.tif": (lambda: tiff(integers((40, 30), 16), compression="zlib")[:-100], "too early"),
    "jpeg_inside.png": (lambda: encoded("JPEG"), "content is JPEG"),
    "png_inside.jpg": (lambda: encoded("PNG"), "content is PNG; rename"),
    "gif_inside.png": (lambda: encoded("GIF"), "content is GIF; convert"),
    "webp_inside.jpg": (lambda: encoded("WEBP"), "content is WEBP"),
    "text.bmp": (lambda: b"This is not an image.", "no known image format"),
    "cmyk.jpg": (lambda: encoded("JPEG", Pillow.new("CMYK", (9, 9))), "CMYK"),
    "cmyk.tif": (lambda: tiff(integers((9, 9, 4), 8), photometric="separated"), "SEPARATED"),
    "lab.tif": (lambda: tiff(integers((9, 9, 3), 8), photometric="cielab"), "CIELAB"),
    "animated.webp": (lambda: frames("WEBP"), "holds 3 images"),
    "animated.png": (lambda: frames("PNG"), "animated"),
    "pages.tif": (lambda: frames("TIFF"), "3 pages"),
    "wide.tif": (lambda: tiff(integers((9, 9), 16).astype(np.uint32)), "32-bit"),
    "signed.tif": (lambda: tiff(integers((9, 9), 16).astype(np.int16)), "sample format 2"),
    "channels.tif": (lambda: tiff(integers((9, 9, 5), 16), photometric="rgb"), "5 channels"),
    "bomb.png": (lambda: png(integers((1, 1), 8), 0, width=65000, height=65000), "megapixels"),
    "bomb.bmp": (lambda: flipped(flipped(encoded("BMP"), 20), 24), "damaged|megapixels"),
    "image.gif": (lambda: encoded("GIF"), "suffix"),
    "image": (lambda: encoded("PNG"), "suffix"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_user_errors_that_name_the_file(tmp_path, name):
    make, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(UserError, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_every_cut_of_a_file_is_read_or_refused(tmp_path, kind):
    whole = encoded(kind, smooth(12, 9))
    path = tmp_path / f"cut{SUFFIXES[kind]}"
    refused = 0
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        try:
            assert read_image(path).pixels.shape == (12, 9, 3)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused >= 30


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_damaged_bytes_raise_nothing_but_user_errors(tmp_path, kind):
    whole = bytearray(encoded(kind, smooth(12, 9)))
    path = tmp_path / f"damaged{SUFFIXES[kind]}"
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole)
        for position in rng.integers(0, len(data), rng.integers(1, 4)):
            data[position] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            outcomes.add(read_image(path, max_pixels=10**6).pixels.dtype)
        except UserError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes


def test_the_limit_on_pixels_can_be_raised_and_lowered(tmp_path):
    write_image(tmp_path / "in.png", Image(np.zeros((20, 20), dtype=np.float32)))
    assert read_image(tmp_path / "in.png", max_pixels=400).pixels.shape == (20, 20)
    with pytest.raises(UserError, match="20x20 pixels"):
        read_image(tmp_path / "in.png", max_pixels=399)


def test_pillows_own_limit_is_left_as_it_was(tmp_path):
    write_image(tmp_path / "in.png", Image(np.zeros((20, 20), dtype=np.float32)))
    before = Pillow.MAX_IMAGE_PIXELS
    read_image(tmp_path / "in.png")
    assert before == Pillow.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "folder"])
def test_missing_files_and_folders_are_user_errors(tmp_path, make):
    path = tmp_path / "image.png"
    make(path)
    with pytest.raises(UserError, match=r"image\.png"):
        read_image(path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs file permissions that bind this user")
def test_unreadable_file_is_a_user_error(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encoded("PNG"))
    path.chmod(0)
    with pytest.raises(UserError, match=r"image\.png.*ermission"):
        read_image(path)
