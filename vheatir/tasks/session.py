"""What the commands that train backbones share: a recipe with its processes and network, and its run."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vheatir.backbone.errors import as_user_error
from vheatir.backbone.training.processes import Processes
from vheatir.errors import UserError
from vheatir.runs.folder import RunFolder, logger
from vheatir.runs.training import find_run, train_in
from vheatir.utils.files import at_home, atomic_open

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from vheatir.backbone.training.batches import EpochPlan
    from vheatir.backbone.training.until import Epochs


class TaskSession(ABC):
    """What a command knows of a recipe; `train` asks for the parts in this order.

    Args:
        path: the recipe's file.
        recipe: see the attributes.
        processes: those that work together.

    Attributes:
        command, task_name: of the command line, and in the weights' metadata.
        path: the recipe's file.
        recipe: a dataclass with name, data, path, logger.
        processes: those that work together.
        device: of the network.
        model: the network.
        network: arguments of the network, for the weights' metadata.
        place: this process and how many there are.
    """

    command: str
    task_name: str
    model: Any
    network: dict[str, Any]

    def __init__(self, path: Path, recipe: Any, processes: Processes):
        self.path = path
        self.recipe = recipe
        self.processes = processes
        self.device = processes.device(recipe.device)
        self.place = (processes.rank, processes.world)

    @abstractmethod
    def pretrained(self) -> str | None:
        """Load the weights to start from; the report, or None where there are none."""

    @abstractmethod
    def samples(self) -> Any:
        """The training set."""

    @abstractmethod
    def plan(self, size: int) -> "EpochPlan":
        """Order of that many samples."""

    @abstractmethod
    def until(self, plan: "EpochPlan") -> "Epochs":
        """Length of the run."""

    @abstractmethod
    def optimizer(self, plan: "EpochPlan") -> "Optimizer":
        """Optimizer of the model's parameters."""

    @abstractmethod
    def lr_schedule(self, optimizer: "Optimizer", plan: "EpochPlan") -> Callable[[int], None]:
        """Function that sets the learning rates of a step."""

    @abstractmethod
    def task(self) -> Any:
        """Loss and evaluation, a `DatasetTask`."""


def refuse_folded(network: Any, file: str) -> None:
    """Raise UserError where a network took the folded form of the weights that a run was to start from.

    Args:
        network: the backbone, after loading.
        file: the weights.
    """
    if getattr(network, "folded", False):
        raise UserError(
            f"{file}: weights in folded form, whose diffusivities cannot be trained and which serve one image size "
            "alone; start from the weights before folding"
        )


def _write_weights(metadata: dict[str, str], folder: Path, name: str, network: Any, step: int) -> None:
    """Write a network's tensors as .safetensors, with the model's arguments."""
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    with atomic_open(folder / f"{name}.safetensors") as file:
        file.write(save(tensors, metadata))


def _update(session: TaskSession, optimizer: Any) -> Any:
    from vheatir.backbone.training.average import Average
    from vheatir.backbone.training.precision import autocast_dtype
    from vheatir.backbone.training.update import Update

    train = session.recipe.train
    average = None
    if train.ema_decay is not None:
        young = "power" if train.ema_warmup else None
        average = Average(session.model, train.ema_decay, young=young, average_buffers=True)
    return Update(
        session.model,
        optimizer,
        dtype=autocast_dtype(train.amp, session.device, refuse_emulation=True),
        grad_clip=train.grad_clip,
        average=average,
        processes=session.processes,
    )


def build_loop(session: TaskSession, run: RunFolder | None) -> tuple[Any, list[str]]:
    """The loop of a session, and what the log says of it.

    Raises:
        UserError: something in the recipe or its data cannot be used.
    """
    from vheatir.backbone.training.loop import Loop, LoopSettings
    from vheatir.runs.run_logger import RunLogger

    recipe = session.recipe
    session.model = session.processes.with_shared_norms(session.model.to(session.device), session.device)
    with as_user_error(str(session.path)):
        samples = session.samples()
        plan = session.plan(len(samples))
        until = session.until(plan)
        optimizer = session.optimizer(plan)
        update = _update(session, optimizer)
        task = session.task()
        task.learn_from(samples, plan, until.total, session.lr_schedule(optimizer, plan), recipe.data.workers)
    run_logger = None
    if run is not None:
        license_text = "depends on the training data"
        metadata = {"task": session.task_name, "model": json.dumps(session.network), "license": license_text}
        names = task.class_names()
        if names:
            metadata["classes"] = json.dumps(names)
        run_logger = RunLogger(run, recipe.logger.keep_checkpoints, partial(_write_weights, metadata))
    settings = LoopSettings(recipe.manual_seed, recipe.logger.print_freq)
    count = sum(parameter.numel() for parameter in session.model.parameters())
    line = (
        f"{count:,} parameters on {session.device}, {session.processes.world} process(es), {plan.size} images, "
        f"{plan.steps_per_epoch} steps of {plan.images_per_step} images an epoch"
    )
    return Loop(task, update, until, settings, run_logger), [line]


def runs_of(recipe: Any) -> Path:
    """The folder of all runs; ~ in it is the user's home."""
    return at_home(recipe.path.experiments_root)


def train(session: TaskSession, argv: list[str], resume: bool) -> int:
    """Train to the end, or until a signal; everything that can be wrong is found before a folder is made.

    Args:
        session: the recipe and its network.
        argv: arguments of the command, for the run's folder.
        resume: go on from the run's newest whole checkpoint.
    """
    recipe = session.recipe
    processes = session.processes
    run, resumed = find_run(processes, runs_of(recipe), recipe.name, resume, session.command)

    def build() -> tuple[Any, list[str]]:
        report = None if resumed is not None else session.pretrained()
        loop, lines = build_loop(session, run)
        if resumed is not None:
            loop.restore(resumed)
        return loop, lines if report is None else [*lines, f"weights to start from: {report}"]

    def opened(folder: RunFolder) -> None:
        folder.open(session.path, asdict(recipe), argv)

    loop, lines = processes.agree(build)
    return 0 if train_in(run, loop, opened, lines, _plot) else 130


def _plot(run: RunFolder) -> None:
    from vheatir.runs.curves import plot_curves

    try:
        if (run.folder / "curves.jsonl").is_file():  # a run may be stopped before its first line
            logger.info("curves: %s", ", ".join(str(path) for path in plot_curves(run.folder)))
    except ImportError as error:
        logger.warning("no plots (%s); curves.jsonl has the numbers", error)


def best_file(recipe: Any) -> Path:
    """Where the recipe's run keeps its best weights, once it has some."""
    return runs_of(recipe) / recipe.name / "models" / "best.safetensors"


def best_weights(recipe: Any, otherwise: str = "") -> str:
    """The best weights of the recipe's run.

    Raises:
        UserError: there are none; `otherwise` says what else could be done.
    """
    best = best_file(recipe)
    if not best.is_file():
        raise UserError(f"{best} does not exist; give --weights FILE{otherwise}")
    return str(best)
