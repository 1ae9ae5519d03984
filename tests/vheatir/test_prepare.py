"""Sub-images and LMDBs: complete, verified, or not there at all."""

import itertools
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from vheatir.data import prepare
from vheatir.data.prepare import extract_patches, main_lmdb, main_patches, make_lmdb, patch_starts
from vheatir.data.sources import ImageSource, close_environments
from vheatir.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


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
    with pytest.raises(UserError):
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
def test_broken_image_stops_and_leaves_nothing(photo_folder, tmp_path, work):
    root, out = photo_folder(), tmp_path / "out"
    (root / "photo2.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"photo2\.png"):
        work(root, out / "new.lmdb")
    assert list(out.iterdir()) == []


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


@pytest.mark.parametrize("main", [main_lmdb, main_patches])
def test_commands_return_0_or_2(photo_folder, tmp_path, main):
    arguments = [str(photo_folder()), str(tmp_path / "new.lmdb")]
    assert main(arguments) == 0
    assert main(arguments) == 2, "the target exists now"


@pytest.mark.parametrize("script", ["make_lmdb.py", "extract_patches.py"])
def test_scripts_run_from_a_checkout(photo_folder, tmp_path, script):
    command = [sys.executable, str(ROOT / "datasets" / script), str(photo_folder()), str(tmp_path / "new.lmdb")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "wrote 9 images" in done.stderr


def test_manifest_and_readme_agree_on_the_sets():
    folder = ROOT / "datasets"
    manifest, readme = yaml.safe_load((folder / "manifest.yml").read_text()), (folder / "README.md").read_text()
    for name, entry in {**manifest["training"], **manifest["test"]}.items():
        assert name in readme and str(entry["images"]) in readme, name
        assert entry["channels"] in (1, 3) and entry["terms"]
        assert entry["url"] is None or entry["url"].startswith("https://")
    parts = [entry["images"] for entry in manifest["training"].values() if entry["part_of"] == "DFWB"]
    assert sum(parts) == 8594 and "8594" in readme


@pytest.mark.parametrize("name", ["Set12", "BSD68", "CBSD68", "Classic5"])
def test_test_sets_have_the_stated_count_and_channels(name, test_data):
    entry = yaml.safe_load((ROOT / "datasets" / "manifest.yml").read_text())["test"][name]
    source = ImageSource(test_data(name))
    assert len(source) == entry["images"]
    source.check(channels=entry["channels"])
