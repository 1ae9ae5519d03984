"""The folder of a training run: options, command, environment, log, curves, checkpoints and weights."""

import json
import logging
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from vheatir.errors import UserError
from vheatir.runs.checkpoints import load_latest
from vheatir.utils.files import TEMPORARY_PREFIX, atomic_open
from vheatir.utils.lock import Lock, refuse_if_held
from vheatir.utils.run_metadata import finite, run_metadata, write_json

logger = logging.getLogger("vheatir")


class RunFolder:
    """One training run under `<root>/<name>/`.

    Holds options.yml (as given), resolved.yml (with overrides and defaults), run.json (command, commit, versions,
    machine), train.log, curves.jsonl, tensorboard/, checkpoints/, models/ and images/.

    Args:
        root: folder of all runs.
        name: of the run.
        resume: go on with the run that is there.
        command: which one trains, for messages.
    """

    def __init__(self, root: Path, name: str, resume: bool, command: str = "train"):
        """Find the run and, to resume, its newest whole checkpoint; nothing is written before `open`.

        `command` is the one that trains: `vheatir <command>`. A run that another process is writing is refused.
        """
        self.root = root
        self.name = name
        self.folder = root / name
        self.command = command
        self.checkpoints = self.folder / "checkpoints"
        self.models = self.folder / "models"
        self.images = self.folder / "images"
        self.writer = None
        self.resumed: dict[str, Any] | None = None
        self._handlers: list[logging.Handler] = []
        self.points = 0  # lines of curves.jsonl
        self._logged: list[dict[str, Any]] = []  # points of the step from which a run goes on
        self._lock: Lock | None = None
        self._guarded = (
            root / f".{name}.lock",
            f"the run {self.folder}",
            "wait for its end, stop it with Ctrl-C or SIGTERM, or give this one another name (--set name=OTHER)",
        )
        refuse_if_held(*self._guarded)
        if resume:
            if not self.folder.is_dir():
                raise UserError(f"--resume: there is no run {self.folder.absolute()}; start it without --resume")
            self.resumed = load_latest(self.checkpoints)
            if self.resumed is None:
                raise UserError(f"--resume: {self.checkpoints} holds no checkpoint; start again without --resume")

    def open(self, options_path: Path, options: dict[str, Any], argv: list[str]) -> None:
        """Write what identifies the run, start its log and, where installed and wanted, TensorBoard.

        A former run of that name is moved aside, and to resume, what it wrote after its checkpoint is dropped. Until
        `close`, or the end of the process, no other one can open the run.

        Args:
            options_path: the options file as given.
            options: with overrides and defaults.
            argv: arguments of the command.
        """
        given = options_path.read_bytes()  # before a former run, to which the file may belong, is moved
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(*self._guarded)
            archived = self._move_former_aside() if self.resumed is None else None
            self.folder.mkdir(exist_ok=self.resumed is not None)
        except OSError as error:
            self.close()
            raise UserError(
                f"{self.folder}: cannot be made ({error.strerror}); set path.experiments_root to another place"
            ) from error
        if self.resumed is None:
            (self.folder / "options.yml").write_bytes(given)
        else:
            self._drop_what_came_after(self.resumed["iteration"], self.resumed.get("points"))
        suffix = "" if self.resumed is None else f"_resumed_{self.resumed['iteration']}"
        (self.folder / f"resolved{suffix}.yml").write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
        write_json(self.folder / f"run{suffix}.json", run_metadata(["vheatir", self.command, *argv]))
        file = logging.FileHandler(self.folder / "train.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        console = logging.StreamHandler(sys.stderr)
        console.setFormatter(logging.Formatter("%(message)s"))
        console.addFilter(lambda record: record.levelno < logging.ERROR)  # the command says those itself
        self._handlers = [file, console]
        for handler in self._handlers:
            logger.addHandler(handler)
        self._before = (logger.level, logger.propagate)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.info("run %s, started by: vheatir %s %s", self.folder.absolute(), self.command, shlex.join(argv))
        if archived is not None:
            logger.info("the former run of this name is now %s", archived)
        if options["logger"].get("use_tb_logger", True):
            self._open_tensorboard()

    def _move_former_aside(self) -> Path | None:
        if not self.folder.exists():
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self.folder.stat().st_mtime))
        archived = self.root / f"{self.name}_{stamp}"
        while archived.exists():
            archived = archived.with_name(archived.name + "_")
        self.folder.rename(archived)
        return archived

    def _drop_what_came_after(self, iteration: int, known: int | None = None) -> None:
        """A killed run has points in its curves that will come again, and may have left half-written files.

        They are those behind the last point that the checkpoint knows of. Steps do not tell alone which these are: a
        run that was resumed with larger batches has fewer of them, and so lower numbers behind higher ones.

        Args:
            iteration: of the checkpoint.
            known: points that were there when it was written; None in older checkpoints.
        """
        curves = self.folder / "curves.jsonl"
        if curves.is_file():
            lines = curves.read_text("utf-8").splitlines()
            points = [finite(point) for point in map(_parsed, lines) if point is not None]
            while known is None and points and points[-1]["iteration"] > iteration:
                points.pop()
            points = points[:known]
            with atomic_open(curves) as file:
                for point in points:
                    file.write((json.dumps(point) + "\n").encode())
            self._logged = [point for point in points if known is None and point["iteration"] == iteration]
            self.points = len(points)
        for left in self.folder.rglob(f"{TEMPORARY_PREFIX}*.tmp"):
            left.unlink()

    def _open_tensorboard(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            logger.warning("no TensorBoard curves (%s); curves.jsonl has the same numbers", error)
            return
        start = 0 if self.resumed is None else self.resumed["iteration"]
        self.writer = SummaryWriter(self.folder / "tensorboard", purge_step=start + 1)

    def log_scalars(self, iteration: int, scalars: dict[str, float]) -> None:
        """Add a line to curves.jsonl, with null for infinite numbers and NaN, and points to TensorBoard."""
        point = finite({"iteration": iteration, **scalars})
        if point in self._logged:  # an evaluation after the checkpoint, which the run was killed before it could note
            return
        with open(self.folder / "curves.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")
        self.points += 1
        if self.writer is not None:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Finish log and curves."""
        if self.writer is not None:
            self.writer.close()
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        if self._handlers:
            logger.setLevel(self._before[0])
            logger.propagate = self._before[1]
        self._handlers = []
        if self._lock is not None:
            self._lock.release()


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of curves.jsonl; None where it is cut off."""
    try:
        return json.loads(line)
    except ValueError:
        return None
