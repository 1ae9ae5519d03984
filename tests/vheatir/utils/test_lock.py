"""One run name, one process: the lock names its holder and is gone with it, however it ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vheatir.errors import UserError
from vheatir.utils.lock import Lock, refuse_if_held

ROOT = Path(__file__).resolve().parent.parent.parent.parent
WORDS = ("the run x", "wait")
HOLD = "import sys, time; from pathlib import Path; from vheatir.utils.lock import Lock; "
HOLD += "lock = Lock(Path(sys.argv[1]), 'the run x', 'wait'); print('held', flush=True); time.sleep(100)"


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock `tmp_path / "lock"`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_who_holds_the_lock(holder, tmp_path):
    for attempt in (Lock, refuse_if_held):
        words = rf"the run x is in use by process {holder.pid} on {socket.gethostname()} since \d{{4}}-.*; wait"
        with pytest.raises(UserError, match=words):
            attempt(tmp_path / "lock", *WORDS)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_left_behind_by_a_kill_blocks_nobody(holder, tmp_path, end):
    holder.send_signal(end)
    holder.wait()
    assert (tmp_path / "lock").is_file()
    refuse_if_held(tmp_path / "lock", *WORDS)
    Lock(tmp_path / "lock", *WORDS).release()
    assert not (tmp_path / "lock").exists()


def test_release_leaves_no_file_and_lets_others_in(tmp_path):
    first = Lock(tmp_path / "lock", *WORDS)
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        Lock(tmp_path / "lock", *WORDS)
    first.release()
    first.release()
    second = Lock(tmp_path / "lock", *WORDS)
    first.release()
    with pytest.raises(UserError, match="in use"):
        refuse_if_held(tmp_path / "lock", *WORDS)
    second.release()


def test_children_do_not_inherit_it(tmp_path):
    """Loader workers live on for seconds after their parent was killed; the next run must not wait for them."""
    lock = Lock(tmp_path / "lock", *WORDS)
    child = os.fork()
    if child == 0:
        (tmp_path / "alive").touch()
        time.sleep(100)
    try:
        while not (tmp_path / "alive").exists():
            time.sleep(0.01)
        lock._forget()  # as a kill would: the file stays
        Lock(tmp_path / "lock", *WORDS).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_released_between_opening_and_locking_is_taken_anew(tmp_path, monkeypatch):
    import vheatir.utils.lock

    first, opens = Lock(tmp_path / "lock", *WORDS), []

    def opening(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        if not opens:
            first.release()  # the file just opened is no longer the one of that name
        opens.append(descriptor)
        return descriptor

    monkeypatch.setattr(vheatir.utils.lock, "_open", opening)
    second = Lock(tmp_path / "lock", *WORDS)
    assert len(opens) == 2
    monkeypatch.undo()
    with pytest.raises(UserError, match="in use"):
        refuse_if_held(tmp_path / "lock", *WORDS)
    second.release()


def test_without_locks_in_the_file_system_there_is_a_warning(tmp_path, monkeypatch, caplog):
    import fcntl

    def refuse(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level("WARNING", logger="vheatir"):
        Lock(tmp_path / "lock", *WORDS).release()
    assert (
        "cannot be locked ([Errno 38] Function not implemented): see that no second process uses the run x"
        in caplog.text
    )


@pytest.mark.parametrize("elsewhere", [False, True], ids=["alone", "open in another process too"])
def test_where_open_files_cannot_be_removed_the_file_is_closed_first(tmp_path, monkeypatch, elsewhere):
    """As on Windows, which has no fcntl either: finished work ended in an error."""
    import vheatir.utils.lock

    monkeypatch.setattr(vheatir.utils.lock, "fcntl", None)
    lock = Lock(tmp_path / "lock", *WORDS)
    unlink = Path.unlink

    def of_windows(path, missing_ok=False):
        if elsewhere or lock._descriptor is not None:
            raise PermissionError(13, "The process cannot access the file", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", of_windows)
    lock.release()
    lock.release()
    assert (tmp_path / "lock").exists() is elsewhere


@pytest.mark.parametrize("resume", [False, True], ids=["new", "resume"])
def test_a_run_that_another_process_writes_is_neither_moved_nor_resumed(train, resume):
    folder = train("train.total_iter=2")
    child = os.fork()
    if child == 0:
        guard = Lock(train.root / ".tiny.lock", "the run", "wait")
        (train.root / "held").touch()
        time.sleep(100)
        guard.release()
    try:
        while not (train.root / "held").exists():
            time.sleep(0.01)
        before = sorted(train.root.rglob("*"))
        with pytest.raises(UserError, match=rf"the run .*tiny is in use by process {child} on .*--set name=OTHER"):
            train(resume=resume)
        assert sorted(train.root.rglob("*")) == before
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert train(resume=True) == folder
    assert not (train.root / ".tiny.lock").exists()


def test_a_lock_whose_file_the_disk_refuses_is_given_up(tmp_path, monkeypatch):
    path = tmp_path / "run.lock"
    with monkeypatch.context() as patched:

        def full(descriptor, data):
            raise OSError(28, "No space left on device")

        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            Lock(path, "the run", "wait")
    assert not path.exists()
    Lock(path, "the run", "wait").release()
