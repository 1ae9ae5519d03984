"""A list in which every input stands exactly once, with what became of it; right at any moment, whatever is killed."""

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vheatir.errors import UserError
from vheatir.restore.jobs import Job
from vheatir.restore.locations import Location, is_url
from vheatir.restore.one_file import Outcome
from vheatir.utils.files import atomic_open
from vheatir.utils.lock import Lock


class Manifest:
    """JSON lines {"input", "output", "status", ...}; see `Outcome` for the rest.

    Where paths are relative, "folder" is what they begin in: a manifest may be that of runs in several folders.

    The file is replaced as a whole, at the start (with all inputs, those to do as "open") and at the end. In between,
    outcomes are appended to `<name>.journal`, which a later run takes in after a kill. Inputs of earlier runs with the
    same manifest stay in it. One run has it at a time, until `close`.

    Args:
        path: of the file.
        jobs: inputs of this run.
        kept: those of them whose outputs are there already.

    Raises:
        UserError: it is another run's, is no manifest, holds another output of an input, or cannot be written.
    """

    def __init__(self, path: Path, jobs: Iterable[Job], kept: Iterable[Job]):
        self.path = path
        self._journal_path = path.with_name(path.name + ".journal")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            what = f"{path}: the manifest"
            self._lock = Lock(path.with_name(f".{path.name}.lock"), what, "wait for that run, or give another manifest")
        except OSError as error:
            raise UserError(self._refused(error)) from error
        try:
            self._open(jobs, kept)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, jobs: Iterable[Job], kept: Iterable[Job]) -> None:
        path = self.path
        self._lines = {**_read(path, torn=False), **_read(self._journal_path, torn=True)}
        there = {_key(job.source) for job in kept}
        for job in jobs:
            key = _key(job.source)
            line = self._lines.get(key)
            if line is not None and _key(line["output"], line.get("folder")) != _key(job.target):
                raise UserError(
                    f"{path}: has {job.source} with the output {line['output']}, which would now be {job.target}; "
                    "give a manifest of its own to each way an input is restored"
                )
            if key not in there:
                self._lines[key] = _line(job, Outcome("open"))
            elif line is None or line["status"] != "done":
                self._lines[key] = _line(job, Outcome("kept"))
        try:
            self._write()
            self._journal = open(self._journal_path, "w", encoding="utf-8")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise UserError(self._refused(error)) from error

    def record(self, job: Job, outcome: Outcome) -> None:
        """Note what became of an input; on the disk before this returns, as long as the disk takes it."""
        self._lines[_key(job.source)] = line = _line(job, outcome)
        if self._journal.closed:
            return
        try:
            self._journal.write(json.dumps(line) + "\n")
            self._journal.flush()
        except OSError:  # no reason to stop; `close` has the whole list, and nothing may follow a line cut short
            self._close_journal()

    def close(self) -> str | None:
        """Write the whole list, after which the journal is no longer needed; what went wrong with that, or None."""
        self._close_journal()
        try:
            self._write()
            self._journal_path.unlink(missing_ok=True)
        except OSError as error:
            return f"{self._refused(error)}; the files are done, the same command completes it"
        finally:
            with contextlib.suppress(OSError):  # a lock file that cannot be removed locks nothing
                self._lock.release()
        return None

    def _close_journal(self) -> None:
        with contextlib.suppress(OSError):  # what it could not take is in the list
            self._journal.close()

    def _refused(self, error: OSError) -> str:
        return f"{self.path}: the manifest cannot be written: {error.strerror or error}"

    def _write(self) -> None:
        with atomic_open(self.path) as file:
            for line in self._lines.values():
                file.write((json.dumps(line) + "\n").encode())


def _key(where: Location | str, folder: str | None = None) -> str:
    """The same for all ways to write one path, which begins in `folder` where it is relative; None: in this one."""
    return str(where) if is_url(str(where)) else os.path.abspath(os.path.join(folder or "", str(where)))


def _line(job: Job, outcome: Outcome) -> dict[str, Any]:
    facts = {name: value for name, value in asdict(outcome).items() if value or name == "status"}
    paths = [where for where in job if isinstance(where, Path)]
    folder = {} if all(path.is_absolute() for path in paths) else {"folder": os.getcwd()}
    return {"input": str(job.source), "output": str(job.target), **facts, **folder}


def _read(path: Path, *, torn: bool) -> dict[str, dict[str, Any]]:
    """The lines of a manifest or journal by input; only a journal's last line may be cut short."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the manifest cannot be read: {error}") from error
    lines = {}
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            key = _key(line["input"], line.get("folder"))
            lines[key] = {"output": line["output"], "status": line["status"], **line}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if torn and number == len(texts):
                break
            raise UserError(f"{path}: line {number} is not one of a manifest; give another file") from error
    return lines
