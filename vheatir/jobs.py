"""From what the user names, files, folders and globs, to pairs of input and output, settled before any work is done."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vheatir.errors import UserError
from vheatir.image_io import FORMATS


class Job(NamedTuple):
    """One file to read and the file to write."""

    source: Path
    target: Path


def plan_jobs(inputs: Sequence[str], out: str | Path) -> list[Job]:
    """What is read and where it goes; nothing is written here.

    A file goes to OUT/name; of a folder, every picture at any depth goes to OUT/path-below-that-folder. Hidden files
    and OUT itself are never found inside a folder or by a glob. Raises UserError for an input that does not exist, a
    glob or folder without pictures, two inputs with one target, and a target that is an input.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: the output must be a folder, this is a file; give a folder with -o")
    jobs: dict[Path, Job] = {}
    for text in inputs:
        for job in _expand(text, out):
            other = jobs.setdefault(job.target, job)
            if _place(other.source) != _place(job.source):
                raise UserError(
                    f"{other.source} and {job.source} would both be written to {job.target}; "
                    "nothing was done, restore them into different folders"
                )
    _check_targets(jobs.values())
    return list(jobs.values())


def _expand(text: str, out: Path) -> Iterator[Job]:
    path = Path(text)
    if path.is_dir():
        yield from _folder_jobs(path, out)
    elif path.exists() or not glob.has_magic(text):
        if not path.exists():
            raise UserError(f"{text}: there is no such file or folder")
        yield Job(path, out / path.name)
    else:
        inside = _place(out)
        found = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        found = [match for match in found if inside not in (_place(match), *_place(match).parents)]
        files = [match for match in found if match.is_file() and match.suffix.lower() in FORMATS]
        folders = [match for match in found if match.is_dir()] if "**" not in text else []  # ** already goes down
        if not files and not folders:
            raise UserError(f"{text}: no picture ({', '.join(FORMATS)}) matches")
        yield from (Job(match, out / match.name) for match in files)
        for folder in folders:
            yield from _folder_jobs(folder, out)


def _folder_jobs(folder: Path, out: Path) -> Iterator[Job]:
    inside = _place(out)
    count = 0
    for place, folders, files in os.walk(folder, onerror=_unreadable):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and _place(here / name) != inside)
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in FORMATS:
                count += 1
                yield Job(here / name, out / (here / name).relative_to(folder))
    if not count:
        raise UserError(f"{folder}: the folder holds no pictures ({', '.join(FORMATS)})")


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


def _place(path: Path) -> Path:
    """Where a path really is, whatever way it is written."""
    return Path(os.path.realpath(path))


def _check_targets(jobs: Iterable[Job]) -> None:
    jobs = list(jobs)
    sources = {_place(job.source) for job in jobs}
    targets = {job.target for job in jobs}
    for job in jobs:
        if _place(job.target) in sources:
            raise UserError(f"{job.target} is an input and would be overwritten; nothing was done, choose another -o")
        blocked = next((parent for parent in job.target.parents if parent in targets), None)
        if blocked is not None:
            raise UserError(f"{blocked} would have to be a picture and, for {job.source}, a folder; nothing was done")
