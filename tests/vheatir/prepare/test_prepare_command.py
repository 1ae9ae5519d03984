"""`vheatir prepare`: known sets, own folders and lists of freely licensed images, verified and written down."""

import csv
import functools
import hashlib
import http.server
import json
import math
import re
import shutil
import threading
import zipfile
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

import vheatir
from vheatir.cli import main as vheatir_main
from vheatir.data.sources import ImageSource, close_environments
from vheatir.errors import UserError
from vheatir.prepare import api as prepare_api
from vheatir.prepare import download, known_sets, url_list

FREE = "https://creativecommons.org/publicdomain/zero/1.0/"


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield lambda *arguments: vheatir_main(["prepare", *map(str, arguments)])
    close_environments()


@pytest.fixture
def server(tmp_path):
    """The address of a server of the folder `served`, without ranges."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_arguments):
            pass

    (tmp_path / "served").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def manifest(path):
    return json.loads(Path(path).read_text())


def pretend(monkeypatch, **changes):
    """Two small sets, parts of a union, in place of the known ones."""
    plain = {"images": 2, "channels": 3, "url": "https://nowhere.example/", "terms": "for tests", "part_of": "UNION"}
    found = {
        name: known_sets.ImageSet(name=name, folder=f"UNION/{name}", **{**plain, **changes.get(name, {})})
        for name in ("First", "Second")
    }
    monkeypatch.setattr(known_sets, "known_sets", lambda: found)


def test_the_table_says_what_there_is(command, capsys):
    (Path("datasets") / "BSD432").mkdir(parents=True)
    assert command() == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("BSD432"))
    assert " yes " in line and "432" in line and "non-commercial" in line
    assert all(name in said for name in known_sets.known_sets())


def test_an_own_folder_is_verified_cut_and_packed(command, photo_folder, capsys):
    root = photo_folder("mine")
    before = sorted(root.rglob("*"))
    assert command("mine/", "--sub", "--size", "48", "--overlap", "16", "--lmdb", "--terms", "my own") == 0
    listed = manifest("datasets/mine.manifest.json")
    assert listed["images"] == 9 == len(listed["files"]) and listed["terms"] == "my own"
    first = next(file for file in listed["files"] if file["name"] == "below/photo1.png")
    assert first["sha256"] == hashlib.sha256((root / "below/photo1.png").read_bytes()).hexdigest()
    assert (first["height"], first["width"], first["channels"]) == (80, 81, 3)
    folder, packed = ImageSource("datasets/mine_sub"), ImageSource("datasets/mine_sub.lmdb")
    assert len(folder) == len(packed) > 9
    for stem, key in folder.by_stem().items():
        np.testing.assert_array_equal(folder.read(key), packed.read(stem))
    assert sorted(root.rglob("*")) == before, "nothing is written into it"
    capsys.readouterr()
    assert command("mine", "--sub", "--lmdb") == 0
    assert "as in datasets/mine.manifest.json" in (said := capsys.readouterr().out)
    assert said.count("exists and is kept") == 2
    assert command("mine", "--lmdb") == 0
    assert ImageSource("datasets/mine.lmdb").read("below/photo1").shape == (80, 81, 3)


def test_terms_that_are_given_later_stand_in_the_manifest(command, photo_folder):
    photo_folder("mine")
    for given, terms in (([], "not stated"), (["--terms", "my own"], "my own"), ([], "my own")):
        assert command("mine", *given) == 0
        listed = manifest("datasets/mine.manifest.json")
        assert listed["terms"] == terms and listed["images"] == len(listed["files"]) == 9
        assert set(listed["files"][0]) == {"name", "sha256", "height", "width", "channels"}


def test_what_has_changed_since_the_manifest_is_named(command, photo_folder, capsys):
    root = photo_folder("mine")
    assert command("mine") == 0
    (root / "photo2.png").unlink()
    cv2.imwrite(str(root / "photo6.png"), np.zeros((50, 50, 3), np.uint8))
    shutil.copy(root / "photo6.png", root / "further.png")
    assert command("mine") == 2
    said = capsys.readouterr().err
    assert all(text in said for text in ("photo2.png: missing", "photo6.png: changed", "further.png: new"))
    Path("datasets/mine.manifest.json").unlink()
    assert command("mine") == 0


def test_broken_images_are_all_named(command, photo_folder, capsys):
    root = photo_folder("mine")
    for name in ("photo2.png", "photo8.jpg"):
        (root / name).write_bytes(b"nothing")
    assert command("mine") == 2
    said = capsys.readouterr().err
    assert "photo2.png" in said and "photo8.jpg" in said and not Path("datasets").exists()


def test_missing_sets_come_with_instructions_all_at_once(command, monkeypatch, capsys):
    more = {"archive": "second.zip", "members": ["*.png"]}
    pretend(monkeypatch, Second=more | {"download": {"url": "http://127.0.0.1:9/x.zip", "checksum": "md5:0"}})
    assert command("union") == 2
    said = capsys.readouterr().err
    assert "Put them into datasets/UNION/First" in said and "--download fetches them" in said
    assert "for tests" in said and not Path("datasets").exists()
    assert command("nonsense") == 2
    assert "neither a folder nor a known set; known: DFWB, First, Second" in capsys.readouterr().err


def test_a_union_from_a_folder_a_download_and_an_archive(command, server, photo_folder, monkeypatch, capsys, tmp_path):
    root = photo_folder("photos", count=4)
    images = sorted(path for path in root.rglob("*") if path.is_file())
    with zipfile.ZipFile("served/second.zip", "w") as archive:
        for path in images[:3]:
            archive.write(path, f"top/{path.name}")
    checksum = f"sha256:{hashlib.sha256(Path('served/second.zip').read_bytes()).hexdigest()}"
    fetched = {"url": f"{server}/second.zip", "checksum": checksum}
    more = {"archive": "second.zip", "members": ["top/*"], "exclude": {images[0].stem}, "download": fetched}
    pretend(monkeypatch, Second=more)
    (tmp_path / "datasets/UNION/First").mkdir(parents=True)
    for path in images[2:]:
        shutil.copy(path, "datasets/UNION/First")
    assert command("UNION", "--download", "--sub", "--lmdb") == 0
    assert "for tests" in capsys.readouterr().out
    assert len(ImageSource("datasets/UNION_sub.lmdb")) == 4
    assert manifest("datasets/UNION/Second.manifest.json")["images"] == 2
    for name in ("Second", "UNION_sub", "UNION_sub.lmdb"):
        shutil.rmtree(next(Path("datasets").rglob(name)))
    assert command("Second") == 0, "the archive is there, nothing is fetched"
    Path("datasets/UNION/Second", images[1].name).unlink()
    assert command("Second") == 2
    assert "holds 1 images, expected 2" in capsys.readouterr().err


def test_a_set_is_fetched_by_one_command_at_a_time(command, photo_folder, monkeypatch, capsys):
    pytest.importorskip("fcntl", reason="locks are taken by fcntl")
    more = {"archive": "second.zip", "members": ["*"], "part_of": None}
    more |= {"download": {"url": "http://127.0.0.1:9/x.zip", "checksum": "md5:0"}}
    pretend(monkeypatch, First=more, Second=more)
    images = sorted(path for path in photo_folder("photos", count=2).rglob("*") if path.is_file())
    asked = []

    def fetch(url, target, checksum, progress):
        if not asked:  # while the first command fetches: another of its set, and one of a set with the same archive
            asked.append(url)
            assert command("First", "--download") == 2
            assert command("Second", "--download") == 2
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(target, "w") as archive:
            for path in images:
                archive.write(path, path.name)

    monkeypatch.setattr(prepare_api, "fetch", fetch)
    assert command("First", "--download") == 0
    said = capsys.readouterr().err
    assert "archive datasets/downloads/second.zip is in use by process" in said
    assert len(ImageSource("datasets/UNION/First")) == 2 and not list(Path("datasets").rglob("*.lock"))
    assert command("Second") == 0


def encoded_image(seed, side):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    return data, hashlib.md5(data).hexdigest()


@pytest.fixture
def listed(server, tmp_path):
    """A list as PD12M's: six images that may be used and some that may not; one of the six is gone."""
    rows = []
    for number in range(6):
        data, digest = encoded_image(number, 40)
        (tmp_path / "served" / f"{number}.png").write_bytes(data)
        rows.append({"url": f"{server}/{number}.png", "hash": digest, "license": FREE, "width": 40, "height": 40})
    gone = min(rows, key=lambda row: row["hash"])
    (tmp_path / "served" / gone["url"].rpartition("/")[2]).unlink()
    other = {"hash": "f" * 32, "license": FREE, "width": 40, "height": 40, "url": f"{server}/x.png"}
    rows += [other | {"license": "https://creativecommons.org/licenses/by-nc/4.0/", "hash": "0" * 32}]
    rows += [other | {"width": 10, "hash": "1" * 32}, other | {"mime_type": "application/pdf", "hash": "2" * 32}]
    for row in rows:
        row.setdefault("mime_type", "image/png")
        row["source"] = "a museum"
    return rows, gone


def written(rows, path):
    if path.endswith(".parquet"):
        parquet = pytest.importorskip("pyarrow.parquet", reason="writing Parquet needs pyarrow")
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.endswith(".csv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_freely_licensed_images_from_a_list(command, listed, capsys, suffix):
    rows, gone = listed
    path = written(rows, f"list.{suffix}")
    fixed = ["PD12M", "--list", path, "--min-side", "30"]
    assert command(*fixed, "--count", "3", "--sub") == 0
    assert "6 images of the list may be used" in (said := capsys.readouterr().out)
    assert f"left out: {gone['url']}" in said and "404" in said
    found = manifest("datasets/PD12M.manifest.json")
    expected = sorted(row["hash"] for row in rows[:6] if row is not gone)[:3]
    assert [file["name"] for file in found["files"]] == [f"{digest}.png" for digest in expected]
    assert all(file["license"] == FREE and file["source"] == "a museum" and file["url"] for file in found["files"])
    assert len(ImageSource("datasets/PD12M_sub")) == 3

    kept = {path: path.stat().st_mtime_ns for path in Path("datasets/PD12M").iterdir()}
    assert command(*fixed, "--count", "5") == 0, "the same three and two more"
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert manifest("datasets/PD12M.manifest.json")["images"] == 5
    assert command(*fixed, "--count", "6") == 2
    assert "gives 5 usable images, 6 are wanted" in capsys.readouterr().err
    assert command(*fixed, "--count", "2") == 2
    assert "not of this choice" in capsys.readouterr().err


def test_a_image_with_other_bytes_is_left_out(command, listed, tmp_path, capsys):
    rows, _ = listed
    last = max(rows[:6], key=lambda row: row["hash"])
    (tmp_path / "served" / last["url"].rpartition("/")[2]).write_bytes(b"changed")
    assert command("mine", "--list", written(rows, "list.jsonl"), "--count", "5", "--min-side", "30") == 2
    said = capsys.readouterr()
    assert "has the checksum md5:" in said.out and "gives 4 usable images" in said.err
    assert not list(Path("datasets/mine").glob("*.part"))


def test_a_server_that_does_not_answer_changes_no_choice(command, listed, monkeypatch, capsys):
    monkeypatch.setattr(download.time, "sleep", lambda _seconds: None)
    rows, gone = listed
    words = ["mine", "--list", "list.jsonl", "--count", "2", "--min-side", "30"]
    first, *_ = sorted((row for row in rows[:6] if row is not gone), key=lambda row: row["hash"])
    away = [row | {"url": "http://127.0.0.1:9/closed.png"} if row is first else row for row in rows]
    written(away, "list.jsonl")
    assert command(*words) == 2
    said = capsys.readouterr()
    assert "closed.png: cannot be fetched" in said.err and "goes on later" in said.err
    assert gone["url"] in said.out and "closed.png" not in said.out
    written(rows, "list.jsonl")
    assert command(*words) == 0
    expected = sorted(row["hash"] for row in rows[:6] if row is not gone)[:2]
    assert [file["name"] for file in manifest("datasets/mine.manifest.json")["files"]] == [
        f"{it}.png" for it in expected
    ]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["PD12M"], "give it with --list and --count"),
        (["PD12M", "--list", "list.jsonl"], "--count"),
        (["a", "b", "--list", "list.jsonl", "--count", "1"], "one NAME"),
        (["BSD432", "--list", "list.jsonl", "--count", "1"], "without a list"),
        (["mine", "--list", "list.txt", "--count", "1"], "expected a list in"),
        (["mine", "--list", "none.jsonl", "--count", "1"], "no such list"),
        (["mine", "--list", "list.jsonl", "--count", "1"], "row 2 lacks hash"),
        (["mine", "--list", "torn.jsonl", "--count", "1"], "after 0 rows"),
        (["mine", "--list", "rows.jsonl", "--count", "1"], "row 1 is no table"),
        (["mine", "--list", "bad.parquet", "--count", "1"], "bad.parquet"),
        (["--list", "list.jsonl", "--count", "1", "--sub"], "--list, --sub: give the NAME"),
        (["--download"], "--download: give the NAME"),
        (["mine", "--shrink", "2", "--lmdb"], "--shrink: would change nothing without --sub; add it"),
        (["mine", "--size", "64", "--min-detail", "3"], "--size, --min-detail: would change nothing without --sub"),
        (["mine", "--compress-level", "9"], "--compress-level: would change nothing without --sub or --lmdb"),
        (["mine", "--count", "5", "--license", "by"], "--count, --license: would change nothing without --list"),
        (["BSD432", "--terms", "mine"], "--terms is for folders of your own"),
        (["mine", "--terms", "mine", "--list", "list.jsonl", "--count", "1"], "--terms is for folders of your own"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unsuitable_requests_say_what_to_do(command, capsys, arguments, reason):
    good = {"url": "http://127.0.0.1:9/a.png", "hash": "0" * 32, "license": FREE}
    Path("list.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(good | {'hash': ''})}\n")
    Path("list.txt").write_text("x")
    Path("torn.jsonl").write_text('{"url": ')
    Path("rows.jsonl").write_text("[1, 2]\n")
    Path("bad.parquet").write_bytes(b"PAR1 no")
    assert command(*arguments) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("side", "taken"), [("900.0", True), (900.0, True), ("100.0", False), ("", False), ("?", False), (math.nan, False)]
)
def test_sides_may_be_written_as_tables_with_empty_fields_hold_them(side, taken):
    row = {"url": "https://a/b.jpg", "license": FREE, "width": side, "height": "900", "hash": "0" * 32}
    assert url_list.choose(iter([row]), 512, None) == ([row] if taken else [])


def test_addresses_with_any_letters_are_fetched(command, server, tmp_path):
    data, digest = encoded_image(0, 40)
    (tmp_path / "served" / "größe 1.png").write_bytes(data)
    written([{"url": f"{server}/größe 1.png", "hash": digest, "license": FREE}], "list.jsonl")
    assert command("mine", "--list", "list.jsonl", "--count", "1", "--min-side", "1") == 0
    assert len(list(Path("datasets/mine").iterdir())) == 1


def test_an_address_that_is_none_is_left_out(command, server, tmp_path, capsys):
    data, digest = encoded_image(0, 40)
    (tmp_path / "served" / "a.png").write_bytes(data)
    good = {"url": f"{server}/a.png", "hash": digest, "license": FREE}
    written([good, good | {"url": "http://[x/a.png", "hash": "0" * 32}], "list.jsonl")
    assert command("mine", "--list", "list.jsonl", "--count", "1", "--min-side", "1") == 0
    assert "left out: http://[x/a.png: expected an http or https address" in capsys.readouterr().out


def test_a_list_is_fetched_by_one_command_at_a_time(command, listed, monkeypatch, capsys):
    pytest.importorskip("fcntl", reason="locks are taken by fcntl")
    rows, _ = listed
    words = ["PD12M", "--list", written(rows, "list.jsonl"), "--min-side", "30", "--count", "5"]
    collect, inner = url_list.collect, []

    def collecting(*arguments):
        if not inner:
            inner.append(command(*words))
        return collect(*arguments)

    monkeypatch.setattr(url_list, "collect", collecting)
    assert command(*words) == 0 and inner == [2]
    assert "set datasets/PD12M is in use by process" in capsys.readouterr().err


def test_the_choice_depends_on_nothing_but_the_list_and_the_rules():
    row = {"url": "https://a/b.jpeg?x=1", "license": FREE, "width": 900, "height": 600, "source": "Commons"}
    rows = [row | {"hash": f"{number:032x}"} for number in (5, 3, 9)]
    assert [item["hash"][-1] for item in url_list.choose(iter(rows), 512, None)] == ["3", "5", "9"]
    assert url_list.choose(iter(rows), 601, None) == [] and url_list.choose(iter(rows), 1, "museum") == []
    by = row | {"hash": "a" * 32, "license": "https://creativecommons.org/licenses/by/4.0/"}
    assert url_list.choose(iter([by]), 1, None) == []
    assert url_list.choose(iter([by]), 1, "Commons", ["creativecommons.org/licenses/by/"]) == [by]


@contextmanager
def full_disk():
    """Files of at most 100 kB: more is refused as on a full disk."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


NOISE = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))[1].tobytes()


@pytest.mark.parametrize("work", ["--sub", "--lmdb"])
def test_a_full_disk_is_named_and_with_room_the_work_goes_on(command, capsys, work):
    if work == "--lmdb":
        pytest.importorskip("lmdb")
    Path("large").mkdir()
    Path("large/a.png").write_bytes(NOISE)
    with full_disk():
        assert command("large", work) == 2
    assert re.search("error: datasets/.*large.* cannot be written .*goes on", capsys.readouterr().err)
    assert command("large", work) == 0


def test_a_full_disk_ends_unpacking_and_leaves_nothing(command, capsys):
    downloads = Path("datasets/downloads")
    downloads.mkdir(parents=True)
    with zipfile.ZipFile(downloads / "BSDS500-master.zip", "w") as archive:
        archive.writestr("BSDS500-master/data/images/train/1.jpg", NOISE)
    with full_disk():
        assert command("BSD432") == 2
    assert "datasets/BSD432: cannot be written" in capsys.readouterr().err
    assert [path.name for path in Path("datasets").iterdir()] == ["downloads"]


def test_a_full_disk_ends_a_list_and_is_not_taken_for_images_that_are_gone(command, tmp_path, server, capsys):
    (tmp_path / "served" / "a.png").write_bytes(NOISE)
    row = {"url": f"{server}/a.png", "license": FREE, "hash": hashlib.md5(NOISE).hexdigest()}
    written([row, row | {"hash": "f" * 32}], "list.jsonl")
    with full_disk():
        assert command("mine", "--list", "list.jsonl", "--count", "1", "--min-side", "1") == 2
    said = capsys.readouterr()
    assert "cannot be written" in said.err and "goes on" in said.err and "left out" not in said.out


def test_a_place_that_cannot_be_written_is_named(command, photo_folder, capsys):
    Path("file").write_text("x")
    assert command(photo_folder("mine", count=1), "--root", "file") == 2
    assert "file: cannot be written" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be written"):
        vheatir.prepare("FreePhotos", root="file/deep")
