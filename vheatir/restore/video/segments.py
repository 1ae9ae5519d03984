"""Segments of a clip that is being restored, in a hidden folder beside the result: what a later run goes on from."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vheatir.errors import UserError
from vheatir.utils.files import TEMPORARY_PREFIX, atomic_open
from vheatir.utils.lock import Lock

FRAMES = 24  # of a segment; a kill loses no more
_STATE = "state.json"


class Segments:
    """A folder with the segments that are done, for one source and one way of restoring it.

    Args:
        target: the result.
        key: what the frames depend on; segments of another key are thrown away.

    Raises:
        UserError: the folder cannot be made, or another process restores into this target.
    """

    def __init__(self, target: Path, key: Mapping[str, Any]):
        name = hashlib.sha256(target.name.encode()).hexdigest()[:16]
        self.folder = target.parent / f"{TEMPORARY_PREFIX}{name}.clip"
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = Lock(self.folder / "lock", str(target), "wait for it, or write to another file")
            try:
                self._begin(json.dumps({"target": target.name, **key}, sort_keys=True))
            except BaseException:
                self._lock.release()
                raise
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from error

    def _begin(self, text: str) -> None:
        """Throw away what was made in another way than `text` says."""
        if self._stored() != text:
            for path in self.folder.glob("*.nut"):
                path.unlink()
            with atomic_open(self.folder / _STATE) as file:
                file.write(text.encode())

    def _stored(self) -> str | None:
        try:
            return (self.folder / _STATE).read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            return None

    def path(self, number: int) -> Path:
        """Where a segment is, or will be."""
        return self.folder / f"{number:06d}.nut"

    def unfinished(self) -> Path:
        """Where a file is written before it gets its name."""
        return self.folder / "unfinished"

    def finish(self, number: int) -> None:
        """Give the file at `unfinished` the name of a segment, whole and on the disk."""
        replace_synced(self.unfinished(), self.path(number))

    def done(self) -> list[Path]:
        """The segments there are, from the first on without a gap."""
        found = []
        while self.path(len(found)).exists():
            found.append(self.path(len(found)))
        return found

    def release(self, *, remove: bool) -> None:
        """Give the folder up.

        Args:
            remove: with all that is in it; else it is kept for a later run, unless it holds no segment.
        """
        given_up = remove or not self.done()
        if given_up:  # before the lock: after it the folder may be another process's
            with contextlib.suppress(OSError):
                for path in self.folder.iterdir():
                    if path != self._lock.path:
                        path.unlink()
        self._lock.release()
        if given_up:
            with contextlib.suppress(OSError):  # another process has begun in it
                self.folder.rmdir()


def replace_synced(source: Path, target: Path) -> None:
    """Rename a file that was written, once its bytes are on the disk."""
    with open(source, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(source, target)
