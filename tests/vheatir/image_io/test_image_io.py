"""Reading and writing images: nothing is lost, and every bad file is refused by name."""

import functools
import signal
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from PIL import ImageCms, PngImagePlugin

from tests.vheatir.image_io.png_by_hand import chunk, png
from vheatir.errors import UserError
from vheatir.image_io import DEPTHS, Image, read_image, write_image
from vheatir.utils.files import atomic_open

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp"}
DTYPES = {8: np.uint8, 16: np.uint16, 32: np.float32}


def integers(shape, depth, seed=0):
    """Random pixels as a file of that depth holds them."""
    rng = np.random.default_rng(seed)
    if depth == 32:
        return rng.uniform(-0.2, 1.3, shape).astype(np.float32)
    return rng.integers(0, 2**depth, shape).astype(DTYPES[depth])


def as_floats(array):
    return array if array.dtype == np.float32 else array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)


def smooth(shape, dtype=np.uint8):
    """A soft ramp, which lossy formats keep closely."""
    height, width = shape[:2]
    ramp = np.add.outer(np.linspace(20, 120, height), np.linspace(0, 100, width))
    ramp = ramp if len(shape) == 2 else np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1)
    return np.rint(ramp).astype(dtype)


@functools.cache  # it holds the time of its making
def profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(orientation=6):
    tags = Pillow.Exif()
    tags[0x0112], tags[0x010F] = orientation, "a camera"
    return tags.tobytes()


LOSSLESS = [(kind, depth) for kind in ("PNG", "TIFF", "BMP") for depth in DEPTHS[kind]]


@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 257, 3), (257, 1, 3), (13, 17), (40, 23, 3)], ids=str)
@pytest.mark.parametrize(("kind", "depth"), LOSSLESS, ids=str)
def test_lossless_formats_keep_every_value(tmp_path, kind, depth, shape, alpha):
    pixels = integers(shape, depth)
    opacity = integers(shape[:2], depth, seed=1) if alpha else None
    path = tmp_path / f"image{SUFFIXES[kind]}"
    write_image(path, Image(as_floats(pixels), None if opacity is None else as_floats(opacity), bit_depth=depth))
    back = read_image(path)
    gray_to_color = kind == "BMP" and alpha and len(shape) == 2  # the format has no gray with alpha
    np.testing.assert_array_equal(back.pixels[..., 0] if gray_to_color else back.pixels, as_floats(pixels))
    assert (back.pixels.dtype, back.bit_depth) == (np.float32, depth)
    if opacity is None:
        assert back.alpha is None
    else:
        np.testing.assert_array_equal(back.alpha, as_floats(opacity))


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
@pytest.mark.parametrize("shape", [(64, 48), (64, 48, 3), (1, 1, 3)], ids=str)
def test_lossy_formats_are_written_in_high_quality(tmp_path, suffix, shape):
    pixels = smooth(shape)
    write_image(tmp_path / f"image{suffix}", Image(as_floats(pixels)))
    back = read_image(tmp_path / f"image{suffix}")
    difference = np.abs(back.pixels * 255 - (pixels if back.pixels.ndim == len(shape) else pixels[..., None]))
    assert difference.mean() < 1.5 and difference.max() <= 10


def test_sixteen_bits_are_real_and_not_scaled_from_eight(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    cv2.imwrite(str(tmp_path / "ramp.png"), values)
    image = read_image(tmp_path / "ramp.png")
    write_image(tmp_path / "again.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "again.png"), cv2.IMREAD_UNCHANGED), values)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("depth", "compression"),
    [(8, "none"), (8, "zlib"), (8, "lzw"), (16, "none"), (16, "zlib"), (16, "lzw"), (32, "none"), (32, "zlib")],
)
def test_tiff_of_other_writers(tmp_path, channels, compression, depth):
    array = np.clip(integers((9, 12, channels), depth), 0, None).squeeze()
    path = tmp_path / "image.tif"
    if compression == "lzw":  # OpenCV's default
        swapped = array if channels == 1 else array[..., [2, 1, 0, 3][:channels]]
        assert cv2.imwrite(str(path), swapped)
    else:
        options = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        compressed = None if compression == "none" else compression
        photometric = "minisblack" if channels == 1 else "rgb"
        tifffile.imwrite(path, array, photometric=photometric, compression=compressed, **options)
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, as_floats(array[..., :3] if channels == 4 else array))
    if channels == 4:
        np.testing.assert_array_equal(image.alpha, as_floats(array[..., 3]))


def test_tiff_in_planes_and_with_white_as_zero(tmp_path):
    array = integers((3, 9, 12), 16)
    tifffile.imwrite(tmp_path / "planes.tif", array, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(tmp_path / "planes.tif").pixels, as_floats(np.moveaxis(array, 0, -1)))
    tifffile.imwrite(tmp_path / "white.tif", array[0], photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "white.tif").pixels, as_floats(65535 - array[0]))


def test_tiff_tags_come_back(tmp_path):
    tags = [(271, "s", 0, "a scanner", True), (274, "H", 1, 6, True)]
    options = {"resolution": (300, 300), "iccprofile": profile(), "description": "a page", "software": "scan"}
    tifffile.imwrite(tmp_path / "in.tif", integers((8, 9), 16), extratags=tags, compression="zlib", **options)
    write_image(tmp_path / "out.tif", read_image(tmp_path / "in.tif"))
    with tifffile.TiffFile(tmp_path / "in.tif") as before, tifffile.TiffFile(tmp_path / "out.tif") as after:
        for code in (270, 271, 274, 282, 283, 296, 305, 34675, 259):
            assert after.pages[0].tags[code].value == before.pages[0].tags[code].value, code


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_profile_exif_and_orientation_come_back(tmp_path, kind):
    path = tmp_path / f"in{SUFFIXES[kind]}"
    Pillow.fromarray(smooth((40, 30, 3))).save(path, exif=exif(), icc_profile=profile())
    image = read_image(path)
    assert image.pixels.shape == (40, 30, 3), "the orientation is carried over, not applied"
    write_image(tmp_path / f"out{SUFFIXES[kind]}", image)
    with Pillow.open(tmp_path / f"out{SUFFIXES[kind]}") as after:
        after.load()
        assert after.info["icc_profile"] == profile()
        assert after.getexif()[0x0112] == 6 and after.getexif()[0x010F] == "a camera"


@pytest.mark.parametrize("target", [".jpg", ".tif", ".webp"])
def test_profile_survives_a_change_of_format(tmp_path, target):
    Pillow.fromarray(smooth((40, 30, 3))).save(tmp_path / "in.png", icc_profile=profile())
    write_image(tmp_path / f"out{target}", read_image(tmp_path / "in.png"))
    with Pillow.open(tmp_path / f"out{target}") as after:
        assert after.info["icc_profile"] == profile()


def test_png_text_resolution_and_gamma_come_back(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "an image")
    text.add(b"gAMA", struct.pack(">I", 45455))
    Pillow.fromarray(smooth((8, 9))).save(tmp_path / "in.png", pnginfo=text, dpi=(300, 300))
    write_image(tmp_path / "out.png", read_image(tmp_path / "in.png"))
    with Pillow.open(tmp_path / "in.png") as before, Pillow.open(tmp_path / "out.png") as after:
        assert {key: after.info[key] for key in ("Title", "gamma", "dpi")} == before.info


@pytest.mark.parametrize("lossless", [False, True])
def test_webp_stays_lossless_or_lossy(tmp_path, lossless):
    pixels = integers((20, 30, 4), 8)
    Pillow.fromarray(pixels).save(tmp_path / "in.webp", lossless=lossless, exact=True)
    image = read_image(tmp_path / "in.webp")
    np.testing.assert_array_equal(image.alpha, as_floats(pixels[..., 3]))
    write_image(tmp_path / "out.webp", image)
    again = read_image(tmp_path / "out.webp")
    np.testing.assert_array_equal(again.alpha, image.alpha)
    assert np.array_equal(again.pixels, image.pixels) == lossless


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_is_expanded(tmp_path, transparent):
    drawn = Pillow.fromarray(integers((20, 30, 3), 8)).quantize(16)
    drawn.save(tmp_path / "in.png", **({"transparency": 3} if transparent else {}))
    image = read_image(tmp_path / "in.png")
    np.testing.assert_array_equal(image.pixels, as_floats(np.asarray(drawn.convert("RGB"))))
    if transparent:
        np.testing.assert_array_equal(image.alpha, np.where(np.asarray(drawn) == 3, 0, 1))
    else:
        assert image.alpha is None


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_color_becomes_alpha(tmp_path, depth, channels):
    array = integers((6, 7, channels), depth)
    key = struct.pack(f">{channels}H", *(int(value) for value in array[2, 3]))
    (tmp_path / "in.png").write_bytes(png(array, 0 if channels == 1 else 2, chunk(b"tRNS", key)))
    image = read_image(tmp_path / "in.png")
    np.testing.assert_array_equal(image.alpha, 1.0 - (array == array[2, 3]).all(axis=-1))
    np.testing.assert_array_equal(image.pixels, as_floats(array.squeeze()))


@pytest.mark.parametrize("depth", [8, 16])
def test_interlaced_png(tmp_path, depth):
    array = integers((11, 13, 3), depth)
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [row for top, left, down, right in passes for row in array[top::down, left::right]]
    data = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 13, 11, depth, 2, 0, 0, 1)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    (tmp_path / "in.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    np.testing.assert_array_equal(read_image(tmp_path / "in.png").pixels, as_floats(array))


def test_bilevel_and_low_depth_gray_are_read_as_gray(tmp_path):
    dots = integers((9, 10), 8) > 127
    Pillow.fromarray(dots).save(tmp_path / "dots.png")
    np.testing.assert_array_equal(read_image(tmp_path / "dots.png").pixels, dots)


def test_phone_image_with_further_images_is_read_with_a_note(tmp_path):
    first, second = (Pillow.fromarray(smooth((40, 30, 3))) for _ in range(2))
    first.save(tmp_path / "in.jpg", format="MPO", save_all=True, append_images=[second])
    image = read_image(tmp_path / "in.jpg")
    assert image.pixels.shape == (40, 30, 3) and "2 images" in image.notes[0]


@pytest.mark.parametrize(
    ("name", "image", "reason"),
    [
        ("a.jpg", Image(np.zeros((2, 2), np.float32), bit_depth=16), "16 bits"),
        ("a.png", Image(np.zeros((2, 2), np.float32), bit_depth=32), "32 bits"),
        ("a.jpg", Image(np.zeros((2, 2), np.float32), alpha=np.ones((2, 2), np.float32)), "alpha"),
    ],
    ids=["16-bit JPEG", "float PNG", "JPEG with alpha"],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, name, image, reason):
    with pytest.raises(ValueError, match=reason):
        write_image(tmp_path / name, image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("how", "error", "reason"),
    [
        ({"pixels": np.ones((6, 9, 4), np.float32)}, ValueError, r"HWC with 3 channels or HW, got shape \(6, 9, 4\)"),
        ({"pixels": np.ones((6, 9, 1), np.float32)}, ValueError, r"got shape \(6, 9, 1\)"),
        ({"pixels": np.ones((6, 9, 3), np.uint8)}, TypeError, "pixels must be floats in .*, got uint8; bring"),
        ({"pixels": [[1.0]]}, TypeError, "pixels must be a NumPy array, got list"),
        ({"pixels": np.full((6, 9), np.nan)}, ValueError, "pixels hold NaN"),
        ({"pixels": np.ones((6, 9)), "alpha": np.ones((6, 9), np.uint8)}, TypeError, "alpha must be floats"),
        ({"pixels": np.ones((6, 9)), "alpha": np.ones((6, 8))}, ValueError, r"alpha has the shape \(6, 8\)"),
    ],
    ids=["RGBA", "one channel", "8 bits", "list", "NaN", "alpha of 8 bits", "alpha of another size"],
)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_pixels_that_are_none_are_refused(tmp_path, suffix, how, error, reason):
    """RGBA made a file of too many rows, bytes one that was white all over."""
    with pytest.raises(error, match=reason):
        write_image(tmp_path / f"a{suffix}", Image(**how))
    assert list(tmp_path.iterdir()) == []


def test_writing_into_a_missing_folder_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"none.image\.png.*cannot be written"):
        write_image(tmp_path / "none" / "image.png", Image(np.zeros((2, 2), np.float32)))


def test_names_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("ü" * 125 + ".png")
    write_image(path, Image(np.zeros((2, 2), np.float32)))
    assert read_image(path).pixels.shape == (2, 2)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "image.png"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_open(path) as file:
        file.write(b"half of the new")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
import numpy as np
from vheatir.utils import files
from vheatir.image_io import Image, write_image
files.os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
write_image(sys.argv[1], Image(np.zeros((64, 64, 3), np.float32)))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_before_the_rename_nothing_stands_under_the_final_name(tmp_path):
    path = tmp_path / "image.png"
    assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode == -signal.SIGKILL
    assert not path.exists()
    assert all(file.name.startswith(".vheatir-") and file.suffix == ".tmp" for file in tmp_path.iterdir())


def test_an_array_or_another_suffix_to_write_is_refused_with_what_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"expected an Image, got ndarray; .*vheatir\.image_io\.Image\(array\)"):
        write_image(tmp_path / "a.png", np.zeros((4, 4, 3)))
    with pytest.raises(UserError, match=r"suffix '\.gif' is not one of \.png, .*\.hif; rename"):
        write_image(tmp_path / "a.gif", Image(np.zeros((4, 4, 3), np.float32)))
    with pytest.raises(UserError, match=r"suffix '\.gif' is not one of .*\.avif, .*\.nef"):
        read_image(tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
