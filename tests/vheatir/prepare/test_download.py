"""Downloads from a local server that breaks off, forgets ranges or sends other bytes; archives that are hostile."""

import functools
import hashlib
import http.server
import io
import random
import re
import tarfile
import threading
import zipfile

import pytest

from vheatir.errors import UserError
from vheatir.prepare import download as module
from vheatir.prepare.download import download, unpack

CONTENT = bytes(range(256)) * 4000  # about 1 MB
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; `state` holds how it misbehaves and what it was asked for."""

    def __init__(self, state, *arguments):
        self.state = state
        super().__init__(*arguments)

    def do_GET(self):
        asked = self.headers.get("Range")
        self.state["asked"].append(asked)
        if self.path == "/none" or self.state["busy"] > 0:
            self.state["busy"] -= 1
            self.send_error(404 if self.path == "/none" else 503)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.state["ranges"] else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop = min(start + self.state["at_once"], len(CONTENT))
        self.wfile.write(CONTENT[start:stop])

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    """(address, state) of a server on this machine."""
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    state = {"asked": [], "ranges": True, "at_once": len(CONTENT), "busy": 0}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, state)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", state
        running.shutdown()


def test_a_whole_file_is_fetched_and_told(server, tmp_path):
    url, state = server
    seen = []
    download(f"{url}/file", tmp_path / "new" / "file", CHECKSUM, lambda have, whole: seen.append((have, whole)))
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT and seen[-1] == (len(CONTENT), len(CONTENT))
    assert state["asked"] == [None] and [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_where_it_ended(server, tmp_path, ranges):
    url, state = server
    state.update(at_once=300_000, ranges=ranges)
    if not ranges:  # a server that always begins anew never gets to the end
        with pytest.raises(UserError, match="goes on later"):
            download(f"{url}/file", tmp_path / "file", CHECKSUM)
        state["at_once"] = len(CONTENT)
    download(f"{url}/file", tmp_path / "file", CHECKSUM)
    assert (tmp_path / "file").read_bytes() == CONTENT
    if ranges:
        assert state["asked"] == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_later_call_goes_on(server, tmp_path):
    url, state = server
    (tmp_path / "file.part").write_bytes(CONTENT[:700_000])
    download(f"{url}/file", tmp_path / "file", CHECKSUM)
    assert state["asked"] == ["bytes=700000-"] and (tmp_path / "file").read_bytes() == CONTENT
    (tmp_path / "again.part").write_bytes(CONTENT)  # killed between the last byte and the check
    download(f"{url}/file", tmp_path / "again", CHECKSUM)
    assert (tmp_path / "again").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server, tmp_path):
    url, state = server
    state["busy"] = 3
    download(f"{url}/file", tmp_path / "file", CHECKSUM)
    assert len(state["asked"]) == 4
    state["asked"].clear()
    with pytest.raises(UserError, match="404"):
        download(f"{url}/none", tmp_path / "none", CHECKSUM)
    assert len(state["asked"]) == 1 and not (tmp_path / "none").exists()


def test_other_bytes_are_not_kept(server, tmp_path):
    url, _ = server
    with pytest.raises(UserError, match="expected md5:0000"):
        download(f"{url}/file", tmp_path / "file", "md5:" + "0" * 32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "http://127.0.0.1:9/closed"])
def test_addresses_that_do_not_serve(tmp_path, monkeypatch, url):
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    with pytest.raises(UserError, match=re.escape(url)):
        download(url, tmp_path / "file", CHECKSUM)
    assert not (tmp_path / "file").exists()


def packed(path, files, links=()):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
            for name, goal in links:
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, goal
                archive.addfile(entry)
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_members_are_chosen_and_laid_side_by_side(tmp_path, name):
    files = {"top/train/1.png": b"1", "top/train/2.png": b"2", "top/test/3.png": b"3", "top/read.me": b"no"}
    archive = packed(tmp_path / name, files)
    assert unpack(archive, tmp_path / "all", ["*.png"]) == 3
    assert unpack(archive, tmp_path / "some", ["*train/*.png"], exclude={"2"}) == 1
    assert unpack(archive, tmp_path / "only", ["*.png"], only={"3"}) == 1
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["1.png", "2.png", "3.png"]
    assert (tmp_path / "some" / "1.png").read_bytes() == b"1" and (tmp_path / "only" / "3.png").read_bytes() == b"3"


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_no_archive_writes_elsewhere(tmp_path, name):
    files = {"../../evil.png": b"x", "/tmp/other.png": b"y"}
    archive = packed(tmp_path / name, files, links=[("link.png", "/etc/passwd")])
    assert unpack(archive, tmp_path / "in" / "side", ["*.png"]) == 2
    assert sorted(path.name for path in (tmp_path / "in" / "side").iterdir()) == ["evil.png", "other.png"]
    assert not (tmp_path.parent / "evil.png").exists() and not (tmp_path / "evil.png").exists()


NOISE = random.Random(0).randbytes(300_000)


def damaged_zip(path, kind):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED) as archive:
        archive.writestr("a/1.png", b"abc" * 5000 + NOISE)
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    if kind == "encrypted":
        data[6] |= 1
        data[central + 8] |= 1
    elif kind == "method":
        data[8] = data[central + 10] = 99
    else:
        data[60:90] = bytes(30)
    path.write_bytes(data)


def damaged_tar(path, kind):
    with tarfile.open(path, "w:xz" if kind == "xz" else "w") as archive:
        for name in ("a/1.png", "a/2.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(NOISE)
            archive.addfile(entry, io.BytesIO(NOISE))
    data = bytearray(path.read_bytes())
    if kind == "cut":
        del data[len(data) // 4 :]
    else:
        data[150_000:150_100] = bytes(100)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["deflated", "stored", "encrypted", "method", "xz", "cut"])
def test_an_archive_that_is_damaged_inside_is_named(tmp_path, kind):
    path = tmp_path / "archive"
    (damaged_tar if kind in ("xz", "cut") else damaged_zip)(path, kind)
    with pytest.raises(UserError, match=r"archive: cannot be unpacked \(.*\); fetch it again"):
        unpack(path, tmp_path / "out", ["*.png"])
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: packed(path, {"a/1.png": b"1", "b/1.png": b"2"}), "two files 1.png"),
        (lambda path: packed(path, {"a/1.jpg": b"1"}), "right archive"),
        (lambda path: path.write_bytes(b"no archive") and path, "cannot be unpacked"),
        (lambda path: path.write_bytes(packed(path, {"a/1.png": bytes(10_000)}).read_bytes()[:-40]) and path, "unpack"),
    ],
    ids=["same name", "nothing", "no archive", "cut"],
)
@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_bad_archives_leave_nothing(tmp_path, name, make, reason):
    with pytest.raises(UserError, match=reason):
        unpack(make(tmp_path / name), tmp_path / "out", ["*.png"])
    assert [path.name for path in tmp_path.iterdir()] == [name]
