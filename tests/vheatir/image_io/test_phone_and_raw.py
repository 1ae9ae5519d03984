"""HEIC, AVIF and camera RAW: pixels, depth and metadata in and out, results' names, and what to install."""

import io
import struct
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from PIL import ImageCms, features

from vheatir.errors import UserError
from vheatir.image_io import Image, decode_image, open_image, read_image, write_image
from vheatir.image_io.tiff_exif import BYTE, LONG, ORIENTATION, SHORT, Entry, exif_block, orientation_of
from vheatir.image_io.view import as_shown
from vheatir.image_io.write import lost
from vheatir.restore.jobs import plan_jobs
from vheatir.restore.one_file import FileOptions, restore_file
from vheatir.restore.restorer import Restorer

ROWS, COLUMNS = 48, 64
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def ramp():
    """RGB in [0, 1], all smooth: a lossy codec keeps it."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    return np.stack([x / (COLUMNS - 1), y / (ROWS - 1), (x + y) / (ROWS + COLUMNS - 2)], axis=2)


def exif(orientation=1):
    data = Pillow.Exif()
    data[0x0112], data[0x010F] = orientation, "Maker"
    return data.tobytes()


def heic(bits=10, orientation=1, quality=-1, **about):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pip install 'vheatir[phone]'")
    file = io.BytesIO()
    steps = np.rint(ramp() * (2**bits - 1)).astype(np.uint16)
    mode, pixels = ("RGB", steps.astype(np.uint8)) if bits == 8 else ("RGB;16", steps << (16 - bits))
    about = {"icc_profile": PROFILE, "exif": exif(orientation)} | about
    size = (COLUMNS, ROWS)
    pillow_heif.encode(mode, size, pixels.tobytes(), file, quality=quality, chroma=444, bit_depth=bits, **about)
    return file.getvalue()


def avif(bits=10, **about):
    if not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    file = io.BytesIO()
    if bits == 8:
        gray = Pillow.fromarray(np.rint(ramp() * 255).astype(np.uint8))
        gray.save(file, "AVIF", quality=100, subsampling="4:4:4", **about)
        return file.getvalue()
    imagecodecs = pytest.importorskip("imagecodecs", reason="pip install 'vheatir[phone]'")
    steps = np.rint(ramp() * (2**bits - 1)).astype(np.uint16)
    return imagecodecs.avif_encode(steps, level=100, bitspersample=bits, numthreads=1, **about)


def dng(orientation=1):
    """An uncompressed DNG of a flat gray-green scene, RGGB, with the matrix of a camera that sees sRGB."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    red, blue = (y % 2 == 0) & (x % 2 == 0), (y % 2 == 1) & (x % 2 == 1)
    cfa = np.where(red, 8000, np.where(blue, 8000, 16000)).astype(np.uint16)
    cfa[: ROWS // 2] //= 2  # the upper half is darker
    to_camera = [3.2404542, -1.5371385, -0.4985314, -0.969266, 1.8760108, 0.041556, 0.0556434, -0.2040259, 1.0572252]
    matrix = [part for value in to_camera for part in (round(value * 10**6), 10**6)]
    tags = [
        (50706, 1, 4, bytes([1, 4, 0, 0]), True),  # version
        (271, 2, 0, "Maker", True),
        (272, 2, 0, "Model", True),
        (274, 3, 1, orientation, True),
        (306, 2, 0, "2024:05:01 12:00:00", True),
        (50708, 2, 0, "Maker Model", True),
        (33421, 3, 2, (2, 2), True),  # the filters' pattern and its colors
        (33422, 1, 4, bytes([0, 1, 1, 2]), True),
        (50714, 4, 1, 0, True),  # black and white
        (50717, 4, 1, 65535, True),
        (50721, 10, 9, tuple(matrix), True),
        (50728, 5, 3, (1,) * 6, True),
        (50778, 3, 1, 21, True),
    ]
    file = io.BytesIO()
    tifffile.imwrite(file, cfa, photometric="cfa", extratags=tags, metadata=None, software=False, subfiletype=0)
    return file.getvalue()


@pytest.mark.parametrize("bits", (8, 10, 12))
def test_heic_comes_and_goes_in_its_own_depth(bits, tmp_path):
    path = tmp_path / "a.heic"
    path.write_bytes(heic(bits))
    image = read_image(path)
    assert image.bit_depth == (8 if bits == 8 else 16) and image.suffix == ".heic"
    np.testing.assert_allclose(image.pixels, ramp(), atol=1.6 / (2**bits - 1))
    write_image(tmp_path / "b.heic", image)
    import pillow_heif

    found = pillow_heif.open_heif(tmp_path / "b.heic", convert_hdr_to_8bit=False, hdr_to_16bit=False)
    assert found.info["bit_depth"] == bits
    assert found.info["icc_profile"] == PROFILE
    assert found.info["exif"].removeprefix(b"Exif\0\0") == exif().removeprefix(b"Exif\0\0")
    np.testing.assert_allclose(read_image(tmp_path / "b.heic").pixels, image.pixels, atol=0.02)


@pytest.mark.parametrize("orientation", (1, 3))
def test_orientation_is_what_exif_says_not_xmp(orientation, tmp_path):
    """Programs that turn a photograph often leave the old orientation in its XMP."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" xmp:Rating="3"/></x:xmpmeta>'
    shown = (ramp() * 255).astype(np.uint8)
    Pillow.fromarray(shown).save(tmp_path / "a.png", exif=exif(orientation))
    image = read_image(tmp_path / "a.png")
    image.extras["xmp"] = xmp
    write_image(tmp_path / "b.heic", image)
    back = read_image(tmp_path / "b.heic")
    np.testing.assert_allclose(back.pixels, np.rot90(image.pixels, 0 if orientation == 1 else 2), atol=0.02)
    assert b'xmp:Rating="3"' in back.extras["xmp"]


def test_ten_bits_survive_a_png(tmp_path):
    path = tmp_path / "a.heic"
    path.write_bytes(heic(10))
    image = read_image(path)
    write_image(tmp_path / "b.png", image)
    values = open_image(tmp_path / "b.png").rows(0, ROWS)
    assert len(np.unique(values)) > 500
    steps = values.astype(np.float64) * 1023 / 65535
    np.testing.assert_allclose(steps, np.rint(steps), atol=0.01)


@pytest.mark.parametrize("orientation", (3, 6, 8))
def test_a_turned_heic_comes_upright_and_says_so(orientation, tmp_path):
    path = tmp_path / "a.heic"
    path.write_bytes(heic(8, orientation))
    stored = open_image(path)
    assert stored.orientation == 1 and orientation_of(stored.extras["exif"]) == 1
    expected = np.rot90(ramp(), {3: 2, 6: -1, 8: 1}[orientation])
    np.testing.assert_allclose(as_shown(stored) / 255, expected, atol=0.02)
    np.testing.assert_allclose(decode_image(path.read_bytes(), "a") / 255, expected, atol=0.02)


def test_wide_gamut_without_a_profile_is_kept(tmp_path):
    path = tmp_path / "a.heic"
    wide = {"color_primaries": 12, "transfer_characteristics": 13, "matrix_coefficients": 6, "full_range_flag": 1}
    path.write_bytes(heic(10, icc_profile=None, nclx_profile=wide))
    image = read_image(path)
    np.testing.assert_allclose(image.pixels, ramp(), atol=3 / 1023)
    write_image(tmp_path / "b.heic", image)
    write_image(tmp_path / "b.png", image)
    assert read_image(tmp_path / "b.heic").extras["nclx"] == (12, 13, 6)
    assert (b"cICP", bytes([12, 13, 0, 1])) in read_image(tmp_path / "b.png").extras["png_chunks"]


def test_light_levels_and_further_metadata_of_a_heic_come_back(tmp_path):
    levels = {"max_content_light_level": 1000, "max_pic_average_light_level": 400}
    block = {"type": "iptc", "content_type": "", "data": b"\x1c\x02\x05\0\x05Title"}
    (tmp_path / "a.heic").write_bytes(heic(10, content_light_level=levels, metadata=[block]))
    write_image(tmp_path / "b.heic", read_image(tmp_path / "a.heic"))
    import pillow_heif

    info = pillow_heif.open_heif(tmp_path / "b.heic").info
    assert info["content_light_level"] == levels
    assert [(one["type"], one["data"]) for one in info["metadata"]] == [(block["type"], block["data"])]
    extras = read_image(tmp_path / "b.heic").extras
    assert lost(extras, "PNG") == ("IPTC data and light levels of HDR are for its own format only; left out",)


def test_metadata_of_a_damaged_kind_is_left_out_with_a_note(tmp_path):
    block = {"type": "iptc", "content_type": "", "data": b"x"}
    (tmp_path / "a.heic").write_bytes(heic(8, metadata=[block]).replace(b"iptc", b"ip\xeac"))
    image = read_image(tmp_path / "a.heic")
    assert image.notes == ("holds metadata of a damaged kind; left out",)
    write_image(tmp_path / "b.heic", image)


@pytest.mark.parametrize("name", ("b.tif", "b.png", "b.heic"))
def test_colors_multiplied_with_alpha_are_divided_in_every_format(name, tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pip install 'vheatir[phone]'")
    pixels = np.full((32, 32, 4), (100, 100, 100, 128), np.uint8)
    with open(tmp_path / "a.heic", "wb") as file:
        pillow_heif.encode("RGBa", (32, 32), pixels.tobytes(), file, quality=-1, chroma=444)
    assert open_image(tmp_path / "a.heic").premultiplied
    restore_file(Restorer("photo", strength=0), tmp_path / "a.heic", tmp_path / name, FileOptions())
    found = read_image(tmp_path / name)
    np.testing.assert_allclose(found.pixels * 255, 199, atol=1)
    np.testing.assert_allclose(found.alpha * 255, 128, atol=1)


def test_further_images_of_a_heic_are_named(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pip install 'vheatir[phone]'")
    images = pillow_heif.from_pillow(Pillow.new("RGB", (64, 48), "red"))
    images.add_from_pillow(Pillow.new("RGB", (64, 48), "blue"))
    images.save(tmp_path / "a.heic", primary_index=1)
    image = read_image(tmp_path / "a.heic")
    assert "1 further image" in image.notes[0]
    assert image.pixels[..., 2].mean() > 0.9 > 0.1 > image.pixels[..., 0].mean()


@pytest.mark.parametrize("bits", (8, 10, 12))
def test_avif_in_its_own_depth(bits, tmp_path):
    path = tmp_path / "a.avif"
    path.write_bytes(avif(bits))
    stored = open_image(path)
    assert stored.bit_depth == (8 if bits == 8 else 16)
    tolerance = 3 / 255 if bits == 8 else 1.6 / (2**bits - 1)  # 8 bits went through YCbCr
    np.testing.assert_allclose(stored.floats(0, ROWS)[0], ramp(), atol=tolerance)


def test_orientation_and_profile_of_an_avif_are_carried_over(tmp_path):
    path = tmp_path / "a.avif"
    path.write_bytes(avif(8, icc_profile=PROFILE, exif=exif(6)))
    image = read_image(path)
    assert image.pixels.shape == (ROWS, COLUMNS, 3)
    write_image(tmp_path / "b.png", image)
    stored = open_image(tmp_path / "b.png")
    assert stored.orientation == 6 and stored.extras["icc_profile"] == PROFILE


def test_wide_gamut_of_an_avif_is_told_to_the_png(tmp_path):
    path = tmp_path / "a.avif"
    path.write_bytes(avif(10, primaries=9, transfer=16))
    write_image(tmp_path / "b.png", read_image(path))
    assert (b"cICP", bytes([9, 16, 0, 1])) in read_image(tmp_path / "b.png").extras["png_chunks"]


def with_items(data, kinds, references):
    """An AVIF as libavif writes it, with more items of these kinds, from number 10 on, and references of theirs."""

    def box(kind, content):
        return struct.pack(">I4s", 8 + len(content), kind) + content

    def grown(data, kind, head, added):
        """`added` in the first box of this kind, behind `head` bytes of its content."""
        at = data.index(kind) + 4 + head
        (size,) = struct.unpack_from(">I", data, at - head - 8)
        before = data[: at - head - 8] + struct.pack(">I", size + len(added)) + data[at - head - 4 : at]
        return before + added + data[at:]

    entries = b"".join(
        box(b"infe", struct.pack(">BxxxHH4sx", 2, number, 0, kind)) for number, kind in enumerate(kinds, start=10)
    )
    named = b"".join(
        box(kind, struct.pack(f">HH{len(items)}H", item, len(items), *items)) for kind, item, items in references
    )
    count = data.index(b"iinf") + 8
    data = data[:count] + struct.pack(">H", int.from_bytes(data[count : count + 2]) + len(kinds)) + data[count + 2 :]
    data = grown(data, b"iinf", 6, entries)
    if b"iref" in data:
        data = grown(data, b"iref", 4, named)
        added = len(entries + named)
    else:
        whole = box(b"iref", bytes(4) + named)
        data = data[: data.index(b"iprp") - 4] + whole + data[data.index(b"iprp") - 4 :]
        added = len(entries + whole)
    meta = data.index(b"meta") - 4
    data = data[:meta] + struct.pack(">I", int.from_bytes(data[meta : meta + 4]) + added) + data[meta + 4 :]
    first = data.index(b"iloc") + 12  # of entries of 14 bytes, whose positions count from the file's begin
    for at in range(first + 6, first + 14 * int.from_bytes(data[first - 2 : first]), 14):
        data = data[:at] + struct.pack(">I", int.from_bytes(data[at : at + 4]) + added) + data[at + 4 :]
    return data


@pytest.mark.parametrize(
    ("mode", "kinds", "references", "count"),
    [
        ("RGB", [], [], 0),
        ("RGBA", [], [], 0),
        ("RGB", [b"av01", b"tmap"], [(b"dimg", 11, (1, 10))], 1),  # a gain map
        ("RGBA", [b"av01"], [(b"auxl", 10, (1,))], 1),  # a depth map beside alpha
        ("RGB", [b"av01", b"av01", b"grid"], [(b"dimg", 12, (10, 11)), (b"thmb", 12, (1,))], 1),  # a thumbnail in parts
        ("RGB", [b"jpeg", b"av01", b"Exif"], [(b"thmb", 10, (1,)), (b"cdsc", 12, (1,))], 2),
    ],
)
def test_further_images_of_an_avif_are_named(mode, kinds, references, count, tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow knows no AVIF")
    Pillow.new(mode, (16, 12), (10, 20, 30, 40)[: len(mode)]).save(tmp_path / "plain.avif")
    data = with_items((tmp_path / "plain.avif").read_bytes(), kinds, references)
    (tmp_path / "a.avif").write_bytes(data)
    stored = open_image(tmp_path / "a.avif")
    plain = open_image(tmp_path / "plain.avif")
    np.testing.assert_array_equal(stored.rows(0, 12), plain.rows(0, 12))
    images = f"holds {count} further image{'s' * (count > 1)} (such as a gain or depth map); left out"
    assert stored.notes == ((images,) if count else ()) and plain.notes == ()


def test_a_video_behind_an_avif_is_named(tmp_path):
    (tmp_path / "a.avif").write_bytes(avif(8) + struct.pack(">I4s", 100, b"mpvd") + bytes(92))
    assert "holds 100 bytes beside its images" in open_image(tmp_path / "a.avif").notes[0]


@pytest.mark.parametrize("orientation", (1, 6))
def test_raw_is_developed_upright_to_sixteen_bits(orientation, tmp_path):
    rawpy = pytest.importorskip("rawpy", reason="pip install 'vheatir[raw]'")
    path = tmp_path / "a.dng"
    path.write_bytes(dng(orientation))
    image = read_image(path)
    with rawpy.imread(str(path)) as raw:
        expected = raw.postprocess(output_bps=16)
    assert image.bit_depth == 16 and "LibRaw" in image.notes[0]
    assert image.pixels.shape == ((ROWS, COLUMNS, 3) if orientation == 1 else (COLUMNS, ROWS, 3))
    np.testing.assert_array_equal(np.rint(image.pixels * 65535), expected)
    write_image(tmp_path / "b.tif", image)
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        tags = tiff.pages[0].tags
        assert tiff.pages[0].dtype == np.uint16
        assert (tags[271].value, tags[306].value) == ("Maker", "2024:05:01 12:00:00")
        assert 274 not in tags or tags[274].value == 1


def test_exif_of_a_raw_file_is_kept(tmp_path):
    pytest.importorskip("rawpy", reason="pip install 'vheatir[raw]'")
    from vheatir.image_io.tiff_exif import Entry, append_ifds, read_ifds

    file = io.BytesIO(dng())
    iso, note = Entry(34855, 3, 1, (3200).to_bytes(2, "little")), Entry(37500, 7, 8, b"whatever")
    append_ifds(file, {34665: [iso, note]})
    (tmp_path / "a.dng").write_bytes(file.getvalue())
    write_image(tmp_path / "b.tif", read_image(tmp_path / "a.dng"))
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff, open(tmp_path / "b.tif", "rb") as written:
        ifds = read_ifds(written, tiff.pages[0].offset)
    assert [(entry.tag, entry.value[:2]) for entry in ifds[34665]] == [(34855, (3200).to_bytes(2, "little"))]


def test_what_is_no_raw_file_is_refused(tmp_path):
    pytest.importorskip("rawpy", reason="pip install 'vheatir[raw]'")
    (tmp_path / "a.nef").write_bytes(b"nothing of a camera" * 99)
    with pytest.raises(UserError, match=r"a\.nef: LibRaw knows no such"):
        read_image(tmp_path / "a.nef")
    Pillow.new("RGB", (8, 8)).save(tmp_path / "b.nef", "PNG")
    with pytest.raises(UserError, match="the content is PNG"):
        read_image(tmp_path / "b.nef")


@pytest.mark.parametrize(
    ("module", "name", "make", "extra"),
    [
        ("pillow_heif", "a.heic", heic, "phone"),
        ("imagecodecs", "a.avif", avif, "phone"),
        ("rawpy", "a.dng", dng, "raw"),
    ],
)
def test_what_to_install_is_said(module, name, make, extra, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(make())
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{name}: .*{module}.*pip install 'vheatir\[{extra}\]'"):
        read_image(path)


@pytest.mark.parametrize("make", (heic, avif, dng))
def test_cut_files_are_named(make, tmp_path):
    if make is dng:
        pytest.importorskip("rawpy", reason="pip install 'vheatir[raw]'")
    data = make()
    path = tmp_path / f"a.{'dng' if make is dng else make.__name__}"
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match=r"a\.\w+: "):
        read_image(path)


def test_names_of_results(tmp_path):
    inputs = [tmp_path / name for name in ("a.NEF", "b.avif", "c.heic", "d.jpg", "e.dcr")]
    for path in inputs:
        path.write_bytes(b"x")
    for given in (inputs, [tmp_path], [tmp_path / "*"]):
        targets = {job.target.name for job in plan_jobs(given, tmp_path / "out")}
        assert targets == {"a.tif", "b.png", "c.heic", "d.jpg", "e.tif"}
    (tmp_path / "a.tif").write_bytes(b"x")
    with pytest.raises(UserError, match="both be written"):
        plan_jobs([tmp_path], tmp_path / "out")


def test_what_is_only_read_is_not_written(tmp_path):
    for name, instead in (("a.nef", ".tif"), ("a.avif", ".png")):
        with pytest.raises(UserError, match=f"only read; give a name that ends in {instead}"):
            write_image(tmp_path / name, Image(ramp().astype(np.float32)))
    assert not list(tmp_path.iterdir())


def test_twelve_bits_of_an_avif_reach_a_heic(tmp_path):
    pytest.importorskip("pillow_heif", reason="pip install 'vheatir[phone]'")
    (tmp_path / "a.avif").write_bytes(avif(12))
    write_image(tmp_path / "b.heic", read_image(tmp_path / "a.avif"))
    image = read_image(tmp_path / "b.heic")
    assert image.extras["heif_bits"] == 12
    np.testing.assert_allclose(image.pixels, ramp(), atol=0.01)


@pytest.mark.parametrize("kind, code", [(SHORT, "H2x"), (BYTE, "B3x"), (LONG, "I")], ids=["short", "byte", "long"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_heic_is_turned_by_an_orientation_of_any_type(tmp_path, kind, code, order):
    pytest.importorskip("pillow_heif", reason="pip install 'vheatir[phone]'")
    exif = exif_block(order, [Entry(ORIENTATION, kind, 1, struct.pack(order + code, 6))], {})
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:16, :16] = 255
    Pillow.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    write_image(tmp_path / "b.heic", read_image(tmp_path / "a.png"))
    turned = read_image(tmp_path / "b.heic").pixels
    np.testing.assert_allclose(turned, np.rot90(pixels, -1) / 255, atol=0.1)


def test_bits_that_a_heic_cannot_hold_are_named(tmp_path):
    pytest.importorskip("pillow_heif", reason="pip install 'vheatir[phone]'")
    write_image(tmp_path / "a.png", Image(ramp().astype(np.float32), bit_depth=16))
    write_image(tmp_path / "b.png", Image(ramp().astype(np.float32)))
    restorer, out = Restorer("photo"), tmp_path / "out.heic"
    notes = [restore_file(restorer, tmp_path / name, out, FileOptions()).notes for name in ("a.png", "b.png")]
    assert notes == [["HEIC holds 10 bits of the 16 of each sample; PNG and TIFF hold all"], []]


@pytest.mark.parametrize(("make", "name", "result"), [(dng, "a.dng", "a.tif"), (heic, "a.heic", "a.heic")])
def test_a_file_is_restored(make, name, result, tmp_path):
    if make is dng:
        pytest.importorskip("rawpy", reason="pip install 'vheatir[raw]'")
    path = tmp_path / name
    path.write_bytes(make())
    (job,) = plan_jobs([path], tmp_path / "out")
    assert job.target.name == result
    job.target.parent.mkdir()
    outcome = restore_file(Restorer("photo", strength=0.5), job.source, job.target, FileOptions())
    assert any("only read" in note for note in outcome.notes) == (make is dng)
    before, after = read_image(path), read_image(job.target)
    assert after.bit_depth == 16 and after.pixels.shape == before.pixels.shape
    assert 0 < np.abs(after.pixels - before.pixels).mean() < 0.05
