"""A run of the training loop in its folder: found, opened, trained, closed; the same for every command that trains."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vheatir.backbone.errors import DataError
from vheatir.backbone.training.loop import Loop
from vheatir.backbone.training.processes import Processes
from vheatir.errors import UserError
from vheatir.restore.tile_memory import is_out_of_memory
from vheatir.runs.folder import RunFolder, logger

_ENDED_WORKER = re.compile(r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)")  # torch's words


def find_run(
    processes: Processes, root: Path, name: str, resume: bool, command: str = "train"
) -> tuple[RunFolder | None, dict[str, Any] | None]:
    """The folder of a run, None in processes that do not write, and the checkpoint to go on from, None for a new run.

    Args:
        processes: those that train together; the first one alone reads the folder.
        root: folder of all runs.
        name: of the run.
        resume: go on with the run's newest whole checkpoint.
        command: the one that trains: `vheatir <command>`.

    Raises:
        UserError: another process is writing the run, or there is nothing to resume.
    """

    def find() -> RunFolder | None:
        return RunFolder(root, name, resume, command) if processes.writes else None

    run = processes.agree(find)
    return run, processes.share(None if run is None else run.resumed)


def train_in(
    run: RunFolder | None,
    loop: Loop,
    opened: Callable[[RunFolder], None],
    lines: Iterable[str],
    concluded: Callable[[RunFolder], None] | None = None,
) -> bool:
    """Train to the end; False where a signal stopped the run.

    Args:
        run: its folder; None in processes that do not write.
        loop: ready to run.
        opened: opens the folder with the run's options.
        lines: for the log, before the first step.
        concluded: called with the folder after training, stopped or not.

    Raises:
        UserError: the run failed; it is in the log too, and what is written is whole.
    """

    def open_folder() -> None:
        if run is not None:
            opened(run)

    loop.processes.agree(open_folder)
    # Here too: torch's handler of signals raises for a loader process that ended wherever this one just is.
    with _want_of_memory_named(loop):
        return _run_and_close(run, loop, lines, concluded)


def _run_and_close(
    run: RunFolder | None, loop: Loop, lines: Iterable[str], concluded: Callable[[RunFolder], None] | None
) -> bool:
    try:
        for line in lines:
            logger.info("%s", line)
        if loop.step:
            logger.info("resumed at %s %d", loop.settings.unit, loop.step)
        with _want_of_memory_named(loop), loop.processes.watched():
            finished = loop.run()
        if finished and run is not None:
            _conclude(run, loop)
        if run is not None and concluded is not None:
            concluded(run)
        return finished
    except (DataError, UserError) as error:
        logger.error("%s", error)
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{error}; what is written is complete, --resume goes on from the last checkpoint") from error
    finally:
        if run is not None:
            run.close()


@contextmanager
def _want_of_memory_named(loop: Loop) -> Iterator[None]:
    """A UserError where memory ran out, in a step or in an evaluation, or took a loader process."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = (str(error).partition("\n")[0] or type(error).__name__).strip()
        place = f"after {loop.settings.unit} {loop.step}"
        if is_out_of_memory(error):
            raise UserError(
                f"memory ran out {place} ({reason}); {loop.task.saves_memory}; --resume goes on from the last "
                "checkpoint"
            ) from error
        if _ENDED_WORKER.search(reason):
            raise UserError(
                f"a loader process ended {place} ({reason}), often for want of memory: fewer loader processes need "
                "less; --resume goes on from the last checkpoint"
            ) from error
        raise


def _conclude(run: RunFolder, loop: Loop) -> None:
    for name, best in loop.best.items():
        where = f"{loop.settings.unit} {best['iteration']}"
        logger.info("%s %s %.4f at %s", name.replace("_", " "), best["metric"], best["value"], where)
    logger.info("weights: %s", run.models)
