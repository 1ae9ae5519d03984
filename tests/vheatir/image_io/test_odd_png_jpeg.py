"""Odd PNG and JPEG files: texts, profiles, segments and what follows the image come back as they came."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.vheatir.image_io.odd_file_parts import ODD, RNG, again, copied, exif_of_orientation, pixels
from vheatir.errors import UserError
from vheatir.image_io import decode_image, open_image, read_image, write_image


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


def test_a_jpeg_of_12_bits_says_so(tmp_path):
    with pytest.raises(UserError, match=r"twelve_bit\.jpg: a JPEG of 12 bits per sample.*16-bit PNG or TIFF"):
        open_image(ODD / "restore" / "twelve_bit.jpg")
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 1] = 0xC3
    (tmp_path / "lossless.jpg").write_bytes(data)
    with pytest.raises(UserError, match="lossless"):
        open_image(tmp_path / "lossless.jpg")
