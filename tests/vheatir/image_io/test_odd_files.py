"""Odd files that people have, most of them TIFF: read and written back whole, or refused with the true cause."""

import io
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from tests.vheatir.image_io.odd_file_parts import (
    BOTH,
    DTYPES,
    ODD,
    RNG,
    again,
    copied,
    pixels,
    raw_tag,
)
from vheatir.errors import UserError
from vheatir.image_io import Image, decode_image, open_image, read_image, write_image
from vheatir.image_io.write import lost


@pytest.mark.parametrize(
    ("name", "code"), [("rgb8_artist_utf8.tif", 315), ("rgb8_description_latin1.tif", 270), ("gray16_ome_um.tif", 270)]
)
def test_texts_of_a_tiff_come_back_byte_for_byte(tmp_path, name, code):
    path = copied(tmp_path, f"restore/{name}")
    for by_rows in BOTH:
        assert raw_tag(again(path, by_rows), code) == raw_tag(path, code)


@pytest.mark.parametrize("code", [270, 271, 272, 305, 315, 33432])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("text", ["Žofie Müller", "写真", "\xb5m, a long text that lies outside the entry"], ids=ascii)
def test_every_text_tag_in_any_encoding(tmp_path, code, byteorder, text):
    for encoding in ("utf-8", "latin-1", "utf-16-le"):
        data = text.encode(encoding, "replace") + b"\0"
        array = pixels((5, 7), "uint16")
        extratags = [(code, 2, len(data), data, True)]
        tifffile.imwrite(
            tmp_path / "in.tif", array, byteorder=byteorder, extratags=extratags, metadata=None, software=False
        )
        kind, found = raw_tag(again(tmp_path / "in.tif"), code)
        assert (kind, found.rstrip(b"\0")) == (2, data.rstrip(b"\0"))  # tifffile counts zeros at the end anew


@pytest.mark.parametrize(
    "extra", [["unspecified"], ["unassalpha", "unspecified"], ["unspecified", "unspecified"]], ids=str
)
@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_channels_without_a_meaning_are_refused_by_name_whatever_the_depth(tmp_path, extra, colors, dtype, planar):
    array = pixels((9, 8, colors + len(extra)), dtype)
    array = np.moveaxis(array, -1, 0) if planar == "separate" else array
    how = {"photometric": "rgb" if colors == 3 else "minisblack", "planarconfig": planar, "extrasamples": extra}
    tifffile.imwrite(tmp_path / "in.tif", array, **how)
    for by_rows in BOTH:
        with pytest.raises(UserError, match=rf"in\.tif.*{colors + len(extra)} channels.*unspecified"):
            open_image(tmp_path / "in.tif", by_rows=by_rows)
    with pytest.raises(UserError, match="unspecified"):
        decode_image((tmp_path / "in.tif").read_bytes(), "in")


@pytest.mark.parametrize("name", ["rgb8_alpha_mask.tif", "rgba8_unspecified.tif"])
def test_the_files_with_such_channels(name):
    for by_rows in BOTH:
        with pytest.raises(UserError, match="unspecified"):
            open_image(ODD / "restore" / name, by_rows=by_rows)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_min_is_white_is_a_image_and_stays_one(tmp_path, dtype, channels, byteorder):
    array, path = pixels((9, 8, channels), dtype), tmp_path / "in.tif"
    options = {"extrasamples": ["unassalpha"], "planarconfig": "contig"} if channels == 2 else {}
    tifffile.imwrite(path, array.squeeze(), photometric="miniswhite", byteorder=byteorder, **options)
    top = 1 if dtype.startswith("f") else np.iinfo(dtype).max
    for by_rows in BOTH:
        stored = open_image(path, by_rows=by_rows)
        values, alpha = stored.floats(0, 9)
        np.testing.assert_allclose(values[..., 0], 1 - array[..., 0].astype(np.float32) / top, atol=5e-4)
        if channels == 2:
            np.testing.assert_allclose(alpha, array[..., 1].astype(np.float32) / top, atol=1e-6)
        stored.close()
        with tifffile.TiffFile(again(path, by_rows)) as out:
            assert int(out.pages[0].photometric) == 0
            np.testing.assert_allclose(out.asarray(), array.squeeze(), atol=1e-3 if dtype == "float16" else 1e-6)


@pytest.mark.parametrize("depth", [8, 16, 32])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_min_is_white_in_another_depth(tmp_path, dtype, depth):
    stored = pixels((5, 7), dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
    image = read_image(tmp_path / "a.tif")
    image.bit_depth = depth
    write_image(tmp_path / "b.tif", image)
    got = read_image(tmp_path / "b.tif")
    assert got.bit_depth == depth and np.abs(got.pixels - image.pixels).max() < 0.51 / (2 ** min(depth, 24) - 1)
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        assert tiff.pages[0].photometric == 0


def test_the_float_with_white_as_zero_and_the_signed_bytes(tmp_path):
    path = copied(tmp_path, "restore/miniswhitef32.tif")
    np.testing.assert_allclose(tifffile.imread(again(path)), tifffile.imread(path), atol=1e-6)
    np.testing.assert_allclose(read_image(path).pixels, 1 - tifffile.imread(path), atol=1e-6)
    for by_rows in BOTH:
        with pytest.raises(UserError, match=r"int8\.tif.*8-bit samples of sample format 2"):
            open_image(ODD / "restore" / "int8.tif", by_rows=by_rows)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "uint64", "complex64"])
def test_other_samples_are_refused_for_every_command(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "in.tif", np.ones((9, 8), dtype), photometric="minisblack")
    for by_rows in BOTH:
        with pytest.raises(UserError, match="sample format"):
            open_image(tmp_path / "in.tif", by_rows=by_rows)
    with pytest.raises(UserError, match="sample format"):
        decode_image((tmp_path / "in.tif").read_bytes(), "in")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("associated", [False, True])
def test_alpha_multiplied_into_colors_or_not(tmp_path, dtype, colors, planar, byteorder, associated):
    top = np.iinfo(dtype).max
    straight, alpha = pixels((9, 8, colors), dtype), pixels((9, 8, 1), dtype)
    alpha[:2], alpha[2:4] = 0, top
    shown = np.rint(straight * (alpha / top)).astype(dtype) if associated else straight
    array = np.concatenate([shown, alpha], axis=2)
    how = {"photometric": "rgb" if colors == 3 else "minisblack", "planarconfig": planar, "byteorder": byteorder}
    how["extrasamples"] = ["assocalpha" if associated else "unassalpha"]
    tifffile.imwrite(tmp_path / "in.tif", np.moveaxis(array, -1, 0) if planar == "separate" else array, **how)
    expected = np.rint(straight / (top / 255)).reshape(9, 8, -1).squeeze().astype(int)
    data = decode_image((tmp_path / "in.tif").read_bytes(), "in").astype(int)
    near = (alpha[..., 0] > 0.9 * top) if associated else np.ones((9, 8), bool)
    assert np.abs(data - expected)[near].max() <= (1 if associated else 0)
    for by_rows in BOTH:
        with tifffile.TiffFile(again(tmp_path / "in.tif", by_rows)) as out:
            assert [int(kind) for kind in out.pages[0].extrasamples] == [1 if associated else 2]
            assert np.abs(out.asarray().astype(int) - array).max() <= (1 if dtype == "uint8" else 2)
    if associated:  # a format that knows straight colors only
        write_image(tmp_path / "out.png", read_image(tmp_path / "in.tif"))
        png = read_image(tmp_path / "out.png").pixels.reshape(9, 8, -1)
        assert np.abs(png - straight / top)[near].max() < 0.006


def test_gray_with_associated_alpha_of_8_bits(tmp_path):
    path = copied(tmp_path, "restore/la8_assoc.tif")
    with tifffile.TiffFile(again(path)) as out:
        assert [int(kind) for kind in out.pages[0].extrasamples] == [1]
        np.testing.assert_array_equal(out.asarray(), tifffile.imread(path))


@pytest.mark.parametrize("orientation", (1, 6))
def test_uncompressed_ycbcr(tmp_path, orientation):
    """Which Pillow writes and then takes for truncated."""
    y, x = np.mgrid[:13, :10]
    shown = np.stack([x * 20 + 20, y * 15 + 30, x * 8 + y * 9 + 10], axis=2).astype(np.uint8)
    exif = Pillow.Exif()
    exif[274] = orientation
    Pillow.fromarray(shown).convert("YCbCr").save(tmp_path / "a.tif", exif=exif)
    for by_rows in BOTH:
        stored = open_image(tmp_path / "a.tif", by_rows=by_rows)
        assert stored.orientation == orientation
        assert np.abs(stored.rows(0, 13).astype(int) - shown).max() <= 3
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[:-100])
    with pytest.raises(UserError, match="ends too early"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("byteorder", "<>")
def test_texts_of_programs_are_kept_and_their_other_data_named(tmp_path, byteorder):
    """As electron microscopes write the size of a pixel, which tifffile reads into tables of its own."""
    texts = {34118: b"\r\nAP_PIXEL_SIZE\r\nPixel Size = 12.5 nm\r\n\0", 34682: b"[Scan]\r\nPixelWidth=1e-9\r\n\0"}
    texts |= {51123: b'{"PixelSize_um": 0.1}\0', 60001: b"sh\xe9ar\0"}
    tags = [(code, 2, len(text), text, True) for code, text in texts.items()] + [(60002, 4, 2, (7, 8), True)]
    options = {"byteorder": byteorder, "metadata": None, "extratags": tags}
    tifffile.imwrite(tmp_path / "a.tif", pixels((5, 6), "uint16"), **options)
    stored = open_image(tmp_path / "a.tif")
    assert stored.notes == ("holds data of a program (tags 60002); left out",)
    data = again(tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        found = {tag.code: data[tag.valueoffset :][: tag.count] for tag in tiff.pages[0].tags if tag.code > 32768}
    assert found == texts
    assert "tags such as IPTC or GeoTIFF are for its own format only; left out" in lost(stored.extras, "PNG")


@pytest.mark.parametrize("head", ["P5 4 1 {}\n", "P5\n# made by\n4 1\n# a camera\n{}\n", "P6\t4\t1 #\n {} "])
@pytest.mark.parametrize("white", [1, 100, 255, 256, 1023, 4095, 65535])
def test_white_of_a_pgm_or_ppm_may_be_any_number(head, white):
    """As 1023 of a sensor with 10 bits, whose images would be nearly black as numbers of 16 bits."""
    shares = np.array([0, 0.4, 0.8, 1])
    numbers = np.rint(shares * white).astype(">u2" if white > 255 else np.uint8)
    colors = 3 if head[1] == "6" else 1
    data = head.format(white).encode() + np.repeat(numbers, colors).tobytes()
    got = decode_image(data, "a.pgm").reshape(4, colors)
    assert np.abs(got - 255 * (numbers / white)[:, None]).max() <= 0.51
    assert got[3].min() == 255


@pytest.mark.parametrize("name", ["rgb8_webp.tif", "rgb8_jpegxl.tif"])
def test_codecs_of_tiff_are_read_where_they_are_installed(name):
    pytest.importorskip("imagecodecs")
    expected = tifffile.imread(ODD / "restore" / name)
    for by_rows in BOTH:
        stored = open_image(ODD / "restore" / name, by_rows=by_rows)
        np.testing.assert_array_equal(stored.rows(0, 72), expected)
        stored.close()
    np.testing.assert_array_equal(decode_image((ODD / "restore" / name).read_bytes(), name), expected)


WITHOUT = """
import sys
sys.modules["imagecodecs"] = None
from vheatir.errors import UserError
from vheatir.image_io import decode_image, open_image
by_rows = lambda path: open_image(path, by_rows=0)
for name in sys.argv[1:]:
    for read in (open_image, by_rows, lambda path: decode_image(open(path, "rb").read(), path)):
        try:
            read(name)
            print("read")
        except UserError as error:
            print(error)
"""


def test_codecs_that_are_not_installed_are_named():
    names = [str(ODD / "restore" / name) for name in ("rgb8_webp.tif", "rgb8_jpegxl.tif")]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *names], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert len(said) == 6
    assert all("rgb8_webp.tif" in line and "WEBP (number 50001)" in line for line in said[:3])
    assert all("rgb8_jpegxl.tif" in line and "JPEGXL (number 50002)" in line for line in said[3:])
    assert all("pip install imagecodecs" in line for line in said)


def test_common_codecs_are_read_without_a_further_library(tmp_path):
    array = (RNG.integers(0, 4, (20, 30, 3)) * 60).astype(np.uint8)
    names = []
    for compression in ("packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "jpeg", "zstd", "lzma"):
        for mode in ("RGB", "L"):
            path = tmp_path / f"{compression}_{mode}.tif"
            try:
                Pillow.fromarray(array).convert(mode).save(path, compression=compression)
            except OSError:
                continue  # Pillow's own library has no such codec
            names.append(str(path))
    assert len(names) >= 10
    done = subprocess.run([sys.executable, "-c", WITHOUT, *names], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["read"] * 3 * len(names)


@pytest.mark.parametrize("blocked", [False, True], ids=["as installed", "without imagecodecs"])
def test_damage_inside_a_deflated_tiff_is_found(tmp_path, blocked):
    names = []
    for dtype in ("uint8", "uint16", "float32"):
        path = tmp_path / f"{dtype}.tif"
        tifffile.imwrite(path, pixels((40, 30, 3), dtype), photometric="rgb", compression="zlib")
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 8] = bytes(8)
        path.write_bytes(data)
        names.append(str(path))
    code = WITHOUT if blocked else WITHOUT.replace('sys.modules["imagecodecs"] = None', "")
    said = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True).stdout
    lines = said.splitlines()
    assert len(lines) == 9 and all("damaged" in line for line in lines), said


@pytest.mark.parametrize("reduced", [0, 1], ids=["thumbnail first", "thumbnail second"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_thumbnail_pages_are_passed_over_with_a_note(tmp_path, reduced, dtype, byteorder):
    array, path = pixels((40, 30, 3), dtype), tmp_path / "in.tif"
    pages = [(array, 0), (array[::4, ::4], 1)]
    with tifffile.TiffWriter(path, byteorder=byteorder) as writer:
        for content, kind in pages if reduced else pages[::-1]:
            writer.write(content, photometric="rgb", subfiletype=kind, metadata=None)
    for by_rows in BOTH:
        stored = open_image(path, by_rows=by_rows)
        np.testing.assert_array_equal(stored.rows(0, 40), array)
        assert "1 further, smaller image (thumbnails); left out" in stored.notes[0]
        stored.close()


@pytest.mark.parametrize("kind", ["palette", "JPEG"])
def test_a_thumbnail_in_front_of_what_another_decoder_reads(tmp_path, kind):
    first, second = (Pillow.fromarray(pixels(shape, "uint8")) for shape in ((8, 8, 3), (16, 24, 3)))
    second = second.quantize(8) if kind == "palette" else second
    from PIL import TiffImagePlugin

    file = tmp_path / "in.tif"
    small = TiffImagePlugin.ImageFileDirectory_v2()
    small[254] = 1
    with TiffImagePlugin.AppendingTiffWriter(str(file), True) as writer:
        first.save(writer, "TIFF", tiffinfo=small)
        writer.newFrame()
        second.save(writer, "TIFF", **({} if kind == "palette" else {"compression": "jpeg"}))
    assert read_image(file).pixels.shape == (16, 24, 3)


def test_the_file_with_a_thumbnail():
    image = read_image(ODD / "restore" / "thumbnail_second.tif")
    assert image.pixels.shape == (72, 96, 3) and "thumbnail" in image.notes[0]


def test_two_images_are_still_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "in.tif") as writer:
        for kind in (0, 0, 1):
            writer.write(pixels((9, 8), "uint8"), subfiletype=kind, metadata=None)
    with pytest.raises(UserError, match="3 pages"):
        open_image(tmp_path / "in.tif")


def test_a_cut_download_is_called_truncated(tmp_path):
    for by_rows in BOTH:
        with pytest.raises(UserError, match=r"cut_download\.tif: the TIFF file ends too early \(truncated\)"):
            open_image(ODD / "restore" / "cut_download.tif", by_rows=by_rows)
    for dtype in ("uint8", "uint16", "float32"):
        tifffile.imwrite(tmp_path / "in.tif", pixels((40, 30, 3), dtype), photometric="rgb")
        whole = (tmp_path / "in.tif").read_bytes()
        for share in (0.3, 0.6, 0.95):
            (tmp_path / "cut.tif").write_bytes(whole[: int(len(whole) * share)])
            for by_rows in BOTH:
                with pytest.raises(UserError, match="truncated"):
                    open_image(tmp_path / "cut.tif", by_rows=by_rows)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_tiff_cut_anywhere_is_never_called_anything_else(tmp_path, bigtiff, byteorder, dtype):
    path = tmp_path / "cut.tif"
    artist = [(315, 2, 30, b"x" * 29 + b"\0", True)]
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as writer:
        writer.write(pixels((6, 5, 3), dtype), photometric="rgb", extratags=artist)
    whole = path.read_bytes()
    for length in range(9, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="truncated"):
            open_image(path)


def test_no_message_shows_an_object_of_python():
    for path in sorted(ODD.rglob("*.*")):
        try:
            if path.is_file():
                open_image(path).close()
        except UserError as error:
            assert " object at 0x" not in str(error) and "<_io" not in str(error)


def test_image_of_gray_and_alpha_is_gray():
    assert decode_image((ODD / "train" / "la8.png").read_bytes(), "la8.png").shape == (72, 96)
    image = read_image(ODD / "train" / "la8.png")
    assert isinstance(image, Image) and image.pixels.ndim == 2 and image.alpha is not None
