"""Images of every depth, layout and orientation come out as 8 bits by value, turned as a viewer turns them."""

import io

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from vheatir.backbone.data.pixels import ImageError, OfOneChannel, as_pixels, check_decodes, read_pixels, sizes

RNG = np.random.default_rng(0)
GRAY16 = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
RGB16 = RNG.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def scaled(values: np.ndarray, most: int = 65535) -> np.ndarray:
    return np.round(values * (255 / most)).astype(np.uint8)


def png16(values: np.ndarray) -> bytes:
    order = values if values.ndim == 2 else values[..., [2, 1, 0, *range(3, values.shape[2])]]
    return cv2.imencode(".png", order)[1].tobytes()


def tiff(values: np.ndarray, **how) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **how)
    return file.getvalue()


def deep_files():
    alpha = np.concatenate([RGB16, GRAY16[..., None]], -1)
    yield "png gray", png16(GRAY16), scaled(GRAY16)
    yield "png rgb", png16(RGB16), scaled(RGB16)
    yield "png rgba", png16(alpha), scaled(RGB16)
    yield "pgm", cv2.imencode(".pgm", GRAY16)[1].tobytes(), scaled(GRAY16)
    for order in "<>":
        planes = np.ascontiguousarray(RGB16.transpose(2, 0, 1))
        yield f"tiff gray {order}", tiff(GRAY16, byteorder=order), scaled(GRAY16)
        yield f"bigtiff gray {order}", tiff(GRAY16, byteorder=order, bigtiff=True), scaled(GRAY16)
        white = tiff(GRAY16, byteorder=order, photometric="miniswhite")
        yield f"tiff white is 0 {order}", white, scaled(65535 - GRAY16.astype(int))
        yield f"tiff rgb {order}", tiff(RGB16, byteorder=order, photometric="rgb"), scaled(RGB16)
        separate = tiff(planes, byteorder=order, photometric="rgb", planarconfig="separate")
        yield f"tiff planes {order}", separate, scaled(RGB16)
        floats = tiff((GRAY16 / 65535).astype(np.float32), byteorder=order)
        yield f"tiff float {order}", floats, scaled(GRAY16)
        yield f"tiff rgb 8 {order}", tiff(scaled(RGB16), byteorder=order, photometric="rgb"), scaled(RGB16)


@pytest.mark.parametrize("content, want", [pytest.param(c, w, id=name) for name, c, w in deep_files()])
def test_sixteen_bits_and_floats_become_eight_by_value(tmp_path, content, want):
    (tmp_path / "a").write_bytes(content)
    got = np.asarray(read_pixels(tmp_path / "a"))
    np.testing.assert_array_equal(got, want if want.ndim == 3 else np.repeat(want[..., None], 3, -1))
    if want.ndim == 2:
        np.testing.assert_array_equal(np.asarray(read_pixels(io.BytesIO(content), gray=True)), want)
    check_decodes(tmp_path / "a")
    assert sizes(tmp_path / "a") == ((7, 5), (7, 5))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "RGB"])
def test_modes_of_eight_bits_are_what_pillow_makes_of_them(mode):
    image = Image.fromarray(scaled(RGB16)).convert(mode)
    np.testing.assert_array_equal(np.asarray(as_pixels(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "PNG 16", "TIFF 16", "JPEG"])
def test_orientation(tmp_path, kind, orientation):
    kind, _, depth = kind.partition(" ")
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(stored.astype(np.uint16) * 257 if depth else stored)
    image.save(tmp_path / "a", kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    shown = TURNED.get(orientation, TURNED[1])(stored)
    near = {"atol": 0 if kind != "JPEG" else 12}
    got, as_stored = read_pixels(tmp_path / "a", gray=True), read_pixels(tmp_path / "a", turned=False, gray=True)
    np.testing.assert_allclose(np.asarray(got).astype(int), shown, **near)
    np.testing.assert_allclose(np.asarray(as_stored).astype(int), stored, **near)
    assert sizes(tmp_path / "a") == ((4, 3), shown.shape[::-1])


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint32, np.int8])
@pytest.mark.parametrize("order", "<>")
def test_numbers_without_a_white_are_refused(kind, order):
    content = tiff((GRAY16 // 600).astype(kind), byteorder=order)
    with pytest.raises(ImageError, match="holds signed or 32-bit integers"):
        read_pixels(io.BytesIO(content))


@pytest.mark.parametrize("worst", [np.nan, np.inf, -0.5, 255.0])
def test_floats_beyond_0_and_1_are_refused(worst):
    values = (GRAY16 / 65535).astype(np.float32)
    values[2, 3] = worst
    with pytest.raises(ImageError, match=r"holds floating numbers from .* expected 0 for black to 1 for white"):
        read_pixels(io.BytesIO(tiff(values)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("part", [0, 4, 60, 0.5, 0.9])
def test_a_cut_file_is_no_image(tmp_path, kind, part):
    Image.fromarray(RNG.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(tmp_path / "a", kind)
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[: part if part >= 1 else int(part * len(content))])
    for act in (read_pixels, check_decodes):
        with pytest.raises(ImageError, match="cannot be read as an image"):
            act(tmp_path / "a")


def test_a_transform_for_gray_gives_one_channel():
    image = Image.fromarray(scaled(RGB16))
    transform = OfOneChannel(lambda one: torch.from_numpy(np.array(one)).permute(2, 0, 1))
    np.testing.assert_array_equal(transform(image)[0].numpy(), np.asarray(image.convert("L")))
