"""Files at any depth below a folder of a data set, none of them left out without a word."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

OF_DISKS = "lost+found"  # in the folder where a disk is mounted; nobody but root may read it


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


def files_below(root: Path, leave_out: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """Every file below a folder, in no order.

    Linked folders are followed, except into one that is being gone through already. Folders `OF_DISKS` are passed over.

    Args:
        root: the folder.
        leave_out: whether a file or folder of that name is passed over.

    Raises:
        ValueError: a folder cannot be read.
    """
    above: dict[str, frozenset[str]] = {}  # what lies above each folder, where it really is
    for place, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        inside = above.pop(place, frozenset()) | {os.path.realpath(place)}
        folders[:] = [
            name
            for name in folders
            if name != OF_DISKS and not leave_out(name) and os.path.realpath(os.path.join(place, name)) not in inside
        ]
        above.update((os.path.join(place, name), inside) for name in folders)
        yield from (Path(place, name) for name in files if not leave_out(name))
