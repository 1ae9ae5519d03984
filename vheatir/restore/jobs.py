"""Resolve files, folders and globs to pairs of input and output, before any work is done."""

import glob
import itertools
import os
import posixpath
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from vheatir.errors import UserError
from vheatir.image_io.formats import FORMATS
from vheatir.restore.locations import Location, Url, location
from vheatir.restore.video.formats import RESTORED, is_clip, written_name
from vheatir.utils.files import TEMPORARY_PREFIX, files_below, may_be_file, refuse_folder

AnyPath = TypeVar("AnyPath", bound=PurePath)


class Job(NamedTuple):
    """One file to read and the file to write."""

    source: Location
    target: Location

    def absolute(self) -> "Job":
        """The same job with local paths that hold in every folder; URLs stay."""
        return Job(_absolute(self.source), _absolute(self.target))


class _Found(NamedTuple):
    """A file of a file system, where it goes below OUT, and the suffixes that are taken where it was found."""

    name: str
    below: str
    suffixes: Collection[str]


def _absolute(where: Location) -> Location:
    return where.absolute() if isinstance(where, Path) else where


def plan_file(source: str | Path | Url, target: str | Path | Url) -> Job:
    """The job of restoring one file into another; UserError where the source is missing, or is the target."""
    job = Job(location(source), location(target))
    _check_exists(job.source)
    if is_clip(job.source) != is_clip(job.target):
        kinds = ("a clip", "an image") if is_clip(job.source) else ("an image", "a clip")
        raise UserError(f"{source} is {kinds[0]}, {target} has the name of {kinds[1]}; give another name")
    _check_targets([job])
    return job


def plan_jobs(
    inputs: Sequence[str | Path], out: str | Path | Url, passed_over: "Counter[str] | None" = None
) -> list[Job]:
    """What is read and where it goes; nothing stays written here.

    A file goes to OUT/name; of a folder, every image at any depth, in linked folders too, goes to
    OUT/path-below-that-folder. Clips are taken where they are named or matched by a glob, not out of folders. Hidden
    files are never found inside a folder or by a glob, nor is OUT, unless the glob looks in OUT itself. Where a format
    is only read the target has another suffix.

    Args:
        inputs: files, folders, globs or fsspec URLs.
        out: a folder or the fsspec URL of one.
        passed_over: gets the number of files in folders and of patterns, by suffix, that are of none of our formats.

    Raises:
        UserError: an input that does not exist, a glob or folder without images, two inputs with one target (or with
            two that are one where OUT ignores case), or a target that is an input.
    """
    out, passed_over = location(out), Counter() if passed_over is None else passed_over
    if isinstance(out, Path) and out.exists() and not out.is_dir():
        raise UserError(f"{out}: the output must be a folder, this is a file; give a folder with -o")
    jobs: dict[Location, Job] = {}
    for given in inputs:
        source = location(given)
        url = isinstance(source, Url)
        found = _expand_url(source, out, passed_over) if url else _expand(str(given), out, passed_over)
        for job in found:
            other = jobs.setdefault(job.target, job)
            if _real(other.source) != _real(job.source):
                raise UserError(
                    f"{other.source} and {job.source} would both be written to {job.target}; "
                    "nothing was done, restore them into different folders"
                )
    _check_targets(jobs.values())
    _check_case(jobs.values(), out)
    return list(jobs.values())


def _expand_url(url: Url, out: Location, passed_over: "Counter[str]") -> Iterator[Job]:
    """As `_expand` and `_folder_jobs` do, in another file system."""
    file_system, path = url.open()
    try:
        if glob.has_magic(path) and not file_system.exists(path):
            found = _matched(file_system, path)
            path = str(_searched(PurePosixPath(path)))
        elif file_system.isdir(path):
            found = _below(file_system, path)
        elif file_system.exists(path):
            yield Job(url, out / written_name(PurePosixPath(url.name)))
            return
        else:
            raise UserError(f"{url}: there is no such file or folder")
    except UserError:
        raise
    except Exception as error:  # every file system has errors of its own
        raise UserError(f"{url}: cannot be listed ({type(error).__name__}: {error})") from error
    inside = _full(out)
    results = None if inside is None else inside.text.rstrip("/") + "/"
    if results is not None and f"{url.full(path, file_system)}/".startswith(results):  # then OUT is what is asked for
        results = None
    count = 0
    for name, below, suffixes in found:
        source = url.full(name, file_system)
        hidden = any(part.startswith(".") for part in below.split("/"))
        if hidden or (results is not None and source.text.startswith(results)):
            continue
        if source.suffix.lower() not in suffixes:
            passed_over[source.suffix.lower()] += 1
            continue
        count += 1
        yield Job(source, out / written_name(PurePosixPath(below)))
    if not count:
        raise UserError(f"{url}: no images ({', '.join(FORMATS)}) there")


def _matched(file_system: Any, pattern: str) -> "list[_Found]":
    """Each file that a pattern matches, or that lies in a folder which it matches."""
    found = []
    searched = "/".join(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.split("/")))
    for name, facts in sorted(file_system.glob(pattern, detail=True).items()):
        if any(part.startswith(".") for part in name.removeprefix(searched).split("/")):
            continue  # patterns of paths do not match hidden names, those of URLs do
        if facts["type"] != "directory":
            found.append(_Found(name, posixpath.basename(name), RESTORED))
        elif "**" not in pattern:  # which already goes down
            found += _below(file_system, name)
    return found


def _below(file_system: Any, folder: str) -> "list[_Found]":
    """Each file in a folder, at any depth."""
    return [_Found(name, posixpath.relpath(name, folder), FORMATS) for name in sorted(file_system.find(folder))]


def _full(out: Location) -> Url | None:
    return out.full(out.open()[1]) if isinstance(out, Url) else None


def _expand(text: str, out: Location, passed_over: "Counter[str]") -> Iterator[Job]:
    path = Path(text)
    if path.is_dir():
        yield from _folder_jobs(path, out, passed_over)
    elif path.exists() or not glob.has_magic(text):
        _check_exists(path)
        yield Job(path, out / written_name(Path(path.name)))
    else:
        found = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        inside = _real(out)
        searched = Path(os.path.realpath(_searched(path)))
        if inside not in (searched, *searched.parents):  # else OUT is what is asked for
            found = [match for match in found if inside not in (_real(match), *_real(match).parents)]
        matched = [match for match in found if match.is_file()]
        files = [match for match in matched if match.suffix.lower() in RESTORED]
        folders = [match for match in found if match.is_dir()] if "**" not in text else []  # ** already goes down
        if not files and not folders:
            raise UserError(f"{text}: no image ({', '.join(FORMATS)}) matches")
        passed_over.update(match.suffix.lower() for match in matched if match.suffix.lower() not in RESTORED)
        yield from (Job(match, out / written_name(Path(match.name))) for match in files)
        for folder in folders:
            yield from _folder_jobs(folder, out, passed_over)


def _searched(pattern: AnyPath) -> AnyPath:
    """The folder in which a pattern looks: what stands before the first part with `*`, `?` or `[`."""
    return type(pattern)(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _check_exists(source: Location) -> None:
    if not source.exists():
        raise UserError(f"{source}: there is no such file or folder")
    if isinstance(source, Path) and not may_be_file(source):
        raise UserError(f"{source}: is a pipe or a device, expected a file; store what comes out of it in a file first")


def _folder_jobs(folder: Path, out: Location, passed_over: "Counter[str]") -> Iterator[Job]:
    inside = _real(out)
    count = 0
    for path in files_below(folder, skip=lambda below: _real(below) == inside, onerror=refuse_folder):
        if path.suffix.lower() in FORMATS:
            count += 1
            yield Job(path, out / written_name(path.relative_to(folder)))
        else:
            passed_over[path.suffix.lower()] += 1
    if not count:
        raise UserError(f"{folder}: the folder holds no images ({', '.join(FORMATS)})")


def _is_one_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _real(path: Location) -> Location:
    """Where a path really is, whatever way it is written."""
    return path.full(path.open()[1]) if isinstance(path, Url) else Path(os.path.realpath(path))


def _check_case(jobs: Iterable[Job], out: Location) -> None:
    """UserError where two targets differ in case only and OUT does not tell it, as USB sticks and Macs do not."""
    known: dict[str, Job] = {}
    pairs = [(known.setdefault(_without_case(job.target), job), job) for job in jobs]
    alike = [(other, job) for other, job in pairs if other is not job]
    if alike and isinstance(out, Path) and _ignores_case(out):
        other, job = alike[0]
        raise UserError(
            f"{other.source} and {job.source} would both be written to {job.target}, where upper and lower case are "
            "the same; nothing was done, restore them into different folders"
        )


def _without_case(where: Location) -> str:
    """The same for all names that some file system takes for one."""
    return unicodedata.normalize("NFC", str(where)).casefold()


def _ignores_case(folder: Path) -> bool:
    """Whether names that differ in case only are one file there; False where that cannot be tried."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=TEMPORARY_PREFIX) as probe:
            path = Path(probe.name)
            return path.with_name(path.name.upper()).exists()
    except OSError:
        return False


def _check_targets(jobs: Iterable[Job]) -> None:
    jobs = list(jobs)
    sources = {_real(job.source) for job in jobs}
    alike = {_without_case(source): source for source in sources if isinstance(source, Path)}
    targets = {job.target for job in jobs}
    for job in jobs:
        real = _real(job.target)
        other = alike.get(_without_case(real))
        if real in sources or (other is not None and isinstance(real, Path) and _is_one_file(real, other)):
            raise UserError(f"{job.target} is an input and would be overwritten; nothing was done, choose another -o")
        if isinstance(job.target, Path) and job.target.is_dir():
            raise UserError(
                f"{job.target} is a folder, the result of {job.source} would be a file of this name; nothing was done, "
                "choose another -o"
            )
        blocked = next((parent for parent in job.target.parents if parent in targets), None)
        if blocked is not None:
            raise UserError(f"{blocked} would have to be an image and, for {job.source}, a folder; nothing was done")
