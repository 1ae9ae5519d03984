"""Runs commands in children of the test process, alone or as ranks: forked, with all imports done, or started anew."""

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

LONGEST = 300  # seconds until children that hang are killed, and the test fails


class Ended(NamedTuple):
    """How a child ended: its exit status, minus the signal where one killed it, and what it wrote to stderr."""

    status: int
    errors: str


def fork(work: Callable[[], int], errors: Path, environment: dict[str, str]) -> int:
    """Start `work()` in a child, whose exit status it returns; the child's number."""
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(environment)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        status = work()
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(children: list[int]) -> list[int]:
    """Exit statuses of the children; those that hang are killed, and the rest of them too."""
    deadline, statuses = time.monotonic() + LONGEST, {}
    while len(statuses) < len(children):
        for child in set(children) - statuses.keys():
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                statuses[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    assert time.monotonic() < deadline, f"hung, or took more than {LONGEST} s"
    return [statuses[child] for child in children]


def _environments(count: int) -> list[dict[str, str]]:
    """What torchrun would put into the environment of each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    common["LOCAL_WORLD_SIZE"] = str(count)
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def run_ranks(count: int, work: Callable[[int], int], folder: Path) -> list[Ended]:
    """`work(rank)` in so many children, under the environment that torchrun would give them."""
    children = []
    errors = []
    for rank, environment in enumerate(_environments(count)):
        errors.append(folder / f"errors_{environment['MASTER_PORT']}_{rank}")
        children.append(fork(lambda rank=rank: work(rank), errors[rank], environment))
    return [Ended(status, path.read_text()) for status, path in zip(wait(children), errors)]


def start_ranks(command: list[str], count: int, folder: Path, environment: dict[str, str]) -> list[Ended]:
    """A command in so many new processes, where a fork would not do: autograd's threads do not survive one.

    Args:
        command: program and arguments.
        count: ranks.
        folder: where they run.
        environment: beside that of a rank.
    """
    children = [
        subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment, **own}, stderr=subprocess.PIPE, text=True
        )
        for own in _environments(count)
    ]
    try:
        errors = [child.communicate(timeout=LONGEST)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    return [Ended(child.returncode, text) for child, text in zip(children, errors, strict=True)]
