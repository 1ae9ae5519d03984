"""Training of a restoration network from an options file: read, build, train.

BasicSR's registries, model and options are used; its loop is replaced, because on today's stack it repeats noise every
epoch, cannot resume on a CPU, and loses its place. Here each batch is a function of (seed, iteration), and one
checkpoint holds all that a resumed run needs, so that it goes on as if it had not stopped. Several processes train
together under torchrun or SLURM; the first one writes.
"""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vheatir.backbone.training.loop import Loop, LoopSettings
from vheatir.backbone.training.processes import Processes
from vheatir.backbone.training.until import Steps
from vheatir.errors import UserError
from vheatir.runs.checkpoints import has_checkpoint
from vheatir.runs.folder import RunFolder
from vheatir.runs.run_logger import RunLogger
from vheatir.runs.training import find_run, train_in
from vheatir.train.build import build_datasets, build_model, complete_options, try_samples, try_validation
from vheatir.train.notes import notes
from vheatir.train.options import read_options, recorded
from vheatir.train.publish import write_weights
from vheatir.train.registry import load_plugins, register_all
from vheatir.train.task import RestorationTask
from vheatir.utils.files import at_home
from vheatir.utils.recipes import find_options


class Trainer:
    """One run: model, task and loop.

    Args:
        path: the options file.
        options: its options, checked and complete.
        run: the folder to write to; None in processes that do not write.
        processes: those that train together; by default this one alone.
        resumed: the checkpoint to go on from.

    Raises:
        UserError: something that the options name cannot be used, or the checkpoint does not fit them.
    """

    def __init__(
        self,
        path: Path,
        options: dict[str, Any],
        run: RunFolder | None,
        processes: Processes | None = None,
        resumed: dict[str, Any] | None = None,
    ):
        self.path = path
        self.options = options
        self.run = run
        self.processes = processes or Processes()
        torch.manual_seed(options["manual_seed"])
        if options.get("threads"):
            torch.set_num_threads(options["threads"])
        datasets = build_datasets(path, options)
        self.validation_sets = dict(datasets)
        self.train_set = self.validation_sets.pop("train")
        self.model = build_model(path, options if resumed is None else _without_start(options))
        self.notes = notes(options, datasets)
        try_samples(path, self.model, self.train_set)
        try_validation(path, self.model, self.validation_sets)
        self.model.join(self.processes)
        self.loop = self._loop()
        if resumed is not None:
            self.loop.restore(resumed)

    def _loop(self) -> Loop:
        options = self.options
        logger = self.options["logger"]
        val = self.options["val"]
        total = options["train"]["total_iter"]
        until = Steps(total, val.get("val_freq") or 5000, logger.get("save_checkpoint_freq") or 5000, "iteration")
        images = None
        if val.get("save_img"):  # processes that do not write images hand them to the one that does
            images = Path() if self.run is None else self.run.images
        self.task = RestorationTask(
            self.model,
            self.train_set,
            self.validation_sets,
            options,
            total,
            images,
        )
        settings = LoopSettings(options["manual_seed"], logger.get("print_freq") or 100, "iteration")
        run_logger = None
        if self.run is not None:
            write = partial(write_weights, options["datasets"]["train"])
            run_logger = RunLogger(self.run, logger.get("keep_checkpoints") or 2, write)
        return Loop(self.task, self.model.update, until, settings, run_logger)

    def loader(self) -> Iterable:
        """This process's batches from the current iteration to the last; workers live as long as the run."""
        return self.task.batches(self.loop.step)

    def describe(self) -> str:
        """Size, device and data in a line."""
        count = sum(parameter.numel() for parameter in self.model.update.bare.parameters())
        world = self.processes.world
        narrow = self.model.amp_dtype
        together = f"{world} processes, " if world > 1 else ""
        device = f"{self.model.device}" + (f" in {narrow}".replace("torch.", "") if narrow else "")
        return f"{count:,} parameters on {device}, {together}{len(self.train_set)} images"

    def train(self, argv: Sequence[str] = ()) -> bool:
        """Run to the last iteration; False when stopped by a signal (a checkpoint is written).

        Args:
            argv: what the command line said, for the run's record.
        """

        def opened(run: RunFolder) -> None:
            run.open(self.path, recorded(self.options), list(argv))

        return train_in(self.run, self.loop, opened, [self.describe(), *self.notes, *self.task.notes])


def _without_start(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a run whose weights come from a checkpoint: those that it started from may be gone by now."""
    return {**options, "path": {**options["path"], "pretrain_network_g": None}}


def train(
    opt: str | Path,
    *,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    resume: bool = False,
    auto_resume: bool = False,
    processes: Processes | None = None,
    argv: Sequence[str] = (),
) -> bool:
    """Train a restoration network from an options file; everything that can be wrong is found before a folder is made.

    Args:
        opt: options file in BasicSR's layout, or name of a recipe.
        overrides: `a.b=value` each, in YAML.
        plugins: Python files with own networks, losses, datasets.
        resume: go on from the run's newest whole checkpoint.
        auto_resume: go on where there is a checkpoint, else start.
        processes: those that train together, see `started`; by default this one alone.
        argv: what the command line said, for the run's record.

    Returns:
        Whether the last iteration was reached; False where a signal stopped the run, after a checkpoint.

    Raises:
        UserError: something in the options cannot be used, or the run failed.
    """
    processes = processes or Processes()

    def read() -> tuple[Path, dict[str, Any]]:
        register_all()
        load_plugins(plugins)
        path = find_options(opt)
        options = read_options(path, overrides)
        if not options["train"]:
            raise UserError(f"{path}: has no train section; `vheatir test` evaluates such a file")
        return path, complete_options(path, options, is_train=True, processes=processes)

    path, options = processes.agree(read)
    root = at_home(options["path"].get("experiments_root") or "experiments")
    again = auto_resume or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    goes_on = resume or (again and has_checkpoint(root / options["name"] / "checkpoints"))
    run, resumed = find_run(processes, root, options["name"], goes_on)

    def build() -> Trainer:
        return Trainer(path, options, run, processes, resumed)

    return processes.agree(build).train(argv)
