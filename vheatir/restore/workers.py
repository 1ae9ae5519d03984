"""Many files: workers that read, restore and write at the same time, and a clean stop."""

import errno
import os
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import vheatir.restore.locations as locations
from vheatir.errors import UserError
from vheatir.restore.defaults import MOST_WORKERS
from vheatir.restore.jobs import Job
from vheatir.restore.manifest import Manifest
from vheatir.restore.one_file import FileOptions, Outcome, restore_file
from vheatir.restore.progress import Progress
from vheatir.restore.restorer import Restorer
from vheatir.restore.video.formats import is_clip
from vheatir.restore.video.one_clip import restore_clip

_POLL_SECONDS = 0.1
_SMALL_FILE = 1 << 18  # bytes; even a flat image in so few has less pixels than one image may have
_PER_CORE = 4  # small files in work for each core, so that images of one size meet in a batch


def usual_workers(jobs: Sequence[Job]) -> int:
    """Files in work at the same time: one per core, at most four; where all are small, four times as many."""
    cores = min(MOST_WORKERS, os.cpu_count() or 1)
    small = all(isinstance(job.source, Path) and locations.size_of(job.source) <= _SMALL_FILE for job in jobs)
    return cores * _PER_CORE if small and cores > 1 else cores


class Stopped(Exception):
    """Raised inside a worker when the whole run is to stop."""


def restore_job(
    restorer: Restorer, job: Job, options: FileOptions, on_tile: Callable[[float], None] | None = None
) -> Outcome:
    """One job from wherever it is to wherever it goes; failures become an outcome, `Stopped` is passed on.

    Args:
        restorer: what restores.
        job: file to read and file to write.
        options: see `FileOptions`.
        on_tile: called with the share done, from 0 to 1.
    """
    shown = {}
    try:
        with locations.fetched(job.source) as local, locations.stored(job.target) as target:
            shown = {str(local): str(job.source), str(target): str(job.target)}  # copies of what lies behind URLs
            run = restore_clip if is_clip(local) else restore_file
            return run(restorer, local, target, options, on_tile)
    except Stopped:
        raise
    except Exception as error:  # whatever is wrong with one file, the others are still done
        return Outcome("failed", reason(job, error, shown))


def reason(job: Job, error: Exception, shown: Mapping[str, str] | None = None) -> str:
    """One line that names the file, whatever happened.

    Args:
        job: what was done.
        error: what was raised.
        shown: what stands in messages for the paths that it may name.
    """
    text = str(error)
    for path, name in (shown or {}).items():
        text = text.replace(path, name)
    if isinstance(error, UserError):
        return text if str(job.source) in text else f"{job.source}: {text}"
    text = text.splitlines()[0] if text else type(error).__name__
    no_memory = error.errno == errno.ENOMEM if isinstance(error, OSError) else "memory" in text.lower()
    if isinstance(error, MemoryError) or no_memory:
        return f"{job.source}: not enough memory; restore it in smaller tiles, such as --tile 64"
    if isinstance(error, ValueError | OSError):
        return f"{job.source}: {text}"
    return f"{job.source}: unexpected {type(error).__name__}: {text}"


def outcomes(
    restorer: Restorer, jobs: Sequence[Job], options: FileOptions, workers: int, on_share: Callable[[int, float], None]
) -> Generator[tuple[int, Outcome], None, None]:
    """Number and outcome of each job as it ends.

    Each worker holds one file; the network computes for one of them while the others read and write. Closing the
    iterator, as Ctrl-C does, stops the workers at their next tile and waits for them.

    Args:
        restorer: the network of all workers.
        jobs: files to restore.
        options: see `FileOptions`.
        workers: files processed at the same time.
        on_share: called with a job's number and the share of it that is done.
    """
    stop = threading.Event()
    ended = queue.SimpleQueue()
    numbers = iter(range(len(jobs)))
    lock = threading.Lock()

    def report(number: int, share: float) -> None:
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
                ended.put((number, restore_job(restorer, jobs[number], options, partial(report, number))))
            except Stopped:
                return

    names = [f"restore-{index}" for index in range(min(workers, len(jobs)))]
    threads = [threading.Thread(target=work, name=name) for name in names]
    with restorer.several_at_once(min(len(threads), MOST_WORKERS)):
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


def run(
    restorer: Restorer,
    jobs: Sequence[Job],
    options: FileOptions,
    *,
    workers: int,
    progress: Progress,
    manifest: Manifest | None,
) -> list[Outcome]:
    """Restore all jobs in this process.

    Args:
        restorer: the network of all workers.
        jobs: files to restore.
        options: see `FileOptions`.
        workers: files processed at the same time.
        progress: hears of shares and outcomes.
        manifest: notes each outcome.

    Returns:
        The outcome of each job, in their order.
    """
    return follow(outcomes(restorer, jobs, options, workers, progress.share), jobs, progress, manifest)


def follow(
    results: Generator[tuple[int, Outcome], None, None],
    jobs: Sequence[Job],
    progress: Progress,
    manifest: Manifest | None,
) -> list[Outcome]:
    """Tell progress and manifest of each outcome; the workers behind the results are stopped when this is left.

    Args:
        results: number and outcome of each job as it ends.
        jobs: the jobs of these numbers.
        progress: hears of each outcome.
        manifest: notes each outcome.

    Returns:
        The outcomes in the order of the jobs.
    """
    found: dict[int, Outcome] = {}
    with closing(results):
        for number, outcome in results:
            found[number] = outcome
            if manifest is not None:
                manifest.record(jobs[number], outcome)
            progress.ended(number, outcome)
    return [found[number] for number in range(len(jobs))]
