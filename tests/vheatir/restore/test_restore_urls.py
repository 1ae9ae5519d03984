"""Inputs and outputs behind URLs of file systems that are not in memory: HTTP, files, archives."""

import functools
import http.server
import json
import threading
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from vheatir.cli import main as vheatir_main
from vheatir.errors import UserError
from vheatir.restore.jobs import plan_jobs
from vheatir.restore.locations import Url, existing


@pytest.fixture
def command(tiny, tmp_path, monkeypatch):
    """`vheatir restore` in a folder that holds in/a.png and in/sub/b.tif; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    fixed = ["--task", "denoise", "--weights", str(tiny.write_weights(tmp_path / "tiny.safetensors")), "--quiet"]
    tiny.image("in/a.png")
    tiny.image("in/sub/b.tif")
    return lambda *arguments: vheatir_main(["restore", *map(str, arguments), *fixed, "--device", "cpu"])


@pytest.fixture
def server(tmp_path):
    """The address of an HTTP server of the folder; it can be read and listed, not written."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_arguments):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("output", ["out", "out.png", "http://127.0.0.1:9/out.png"])
def test_a_server_that_does_not_answer_is_no_traceback(command, capfd, output):
    pytest.importorskip("aiohttp", reason="http:// needs aiohttp and requests")
    assert command("http://127.0.0.1:9/a.png" if "://" not in output else "in/a.png", "-o", output) == 2
    assert "error: http://127.0.0.1:9/" in (said := capfd.readouterr().err) and "connect" in said.lower()


def packed():
    with zipfile.ZipFile("in.zip", "w") as archive:
        for name in ("in/a.png", "in/sub/b.tif"):
            archive.write(name)


def test_files_and_folders_of_an_http_server(command, server, tiny, capfd):
    pytest.importorskip("aiohttp", reason="http:// needs aiohttp and requests")
    assert command(f"{server}/in/", "-o", "folder", "--manifest", "list.jsonl") == 0
    assert command(f"{server}/in/*.png", "-o", "glob") == 0
    assert command(f"{server}/in/a.png?version=2", "-o", "file") == 0
    assert [tiny.below(name) for name in ("folder", "glob", "file")] == [["a.png", "sub/b.tif"], ["a.png"], ["a.png"]]
    assert command("in", "-o", "local") == 0
    for name in ("a.png", "sub/b.tif"):
        assert Path("folder", name).read_bytes() == Path("local", name).read_bytes()
    listed = [json.loads(line)["input"] for line in Path("list.jsonl").read_text().splitlines()]
    assert listed == [f"{server}/in/a.png", f"{server}/in/sub/b.tif"]

    assert command(f"{server}/in/none.png", "-o", "none") == 2
    assert command("in/a.png", "-o", f"{server}/out") == 1, "this server takes nothing"
    said = capfd.readouterr().err
    assert f"{server}/in/none.png: there is no such file" in said and f"{server}/out/a.png" in said


def test_file_urls(command, tiny, tmp_path, capfd):
    assert command(f"file://{tmp_path}/in", "-o", f"file://{tmp_path}/out") == 0
    assert tiny.below("out") == ["a.png", "sub/b.tif"]
    (tmp_path / "out" / "a.png").unlink()
    kept = (tmp_path / "out" / "sub" / "b.tif").stat().st_mtime_ns
    assert command(f"file://{tmp_path}/in", "-o", f"file://{tmp_path}/out") == 0
    assert tiny.below("out") == ["a.png", "sub/b.tif"], "and nothing temporary"
    assert (tmp_path / "out" / "sub" / "b.tif").stat().st_mtime_ns == kept
    assert command(f"file://{tmp_path}/in", "-o", f"file://{tmp_path}/in") == 2
    capfd.readouterr()


def test_patterns_of_urls_match_folders_as_those_of_paths_do(command, tiny, tmp_path, capfd):
    tiny.image("in/named.png/c.png")
    tiny.image("in/.hidden/d.png")
    Path("in/notes").touch()
    assert command("in/*", "-o", "local") == 0
    local = capfd.readouterr().err
    assert command(f"file://{tmp_path}/in/*", "-o", "url") == 0
    assert tiny.below("url") == tiny.below("local") == ["a.png", "b.tif", "c.png"]
    assert "skipped: 1 without suffix" in local and "skipped: 1 without suffix" in capfd.readouterr().err
    assert command(f"file://{tmp_path}/in/**", "-o", "all") == 0
    assert tiny.below("all") == ["a.png", "b.tif", "c.png"]


def test_archives_are_read_through_chained_urls(command, tiny, tmp_path, capfd):
    packed()
    archive = f"file://{tmp_path}/in.zip"
    assert command(f"zip://in::{archive}", "-o", "folder") == 0
    assert command(f"zip://::{archive}", "-o", "root") == 0
    assert command(f"zip://in/sub/b.tif::{archive}", "-o", "file") == 0
    assert command(f"zip://in/*.png::{archive}", "-o", "glob") == 0
    assert tiny.below("folder") == ["a.png", "sub/b.tif"] and tiny.below("root") == ["in/a.png", "in/sub/b.tif"]
    assert tiny.below("file") == ["b.tif"] and tiny.below("glob") == ["a.png"]
    assert command("in", "-o", "local") == 0
    assert Path("folder/sub/b.tif").read_bytes() == Path("local/sub/b.tif").read_bytes()
    assert command(f"zip://none::{archive}", "-o", "none") == 2
    assert f"zip://none::{archive}" in capfd.readouterr().err


def test_patterns_of_urls_match_clips_and_folders_do_not_give_them(command, tmp_path):
    Path("in/clip.mp4").touch()
    for where in ("in", f"file://{tmp_path}/in"):
        assert [str(job.target) for job in plan_jobs([f"{where}/*.mp4"], "out")] == ["out/clip.mp4"]
        passed_over = Counter()
        assert len(plan_jobs([where], "out", passed_over)) == 2 and passed_over == {".mp4": 1}


@pytest.mark.parametrize("url", ["github://a/b", "zip://a::memory://none.zip", "nonsense://a"])
def test_file_systems_that_cannot_be_opened_are_user_errors(command, capfd, url):
    assert command(url, "-o", "out") == 2
    said = capfd.readouterr().err
    assert url in said and "Traceback" not in said and not Path("out").exists()


def test_an_output_that_cannot_be_listed_is_a_user_error(command, monkeypatch, capfd):
    import fsspec

    def fail(*_arguments, **_options):
        raise PermissionError("the key is not valid")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", fail)
    with pytest.raises(UserError, match=r"memory://out: PermissionError: the key is not valid"):
        existing([Url("memory://out/a.png")], Url("memory://out"))
    assert command("in", "-o", "memory://out") == 2


@pytest.mark.parametrize(
    ("text", "name", "joined", "parents"),
    [
        ("s3://b/c/d.png", "d.png", "s3://b/c/d.png/x", ["s3://b/c", "s3://b", "s3://."]),
        ("zip://c/d.png::s3://b/e.zip", "d.png", "zip://c/d.png/x::s3://b/e.zip", ["zip://c::s3://b/e.zip"]),
        ("zip://::e.zip", "", "zip://x::e.zip", []),
        ("https://h/d.png?a=b/c.tif", "d.png", "https://h/d.png?a=b/c.tif/x", []),
    ],
)
def test_parts_of_urls(text, name, joined, parents):
    url = Url(text)
    assert url.name == name and str(url / "x") == joined
    assert [str(parent) for parent in url.parents][: len(parents)] == parents
