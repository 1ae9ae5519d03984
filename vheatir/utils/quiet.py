"""Warnings of libraries that a user can do nothing about, silenced in several threads at once."""

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator

_lock = threading.Lock()
_blocks = contextlib.ExitStack()  # holds the filters of before, while a block is running
_running = 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings for the length of a block.

    `warnings.catch_warnings` in each thread would not do: of two blocks that overlap, the one that ends last puts back
    the filters of the other, and the process stays without warnings for good.
    """
    if getattr(sys.flags, "context_aware_warnings", False):  # then filters belong to a thread
        with warnings.catch_warnings(action="ignore"):
            yield
        return
    global _running
    with _lock:
        if not _running:
            _blocks.enter_context(warnings.catch_warnings(action="ignore"))
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if not _running:
                _blocks.close()
