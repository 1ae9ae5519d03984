"""Many files: workers that read, restore and write at the same time, progress with the time left, a clean stop."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from vheatir.errors import UserError
from vheatir.restore import locations
from vheatir.restore.jobs import Job
from vheatir.restore.manifest import Manifest
from vheatir.restore.one_file import FileOptions, Outcome, restore_file
from vheatir.restore.restorer import Restorer
from vheatir.utils.files import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_REPORT_SECONDS = 30.0  # between lines of progress where there is no terminal
_POLL_SECONDS = 0.1


class Stopped(Exception):
    """Raised inside a worker when the whole run is to stop."""


def restore_job(
    restorer: Restorer, job: Job, options: FileOptions, on_tile: Callable[[float], None] | None = None
) -> Outcome:
    """One job from wherever it is to wherever it goes; failures become an outcome, `Stopped` is passed on."""
    local = None
    try:
        with locations.fetched(job.source) as local, locations.stored(job.target) as target:
            return restore_file(restorer, local, target, options, on_tile)
    except Stopped:
        raise
    except Exception as error:  # whatever is wrong with one file, the others are still done
        text = reason(job, error)
        return Outcome("failed", text if local is None else text.replace(str(local), str(job.source)))


def reason(job: Job, error: Exception) -> str:
    """One line that names the file, whatever happened."""
    if isinstance(error, UserError):
        return str(error) if str(job.source) in str(error) else f"{job.source}: {error}"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or "memory" in text.lower():
        return f"{job.source}: not enough memory; restore it in smaller tiles, such as --tile 64"
    if isinstance(error, ValueError | OSError):
        return f"{job.source}: {text}"
    return f"{job.source}: unexpected {type(error).__name__}: {text}"


def outcomes(
    restorer: Restorer, jobs: Sequence[Job], options: FileOptions, workers: int, on_share: Callable[[int, float], None]
) -> Iterator[tuple[int, Outcome]]:
    """Number and outcome of each job as it ends; `on_share` gets a job's number and the share of it that is done.

    Each worker holds one file; the network computes for one of them while the others read and write. Closing the
    iterator, as Ctrl-C does, stops the workers at their next tile and waits for them.
    """
    stop, ended = threading.Event(), queue.SimpleQueue()
    numbers, lock = iter(range(len(jobs))), threading.Lock()

    def told(number: int, share: float) -> None:
        if stop.is_set():
            raise Stopped
        on_share(number, share)

    def work() -> None:
        while not stop.is_set():
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                ended.put((number, restore_job(restorer, jobs[number], options, partial(told, number))))
            except Stopped:
                return

    threads = [threading.Thread(target=work, name=f"restore-{index}") for index in range(min(workers, len(jobs)))]
    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            while True:  # a wait without end could not be interrupted on every system
                try:
                    yield ended.get(timeout=_POLL_SECONDS)
                    break
                except queue.Empty:
                    continue
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


class Report:
    """What the user sees of a run: a bar on a terminal, a line now and then elsewhere, and a line for each finding."""

    def __init__(self, console: "Console", jobs: Sequence[Job], *, quiet: bool):
        self._console, self._jobs, self._quiet = console, jobs, quiet
        self._sizes = [locations.size_of(job.source) for job in jobs]
        self._shares: dict[int, float] = {}
        self._ended = self._ended_bytes = 0
        self._begun = self._told = time.monotonic()
        self._progress = _bar(console)
        self._bar = self._progress.add_task("", total=sum(self._sizes), files=f"0/{len(jobs)}")
        self.failed = 0

    def __enter__(self) -> "Report":
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def share(self, number: int, share: float) -> None:
        """A part of a job is done; called by the workers."""
        self._shares[number] = share
        self._show(printable(self._jobs[number].source.name))

    def ended(self, number: int, outcome: Outcome) -> None:
        """A job has ended."""
        self._shares.pop(number, None)
        self._ended += 1
        self._ended_bytes += self._sizes[number]
        source = self._jobs[number].source
        if outcome.status == "failed":
            self.failed += 1
            self._console.print(printable(f"error: {outcome.message}"))
        elif outcome.level and not self._quiet:
            self._console.print(printable(f"{source}: {outcome.level}"))
        for note in outcome.notes:
            self._console.print(printable(f"note: {source}: {note}"))
        self._show("")

    def _show(self, description: str) -> None:
        done = self._ended_bytes + sum(share * self._sizes[number] for number, share in list(self._shares.items()))
        files = f"{self._ended}/{len(self._jobs)}"
        self._progress.update(self._bar, completed=done, files=files, description=description)
        now = time.monotonic()
        if not self._console.is_terminal and not self._quiet and done and now - self._told > _REPORT_SECONDS:
            self._told = now
            left = (now - self._begun) * (sum(self._sizes) / done - 1)
            self._console.print(f"{files} files, about {left / 60:.1f} minutes left")


def run(
    restorer: Restorer,
    jobs: Sequence[Job],
    options: FileOptions,
    *,
    workers: int,
    report: Report,
    manifest: Manifest | None,
) -> None:
    """Restore all jobs in this process."""
    with report:
        follow(outcomes(restorer, jobs, options, workers, report.share), jobs, report, manifest)


def follow(
    results: Iterator[tuple[int, Outcome]], jobs: Sequence[Job], report: Report, manifest: Manifest | None
) -> None:
    """Tell report and manifest of each outcome; the workers behind the results are stopped when this is left."""
    try:
        for number, outcome in results:
            if manifest is not None:
                manifest.record(jobs[number], outcome)
            report.ended(number, outcome)
    finally:
        results.close()


def _bar(console: "Console") -> "Progress":
    from rich import progress

    columns = (
        progress.BarColumn(),
        progress.TextColumn("{task.fields[files]} files"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.description}", markup=False),
    )
    return progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
