"""Keeps the C library's heap between large tensors, so that memory is not fetched from the system again and again.

glibc maps each block above a few megabytes anew and gives it back when it is freed. Every page of such a block is then
filled with zeros by the kernel at its first touch, which can take as long as the arithmetic on it. With the thresholds
raised, freed blocks stay in the heap and serve the next tensors. The peak of memory in use stays about the same; what
stays with the process between two peaks grows, by at most `_KEPT_BYTES` at the heap's end. All threads share one heap:
those that glibc gives to further threads hold no large blocks.

`VHEATIR_KEEP_HEAP=0` switches it off. Where the environment tunes malloc itself, that holds.

Source: mallopt(3) of the Linux man-pages.
"""

import ctypes
import os
import sys

SWITCH = "VHEATIR_KEEP_HEAP"
_TRIM_THRESHOLD = -1  # numbers of mallopt's parameters in malloc.h
_MMAP_THRESHOLD = -3
_MOST_ARENAS = -8
_KEPT_BYTES = 1 << 30
_MOST_OF_OLD_GLIBC = 1 << 25  # what versions before 2.35 take as the threshold of mapping
_OWN_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX")


def keep_heap() -> bool:
    """Let freed memory stay with this process, for large tensors that come again; returns whether it was done.

    For programs that work with many tensors, training too: call it once, before the first large tensor. Nothing happens
    where it is switched off, where the environment sets malloc's thresholds, and where the C library is not glibc.
    """
    tuned = any(name in os.environ for name in _OWN_SETTINGS) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    if os.environ.get(SWITCH) == "0" or tuned or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):  # musl has a mallopt of another meaning, or none
        return False
    mapped = any(library.mallopt(_MMAP_THRESHOLD, size) for size in (_KEPT_BYTES, _MOST_OF_OLD_GLIBC))
    return bool(library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES) and library.mallopt(_MOST_ARENAS, 1)) and mapped
