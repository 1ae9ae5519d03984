"""Runs that do not get to their end: training stops at a step, from within."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vheatir.backbone.training.loop import Loop


@contextmanager
def interrupted_before(step: int) -> Iterator[None]:
    """Training in this block ends with KeyboardInterrupt where `step` would begin."""
    advance = Loop._advance

    def interrupted(loop: Loop, source) -> None:
        if loop.step == step:
            raise KeyboardInterrupt
        advance(loop, source)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "_advance", interrupted)
        yield


@contextmanager
def terminated_after(step: int, signals: int = 1) -> Iterator[None]:
    """Training in this block gets so many SIGTERMs when `step` is made."""
    advance = Loop._advance

    def terminated(loop: Loop, source) -> None:
        advance(loop, source)
        if loop.step == step:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_advance", terminated)
        yield
