"""Every command sees the same pixels, whatever kind of file they are in; what one refuses, all refuse."""

from pathlib import Path

import lmdb
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from vheatir.data.sources import ImageSource, close_environments
from vheatir.errors import UserError
from vheatir.evaluate.folders import compare_folders
from vheatir.evaluate.protocol import read_clean, read_clean_file
from vheatir.image_io import READERS, read_image
from vheatir.image_io import read as reading
from vheatir.prepare.known_sets import survey
from vheatir.prepare.patches import extract_patches, make_lmdb

ODD = Path(__file__).parents[2] / "data" / "odd"


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_environments()


def by_restore(path, folder):
    pixels = read_image(path).pixels
    return np.rint(pixels * 255).astype(np.uint8)


def by_training(path, folder):
    return ImageSource(path.parent).read_native(path.name)


def by_lmdb(path, folder):
    make_lmdb(path.parent, folder / "packed.lmdb")
    return ImageSource(folder / "packed.lmdb").read_native(path.stem)


def by_patches(path, folder):
    extract_patches(path.parent, folder / "sub")
    return ImageSource(folder / "sub").read_native(f"{path.stem}_00000_00000.png")


def by_survey(path, folder):
    (file,) = survey(path.parent)
    image = ImageSource(path.parent).read_native(path.name)
    assert (file["height"], file["width"]) == image.shape[:2]
    assert file["channels"] == (1 if image.ndim == 2 else 3)
    return image


def by_evaluate(path, folder):
    image = ImageSource(path.parent).read_native(path.name)
    return read_clean(ImageSource(path.parent), path.name, "denoise", gray=image.ndim == 2)


def by_compare(path, folder):  # and by receptive-field
    return read_clean_file(path, "denoise", gray=by_training(path, folder).ndim == 2)


COMMANDS = [by_restore, by_training, by_lmdb, by_patches, by_survey, by_evaluate, by_compare]


def scene(channels):
    rng = np.random.default_rng(1)
    array = rng.integers(0, 256, (20, 30, channels), dtype=np.uint8)
    return array if channels > 1 else array[..., 0]


def tiff(path, array, **options):
    channels = array.shape[2] if array.ndim == 3 else 1
    if options.get("planarconfig") == "separate":
        array = np.moveaxis(array, -1, 0)
    if channels in (2, 4):
        options.setdefault("extrasamples", ["unassalpha"])
        options.setdefault("planarconfig", "contig")
    tifffile.imwrite(path, array, photometric="rgb" if channels >= 3 else "minisblack", **options)


def deep(array):
    return array.astype(np.uint16) * 257


RIGHT = {
    "planar 16": lambda path, array: tiff(path, deep(array), planarconfig="separate"),
    "planar 16 big-endian": lambda path, array: tiff(path, deep(array), planarconfig="separate", byteorder=">"),
    "planar 8 deflated": lambda path, array: tiff(path, array, planarconfig="separate", compression="zlib"),
    "planar 16 tiles": lambda path, array: tiff(path, deep(array), planarconfig="separate", tile=(16, 16)),
    "chunky 16": lambda path, array: tiff(path, deep(array)),
    "chunky 16 deflated": lambda path, array: tiff(path, deep(array), compression="zlib", predictor=True),
    "chunky 8 tiles": lambda path, array: tiff(path, array, tile=(16, 16)),
    "big-endian 16": lambda path, array: tiff(path, deep(array), byteorder=">"),
    "BigTIFF": lambda path, array: tiff(path, array, bigtiff=True),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", RIGHT)
@pytest.mark.parametrize("channels", [3, 4])
def test_commands_see_the_pixels_of_a_tiff(tmp_path, command, kind, channels):
    path, array = tmp_path / "in" / "a.tif", scene(channels)
    path.parent.mkdir()
    RIGHT[kind](path, array)
    np.testing.assert_array_equal(command(path, tmp_path), array[..., :3])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["rgb16_planar.tif", "rgba8_unassoc.tif", "motion_photo_0.jpg", "la8.png"])
def test_commands_see_the_pixels_of_the_odd_files(tmp_path, command, name):
    path = tmp_path / "in" / name
    path.parent.mkdir()
    path.write_bytes((ODD / "train" / name).read_bytes())
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            stored = file.asarray()
        expected = np.rint(np.moveaxis(stored, 0, -1) / 257) if "planar" in name else stored[..., :3]
    else:
        with Pillow.open(path) as opened:
            expected = np.asarray(opened)[..., 0] if name == "la8.png" else np.asarray(opened)
    np.testing.assert_array_equal(command(path, tmp_path), expected)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", ["deflate 8", "deflate 16", "codec", "signed", "channels", "cmyk", "cut", "pages"])
def test_commands_refuse_the_same_files_by_name(tmp_path, command, damage):
    path, array = tmp_path / "in" / "bad.tif", scene(3)
    path.parent.mkdir()
    if damage.startswith("deflate"):
        tiff(path, array if "8" in damage else deep(array), compression="zlib")
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 8] = bytes(8)
        path.write_bytes(data)
    elif damage == "codec":  # one that nobody has
        tiff(path, array)
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[259].overwrite(65001)
    elif damage == "signed":
        tifffile.imwrite(path, array.astype(np.int8), photometric="rgb")
    elif damage == "channels":
        tifffile.imwrite(path, np.zeros((20, 30, 5), np.uint8), photometric="rgb")
    elif damage == "cmyk":
        tifffile.imwrite(path, np.zeros((20, 30, 4), np.uint8), photometric="separated")
    elif damage == "pages":
        tifffile.imwrite(path, np.zeros((3, 20, 30), np.uint8), photometric="minisblack")
    else:
        tiff(path, array)
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"bad\.tif") as caught:
        command(path, tmp_path)
    if damage == "codec":
        assert "65001" in str(caught.value)


@pytest.mark.parametrize(
    ("case", "figure"),
    [
        ("rgb_png_vs_planar16", 30.13),
        ("rgb_png_vs_rgba_tif", 30.13),
        ("gray_vs_rgbgray", 33.72),
        ("la_vs_gray", 33.72),
        pytest.param(
            "rgb_png_vs_jxl_tif",
            30.13,
            marks=pytest.mark.skipif(
                50002 not in tifffile.TIFF.DECOMPRESSORS or tifffile.tifffile.imagecodecs.__name__ != "imagecodecs",
                reason="needs imagecodecs",
            ),
        ),
    ],
)
def test_figures_are_the_true_ones(case, figure):
    for _ in range(2):  # memory garbage gave another figure each time
        assert (
            round(compare_folders(ODD / "metrics" / case / "out", ODD / "metrics" / case / "ref")["psnr"], 2) == figure
        )


def test_formats_are_read_by_one_function_each(tmp_path, monkeypatch):
    """A reader that is replaced is replaced for every command."""
    path = tmp_path / "in" / "a.png"
    path.parent.mkdir()
    Pillow.fromarray(scene(3)).save(path)
    calls = []

    def counted(encoded):
        calls.append(encoded.name)
        return READERS["PNG"](encoded)

    monkeypatch.setattr(reading, "READERS", READERS | {"PNG": counted})
    for command in (by_restore, by_training, by_evaluate):
        calls.clear()
        command(path, tmp_path)
        assert calls and set(calls) == {str(path)}


@pytest.mark.parametrize("left", [0.0, 0.3, 0.6, 0.98])
def test_an_lmdb_that_was_not_copied_whole_is_named_before_anything_is_read(tmp_path, left):
    folder = tmp_path / "gt"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        Pillow.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    make_lmdb(folder, tmp_path / "gt.lmdb")
    data = tmp_path / "gt.lmdb" / "data.mdb"
    whole = data.read_bytes()
    with lmdb.open(str(data.parent), readonly=True, lock=False) as environment:
        used = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    ImageSource(tmp_path / "gt.lmdb").check()
    close_environments()
    data.write_bytes(whole[: int(used * left)])
    with pytest.raises(UserError, match=r"gt\.lmdb.*(copied whole|cannot be opened)"):
        ImageSource(tmp_path / "gt.lmdb")
    data.write_bytes(whole)
    ImageSource(tmp_path / "gt.lmdb").check()
