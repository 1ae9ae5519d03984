"""Image sources: what is read, what is refused, and that nothing open crosses a process border."""

import errno
import multiprocessing
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from vheatir.data.sources import ImageSource, close_environments, list_images
from vheatir.errors import UserError
from vheatir.prepare.patches import make_lmdb


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_environments()


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def test_folder_is_listed_recursively_sorted_without_hidden_files_and_loops(photo_folder):
    root = photo_folder()
    (root / ".hidden.png").write_bytes(b"x")
    (root / "notes.txt").write_text("no image")
    (root / "below" / "loop").symlink_to(root, target_is_directory=True)
    names = list_images(root)
    assert names == sorted(names) and len(names) == 9
    assert "below/photo1.png" in names and "photo0.jpg" in names


def test_a_folder_that_cannot_be_read_is_not_passed_over(photo_folder, monkeypatch):
    """Means over a part of a set, and trainings on a part, would not show it."""
    root = photo_folder()
    (root / "lost+found").mkdir()  # of a disk, for its owner alone
    scandir = os.scandir

    def refused(path):
        if Path(path).name in ("below", "lost+found"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match="below: the folder cannot be read"):
        ImageSource(root)
    (root / "below").rename(root / "readable")
    assert len(ImageSource(root)) == 9


def test_read_gives_rgb_and_gray(tmp_path):
    bgr = np.zeros((4, 5, 3), np.uint8)
    bgr[..., 2] = 200  # red
    write(tmp_path / "red.png", bgr)
    source = ImageSource(tmp_path)
    rgb, gray = source.read("red.png"), source.read("red.png", gray=True)
    assert rgb.shape == (4, 5, 3) and rgb.dtype == np.uint8 and (rgb == [200, 0, 0]).all()
    assert gray.shape == (4, 5) and (gray == 60).all()


def test_gray_file_is_hw_or_repeated(tmp_path):
    plane = np.arange(20, dtype=np.uint8).reshape(4, 5)
    write(tmp_path / "plane.png", plane)
    source = ImageSource(tmp_path)
    np.testing.assert_array_equal(source.read("plane.png", gray=True), plane)
    np.testing.assert_array_equal(source.read("plane.png"), np.dstack([plane] * 3))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_is_rounded_to_8(tmp_path, suffix, channels):
    values = np.array([[0, 128, 129, 257, 40000, 65535]], np.uint16)
    write(tmp_path / f"deep{suffix}", values if channels == 1 else np.dstack([values] * 3))
    got = ImageSource(tmp_path).read(f"deep{suffix}", gray=channels == 1)
    np.testing.assert_array_equal(got if channels == 1 else got[..., 0], np.rint(values / 257).astype(np.uint8))


def test_float_file_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "f.tif", np.ones((4, 4, 3), np.float32))  # OpenCV 4 writes LogLuv
    with pytest.raises(UserError, match=r"f\.tif.*float32"):
        ImageSource(tmp_path).read("f.tif")


def test_transparency_is_dropped(tmp_path):
    rgba = np.full((4, 4, 4), 90, np.uint8)
    rgba[..., 3] = 0
    write(tmp_path / "a.png", rgba)
    assert (ImageSource(tmp_path).read("a.png") == 90).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_broken_file_names_itself(tmp_path, suffix, damage):
    rng = np.random.default_rng(0)
    path = write(tmp_path / f"broken{suffix}", rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"this is no image" * 20}[damage])
    with pytest.raises(UserError, match=f"broken\\{suffix}"):
        ImageSource(tmp_path).read(f"broken{suffix}")


def test_file_that_vanished_names_itself(photo_folder):
    root = photo_folder()
    source = ImageSource(root)
    (root / "photo0.jpg").unlink()
    with pytest.raises(UserError, match=r"photo0\.jpg"):
        source.read("photo0.jpg")


@pytest.mark.parametrize("make", ["absent", "empty", "absent.lmdb", "empty.lmdb"])
def test_root_without_images_says_what_to_do(tmp_path, make):
    root = tmp_path / make
    if "empty" in make:
        root.mkdir()
    with pytest.raises(UserError, match=make):
        ImageSource(root)


@pytest.mark.parametrize(("key", "value"), [("backend", "hdf5"), ("cache", "disk")])
def test_unknown_setting_is_refused(photo_folder, key, value):
    with pytest.raises(UserError, match=value):
        ImageSource(photo_folder(), **{key: value})


def test_check_lists_every_bad_image_at_once(photo_folder):
    root = photo_folder(size=64)
    (root / "cut.png").write_bytes((root / "photo2.png").read_bytes()[:300])
    write(root / "tiny.png", np.zeros((20, 90, 3), np.uint8))
    write(root / "plane.png", np.zeros((70, 70), np.uint8))
    source = ImageSource(root)
    with pytest.raises(UserError) as caught:
        source.check(min_size=60, channels=3)
    message = str(caught.value)
    assert "3 of 12" in message
    assert all(name in message for name in ("cut.png", "tiny.png", "plane.png"))
    assert "photo0" not in message
    assert len(source.problems(min_size=60)) == 2, "a gray file is fine where gray is"


def test_memory_cache_is_read_once_shared_and_read_only(photo_folder):
    root = photo_folder()
    source = ImageSource(root, cache="memory")
    source.check()
    for name in list_images(root):
        (root / name).unlink()
    image = source.read_native(source.keys[0])
    assert image is source.read_native(source.keys[0])
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0] = 0


def test_pickled_source_carries_no_pixels_and_reads_again(photo_folder):
    source = ImageSource(photo_folder(), cache="memory")
    source.check()
    data = pickle.dumps(source)
    assert len(data) < 5000
    np.testing.assert_array_equal(pickle.loads(data).read("photo0.jpg"), source.read("photo0.jpg"))


def test_lmdb_equals_folder_bit_for_bit(photo_folder, tmp_path):
    root, packed = photo_folder(), tmp_path / "packed.lmdb"
    make_lmdb(root, packed)
    folder, lmdb = ImageSource(root), ImageSource(packed, "lmdb")
    assert list(folder.by_stem()) == lmdb.keys
    for key, stem in zip(folder.keys, lmdb.keys):
        for gray in (False, True):
            np.testing.assert_array_equal(folder.read(key, gray), lmdb.read(stem, gray), err_msg=stem)


@pytest.mark.parametrize("patterns", [["photo[0-3].*"], ["*4.jpg", "*2.png"], ["below/*.PNG"], ["below/*"]], ids=str)
def test_patterns_of_file_names_choose_the_same_images_of_an_lmdb(photo_folder, tmp_path, patterns):
    root, packed = photo_folder(), tmp_path / "packed.lmdb"
    make_lmdb(root, packed)
    everything = list(ImageSource(root).by_stem())
    upper = [pattern.replace(".PNG", ".png") for pattern in patterns]  # folders mind the case
    assert ImageSource(packed, include=patterns).keys == list(ImageSource(root, include=upper).by_stem())
    left = ImageSource(packed, exclude=patterns).keys
    assert left == list(ImageSource(root, exclude=upper).by_stem()) and len(left) < len(everything)


@pytest.mark.parametrize("pattern", ["clip.*", "*.0001.*", "clip.0002.png"])
def test_keys_of_an_lmdb_may_hold_dots(tmp_path, pattern):
    (tmp_path / "frames").mkdir()
    for name in ("clip.0001", "clip.0002", "shot.0001"):
        cv2.imwrite(str(tmp_path / "frames" / f"{name}.png"), np.zeros((8, 8, 3), np.uint8))
    make_lmdb(tmp_path / "frames", tmp_path / "packed.lmdb")
    for how in ("include", "exclude"):
        wanted, got = (ImageSource(tmp_path / root, **{how: [pattern]}) for root in ("frames", "packed.lmdb"))
        assert got.keys == list(wanted.by_stem()) and len(got) < 3


def test_two_sources_share_one_lmdb(photo_folder, tmp_path):
    make_lmdb(photo_folder(), tmp_path / "packed.lmdb")
    one, two = ImageSource(tmp_path / "packed.lmdb"), ImageSource(tmp_path / "packed.lmdb")
    np.testing.assert_array_equal(one.read(one.keys[0]), two.read(one.keys[0]))


def test_lmdb_entry_that_is_missing_names_itself(photo_folder, tmp_path):
    packed = tmp_path / "packed.lmdb"
    make_lmdb(photo_folder(), packed)
    with (packed / "meta_info.txt").open("a") as file:
        file.write("ghost.png (9,9,3) 1\n")
    problems = ImageSource(packed).problems()
    assert len(problems) == 1 and "ghost" in problems[0]


def test_garbled_meta_info_names_the_line(photo_folder, tmp_path):
    packed = tmp_path / "packed.lmdb"
    make_lmdb(photo_folder(), packed)
    (packed / "meta_info.txt").write_text("photo0.png (80,80,3) 1\nphoto1\n")
    with pytest.raises(UserError, match=r"meta_info\.txt line 2"):
        ImageSource(packed)


def test_stems_that_collide_are_refused(tmp_path):
    for suffix in (".png", ".jpg"):
        write(tmp_path / f"same{suffix}", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="differ only in suffix"):
        ImageSource(tmp_path).by_stem()


def _mean(source, key, results):
    results.put(float(source.read(key).mean()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_open_lmdb_is_opened_anew_in_a_child(photo_folder, tmp_path, method):
    packed = tmp_path / "packed.lmdb"
    make_lmdb(photo_folder(), packed)
    source = ImageSource(packed)
    here = float(source.read(source.keys[0]).mean())  # opened in this process before the child starts
    context = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=_mean, args=(source, source.keys[0], results))
    child.start()
    assert results.get(timeout=60) == here
    child.join(60)
    assert child.exitcode == 0
    assert float(source.read(source.keys[0]).mean()) == here, "still usable in the parent"
