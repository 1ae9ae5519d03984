"""TIFFs by rows, float kinds, EXIF directories, colors under alpha: what is read is what was stored, and comes back."""

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from PIL import TiffImagePlugin

from vheatir.errors import UserError
from vheatir.image_io import Image, open_image, read_image, write_image
from vheatir.image_io.tiff_exif import Entry, append_ifds
from vheatir.image_io.tiff_info import TiffInfo
from vheatir.image_io.tiff_write import write_tiff
from vheatir.image_io.write import lost, write_blocks

RNG = np.random.default_rng(0)
KINDS = {
    "strips": {"rowsperstrip": 7},
    "one strip": {},
    "tiles": {"tile": (16, 32)},
    "zlib strips": {"rowsperstrip": 5, "compression": "zlib"},
    "zlib tiles": {"tile": (32, 16), "compression": "zlib"},
    "predictor": {"rowsperstrip": 9, "compression": "zlib", "predictor": True},
    "planes": {"rowsperstrip": 6, "planarconfig": "separate"},
    "big-endian": {"rowsperstrip": 6, "byteorder": ">"},
    "BigTIFF": {"rowsperstrip": 6, "bigtiff": True},
}


def pixels(shape, dtype):
    if np.dtype(dtype).kind == "f":
        return RNG.uniform(0, 1, shape).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def save(path, array, **options):
    channels = array.shape[2] if array.ndim == 3 else 1
    if channels in (2, 4):
        options.setdefault("extrasamples", ["unassalpha"])
    if options.get("planarconfig") == "separate" and channels > 1:
        array = np.moveaxis(array, -1, 0)
    elif channels > 1:
        options["planarconfig"] = "contig"
    options = {key: value for key, value in options.items() if key != "planarconfig" or channels > 1}
    bigtiff, byteorder = options.pop("bigtiff", False), options.pop("byteorder", "<")
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as writer:
        writer.write(array, photometric="rgb" if channels >= 3 else "minisblack", **options)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_whole(tmp_path, kind, channels, dtype):
    array = pixels((45, 37, channels), dtype)
    if kind == "predictor" and dtype == "float32":
        pytest.importorskip("imagecodecs", reason="the predictor of floats needs imagecodecs")
    save(tmp_path / "in.tif", array.squeeze(), **KINDS[kind])
    stored = open_image(tmp_path / "in.tif", by_rows=0)
    for start, stop in [(0, 3), (2, 20), (18, 45), (44, 45), (0, 45)]:
        np.testing.assert_array_equal(stored.rows(start, stop), array[start:stop])
    stored.close()


@pytest.mark.parametrize("compression", ["lzw", "zstd", "jpeg"])
def test_compressions_that_need_a_library(tmp_path, compression):
    pytest.importorskip("imagecodecs", reason="this test writes what imagecodecs compresses")
    array = pixels((45, 37, 3), "uint8" if compression == "jpeg" else "uint16")
    save(tmp_path / "in.tif", array, compression=compression, rowsperstrip=16)
    whole, by_rows = (open_image(tmp_path / "in.tif", by_rows=limit) for limit in (None, 0))
    np.testing.assert_array_equal(by_rows.rows(10, 40), whole.rows(10, 40))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_lzw_of_16_bits_is_read_without_imagecodecs(tmp_path, channels, monkeypatch):
    """As after a plain installation: tifffile cannot decode LZW then, OpenCV does."""
    import cv2

    array = pixels((45, 37, channels), "uint16")
    assert cv2.imwrite(str(tmp_path / "in.tif"), array[..., [2, 1, 0, 3][:channels]] if channels > 1 else array)

    def refuse(*_arguments, **_options):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    monkeypatch.setattr(tifffile.TiffPage, "decode", property(refuse))
    for limit in (None, 0):
        stored = open_image(tmp_path / "in.tif", by_rows=limit)
        np.testing.assert_array_equal(stored.rows(0, 45), array)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floats_keep_their_kind_and_their_range(tmp_path, channels, dtype):
    array = (pixels((9, 7, channels), dtype) * 3 - 1).astype(dtype)
    save(tmp_path / "in.tif", array.squeeze())
    image = read_image(tmp_path / "in.tif")
    assert image.bit_depth == 32 and image.pixels.dtype == np.float32
    write_image(tmp_path / "out.tif", image)
    back = tifffile.imread(tmp_path / "out.tif")
    assert back.dtype == dtype
    np.testing.assert_allclose(back, array.squeeze(), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_premultiplied_colors_are_straight_inside_and_come_back(tmp_path, dtype):
    top = 1.0 if dtype == "float32" else 65535
    straight, alpha = pixels((30, 20, 3), dtype), pixels((30, 20, 1), dtype)
    alpha[:5], alpha[5:9] = 0, top
    array = np.concatenate([(straight * (alpha / top)).astype(dtype), alpha], axis=2)
    save(tmp_path / "in.tif", array, extrasamples=["assocalpha"])
    image = read_image(tmp_path / "in.tif")
    solid = alpha[..., 0] > 0.1 * top
    np.testing.assert_allclose(image.pixels[solid], (straight / np.float32(top))[solid], atol=2e-4)
    write_image(tmp_path / "out.tif", image)
    np.testing.assert_allclose(tifffile.imread(tmp_path / "out.tif"), array, rtol=1e-6)
    stored = open_image(tmp_path / "in.tif", by_rows=0)
    np.testing.assert_allclose(stored.raw(3, stored.floats(3, 20)[0]), array[3:20], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("by_rows", [None, 0])
def test_premultiplied_colors_above_alpha_are_white_inside_and_come_back(tmp_path, dtype, by_rows):
    """Such as glows of a renderer; divided by alpha they would be hundreds of times white, which nothing restores."""
    top = 1 if dtype.startswith("float") else np.iinfo(dtype).max
    array = pixels((30, 20, 4), dtype)
    array[:9, :, 3], array[9:12, :, 3] = top / 255, 0
    array[0, 0, :3] = 0
    save(tmp_path / "in.tif", array, extrasamples=["assocalpha"])
    stored = open_image(tmp_path / "in.tif", by_rows=by_rows)
    colors, alpha = stored.floats(0, 30)
    assert alpha is not None and colors.min() >= 0 and colors[alpha > 0].max() == 1
    inside = (array[..., :3] <= array[..., 3:]) & (array[..., 3:] > 0)
    straight = (array[..., :3] / np.where(array[..., 3:] > 0, array[..., 3:], 1))[inside]
    np.testing.assert_allclose(colors[inside], straight, rtol=1e-5)
    np.testing.assert_allclose(stored.raw(0, colors), array, rtol=1e-6)
    darker = stored.raw(0, colors * 0).astype(float)
    np.testing.assert_allclose(darker[:9, :, :3], (array[:9, :, :3] - top / 255).clip(0), rtol=1e-5, atol=1e-7)
    stored.close()
    image = read_image(tmp_path / "in.tif")
    write_image(tmp_path / "out.tif", image)
    np.testing.assert_allclose(tifffile.imread(tmp_path / "out.tif"), array, rtol=1e-6)
    assert top == 1 or image.pixels.max() <= 1  # floats hold more
    assert any("cut at white" in note for note in lost(image.extras, "PNG")) == (top > 1)
    write_image(tmp_path / "out.png", replace(image, bit_depth=8))
    assert image.alpha is not None
    part = replace(image, pixels=image.pixels[:9, 1:], alpha=image.alpha[:9, 1:])
    write_image(tmp_path / "part.tif", part)
    assert tifffile.imread(tmp_path / "part.tif").shape == (9, 19, 4)


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_where_alpha_is_below_zero_or_no_number_the_pixel_stays(tmp_path, kind):
    """As resampling of floats leaves it beside an edge."""
    array = pixels((4, 5, 4), "float32")
    array[0, :, 3], array[1, :, 3], array[2, :, 3] = -0.01, np.nan, 0
    save(tmp_path / "in.tif", array, extrasamples=[kind])
    stored = open_image(tmp_path / "in.tif")
    np.testing.assert_array_equal(stored.raw(0, stored.floats(0, 4)[0])[:3], array[:3])


def photo_with_ifds(path, dtype, byteorder):
    """A TIFF with EXIF and GPS directories: by Pillow, or, of the byte order that Pillow does not write, by hand."""
    array = pixels((8, 9), dtype)
    if byteorder == "<":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[34665] = {0x829A: 0.008, 0x9003: "2024:05:01 12:00:00", 0xA434: "a lens with a long name"}
        tags[34853] = {1: "N", 2: (48.0, 8.0, 13.5)}
        Pillow.fromarray(array).save(path, tiffinfo=tags)
        return
    image = Image(array.astype(np.float32) / np.iinfo(dtype).max, bit_depth=8 * array.itemsize)
    image.extras["tiff"] = TiffInfo(9, 8, image.bit_depth, 1, dtype=dtype, byteorder=">")
    inner = [Entry(1, 2, 4, b"R98\0")]
    image.extras["tiff"].ifds = {
        34665: [
            Entry(0x829A, 5, 1, struct.pack(">II", 8, 1000)),
            Entry(0x9003, 2, 20, b"2024:05:01 12:00:00\0"),
            Entry(0xA005, 4, 1, bytes(4), inner),
        ],
        34853: [Entry(1, 2, 2, b"N\0\0\0"), Entry(2, 5, 3, struct.pack(">6I", 48, 1, 8, 1, 27, 2))],
    }
    write_image(path, image)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_exif_and_gps_directories_of_a_tiff_come_back(tmp_path, dtype, byteorder):
    photo_with_ifds(tmp_path / "in.tif", dtype, byteorder)
    write_image(tmp_path / "out.tif", read_image(tmp_path / "in.tif"))
    with Pillow.open(tmp_path / "in.tif") as before, Pillow.open(tmp_path / "out.tif") as after:
        for folder, tag, value in ((0x8769, 0x829A, 0.008), (0x8769, 0x9003, "2024:05:01 12:00:00"), (0x8825, 1, "N")):
            assert after.getexif().get_ifd(folder)[tag] == value
            assert dict(before.getexif().get_ifd(folder)) == dict(after.getexif().get_ifd(folder))
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
    if byteorder == ">":
        with Pillow.open(tmp_path / "out.tif") as after:
            assert after.getexif().get_ifd(0xA005)[1] == "R98"


class Sparse(io.FileIO):
    """A file that leaves holes for strips of black pixels."""

    black = bytes(2 * 40_000 * 3)

    def write(self, data):
        if data != self.black:
            return super().write(data)
        end = self.seek(len(data), 1)
        self.truncate(max(end, self.seek(0, 2)))
        self.seek(end)
        return len(data)


def test_more_than_4_gib_of_pixels_make_a_bigtiff(tmp_path):
    """Positions of a classic TIFF end there; that came out as an error when all was done."""
    height, width = 36_000, 40_000
    block = np.zeros((1000, width, 3), np.uint8)
    info = TiffInfo(width, height, 8, 2)
    info.ifds = {34665: [Entry(0x9003, 2, 20, b"2024:05:01 12:00:00\0")]}
    with Sparse(tmp_path / "a.tif", "w+") as file:
        write_tiff(file, (height, width, 3), (block for _ in range(height // 1000)), info)
    stored = open_image(tmp_path / "a.tif", max_pixels=height * width, by_rows=0)
    assert stored.extras["tiff"].ifds == info.ifds and (stored.height, stored.width) == (height, width)
    assert not stored.rows(height - 2, height).any()
    stored.close()


def test_a_damaged_exif_folder_is_left_out_with_a_note(tmp_path):
    array = pixels((8, 9), "uint16")
    tifffile.imwrite(tmp_path / "in.tif", array, byteorder="<")
    with open(tmp_path / "in.tif", "r+b") as file:
        append_ifds(file, {34665: [Entry(0x9003, 2, 5000, b"too short")]})
    image = read_image(tmp_path / "in.tif")
    assert "EXIF directory reaches beyond" in image.notes[0]
    write_image(tmp_path / "out.tif", image)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), array)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("suffix", "depth"), [(".png", 8), (".png", 16), (".tif", 8), (".tif", 16), (".webp", 8)])
def test_blocks_of_any_height_make_the_same_image(tmp_path, suffix, depth, channels):
    array = pixels((301, 23, channels), f"uint{depth}")
    for name, cuts in (("a", [301]), ("b", [1, 1, 100, 150, 49])):
        ends = np.cumsum(cuts)
        blocks = (array[end - cut : end] for end, cut in zip(ends, cuts))
        write_blocks(tmp_path / f"{name}{suffix}", array.shape, depth, blocks, {"lossless": True})
    first, second = (open_image(tmp_path / f"{name}{suffix}").rows(0, 301) for name in "ab")
    np.testing.assert_array_equal(first, second)
    if suffix != ".webp":
        np.testing.assert_array_equal(first, array)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_what_goes_wrong_while_rows_are_made_is_passed_on_and_nothing_is_written(tmp_path, suffix):
    def blocks():
        yield np.zeros((3, 5, 3), np.uint8)
        raise OSError("the source went away")

    with pytest.raises(OSError, match="went away"):
        write_blocks(tmp_path / f"out{suffix}", (9, 5, 3), 8, blocks(), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["strips", "zlib strips", "tiles"])
def test_damage_found_by_rows_names_the_file(tmp_path, kind):
    array = pixels((64, 48, 3), "uint16")
    save(tmp_path / "in.tif", array, **KINDS[kind])
    whole = bytearray((tmp_path / "in.tif").read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 400] = bytes(400)
    (tmp_path / "hit.tif").write_bytes(whole)
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) * 2 // 3])
    for name in ("hit.tif", "cut.tif"):
        try:
            stored = open_image(tmp_path / name, by_rows=0)
            stored.rows(0, 64)
        except UserError as error:
            assert name in str(error)
        else:
            assert (name, "zlib" in kind) == ("hit.tif", False), "uncompressed pixels cannot tell"
