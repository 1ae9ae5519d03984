"""Odd files that people have: read rightly and written back whole, or refused with the true cause."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from PIL import ImageOps

from vheatir.errors import UserError
from vheatir.image_io import Image, decode_image, open_image, read_image, write_image
from vheatir.image_io.tiff_exif import BYTE, LONG, ORIENTATION, SHORT, Entry, exif_block, orientation_of
from vheatir.image_io.write import lost

ODD = Path(__file__).parents[2] / "data" / "odd"
RNG = np.random.default_rng(0)
DTYPES = ("uint8", "uint16", "float16", "float32", "float64")
BOTH = (None, 0)  # by_rows: decoded as a whole, and row by row


def pixels(shape, dtype):
    if np.dtype(dtype).kind == "f":
        return RNG.uniform(0, 1, shape).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def again(path, by_rows=None):
    """The same file after reading and writing, with the pixels as they were read."""
    target = path.with_name(f"again{path.suffix}")
    stored = open_image(path, by_rows=by_rows)
    from vheatir.image_io.write import write_blocks

    shape = (stored.height, stored.width, stored.channels)
    blocks = (stored.raw(0, stored.floats(0, stored.height)[0]) for _ in range(1))
    write_blocks(target, shape, stored.bit_depth, blocks, stored.extras)
    stored.close()
    return target


def raw_tag(path, code):
    """Type and bytes of a tag, as they stand in the file."""
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags[code]
        with open(path, "rb") as file:
            file.seek(tag.valueoffset)
            return int(tag.dtype), file.read(tag.valuebytecount)


def copied(tmp_path, name):
    path = tmp_path / Path(name).name
    path.write_bytes((ODD / name).read_bytes())
    return path


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


def exif_of_orientation(number: int) -> bytes:
    exif = exif_block("<", [Entry(ORIENTATION, SHORT, 1, bytes([number, 0, 0, 0]))], {})
    assert exif is not None
    return exif


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


def png_chunks(path):
    data, position, found = path.read_bytes(), 8, []
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        found.append((kind, data[position + 8 : position + 8 + size]))
        position += 12 + size
    return found


@pytest.mark.parametrize("name", ["rgb8_ztxt_2mb.png", "rgb8_itxt_2mb.png", "rgb8_icc_1200kb.png"])
def test_large_texts_and_profiles_of_a_png_are_kept(tmp_path, name):
    path = copied(tmp_path, f"restore/{name}")
    kept = [chunk for chunk in png_chunks(path) if chunk[0] in (b"zTXt", b"iTXt", b"iCCP")]
    out = again(path)
    assert kept and [chunk for chunk in png_chunks(out) if chunk[0] in (b"zTXt", b"iTXt", b"iCCP")] == kept
    np.testing.assert_array_equal(decode_image(out.read_bytes(), "out"), decode_image(path.read_bytes(), "in"))
    if "icc" in name:
        assert len(read_image(path).extras["icc_profile"]) > 1_000_000


def with_chunk(kind, data, mode="RGB"):
    file = io.BytesIO()
    Pillow.fromarray(pixels((6, 5, 3), "uint8")).convert(mode).save(file, "PNG")
    whole, chunk = file.getvalue(), kind + data
    return whole[:33] + struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:]


def bomb(size):
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA"])
@pytest.mark.parametrize(
    ("kind", "head", "said"),
    [
        (b"zTXt", b"Comment\0\0", "Comment"),
        (b"iTXt", b"Comment\0\1\0\0\0", "Comment"),
        (b"iCCP", b"name\0\0", "profile"),
    ],
)
def test_texts_and_profiles_have_a_limit_that_is_named(tmp_path, mode, kind, head, said):
    path = tmp_path / "in.png"
    path.write_bytes(with_chunk(kind, head + bomb(10 << 20), mode))
    assert read_image(path).pixels.shape[:2] == (6, 5)
    path.write_bytes(with_chunk(kind, head + bomb(65 << 20), mode))
    with pytest.raises(UserError, match=rf"in\.png.*{said}.*64 MiB, the limit"):
        read_image(path)
    assert decode_image(path.read_bytes(), "in").shape[:2] == (6, 5), "data sets do not look at texts"


def segments(data):
    """Marker and payload of every segment before the first scan, and what follows the end of the image."""
    position, found = 2, []
    while data[position + 1] != 0xDA:
        size = int.from_bytes(data[position + 2 : position + 4])
        found.append((data[position + 1], data[position + 4 : position + 2 + size]))
        position += 2 + size
    return found


def app(marker, payload):
    return bytes((0xFF, marker)) + (len(payload) + 2).to_bytes(2) + payload


def jpeg(*inserted, tail=b"", mode="RGB", **options):
    file = io.BytesIO()
    Pillow.fromarray(pixels((16, 24, 3), "uint8")).convert(mode).save(file, "JPEG", **options)
    data = file.getvalue()
    return data[:2] + b"".join(inserted) + data[2:] + tail


def app1(data):
    return [part for part in segments(data) if part[0] == 0xE1]


VIDEO = b"\0\0\0\x18ftypmp42" + bytes(RNG.integers(0, 256, 3000, dtype=np.uint8)) + b"\xff\xda\xff\xd8\xff\xe1"


@pytest.mark.parametrize("name", ["train/motion_photo_0.jpg", "restore/motion_photo_with_xmp.jpg"])
def test_a_video_behind_a_jpeg_is_kept(tmp_path, name):
    path = copied(tmp_path, name)
    before, after = path.read_bytes(), again(path).read_bytes()
    video = before[before.index(b"ftyp") - 4 :]
    assert after.endswith(b"\xff\xd9" + video)
    assert [part for part in segments(before) if part[0] == 0xE1] == [
        part for part in segments(after) if part[0] == 0xE1
    ]
    assert decode_image(before, "in").shape == (72, 96, 3)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("tail", [VIDEO, b"\0" * 100, b"\xff\xda", b"SEFT"], ids=["video", "zeros", "marker", "text"])
def test_whatever_follows_a_jpeg_is_read_over_and_kept(tmp_path, mode, progressive, tail):
    path = tmp_path / "in.jpg"
    path.write_bytes(jpeg(mode=mode, progressive=progressive))
    whole = read_image(path).pixels
    path.write_bytes(path.read_bytes() + tail)
    np.testing.assert_array_equal(read_image(path).pixels, whole)
    np.testing.assert_array_equal(decode_image(path.read_bytes(), "in"), np.rint(whole * 255))
    assert again(path).read_bytes().endswith(b"\xff\xd9" + tail)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_is_cut_is_refused_whatever_follows(tmp_path, progressive):
    data = jpeg(progressive=progressive)
    for length in range(len(data) // 2, len(data) - 2, 7):
        for tail in (b"", b"\0" * 50):
            with pytest.raises(UserError, match="cut"):
                decode_image(data[:length] + tail, "cut")


def test_exif_of_several_segments_is_kept(tmp_path):
    path = copied(tmp_path, "restore/exif_two_segments.jpg")
    before, after = (segments(file.read_bytes()) for file in (path, again(path)))
    exif = [part for part in before if part[0] == 0xE1]
    assert len(exif) == 2 and [part for part in after if part[0] == 0xE1] == exif
    write_image(tmp_path / "out.png", read_image(path))
    joined = b"".join(payload[6:] for _, payload in exif)
    assert dict(png_chunks(tmp_path / "out.png"))[b"eXIf"] == joined
    write_image(tmp_path / "back.jpg", read_image(tmp_path / "out.png"))
    back = app1((tmp_path / "back.jpg").read_bytes())
    assert len(back) == 2 and b"".join(payload.removeprefix(b"Exif\0\0") for _, payload in back) == joined


def test_iptc_and_every_kind_of_xmp_are_kept(tmp_path):
    path = copied(tmp_path, "restore/iptc_app13.jpg")
    app13 = [part for part in segments(path.read_bytes()) if part[0] == 0xED]
    assert app13 and [part for part in segments(again(path).read_bytes()) if part[0] == 0xED] == app13
    wanted = [
        (0xE1, b"Exif\0\0" + exif_of_orientation(6)[6:]),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"),
        (0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + bytes(8) + b"first half"),
        (0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + bytes(8) + b"second half"),
        (0xED, b"Photoshop 3.0\0first"),
        (0xED, b"Photoshop 3.0\0second"),
        (0xE2, b"ICC_PROFILE\0\1\1" + b"p" * 200),
        (0xFE, b"a comment in latin-1: \xe9"),
    ]
    path.write_bytes(jpeg(*(app(*part) for part in wanted)))
    found = segments(again(path).read_bytes())
    assert [part for part in found if part[0] in (0xE1, 0xE2, 0xED, 0xFE)] == wanted


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


def test_a_jpeg_of_12_bits_says_so(tmp_path):
    with pytest.raises(UserError, match=r"twelve_bit\.jpg: a JPEG of 12 bits per sample.*16-bit PNG or TIFF"):
        open_image(ODD / "restore" / "twelve_bit.jpg")
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 1] = 0xC3
    (tmp_path / "lossless.jpg").write_bytes(data)
    with pytest.raises(UserError, match="lossless"):
        open_image(tmp_path / "lossless.jpg")


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
