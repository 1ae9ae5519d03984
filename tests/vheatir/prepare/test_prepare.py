"""Sub-images and LMDBs: complete, verified, or not there at all."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from vheatir.data.sources import ImageSource, close_environments
from vheatir.errors import UserError
from vheatir.prepare import patches as prepare
from vheatir.prepare.known_sets import known_sets
from vheatir.prepare.patches import extract_patches, make_lmdb, patch_starts

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_environments()


@pytest.mark.parametrize("side", [1, 99, 100, 101, 180, 181, 260, 1000])
def test_patches_cover_the_side_with_at_least_the_overlap(side):
    starts = patch_starts(side, 100, 20)
    assert starts[0] == 0 and starts[-1] == max(0, side - 100)
    assert all(0 < right - left <= 80 for left, right in itertools.pairwise(starts))


def test_patches_are_the_pixels_of_the_image(photo_folder, tmp_path):
    root, target = photo_folder(size=80), tmp_path / "sub"
    count = extract_patches(root, target, size=48, overlap=16)
    source, patches = ImageSource(root), ImageSource(target)
    assert count == len(patches) > len(source)
    for stem, key in source.by_stem().items():
        image = source.read(key)
        rebuilt = np.zeros_like(image)
        for name in (name for name in patches.keys if name.rsplit("_", 2)[0] == stem):
            y, x = (int(part) for part in name.removesuffix(".png").rsplit("_", 2)[1:])
            patch = patches.read(name)
            rebuilt[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
        np.testing.assert_array_equal(rebuilt, image, err_msg=stem)


def test_image_smaller_than_a_patch_stays_whole(photo_folder, tmp_path):
    assert extract_patches(photo_folder(), tmp_path / "sub", size=512) == 9


@pytest.mark.parametrize(
    "settings", [{"size": 0}, {"size": 32, "overlap": 32}, {"overlap": -1}, {"compress_level": 10}]
)
def test_impossible_patches_are_refused(photo_folder, tmp_path, settings):
    with pytest.raises(UserError, match=r"expected size >= 1 and 0 <= overlap < size|compress_level: expected 0"):
        extract_patches(photo_folder(), tmp_path / "sub", **settings)
    assert not (tmp_path / "sub").exists()


def test_lmdb_has_the_layout_basicsr_reads(photo_folder, tmp_path):
    packed = tmp_path / "packed.lmdb"
    assert make_lmdb(photo_folder(), packed, compress_level=2) == 9
    lines = (packed / "meta_info.txt").read_text().splitlines()
    assert "photo0.png (80,80,3) 2" in lines and "below/photo1.png (80,81,3) 2" in lines
    assert len(lines) == 9 and (packed / "data.mdb").is_file()


def test_basicsr_reads_our_lmdb(photo_folder, tmp_path):
    pytest.importorskip("basicsr")
    from basicsr.data.data_util import paired_paths_from_lmdb
    from basicsr.utils import FileClient, imfrombytes

    root, packed = photo_folder(), tmp_path / "packed.lmdb"
    make_lmdb(root, packed)
    keys = [pair["gt_path"] for pair in paired_paths_from_lmdb([str(packed)] * 2, ["lq", "gt"])]
    client = FileClient("lmdb", db_paths=[str(packed)], client_keys=["gt"])
    source = ImageSource(root)
    for stem, key in source.by_stem().items():
        assert stem in keys
        bgr = imfrombytes(client.get(stem, "gt"), float32=False)
        np.testing.assert_array_equal(bgr[..., ::-1], source.read(key))
    client.client._client["gt"].close()


def test_map_grows_with_the_data(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "noise").mkdir()
    for number in range(70):  # more than one batch, incompressible, several times the initial map
        cv2.imwrite(str(tmp_path / "noise" / f"{number:03d}.png"), rng.integers(0, 256, (150, 150, 3), dtype=np.uint8))
    assert make_lmdb(tmp_path / "noise", tmp_path / "noise.lmdb") == 70
    assert (tmp_path / "noise.lmdb" / "data.mdb").stat().st_size > 4 << 20


@pytest.mark.parametrize("work", [make_lmdb, extract_patches])
def test_existing_target_is_left_alone(photo_folder, tmp_path, work):
    target = tmp_path / "there.lmdb"
    target.mkdir()
    (target / "mine").write_text("keep")
    with pytest.raises(UserError, match="exists already"):
        work(photo_folder(), target)
    assert [path.name for path in target.iterdir()] == ["mine"]


@pytest.mark.parametrize("work", [make_lmdb, extract_patches])
def test_a_broken_image_stops_and_once_it_is_replaced_the_rest_is_done(photo_folder, tmp_path, work, monkeypatch):
    root, out = photo_folder(), tmp_path / "out"
    whole = (root / "photo8.jpg").read_bytes()
    (root / "photo8.jpg").write_bytes(b"nothing")
    monkeypatch.setattr(prepare, "_AT_ONCE", 2)
    with pytest.raises(UserError, match=r"photo8\.jpg"):
        work(root, out / "new.lmdb")
    assert [path.name for path in out.iterdir()] == [".new.lmdb.partial"]
    (root / "photo8.jpg").write_bytes(whole)
    read = []
    native = ImageSource.read_native
    monkeypatch.setattr(
        ImageSource,
        "read_native",
        lambda self, key: read.append(key) or native(self, key) if self.root == root else native(self, key),
    )
    assert work(root, out / "new.lmdb") == 9
    assert read == ["photo8.jpg"], "the eight others were done before"
    assert [path.name for path in out.iterdir()] == ["new.lmdb"]
    monkeypatch.undo()
    assert work(root, out / "again.lmdb") == 9
    names = sorted(path.relative_to(out / "again.lmdb") for path in (out / "again.lmdb").rglob("*"))
    assert names == sorted(path.relative_to(out / "new.lmdb") for path in (out / "new.lmdb").rglob("*"))
    first, second = (
        ImageSource(out / name, "lmdb" if work is make_lmdb else "disk") for name in ("new.lmdb", "again.lmdb")
    )
    assert first.keys == second.keys
    for key in first.keys:
        np.testing.assert_array_equal(first.read_native(key), second.read_native(key))


KILLED = """
import os, signal, sys
from vheatir.prepare import patches as prepare

prepare._AT_ONCE = 2
work = getattr(prepare, sys.argv[1])
work(sys.argv[2], sys.argv[3], progress=lambda done, _total: done >= 4 and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("work", [make_lmdb, extract_patches])
def test_killed_in_the_middle_the_same_call_goes_on(photo_folder, tmp_path, work):
    root, target = photo_folder(), tmp_path / "out" / "new.lmdb"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", KILLED, work.__name__, str(root), str(target)]
    assert subprocess.run(call, env=environment, check=False).returncode == -signal.SIGKILL
    assert not target.exists()
    journal = target.with_name(".new.lmdb.partial") / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == 1 + 4
    with journal.open("a") as file:
        file.write('{"key": "torn')
    seen = []
    assert work(root, target, progress=lambda done, total: seen.append((done, total))) == 9
    assert seen == [(9, 9)] and not journal.exists()
    assert not (target / "journal.jsonl").exists()


@pytest.mark.parametrize("change", ["settings", "image", "list", "zeros", "noise", "no record"])
def test_what_does_not_belong_together_is_begun_anew(photo_folder, tmp_path, monkeypatch, change):
    root, target = photo_folder(), tmp_path / "sub"
    whole = (root / "photo8.jpg").read_bytes()
    (root / "photo8.jpg").write_bytes(b"nothing")
    monkeypatch.setattr(prepare, "_AT_ONCE", 2)
    with pytest.raises(UserError):
        extract_patches(root, target, size=48, overlap=16)
    (root / "photo8.jpg").write_bytes(whole)
    if change == "image":
        cv2.imwrite(str(root / "photo2.png"), np.zeros((60, 60, 3), np.uint8))
    elif change == "list":
        (root / "photo2.png").unlink()
    elif change in ("zeros", "noise", "no record"):
        with (tmp_path / ".sub.partial" / "journal.jsonl").open("ab") as file:
            file.write({"zeros": b"\0\0\0\n", "noise": b"\xff\xfe\n", "no record": b"{}\n"}[change])
    size = 40 if change == "settings" else 48
    count = extract_patches(root, target, size=size, overlap=16)
    monkeypatch.undo()
    assert count == extract_patches(root, tmp_path / "fresh", size=size, overlap=16)
    names = [sorted(path.name for path in folder.rglob("*.png")) for folder in (target, tmp_path / "fresh")]
    assert names[0] == names[1] and len(names[0]) == count


def test_one_target_is_made_by_one_process_at_a_time(photo_folder, tmp_path):
    pytest.importorskip("fcntl", reason="locks are taken by fcntl")
    inner = []

    def at_work(_done, _total):
        with pytest.raises(UserError, match="in use by process"):
            make_lmdb(photo_folder("second"), tmp_path / "new.lmdb")
        inner.append(True)

    assert make_lmdb(photo_folder(), tmp_path / "new.lmdb", progress=at_work) == 9 and inner
    assert not list(tmp_path.glob(".new*"))


def test_shrinking_takes_the_mean_of_squares(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (41, 62, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), pixels[:, :, ::-1])
    assert extract_patches(tmp_path / "in", tmp_path / "half", shrink=2) == 1
    half = ImageSource(tmp_path / "half").read("a_00000_00000.png")
    mean = pixels[:40].reshape(20, 2, 31, 2, 3).mean(axis=(1, 3))
    assert half.shape == (20, 31, 3) and np.abs(half - mean).max() <= 0.51
    for shrink in (0, 50):
        with pytest.raises(UserError, match="shr"):
            extract_patches(tmp_path / "in", tmp_path / "none", shrink=shrink)


def test_lmdb_that_reads_back_differently_is_refused(photo_folder, tmp_path, monkeypatch):
    real = prepare._encode
    monkeypatch.setattr(prepare, "_encode", lambda image, *rest: real(image ^ 1, *rest))
    with pytest.raises(UserError, match="read back"):
        make_lmdb(photo_folder(), tmp_path / "packed.lmdb")
    assert not (tmp_path / "packed.lmdb").exists()


def test_lmdb_name_needs_its_suffix(photo_folder, tmp_path):
    with pytest.raises(UserError, match=r"\.lmdb"):
        make_lmdb(photo_folder(), tmp_path / "packed")


def test_progress_ends_at_the_total(photo_folder, tmp_path):
    seen = []
    make_lmdb(photo_folder(), tmp_path / "packed.lmdb", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (9, 9)


def test_sets_and_readme_agree():
    readme = (ROOT / "datasets" / "README.md").read_text()
    found = known_sets()
    for name, item in found.items():
        assert name in readme and item.terms and item.channels in (1, 3)
        assert item.listed or str(item.images) in readme, name
        assert item.url.startswith("https://")
    assert sum(item.images for item in found.values() if item.part_of == "DFWB") == 8594 and "8594" in readme


@pytest.mark.parametrize("name", ["Set12", "BSD68", "CBSD68", "Classic5"])
def test_test_sets_have_the_stated_count_and_channels(name, test_data):
    item = known_sets()[name]
    source = ImageSource(test_data(name))
    assert len(source) == item.images
    source.check(channels=item.channels)
    if item.only:
        assert {Path(key).stem for key in source.keys} == item.only
