"""Ctrl-C and SIGTERM in training: the run ends after the current step, with a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """A list that fills at the first Ctrl-C or SIGTERM, so that the loop can end between steps.

    A second Ctrl-C ends the process at once. A second SIGTERM does not: SLURM sends one to all processes, torchrun
    passes its own on, and the checkpoint would be lost.
    """
    stop: list[int] = []

    def request(number, frame):
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.append(number)

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request)
    except ValueError:  # not the main thread: signals are somebody else's business
        previous = {}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_signals(worker: int = 0) -> None:
    """For loader processes: Ctrl-C and launchers signal them too, of which the last batches are still wanted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
