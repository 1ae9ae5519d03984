"""`vheatir restore`: where results go, what is refused before anything is done, and what a failure leaves behind."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vheatir import weights
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.cli import main as vheatir_main
from vheatir.errors import UserError
from vheatir.image_io import Image, read_image, write_image
from vheatir.restore import restore, workers
from vheatir.restore.jobs import Job, _ignores_case, plan_jobs
from vheatir.restore.restorer import Restorer

ODD = Path(__file__).parents[2] / "data" / "odd" / "restore"
CONFIG = {"dim": 8, "depths": [1], "embed_size": 8, "downscale": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    network = VHeatIR(**CONFIG)
    torch.nn.init.normal_(network.conv_last.weight, std=0.02)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    metadata = {"task": "denoise", "color": "color", "levels": "none", "license": "none"}
    weights.save(path, network.state_dict(), {"config": json.dumps(network.config), **metadata})
    return path


@pytest.fixture
def options(trained):
    return ["--task", "denoise", "--weights", str(trained), "--device", "cpu"]


@pytest.fixture
def command(options, tmp_path, monkeypatch):
    """`vheatir restore` in an empty folder; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: vheatir_main(["restore", *map(str, arguments), *options])


def image(path, shape=(12, 10, 3)):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, Image(np.random.default_rng(0).uniform(size=shape).astype(np.float32)))
    return path


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_a_file_goes_to_out_name_and_a_folder_keeps_its_tree(command, tmp_path):
    for name in ("photos/a.png", "photos/sub/deep/b.JPG", "single/c.tif"):
        image(tmp_path / name)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    image(tmp_path / "photos" / ".hidden.png")
    assert command("photos", "single/c.tif", "-o", "out") == 0
    assert below(tmp_path / "out") == ["a.png", "c.tif", "sub/deep/b.JPG"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.png", ["a.png", "b.png"]),
        ("photos/[a].png", ["a.png"]),
        ("photos/**/*.jpg", ["c.jpg", "d.jpg"]),
        ("pho*", ["a.png", "b.png", "d.jpg", "sub/c.jpg"]),
    ],
)
def test_globs(command, tmp_path, pattern, expected):
    for name in ("a.png", "b.png", "sub/c.jpg", "d.jpg"):
        image(tmp_path / "photos" / name)
    assert command(pattern, "-o", "out") == 0
    assert below(tmp_path / "out") == expected


@pytest.mark.parametrize("name", ["grüße 写真.png", "[1]*.png", "-dash.png", "a b\tc.png", "x" * 250 + ".png"])
def test_any_name_will_do(command, tmp_path, name):
    image(tmp_path / name)
    assert command(f"./{name}", "-o", "résumé/out") == 0
    assert below(tmp_path / "résumé" / "out") == [name]


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names there are always text")
def test_names_that_are_no_text_are_restored_and_shown(command, tmp_path, capfd):
    name = os.fsdecode(b"caf\xe9.png")
    image(tmp_path / "whole" / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / os.fsdecode(b"th\xe9.png")).write_bytes(b"")
    assert command("whole", "broken", "-o", "out") == 1
    assert [os.fsencode(path) for path in below(tmp_path / "out")] == [b"caf\xe9.png"]
    assert "th\ufffd.png" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (["one/a.png", "two/a.png"], "both be written to"),
        (["one", "two/a.png"], "both be written to"),
        (["one", "two"], "both be written to"),
        (["one/*.png", "two"], "both be written to"),
        (["one/a.png", "tree"], "have to be an image and"),
        (["one", "none.png"], "no such file"),
        (["one", "none/*.png"], "no image"),
        (["one", "void"], "holds no images"),
        (["one", "--manifest", "memory://b/list.jsonl"], "must be a local file"),
        (["one", "--manifest", ""], "is empty"),
    ],
    ids=str,
)
def test_doubtful_requests_are_refused_before_anything_is_done(command, tmp_path, capfd, inputs, reason):
    for name in ("one/a.png", "two/a.png", "tree/a.png/b.png"):
        image(tmp_path / name)
    (tmp_path / "void").mkdir()
    assert command(*inputs, "-o", "out") == 2
    assert reason in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_in_the_place_of_a_result_is_no_result(command, tmp_path, capfd):
    image(tmp_path / "one" / "a.png")
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    assert command("one", "-o", "out") == 2
    assert "out/a.png is a folder" in capfd.readouterr().err.replace("\\", "/")


def test_the_same_file_named_twice_is_one_input(command, tmp_path):
    image(tmp_path / "one" / "a.png")
    assert command("one", "one/a.png", "./one/../one/*.png", "-o", "out") == 0
    assert below(tmp_path / "out") == ["a.png"]


@pytest.mark.parametrize("inputs", [["photos"], ["photos/a.png"], ["photos/*.png"]], ids=str)
def test_inputs_are_never_overwritten(command, tmp_path, capfd, inputs):
    before = image(tmp_path / "photos" / "a.png").read_bytes()
    status = command(*inputs, "-o", "photos", "--overwrite")
    assert status == 2 and (tmp_path / "photos" / "a.png").read_bytes() == before
    assert capfd.readouterr().err.startswith("error: ")


def test_inputs_are_not_overwritten_where_case_is_ignored(command, tmp_path, capfd):
    """As on a Mac or a USB stick, where `Photos` is `photos`; here two names of one file stand for that."""
    if _ignores_case(tmp_path):
        pytest.skip("this file system is one of them")
    before = image(tmp_path / "photos" / "a.png").read_bytes()
    (tmp_path / "Photos").mkdir()
    os.link(tmp_path / "photos" / "a.png", tmp_path / "Photos" / "a.png")
    assert command("photos", "-o", "Photos", "--overwrite") == 2
    assert command("photos/a.png", "-o", "Photos/A.png") == 0, "another file here"
    assert "Photos/a.png is an input and would be overwritten" in capfd.readouterr().err
    assert (tmp_path / "Photos" / "a.png").read_bytes() == before


def test_results_whose_names_differ_in_case_only(command, tmp_path, capfd, monkeypatch):
    image(tmp_path / "one" / "a.png")
    image(tmp_path / "two" / "A.png")
    with monkeypatch.context() as patched:
        patched.setattr("vheatir.restore.jobs._ignores_case", lambda _folder: True)
        assert command("one", "two", "-o", "out") == 2
    assert "one/a.png and two/A.png would both be written to out/A.png, where upper" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    if not _ignores_case(tmp_path):
        assert command("one", "two", "-o", "out") == 0
        assert below(tmp_path / "out") == ["A.png", "a.png"]


@pytest.mark.parametrize("inputs", ["photos", "photos/**/*.png", "./photos/../photos"])
def test_results_inside_an_input_folder_are_not_picked_up(command, tmp_path, inputs):
    image(tmp_path / "photos" / "a.png")
    for _ in range(2):
        assert command(inputs, "-o", "photos/out", "--overwrite") == 0
    assert below(tmp_path / "photos") == ["a.png", "out/a.png"]


@pytest.mark.parametrize("out", ["photos", "."])
def test_a_pattern_may_look_where_results_go(tmp_path, monkeypatch, out):
    """As `photos/*.NEF -o .` where no shell expands it."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("a.NEF", "b.NEF", "c.png"):
        Path("photos", name).touch()
    jobs = plan_jobs([f"{tmp_path}/photos/*.NEF"], out)
    assert jobs == [Job(tmp_path / "photos" / f"{name}.NEF", Path(out, f"{name}.tif")) for name in "ab"]
    if out == "photos":
        with pytest.raises(UserError, match=r"c\.png is an input and would be overwritten"):
            plan_jobs(["photos/*.png"], out)


def test_existing_outputs_stay_unless_asked(command, tmp_path, capfd):
    image(tmp_path / "photos" / "a.png")
    image(tmp_path / "photos" / "b.png")
    old = image(tmp_path / "out" / "a.png", (3, 3)).read_bytes()
    assert command("photos", "-o", "out") == 0
    assert (tmp_path / "out" / "a.png").read_bytes() == old and (tmp_path / "out" / "b.png").exists()
    assert "1 existing" in capfd.readouterr().err
    assert command("photos", "-o", "out", "--overwrite") == 0
    assert read_image(tmp_path / "out" / "a.png").pixels.shape == (12, 10, 3)


def test_broken_files_are_named_the_others_are_done_and_the_status_tells(command, tmp_path, capfd):
    whole = image(tmp_path / "photos" / "a.png").read_bytes()
    image(tmp_path / "photos" / "z.png")
    broken = {"empty.png": b"", "cut.png": whole[:-30], "not.jpg": whole, "text.tif": b"no image"}
    for name, content in broken.items():
        (tmp_path / "photos" / name).write_bytes(content)
    (tmp_path / "notes.txt").write_text("no image")
    assert command("photos", "notes.txt", "-o", "out") == 1
    assert below(tmp_path / "out") == ["a.png", "z.png"]
    messages = capfd.readouterr().err
    assert all(name in messages for name in [*broken, "notes.txt"]) and "Traceback" not in messages
    assert "2 restored" in messages and "5 failed" in messages


def test_not_a_number_in_a_file_names_the_file(command, tmp_path, capfd):
    write_image(tmp_path / "in.tif", Image(np.full((4, 4), np.nan, np.float32), bit_depth=32))
    assert command("in.tif", "-o", "out") == 1
    assert "in.tif" in (messages := capfd.readouterr().err) and "16 NaN" in messages
    assert below(tmp_path / "out") == []


def test_the_limit_on_size_can_be_set(command, tmp_path, capfd):
    image(tmp_path / "in.png", (200, 200))
    assert command("in.png", "-o", "out", "--max-megapixels", "0.01") == 1
    assert "200x200" in capfd.readouterr().err


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_that_cannot_be_a_folder_is_refused(command, tmp_path, capfd, output):
    image(tmp_path / "in.png")
    (tmp_path / "file").write_text("")
    assert command("in.png", "-o", output) == 2
    assert "folder" in capfd.readouterr().err


def test_weights_that_are_none_are_refused_before_anything_is_done(tmp_path, monkeypatch, capfd):
    image(tmp_path / "in.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"x")
    assert vheatir_main(["restore", "in.png", "-o", "out", "--task", "jpeg", "--weights", "w.safetensors"]) == 2
    assert "w.safetensors" in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_an_unexpected_failure_in_one_file_is_reported_and_the_rest_done(command, tmp_path, capfd, monkeypatch):
    restore = Restorer.restore_rows

    def fail_on_gray(self, read, shape, **options):
        if shape[2] == 1:
            raise RuntimeError("out of memory: the device is full")
        return restore(self, read, shape, **options)

    monkeypatch.setattr(Restorer, "restore_rows", fail_on_gray)
    image(tmp_path / "photos" / "a.png", (9, 9))
    image(tmp_path / "photos" / "b.png")
    assert command("photos", "-o", "out") == 1
    assert below(tmp_path / "out") == ["b.png"]
    assert "a.png" in (messages := capfd.readouterr().err) and "--tile" in messages


def test_memory_in_the_name_of_a_folder_is_not_taken_for_a_lack_of_it(tmp_path):
    where = tmp_path / "memory card" / "a.jpg"
    job = Job(where, tmp_path / "out.jpg")
    assert workers.reason(job, PermissionError(errno.EACCES, "Permission denied", str(where))).endswith(f"'{where}'")
    assert "--tile 64" in workers.reason(job, OSError(errno.ENOMEM, "Cannot allocate memory"))


def test_help_tells_what_the_weights_are_for(capsys):
    with pytest.raises(SystemExit, match="0"):
        vheatir_main(["restore", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "non-commercial research" in text and "denoise for Gaussian noise alone" in text


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL] if hasattr(signal, "SIGKILL") else [])
def test_stopped_in_the_middle_finished_files_are_whole_and_the_rest_can_follow(options, command, tmp_path, ending):
    count = 60
    for number in range(count):
        image(tmp_path / "photos" / f"{number:02}.png", (200, 200, 3))
    call = [sys.executable, "-m", "vheatir", "restore", "photos", "-o", "out", *options]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    running = subprocess.Popen(call, cwd=tmp_path, env=environment, stderr=pipe, text=True, preexec_fn=heeding)
    deadline = time.monotonic() + 300  # a busy machine may take minutes to start
    while not list((tmp_path / "out").glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(ending)
    messages = running.communicate(timeout=120)[1]
    done = list((tmp_path / "out").glob("*.png"))
    assert 0 < len(done) < count, messages
    assert all(read_image(path).pixels.shape == (200, 200, 3) for path in done)
    if ending == signal.SIGINT:
        assert running.returncode == 130 and "interrupted" in messages and "Traceback" not in messages
        assert not list((tmp_path / "out").glob(".*")), "no temporary file is left"
    kept = {path: path.stat().st_mtime_ns for path in done}
    assert command("photos", "-o", "out") == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == count
    assert all(path.stat().st_mtime_ns == kept[path] for path in done)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("inputs", [["photos"], ["pho*"]], ids=str)
def test_linked_folders_are_followed_and_loops_cut(command, tmp_path, inputs):
    image(tmp_path / "photos" / "a.png")
    image(tmp_path / "elsewhere" / "deep" / "b.png")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "elsewhere" / "deep", target_is_directory=True)
    (tmp_path / "photos" / "c.png").symlink_to(tmp_path / "elsewhere" / "deep" / "b.png")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "photos" / "self").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / "photos" / "broken").symlink_to(tmp_path / "nowhere", target_is_directory=True)
    assert command(*inputs, "-o", "out") == 0
    # "up" leads out of "again" into a folder that is not above it there
    expected = ["a.png", "again/b.png", "c.png", "linked/deep/b.png"]
    assert [path for path in below(tmp_path / "out") if "/up/" not in path] == expected
    assert len(below(tmp_path / "out")) < 8


@pytest.mark.parametrize("name", ["result.png", "new/folder/result.PNG", "result.tif", "result.webp"])
def test_one_file_may_go_to_a_file(command, tmp_path, name, capfd):
    image(tmp_path / "in.png")
    for _ in range(2):  # the second time it is there and stays
        assert command("in.png", "-o", name) == 0
    assert "1 existing outputs stay" in capfd.readouterr().err
    assert (tmp_path / name).is_file() and read_image(tmp_path / name).pixels.shape == (12, 10, 3)
    before = (tmp_path / name).stat().st_mtime_ns
    assert command("in.*", "-o", name, "--overwrite") == 0
    assert (tmp_path / name).stat().st_mtime_ns > before


def test_a_folder_with_a_images_name_is_a_folder(command, tmp_path):
    image(tmp_path / "in.png")
    (tmp_path / "odd.png").mkdir()
    assert command("in.png", "-o", "odd.png") == 0
    assert below(tmp_path / "odd.png") == ["in.png"]


@pytest.mark.parametrize(
    ("inputs", "output", "reason"),
    [
        (["in.png", "two.png"], "out.png", "several files go into a folder"),
        (["photos"], "out.png", "folders and several files go into a folder"),
        (["*.png"], "out.tif", "several files go into a folder"),
        (["in.png"], "in.png", "is an input"),
        (["in.png"], "./photos/../in.png", "is an input"),
        (["none.png"], "out.png", "no such file"),
    ],
    ids=str,
)
def test_a_file_as_output_is_refused_for_anything_else(command, tmp_path, capfd, inputs, output, reason):
    for name in ("in.png", "two.png", "photos/a.png"):
        image(tmp_path / name)
    assert command(*inputs, "-o", output) == 2
    assert reason in capfd.readouterr().err
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("name", ["result.gif", "new/result.JP2", "page.pdf", "memory://b/result.psd"])
def test_a_name_of_a_format_that_is_not_written_is_no_folder(command, tmp_path, capfd, name):
    image(tmp_path / "in.png")
    assert command("in.png", "-o", name) == 2
    said = capfd.readouterr().err
    assert name in said and "are not written" in said and ".png" in said and ".mp4" in said
    assert ".avif" not in said and ".nef" not in said and below(tmp_path) == ["in.png"]
    (tmp_path / "scans.pdf").mkdir()
    assert command("in.png", "-o", "scans.pdf") == 0 and below(tmp_path / "scans.pdf") == ["in.png"]


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image("in.png")
    for inputs, output in (("", "out"), (["in.png", ""], "out"), ("in.png", "")):
        with pytest.raises(UserError, match="is empty"):
            restore(inputs, output)
    assert below(tmp_path) == ["in.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of POSIX")
def test_named_pipes_in_a_folder_are_passed_over_and_dead_links_named(command, tmp_path, capfd):
    image(tmp_path / "in" / "a.png")
    os.mkfifo(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "c.png").symlink_to("a.png")
    (tmp_path / "in" / "d.png").symlink_to("none.png")
    assert command("in", "-o", "out") == 1
    assert below(tmp_path / "out") == ["a.png", "c.png"]
    assert "in/d.png" in capfd.readouterr().err
    for output in ("more", "more.png"):
        assert command("in/b.png", "-o", output) == 2
        assert "is a pipe or a device" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ({"bit_depth": 16}, "out.jpg", "JPEG cannot hold 16 bits"),
        ({"bit_depth": 32, "suffix": ".tif"}, "out.png", "PNG cannot hold 32 bits"),
        ({"alpha": np.ones((12, 10), np.float32)}, "out.jpg", "JPEG cannot hold transparency"),
        ({"pixels": np.zeros((2, 16384, 3), np.float32)}, "out.webp", "WEBP cannot hold 16384x2 pixels"),
        ({"pixels": np.zeros((65501, 1), np.float32)}, "out.jpg", "JPEG cannot hold 1x65501 pixels"),
        ({}, "out.heic", "out.heic: this kind of file needs pillow_heif"),
    ],
    ids=["deep", "floats", "alpha", "wide", "high", "no library"],
)
def test_what_another_format_cannot_hold_is_refused_before_work(
    command, tmp_path, capfd, monkeypatch, source, target, reason
):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Restorer, "restore_rows", None)
    source = {"pixels": np.full((12, 10, 3), 0.5, np.float32)} | source
    suffix = source.pop("suffix", ".png")
    write_image(tmp_path / f"in{suffix}", Image(**source))
    assert command(f"in{suffix}", "-o", target) == 1
    assert reason in capfd.readouterr().err and not (tmp_path / target).exists()


def test_files_of_other_kinds_are_counted(command, tmp_path, capfd):
    image(tmp_path / "photos" / "a.png")
    for name in ("b.psd", "c.PSD", "sub/d.gif", "notes", ".hidden.gif"):
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"x")
    assert command("photos", "-o", "out") == 0
    said = capfd.readouterr().err
    assert "note: files of other kinds skipped: 1 without suffix, 1 .gif, 2 .psd" in said
    assert command("photos/*.*", "-o", "out", "--overwrite") == 0  # a pattern that the shell has not expanded
    assert "note: files of other kinds skipped: 2 .psd" in capfd.readouterr().err
    assert command("photos/a.png", "-o", "out", "--overwrite") == 0
    assert "skipped" not in capfd.readouterr().err


def test_notes_of_files_are_shown(command, tmp_path, capfd):
    for name in ("thumbnail_second.tif",):
        (tmp_path / name).write_bytes((ODD / name).read_bytes())
    assert command("thumbnail_second.tif", "-o", "out") == 0
    assert "1 further, smaller image (thumbnails); left out" in capfd.readouterr().err


def test_a_pattern_that_ends_in_a_slash_means_folders(command, tmp_path):
    for name in ("in/loose.png", "in/sub/a.png"):
        image(tmp_path / name)
    assert command("in/*/", "-o", "out") == 0
    assert below(tmp_path / "out") == ["a.png"]
