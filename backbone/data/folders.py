"""Files at any depth below a folder of a data set, none of them left out without a word."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

OF_DISKS = "lost+found"  # in the folder where a disk is mounted; nobody but root may read it


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


def walked(
    root: Path, enters: Callable[[str], bool], onerror: Callable[[OSError], None] | None
) -> Iterator[tuple[str, list[str]]]:
    """The path of each folder from `root` on, sorted within each, and the names of its files.

    Linked folders are followed, except into one that is being gone through already.

    Args:
        root: the folder.
        enters: whether a folder below, given by its path, is gone through.
        onerror: called for a folder that cannot be listed; None passes it over.
    """
    above: dict[str, frozenset[str]] = {}  # what lies above each folder, where it really is
    for place, folders, files in os.walk(root, followlinks=True, onerror=onerror):
        inside = above.pop(place, frozenset()) | {os.path.realpath(place)}
        paths = {name: os.path.join(place, name) for name in sorted(folders)}
        folders[:] = [name for name, path in paths.items() if enters(path) and os.path.realpath(path) not in inside]
        above.update((paths[name], inside) for name in folders)
        yield place, files


def files_below(root: Path, leave_out: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """Every file below a folder, in no order.

    Linked folders are followed, except into one that is being gone through already. Folders `OF_DISKS` are passed over.

    Args:
        root: the folder.
        leave_out: whether a file or folder of that name is passed over.

    Raises:
        ValueError: a folder cannot be read.
    """

    def enters(path: str) -> bool:
        name = os.path.basename(path)
        return name != OF_DISKS and not leave_out(name)

    for place, names in walked(root, enters, _refuse):
        yield from (Path(place, name) for name in names if not leave_out(name))
