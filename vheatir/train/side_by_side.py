"""Recipes of a comparison trained at the same time, each in a process of its own."""

import multiprocessing
import os
import signal
import statistics
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from vheatir.backbone.training.signals import stop_on_signal
from vheatir.errors import UserError
from vheatir.train.build import build_datasets
from vheatir.train.contestant import Entry, Note, train_entry
from vheatir.train.registry import load_plugins, register_all
from vheatir.utils.heap import keep_heap

_POLL_SECONDS = 0.2


@dataclass
class _Running:
    """One process and what is known of it."""

    entry: Entry
    process: BaseProcess
    points: int = 0
    trained: bool = False
    told_to_end: bool = False
    error: str | None = None


def train_side_by_side(entries: Sequence[Entry], jobs: int, plugins: Sequence[str | Path], note: Note) -> bool:
    """Train the recipes, `jobs` of them at a time.

    A signal or a recipe that fails ends them all, after a checkpoint of each.

    Args:
        entries: what to train.
        jobs: processes at the same time.
        plugins: Python files with own networks, losses, datasets.
        note: called in this process after each checkpoint of a recipe and at its end.

    Returns:
        Whether all had their time; False where a signal stopped them.

    Raises:
        UserError: the training of a recipe failed; names it.
    """
    waiting = deque(entries)
    running: dict[Connection, _Running] = {}
    failed: list[str] = []
    all_trained = True
    with stop_on_signal() as stop:
        try:
            while running or (waiting and not stop and not failed):
                while waiting and len(running) < jobs and not stop and not failed:
                    entry = waiting.popleft()
                    running |= _started(entry, plugins)
                for connection in _ready(running):
                    one = running[connection]
                    if _heard(connection, one, note):
                        continue
                    del running[connection]
                    one.process.join()
                    all_trained = all_trained and one.trained
                    failed += _failure(one)
                if stop or failed:
                    _end(running)
        finally:
            _end(running)
            for one in running.values():
                one.process.join()
    if failed:
        raise UserError(failed[0])
    return all_trained and not waiting


def _started(entry: Entry, plugins: Sequence[str | Path]) -> dict[Connection, _Running]:
    context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(entry, [str(plugin) for plugin in plugins], sender), name=entry.name)
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    sys.stderr.write(f"{entry.name}: started, process {process.pid}\n")
    return {receiver: _Running(entry, process)}


def _ready(running: dict[Connection, _Running]) -> list[Connection]:
    ready = wait(list(running), timeout=_POLL_SECONDS)
    return [connection for connection in running if connection in ready]


def _heard(connection: Connection, one: _Running, note: Note) -> bool:
    """Take one message; False at the end of the process."""
    try:
        message = connection.recv()
    except (EOFError, OSError):  # a pipe that was cut off within a message
        return False
    if isinstance(message, str):
        one.error = message
        return True
    points, cost = message
    note(one.entry.name, points, cost)
    one.trained = cost is not None
    if one.trained or len(points) > one.points:  # not for the checkpoint before a validation
        one.points = len(points)
        sys.stderr.write(f"{one.entry.name}: {_line(points[-1], one.trained)}\n")
    return True


def _line(point: dict[str, Any], trained: bool) -> str:
    score = statistics.mean(value["restored"]["psnr"] for value in point.values() if isinstance(value, dict))
    what = "trained" if trained else "validated"
    return f"{what} at {point['minutes']:.1f} minutes, {point['iteration']} iterations: {score:.2f} dB"


def _failure(one: _Running) -> list[str]:
    """Why a process ended before its time; nothing where it did not, or was told to."""
    if one.error is not None:
        return [one.error]
    code = one.process.exitcode
    if one.trained or code == 0 or (one.told_to_end and code == -signal.SIGTERM):
        return []
    how = "its traceback is above" if code and code > 0 else f"signal {-(code or 0)} ended it, often for want of memory"
    return [f"{one.entry.name}: the training process failed: {how}; --resume goes on from the last checkpoints"]


def _end(running: dict[Connection, _Running]) -> None:
    for one in running.values():
        if not one.told_to_end:
            one.told_to_end = True
            one.process.terminate()  # heeded after the current step, with a checkpoint


def _train(entry: Entry, plugins: list[str], sender: Connection) -> None:
    """The process of one recipe: sends (points, costs) after each checkpoint, or the text of an error."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    keep_heap()

    def note(name: str, points: list[dict[str, Any]], cost: dict[str, Any] | None) -> None:
        with suppress(BrokenPipeError):  # of a killed parent, whose end ends this process too
            sender.send((points, cost))

    try:
        register_all()
        load_plugins(plugins)
        train_entry(entry, build_datasets(entry.path, entry.options), note)
    except UserError as error:
        sender.send(str(error))


def _stop_with_parent() -> None:
    """Nobody would read the result of a training that outlives a killed parent, and `--resume` would begin a second."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
