"""What is heard of a run over many files: nothing, or on a console a bar, progress and a line for each finding."""

import time
from collections.abc import Sequence

from rich import progress as rich_progress
from rich.console import Console

import vheatir.restore.locations as locations
from vheatir.restore.jobs import Job
from vheatir.restore.one_file import Outcome
from vheatir.utils.files import printable

_REPORT_SECONDS = 30.0  # between lines of progress where there is no terminal


class Progress:
    """Listens to `vheatir.restore` and says nothing; a class of its own overrides what it wants to hear."""

    def note(self, text: str) -> None:
        """Something that concerns the whole run."""

    def begin(self, jobs: Sequence[Job]) -> None:
        """These files will be restored."""

    def share(self, number: int, share: float) -> None:
        """A share (0 to 1) of the job with this number is done; called by several threads."""

    def ended(self, number: int, outcome: Outcome) -> None:
        """The job with this number has ended."""

    def end(self) -> None:
        """The run is over, whatever ended it; called after `begin` only."""


class ConsoleProgress(Progress):
    """What a user sees of a run: a bar on a terminal, a line now and then elsewhere, and a line for each finding.

    Args:
        console: where it is written.
        quiet: leave out levels and the time left; errors and notes are shown.
    """

    def __init__(self, console: Console, *, quiet: bool):
        self._console = console
        self._quiet = quiet

    def note(self, text: str) -> None:
        self._console.print(text)

    def begin(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._sizes = [locations.size_of(job.source) for job in jobs]
        self._shares: dict[int, float] = {}
        self._ended = 0
        self._ended_bytes = 0
        self._begun = self._last_line = time.monotonic()
        self._progress = _bar(self._console)
        self._bar = self._progress.add_task("", total=sum(self._sizes), files=f"0/{len(jobs)}")
        self._progress.start()

    def end(self) -> None:
        self._progress.stop()

    def share(self, number: int, share: float) -> None:
        self._shares[number] = share
        self._show(printable(self._jobs[number].source.name))

    def ended(self, number: int, outcome: Outcome) -> None:
        self._shares.pop(number, None)
        self._ended += 1
        self._ended_bytes += self._sizes[number]
        source = self._jobs[number].source
        if outcome.status == "failed":
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
        if not self._console.is_terminal and not self._quiet and done and now - self._last_line > _REPORT_SECONDS:
            self._last_line = now
            left = (now - self._begun) * (sum(self._sizes) / done - 1)
            self._console.print(f"{files} files, about {left / 60:.1f} minutes left")


def _bar(console: Console) -> rich_progress.Progress:
    columns = (
        rich_progress.BarColumn(),
        rich_progress.TextColumn("{task.fields[files]} files"),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("left"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.description}", markup=False),
    )
    return rich_progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
