"""How an image lies: orientation in EXIF and TIFF is obeyed once and kept, whatever format it goes to."""

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from PIL import ImageOps

from tests.vheatir.image_io.odd_file_parts import (
    BOTH,
    DTYPES,
    again,
    copied,
    exif_of_orientation,
    pixels,
    raw_tag,
)
from vheatir.image_io import decode_image, open_image, read_image, write_image
from vheatir.image_io.tiff_exif import BYTE, LONG, ORIENTATION, Entry, exif_block, orientation_of


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_is_neither_turned_nor_told_otherwise(tmp_path, orientation, dtype, byteorder, compression):
    array, path = pixels((5, 7, 3), dtype), tmp_path / "in.tif"
    tags = [(274, "H", 1, orientation, True)]
    how = {"photometric": "rgb", "compression": compression, "metadata": None}
    tifffile.imwrite(path, array, byteorder=byteorder, extratags=tags, **how)
    for by_rows in BOTH:
        stored = open_image(path, by_rows=by_rows)
        np.testing.assert_array_equal(stored.rows(0, 5), array)
        assert stored.orientation == orientation
        stored.close()
    write_image(tmp_path / "out.tif", read_image(path))
    assert tifffile.TiffFile(tmp_path / "out.tif").pages[0].tags[274].value == orientation
    if dtype != "float64":  # computed as 32-bit floats
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), array)


@pytest.mark.parametrize("kind", ["palette", "bilevel", "JPEG", "CCITT", "LZW"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_another_decoder_reads_is_not_turned_either(tmp_path, kind, orientation):
    color = Pillow.fromarray(pixels((16, 24, 3), "uint8"))
    converted = {"palette": color.quantize(16), "bilevel": color.convert("1"), "CCITT": color.convert("1")}.get(
        kind, color
    )
    compression = {"JPEG": "jpeg", "CCITT": "group4", "LZW": "tiff_lzw"}.get(kind)
    converted.save(tmp_path / "upright.tif", compression=compression)
    converted.save(tmp_path / "in.tif", compression=compression, tiffinfo={274: orientation})
    upright = read_image(tmp_path / "upright.tif").pixels
    image = read_image(tmp_path / "in.tif")
    np.testing.assert_array_equal(image.pixels, upright)
    write_image(tmp_path / "out.tif", image)
    assert tifffile.TiffFile(tmp_path / "out.tif").pages[0].tags[274].value == orientation


@pytest.mark.parametrize("name", ["rgb8_orientation3.tif", "rgb8_orientation6.tif"])
def test_pixels_and_orientation_come_back_as_they_came(tmp_path, name):
    path = copied(tmp_path, f"restore/{name}")
    out = again(path)
    np.testing.assert_array_equal(tifffile.imread(out), tifffile.imread(path))
    assert raw_tag(out, 274) == raw_tag(path, 274)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_data_sets_get_images_upright_in_every_format(tmp_path, suffix, orientation):
    path = tmp_path / f"in{suffix}"
    exif = Pillow.Exif()
    exif[274] = orientation
    Pillow.fromarray(np.repeat(np.repeat(pixels((2, 3, 3), "uint8"), 8, 0), 8, 1)).save(path, exif=exif, lossless=True)
    with Pillow.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode_image(path.read_bytes(), "in"), expected)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".webp", ".tif"])
def test_a_change_of_format_keeps_how_a_image_lies(tmp_path, source, target, orientation):
    exif = Pillow.Exif()
    exif[274] = orientation
    Pillow.fromarray(pixels((8, 9, 3), "uint8")).save(tmp_path / f"in{source}", exif=exif)
    write_image(tmp_path / f"out{target}", read_image(tmp_path / f"in{source}"))
    stored = open_image(tmp_path / f"out{target}")
    assert (stored.height, stored.width, stored.orientation) == (8, 9, orientation)


def test_orientation_of_exif_that_is_none():
    assert [orientation_of(exif) for exif in (None, b"", b"Exif\0\0", b"Exif\0\0II*\0", b"x" * 40)] == [1] * 5
    assert [orientation_of(exif_of_orientation(number)) for number in range(1, 9)] == list(range(1, 9))


@pytest.mark.parametrize("kind, code", [(BYTE, "B3x"), (LONG, "I")], ids=["byte", "long"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_of_an_unusual_type_counts_and_survives(tmp_path, kind, code, order):
    exif = exif_block(order, [Entry(ORIENTATION, kind, 1, struct.pack(order + code, 6))], {})
    Pillow.fromarray(pixels((6, 8, 3), "uint8")).save(tmp_path / "a.png", exif=exif)
    assert open_image(tmp_path / "a.png").orientation == 6
    write_image(tmp_path / "b.tif", read_image(tmp_path / "a.png"))
    write_image(tmp_path / "c.bmp", read_image(tmp_path / "a.png"))
    assert open_image(tmp_path / "b.tif").orientation == 6
    assert read_image(tmp_path / "c.bmp").pixels.shape == (8, 6, 3), "turned upright"
    tifffile.imwrite(tmp_path / "d.tif", pixels((6, 8), "uint8"), extratags=[(ORIENTATION, kind, 1, 6, True)])
    write_image(tmp_path / "e.png", read_image(tmp_path / "d.tif"))
    assert open_image(tmp_path / "e.png").orientation == 6
