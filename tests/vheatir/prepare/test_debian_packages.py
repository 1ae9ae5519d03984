"""Photographs out of Debian packages: which version is taken, what is shrunk, what is said when some are missing."""

import hashlib
import io
import json
import tarfile

import cv2
import numpy as np
import pytest

import vheatir
from vheatir.data.sources import ImageSource
from vheatir.errors import UserError
from vheatir.prepare import known_sets
from vheatir.prepare.debian_packages import collect_photos, read_photos
from vheatir.prepare.patches import extract_patches

ROWS = known_sets.Path(known_sets.__file__).parent / "free_photos.csv"


def png(seed, size=(40, 60)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes(), pixels[:, :, ::-1]


def deb(path, files, compression="xz"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{compression}") as inner:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            inner.addfile(entry, io.BytesIO(data))
    content = b"!<arch>\n"
    for name, data in (("debian-binary", b"2.0\n"), ("odd", b"1"), (f"data.tar.{compression}", packed.getvalue())):
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}".encode() + b"`\n" + data
        content += b"\n" * (len(data) % 2)
    path.write_bytes(content)


def row(package, path, data, **changes):
    facts = {"name": f"{package}_{path[-5]}", "package": package, "path": path, "license": "CC0-1.0", "author": "A"}
    return {**facts, "sha256": hashlib.sha256(data).hexdigest(), "stated_for": "file", "shrink": "2", **changes}


@pytest.fixture
def two(tmp_path):
    """Two photographs in two packages, of which one is there in two versions."""
    (first, pixels), (second, _), (other, _) = png(0), png(1), png(2)
    rows = [row("alpha", "usr/share/a.png", first), row("beta-more", "usr/share/b.png", second)]
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    deb(downloads / "alpha_1.0_all.deb", {"usr/share/a.png": other})
    deb(downloads / "alpha_2.0_all.deb", {"usr/share/a.png": first, "usr/share/doc/alpha/copyright": b"Copyright: A"})
    deb(downloads / "beta-more_1_all.deb", {"usr/share/b.png": second}, "gz")
    return rows, downloads, pixels


def test_a_photograph_comes_from_the_version_that_has_it_and_is_shrunk(two, tmp_path):
    rows, downloads, pixels = two
    facts = collect_photos(rows, downloads, tmp_path / "set", tmp_path)
    small = ImageSource(tmp_path / "set").read("alpha_a.png")
    mean = pixels.reshape(20, 2, 30, 2, 3).astype(float).mean((1, 3))
    assert np.abs(small - mean).max() <= 0.5
    assert facts["alpha_a.png"]["license"] == "CC0-1.0" and facts["alpha_a.png"]["package"] == "alpha"
    assert (tmp_path / "set.copyright" / "alpha.txt").read_bytes() == b"Copyright: A"
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["alpha_a.png", "beta-more_b.png"]


def test_installed_packages_do_as_well(two, tmp_path):
    rows, downloads, _ = two
    (downloads / "beta-more_1_all.deb").unlink()
    (tmp_path / "root/usr/share").mkdir(parents=True)
    (tmp_path / "root/usr/share/b.png").write_bytes(png(1)[0])
    assert len(collect_photos(rows, downloads, tmp_path / "set", tmp_path / "root")) == 2


def test_what_is_missing_is_said_and_nothing_is_left(two, tmp_path):
    rows, downloads, _ = two
    (downloads / "alpha_2.0_all.deb").unlink()
    with pytest.raises(UserError, match=r"1 of 2 photographs are missing.*apt-get download alpha "):
        collect_photos(rows, downloads, tmp_path / "set", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads"]


@pytest.mark.parametrize("end", [0, 100, 400])
def test_a_cut_package_is_named(two, tmp_path, end):
    rows, downloads, _ = two
    broken = downloads / "alpha_2.0_all.deb"
    broken.write_bytes(broken.read_bytes()[:end])
    with pytest.raises(UserError, match=r"alpha_2\.0_all\.deb: .*fetch it again"):
        collect_photos(rows, downloads, tmp_path / "set", tmp_path)
    assert not (tmp_path / "set").exists()


def test_a_package_that_is_damaged_inside_is_named(two, tmp_path):
    rows, downloads, _ = two
    broken = downloads / "alpha_2.0_all.deb"
    noise = np.random.default_rng(0).integers(0, 16, 300_000, np.uint8).tobytes()  # is compressed
    deb(broken, {"usr/share/large.png": noise, "usr/share/a.png": noise})
    data = bytearray(broken.read_bytes())
    data[75_000:75_040] = bytes(40)
    broken.write_bytes(data)
    with pytest.raises(UserError, match=r"alpha_2\.0_all\.deb: cannot be unpacked .*fetch it again"):
        collect_photos(rows, downloads, tmp_path / "set", tmp_path)


def test_the_manifest_names_author_and_license(two, tmp_path, monkeypatch):
    rows = two[0]
    item = known_sets.ImageSet("Free", "Free", 2, 3, "https://nowhere.example/", "each its own", photos="x.csv")
    monkeypatch.setattr(known_sets, "known_sets", lambda: {"Free": item})
    monkeypatch.setattr("vheatir.prepare.api.read_photos", lambda path: rows)
    for _ in range(2):  # the second time the folder is compared with the manifest
        vheatir.prepare("Free", root=tmp_path)
    files = json.loads((tmp_path / "Free.manifest.json").read_text())["files"]
    assert {(file["author"], file["license"], file["package"]) for file in files} == {
        ("A", "CC0-1.0", "alpha"),
        ("A", "CC0-1.0", "beta-more"),
    }


def test_the_list_is_whole():
    rows = read_photos(ROWS)
    assert len(rows) == known_sets.known_sets()["FreePhotos"].images
    assert len({row["name"] for row in rows}) == len({row["sha256"] for row in rows}) == len(rows)
    for row in rows:
        assert row["author"] and row["stated_for"] in ("file", "package") and int(row["shrink"]) in (1, 2, 3, 4)
        assert row["license"].startswith(("CC0-", "CC-BY-", "GPL-", "LGPL-"))
    assert sum(row["name"].startswith("val_") for row in rows) == 8


def test_flat_sub_images_are_left_out(tmp_path):
    (tmp_path / "one").mkdir()
    image = np.full((64, 128, 3), 90, np.uint8)
    image[:, 64:] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    cv2.imwrite(str(tmp_path / "one" / "a.png"), image)
    assert extract_patches(tmp_path / "one", tmp_path / "all", 64, 0) == 2
    assert extract_patches(tmp_path / "one", tmp_path / "some", 64, 0, min_detail=3) == 1
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["a_00000_00064.png"]
    with pytest.raises(UserError, match="min_detail"):
        extract_patches(tmp_path / "one", tmp_path / "none", min_detail=-1)


def test_where_all_are_flat_nothing_is_made(tmp_path):
    (tmp_path / "one").mkdir()
    cv2.imwrite(str(tmp_path / "one" / "flat.png"), np.full((40, 40, 3), 90, np.uint8))
    with pytest.raises(UserError, match="choose a smaller min_detail"):
        extract_patches(tmp_path / "one", tmp_path / "out", 20, 0, min_detail=3)
    assert not (tmp_path / "out").exists()
    assert extract_patches(tmp_path / "one", tmp_path / "out", 20, 0) == 4
