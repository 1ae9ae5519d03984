"""What holds for every command: empty arguments, and a stdout that takes nothing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vheatir import cli
from vheatir.utils.files import atomic_open

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("argv", "where"),
    [
        (["restore", "", "-o", "out"], "after restore"),
        (["restore", "in.png", "-o", ""], "after -o"),
        (["restore", "in.png", "--output="], "--output="),
        (["evaluate", "--task", "photo", "--data", ""], "after --data"),
        (["prepare", "Set", "--root="], "--root="),
        (["", "in.png"], "first"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(argv, where, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert f"an argument is empty ({where})" in said and "shell variable" in said
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_only_ends_in_an_equals_sign_is_a_value():
    received = []
    assert cli.run(received.extend, ["--set", "a.b=", "=", "-"]) == 0
    assert received == ["--set", "a.b=", "=", "-"]


def _called(lines, stdout, *, buffered):
    """A command that writes so many lines of 1000 letters; its status and what it says on stderr."""
    code = (
        "import sys\nfrom vheatir.cli import run\n"
        f"def command(argv):\n    for _ in range({lines}):\n        sys.stdout.write('x' * 999 + '\\n')\n"
        "raise SystemExit(run(command, []))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({} if buffered else {"PYTHONUNBUFFERED": "1"})
    done = subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, env=environment)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("lines", [1, 1000])
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_a_closed_pipe_ends_a_command_quietly(lines, buffered):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert _called(lines, writing, buffered=buffered) == (141, "")
    finally:
        os.close(writing)


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("lines", [1, 1000])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is played by /dev/full")
def test_a_full_disk_behind_stdout_is_said(lines, buffered):
    with open("/dev/full", "wb") as full:
        status, said = _called(lines, full, buffered=buffered)
    assert status == 1 and said == "error: standard output cannot be written: No space left on device\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_help_into_a_closed_pipe_is_quiet():
    reading, writing = os.pipe()
    os.close(reading)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "vheatir", "info", "--help"]
    try:
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(os.name == "nt", reason="closed by the shell of POSIX")
def test_a_stdout_that_the_caller_closed_is_no_traceback():
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m vheatir info >&-"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_another_error_of_a_file_is_not_taken_for_one_of_stdout(capsys):
    def command(argv):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        cli.run(command, [])
    assert capsys.readouterr().err == ""


def test_a_full_disk_names_the_file_and_leaves_stdout_alone(tmp_path, capsys, monkeypatch):
    def refuse(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def command(argv):
        with atomic_open(tmp_path / "out.json") as file:
            file.write(b"{}")

    monkeypatch.setattr("vheatir.utils.files.os.fsync", refuse)
    assert cli.run(command, []) == 1
    expected = f"error: {tmp_path / 'out.json'} cannot be written: {os.strerror(errno.ENOSPC)}\n"
    assert capsys.readouterr() == ("", expected) and not list(tmp_path.iterdir())


def test_a_disk_that_is_full_for_a_checkpoint_names_the_file(tmp_path, capsys):
    """torch.save says "unexpected pos 768 vs 662" of it."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    path = tmp_path / "iter.pt"
    path.write_bytes(b"old")

    def command(argv):
        with atomic_open(path) as file:
            torch.save({"weights": torch.zeros(5000)}, file)

    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, former[1]))
    try:
        assert cli.run(command, []) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert capsys.readouterr().err == f"error: {path} cannot be written: {os.strerror(errno.EFBIG)}\n"
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_error_of_no_stream_writes_nothing_to_stdout(capsys):
    def command(argv):
        raise OSError(22, "Invalid argument")

    with pytest.raises(OSError, match="Invalid"):
        cli.run(command, [])
    assert capsys.readouterr() == ("", "")
