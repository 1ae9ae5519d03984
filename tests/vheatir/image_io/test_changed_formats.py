"""What an image takes with it: further images of a JPEG, and metadata when the format changes."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from PIL import ImageCms, TiffImagePlugin

from tests.vheatir.image_io.png_by_hand import chunk, png
from vheatir.image_io import Image, open_image, read_image, write_image
from vheatir.image_io.jpeg_further import images_of, without_images
from vheatir.image_io.write import lost

VIDEO = b"\0\0\0\x18ftypmp42" + b"V" * 3000
TEXTS = {271: "Maker", 272: "Model 5", 315: "Ångström".encode().decode("latin-1"), 33432: "me"}
TEXTS |= {316: "a phone", 18246: 4, 18249: 75}  # the last two are stars, as Windows' Explorer writes them
TEXTS |= {tag: f"Wörter {tag}\0".encode("utf-16le") for tag in range(40091, 40096)}  # and its title, keywords, ...
MOST = 60000
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def smooth(height=40, width=56):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 4, columns * 3, rows + columns], axis=2).astype(np.uint8)


def packet(*items, attributes='hdrgm:Version="1.0"'):
    rows = "".join(f'<rdf:li rdf:parseType="Resource">{item}</rdf:li>' for item in items)
    listed = f"<C:Directory><rdf:Seq>{rows}</rdf:Seq></C:Directory>" if items else ""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:C="http://ns.google.com/photos/1.0/container/" '
        'xmlns:Item="http://ns.google.com/photos/1.0/container/item/" '
        'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        f'xmp:Rating="5" {attributes}>{listed}<hdrgm:GainMapMax>2</hdrgm:GainMapMax></rdf:Description></rdf:RDF>'
        '</x:xmpmeta><?xpacket end="w"?>'
    ).encode()


FIRST = '<C:Item Item:Semantic="Primary" Item:Mime="image/jpeg"/>'
GAIN = '<C:Item Item:Semantic="GainMap" Item:Mime="image/jpeg" Item:Length="900"/>'
MOTION = '<C:Item Item:Semantic="MotionPhoto" Item:Mime="video/mp4" Item:Length="3012"/>'


def phone(path, xmp, *, indexed=True, behind=VIDEO):
    """A photograph with a gain map and a video behind it, with or without an index of its images."""
    first, second = Pillow.fromarray(smooth()), Pillow.fromarray(smooth(20, 28)).convert("L")
    if indexed:
        first.save(path, "MPO", save_all=True, append_images=[second], xmp=xmp)
    else:
        parts = [io.BytesIO(), io.BytesIO()]
        first.save(parts[0], "JPEG", xmp=xmp)
        second.save(parts[1], "JPEG")
        path.write_bytes(parts[0].getvalue() + parts[1].getvalue())
    path.write_bytes(path.read_bytes() + behind)


@pytest.mark.parametrize("indexed", [True, False], ids=["with an index", "named by XMP alone"])
def test_a_gain_map_goes_and_rating_and_video_stay(tmp_path, indexed):
    phone(tmp_path / "in.jpg", packet(FIRST, GAIN, MOTION), indexed=indexed)
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.jpg", image)
    content = (tmp_path / "out.jpg").read_bytes()
    assert image.notes == ("holds 2 images; only the first one is restored and kept",)
    assert content.endswith(b"\xff\xd9" + VIDEO), "the video follows the image at once"
    assert content.count(b"\xff\xd8\xff") == 1 and b"MPF\0" not in content
    xmp = Pillow.open(tmp_path / "out.jpg").info["xmp"]
    assert b'xmp:Rating="5"' in xmp and b"MotionPhoto" in xmp and b"<?xpacket begin=" in xmp
    assert not any(word in xmp for word in (b"GainMap", b"hdrgm:Version"))


def test_xmp_of_plain_previews_is_kept_byte_for_byte(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a xmlns:xmp="b" xmp:Rating="3"  /></x:xmpmeta>'
    phone(tmp_path / "in.jpg", xmp, behind=b"")
    write_image(tmp_path / "out.jpg", read_image(tmp_path / "in.jpg"))
    assert Pillow.open(tmp_path / "out.jpg").info["xmp"] == xmp
    assert (tmp_path / "out.jpg").read_bytes().endswith(b"\xff\xd9")


def test_the_list_goes_with_its_last_entry():
    edited = without_images(packet(FIRST, GAIN), MOST)
    assert b"Directory" not in edited and b'xmp:Rating="5"' in edited
    as_elements = "<C:Item><Item:Semantic>GainMap</Item:Semantic><Item:Mime>image/jpeg</Item:Mime></C:Item>"
    assert b"Directory" not in without_images(packet(FIRST, as_elements), MOST)


@pytest.mark.parametrize(
    "bad", [b"<x hdr-gain-map", b'<!DOCTYPE x [<!ENTITY a "b">]>' + packet(FIRST, GAIN)], ids=["no XML", "entities"]
)
def test_xmp_that_cannot_be_edited_is_left_out_with_a_note(tmp_path, bad):
    bad += b" http://ns.adobe.com/hdr-gain-map/1.0/"
    assert without_images(bad, MOST) is None
    phone(tmp_path / "in.jpg", bad)
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.jpg", image)
    assert "XMP" in image.notes[1] and "xmp" not in Pillow.open(tmp_path / "out.jpg").info


def test_a_damaged_index_is_no_reason_to_refuse(tmp_path):
    phone(tmp_path / "in.jpg", packet(FIRST, GAIN))
    content = (tmp_path / "in.jpg").read_bytes()
    at = content.index(b"MPF\0") + 4
    (tmp_path / "in.jpg").write_bytes(content[: at + 4] + b"\xff" * 4 + content[at + 8 :])
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.jpg", image)
    assert "2 images" in image.notes[0] and (tmp_path / "out.jpg").read_bytes().endswith(b"\xff\xd9" + VIDEO)
    with pytest.raises(ValueError, match="damaged"):
        images_of(b"II*\0\x08\0\0\0", 0)


@pytest.mark.parametrize("shift", [300, -7, 100000])
def test_an_index_that_is_wrong_costs_no_video(tmp_path, shift):
    """Programs that edit a file move its gain map, and not all of them change the index."""
    phone(tmp_path / "in.jpg", packet(FIRST, GAIN, MOTION))
    content = bytearray((tmp_path / "in.jpg").read_bytes())
    index = content.index(b"MPF\0") + 4
    order = "<" if content[index : index + 2] == b"II" else ">"
    at = content.rindex(b"\xff\xd8\xff") - index
    place = content.index(struct.pack(order + "I", at), index)
    content[place : place + 4] = struct.pack(order + "I", at + shift)
    (tmp_path / "in.jpg").write_bytes(content)
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.jpg", image)
    assert "2 images" in image.notes[0] and (tmp_path / "out.jpg").read_bytes().endswith(b"\xff\xd9" + VIDEO)


def test_xmp_that_is_nested_too_deeply_or_grows_too_long():
    deep = b"<a>" * 5000 + b'<b xmlns="http://ns.adobe.com/hdr-gain-map/1.0/"/>' + b"</a>" * 5000
    assert without_images(deep, MOST) is None
    assert without_images(packet(FIRST, GAIN), 10) is None


def test_a_video_in_a_heic_is_named(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pip install 'vheatir[phone]'")
    pillow_heif.from_pillow(Pillow.fromarray(smooth())).save(tmp_path / "a.heic")
    plain = (tmp_path / "a.heic").read_bytes()
    assert read_image(tmp_path / "a.heic").notes == ()
    for behind in (struct.pack(">I4s", len(VIDEO) + 8, b"mpvd") + VIDEO, VIDEO):
        (tmp_path / "a.heic").write_bytes(plain + behind)
        (note,) = read_image(tmp_path / "a.heic").notes
        assert "video" in note and f"{len(plain + behind) - len(plain)} bytes" in note


def exif_of_camera(order):
    exif = Pillow.Exif()
    exif.endian = order
    for tag, text in TEXTS.items():
        exif[tag] = text
    exif[274] = 6
    exif.get_ifd(0x8769).update({33434: TiffImagePlugin.IFDRational(1, 60), 34855: 3200, 37386: 35.0})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 30.0)})
    return exif


def described(path):
    exif = Pillow.open(path).getexif()
    texts = {tag: exif.get(tag) for tag in TEXTS}
    return texts, dict(exif.get_ifd(0x8769)), dict(exif.get_ifd(0x8825)), open_image(path).orientation


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("through", [(".tif", ".tif"), (".tif", ".jpg"), (".tif", ".png"), (".webp", ".tif", ".jpg")])
def test_exif_survives_changes_of_format(tmp_path, through, order):
    exif = exif_of_camera(order)
    Pillow.fromarray(smooth()).save(tmp_path / "a.jpg", exif=exif, dpi=(300, 300), icc_profile=PROFILE)
    expected = described(tmp_path / "a.jpg")
    assert expected[0][271] == "Maker" and expected[1][34855] == 3200 and expected[2][1] == "N"
    before = tmp_path / "a.jpg"
    for number, suffix in enumerate(through):
        after = tmp_path / f"{number}{suffix}"
        write_image(after, read_image(before))
        assert described(after) == expected, suffix
        assert not any("tags" in note for note in read_image(after).notes)
        assert not any("tags" in note for note in lost(read_image(after).extras, "JPEG"))
        before = after
    assert Pillow.open(before).info["icc_profile"] == PROFILE


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_xmp_and_resolution_go_along_and_come_back(tmp_path, suffix):
    between = tmp_path / f"b{suffix}"
    Pillow.fromarray(smooth()).save(tmp_path / "a.jpg", dpi=(240, 240), xmp=b"<x:xmpmeta/>")
    write_image(between, read_image(tmp_path / "a.jpg"))
    write_image(tmp_path / "c.jpg", read_image(between))
    assert Pillow.open(between).info["dpi"] == pytest.approx((240, 240), abs=0.02)
    assert Pillow.open(tmp_path / "c.jpg").info["dpi"] == (240, 240)
    assert Pillow.open(tmp_path / "c.jpg").info["xmp"] == b"<x:xmpmeta/>"


@pytest.mark.parametrize("dpi", [(4e9, 4e9), (0, 0), (100000, 300), (float("nan"), 1), ("a", "b"), (72,)], ids=str)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
def test_a_resolution_that_no_format_holds_is_left_out(tmp_path, suffix, dpi):
    image = Image(np.full((8, 9, 3), 0.5, np.float32), extras={"dpi": dpi})
    write_image(tmp_path / f"a{suffix}", image)
    assert max(Pillow.open(tmp_path / f"a{suffix}").info.get("dpi", (1, 1))) < 97, "what the libraries write by default"
    if suffix == ".bmp":  # with alpha it is written by hand
        image.alpha = image.pixels[..., 0]
        write_image(tmp_path / "a.bmp", image)
        assert Pillow.open(tmp_path / "a.bmp").info["dpi"] == (0, 0)


def test_what_is_left_out_is_named(tmp_path):
    texts = [chunk(b"tEXt", b"Title\0x"), chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + b"x" * 70000)]
    (tmp_path / "a.png").write_bytes(png(smooth(), 2, *texts))
    extras = read_image(tmp_path / "a.png").extras
    named = "; ".join(lost(extras, "JPEG"))
    assert "XMP is longer" in named and "texts" in named
    assert "XMP" in "; ".join(lost(extras, "BMP")) and "XMP" not in "; ".join(lost(extras, "TIFF"))
    Pillow.fromarray(smooth()).save(tmp_path / "a.jpg", comment=b"mine")
    assert "comments" in lost(read_image(tmp_path / "a.jpg").extras, "PNG")[0]
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + VIDEO)
    named = lost(read_image(tmp_path / "a.jpg").extras, "PNG")
    assert named[0].startswith(f"holds {len(VIDEO)} bytes behind its image") and "comments" in named[1]
    extension = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + bytes(8) + b"<x/>"
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xe1" + (len(extension) + 2).to_bytes(2) + extension + data[2:])
    assert "extensions of XMP" in lost(read_image(tmp_path / "a.jpg").extras, "TIFF")[1]
    Pillow.fromarray(smooth()).save(tmp_path / "b.jpg")
    assert lost(read_image(tmp_path / "b.jpg").extras, "PNG") == ()
    tifffile.imwrite(tmp_path / "a.tif", smooth(), photometric="rgb", extratags=[(34735, 3, 4, (1, 1, 0, 0), True)])
    assert "GeoTIFF" in lost(read_image(tmp_path / "a.tif").extras, "PNG")[0]


def test_damaged_exif_reaches_a_tiff_as_its_orientation_and_a_note(tmp_path):
    exif = exif_of_camera("<").tobytes()
    at = exif.index(struct.pack("<HHI", 0x8769, 4, 1)) + 8
    Pillow.fromarray(smooth()).save(tmp_path / "a.jpg", exif=exif[:at] + b"\xff\xff\xff\0" + exif[at + 4 :])
    image = read_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.tif", image)
    assert open_image(tmp_path / "b.tif").orientation == 6
    assert any("damaged" in note for note in lost(image.extras, "TIFF")) and not lost(image.extras, "JPEG")


@pytest.mark.parametrize("channels", [3, 4])
def test_a_bmp_has_no_orientation_and_so_lies_upright(tmp_path, channels):
    pixels = np.dstack([smooth(), smooth()[..., :1]])[..., :channels]
    exif = Pillow.Exif()
    exif[274] = 6
    Pillow.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    write_image(tmp_path / "b.bmp", read_image(tmp_path / "a.png"))
    with Pillow.open(tmp_path / "b.bmp") as turned:
        assert np.array_equal(np.asarray(turned), np.rot90(pixels, -1))


def test_a_profile_for_gray_is_not_put_beside_color(tmp_path):
    profile = bytearray(PROFILE)
    profile[16:20] = b"GRAY"
    image = Image(smooth()[..., 0].astype(np.float32) / 255, extras={"icc_profile": bytes(profile)})
    for suffix in (".jpg", ".png", ".tif", ".webp"):
        write_image(tmp_path / f"a{suffix}", image)
        kept = Pillow.open(tmp_path / f"a{suffix}").info.get("icc_profile")
        assert kept == (None if suffix == ".webp" else bytes(profile))
    assert "profile is for gray" in lost(image.extras, "WEBP")[0] and not lost(image.extras, "PNG")


def test_light_levels_of_a_png_are_kept(tmp_path):
    levels = [(b"cICP", bytes([9, 16, 0, 1])), (b"mDCV", bytes(range(24))), (b"cLLI", bytes(range(8)))]
    (tmp_path / "a.png").write_bytes(png(smooth(), 2, *(chunk(*level) for level in levels)))
    write_image(tmp_path / "b.png", read_image(tmp_path / "a.png"))
    image = read_image(tmp_path / "b.png")
    assert image.extras["png_chunks"] == levels and "light levels of HDR are" in "; ".join(lost(image.extras, "HEIF"))


def test_numbers_that_describe_colors_are_kept_or_named(tmp_path):
    (tmp_path / "a.png").write_bytes(png(smooth(), 2, chunk(b"cICP", bytes([9, 16, 0, 1]))))
    image = read_image(tmp_path / "a.png")
    assert image.extras["cicp"] == (9, 16)
    for kind in ("TIFF", "JPEG", "WEBP", "BMP"):
        (note,) = lost(image.extras, kind)
        assert "primaries 9, transfer 16" in note and kind in note
    assert lost(image.extras, "PNG") == lost(image.extras, "HEIF") == ()
    pytest.importorskip("pillow_heif", reason="pip install 'vheatir[phone]'")
    write_image(tmp_path / "b.heic", image)
    assert read_image(tmp_path / "b.heic").extras["nclx"] == (9, 16, 9)


@pytest.mark.parametrize(
    ("gamma", "others", "named"),
    [(100000, [], True), (45455, [], False), (100000, [chunk(b"sRGB", b"\0")], False)],
    ids=["linear", "usual", "sRGB says otherwise"],
)
def test_an_unusual_gamma_is_named(tmp_path, gamma, others, named):
    (tmp_path / "a.png").write_bytes(png(smooth(), 2, *others, chunk(b"gAMA", struct.pack(">I", gamma))))
    assert bool(lost(read_image(tmp_path / "a.png").extras, "JPEG")) == named


@pytest.mark.parametrize(
    ("primaries", "others", "named"),
    [
        ((31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000), (), True),  # Adobe RGB
        ((31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000), (chunk(b"sRGB", b"\0"),), False),
        ((31270, 32902, 64000, 33000, 30000, 60000, 15000, 6000), (), False),
    ],
    ids=["Adobe RGB", "overruled", "sRGB"],
)
def test_unusual_primaries_are_named(tmp_path, primaries, others, named):
    (tmp_path / "a.png").write_bytes(png(smooth(), 2, *others, chunk(b"cHRM", struct.pack(">8I", *primaries))))
    extras = read_image(tmp_path / "a.png").extras
    assert any("primaries" in note for note in lost(extras, "JPEG")) is named


@pytest.mark.parametrize("through", [(".tif",), (".png",), (".tif", ".png"), (".png", ".tif")], ids=str)
def test_primaries_survive_between_tiff_and_png(tmp_path, through):
    white = (3127, 10000, 329, 1000)
    colors = (64, 100, 33, 100, 21, 100, 71, 100, 15, 100, 6, 100)  # Adobe RGB
    tags = [(318, 5, 2, white, True), (319, 5, 6, colors, True)]
    tifffile.imwrite(tmp_path / "a.tif", smooth(), photometric="rgb", extratags=tags, metadata=None)
    before = tmp_path / "a.tif"
    for number, suffix in enumerate(through):
        after = tmp_path / f"{number}{suffix}"
        image = read_image(before)
        assert lost(image.extras, {".tif": "TIFF", ".png": "PNG"}[suffix]) == ()
        assert any("primaries" in note for note in lost(image.extras, "JPEG"))
        write_image(after, image)
        before = after
    expected = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
    assert read_image(before).extras["primaries"] == pytest.approx(expected, abs=1e-4)


def test_primaries_that_are_none_do_not_matter(tmp_path):
    tags = [(318, 5, 2, (2**32 - 1, 1, 329, 1000), True), (319, 5, 6, (3, 10) * 6, True)]
    tifffile.imwrite(tmp_path / "a.tif", smooth(), photometric="rgb", extratags=tags, metadata=None)
    write_image(tmp_path / "b.png", read_image(tmp_path / "a.tif"))
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").pixels, read_image(tmp_path / "a.tif").pixels)


def test_chunks_of_programs_are_named(tmp_path):
    others = (chunk(b"caBX", b"content credentials"), chunk(b"iDOT", bytes(8)), chunk(b"bKGD", bytes(6)))
    (tmp_path / "a.png").write_bytes(png(smooth(), 2, *others, chunk(b"tEXt", b"Title\0x")))
    assert read_image(tmp_path / "a.png").notes == ("holds data of a program (caBX); left out",)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_exif_of_a_png_that_begins_as_in_a_jpeg_is_read_everywhere(tmp_path, suffix):
    exif = exif_of_camera("<").tobytes()
    assert exif.startswith(b"Exif\0\0")
    (tmp_path / "a.png").write_bytes(png(smooth(), 2, chunk(b"eXIf", exif)))
    Pillow.fromarray(smooth()).save(tmp_path / "b.png", exif=exif)
    write_image(tmp_path / f"c{suffix}", read_image(tmp_path / "a.png"))
    assert described(tmp_path / f"c{suffix}") == described(tmp_path / "b.png")


def test_a_bmp_says_that_it_has_no_profile(tmp_path):
    Pillow.fromarray(smooth()).save(tmp_path / "a.png", icc_profile=PROFILE)
    assert "BMP has no place" in lost(read_image(tmp_path / "a.png").extras, "BMP")[0]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_transparent_gray_of_few_bits(tmp_path, bits):
    top = 2**bits - 1
    values = np.arange(8 * 16).reshape(8, 16) % (top + 1)
    packed = np.packbits(
        np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :].reshape(8, -1), axis=1
    )
    header = struct.pack(">IIBBBBB", 16, 8, bits, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(">H", top)), (b"IDAT", rows), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(np.rint(image.pixels * top), values)
    np.testing.assert_array_equal(image.alpha, (values != top).astype(np.float32))
