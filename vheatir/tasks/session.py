"""What the commands that train backbones share: a run's folder, its beginning and end, messages to the user.

The work is done by `vheatir.backbone.training.loop`; the first of several processes writes.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from vheatir.backbone.errors import DataError, as_user_error
from vheatir.errors import UserError
from vheatir.runs.checkpoints import save_checkpoint
from vheatir.runs.folder import Run, logger
from vheatir.utils.files import atomic_open


class Session(Protocol):
    """What a command knows of a recipe; `train` asks for the parts in this order.

    Attributes:
        command, task_name: of the command line, and in the weights' metadata.
        path: the recipe's file.
        recipe: a dataclass with name, data, path, logger.
        accelerator: device and processes.
        model: the network.
        network: arguments of the network, for the weights' metadata.
        place: this process and how many there are.
    """

    command: str
    task_name: str
    path: Path
    recipe: Any
    accelerator: Any
    model: Any
    network: dict[str, Any]
    place: tuple[int, int]

    def pretrained(self) -> str | None:
        """Load the weights to start from; the report, or None where there are none."""

    def samples(self) -> Any:
        """The training set."""

    def plan(self, size: int) -> Any:
        """Order of that many samples."""

    def settings(self, plan: Any) -> Any:
        """Numbers of the loop."""

    def optimizer(self, plan: Any) -> Any:
        """Optimiser of the model's parameters."""

    def rates(self, optimizer: Any, plan: Any) -> Any:
        """Function that sets the rates of a step."""

    def task(self) -> Any:
        """Loss and evaluation."""


def make_accelerator(device: str):
    """Device and processes of a run; `device` is "cpu", or "auto" for CUDA where there is one.

    Autocast and the scale of gradients are the loop's own. Batch norms keep statistics of their own process's batches.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    apart = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[apart])


def with_shared_norms(model: Any, device: Any, processes: int) -> Any:
    """The model with batch norms over the batches of all processes on CUDA; as it is on gloo, which has none."""
    import torch

    shared = device.type == "cuda" and processes > 1
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model) if shared else model


@dataclass
class Folder:
    """Where the loop writes to: the run's curves, checkpoints and weights."""

    run: Run
    task: str
    model: dict
    keep: int

    def log_scalars(self, iteration: int, scalars: dict[str, float]) -> None:
        self.run.log_scalars(iteration, scalars)

    def save(self, iteration: int, state: dict[str, Any]) -> None:
        save_checkpoint(self.run.checkpoints, iteration, state, self.keep)

    def save_weights(self, name: str, state: dict[str, Any]) -> None:
        """Write tensors as .safetensors, with the model's arguments."""
        from safetensors.torch import save

        self.run.models.mkdir(exist_ok=True)
        metadata = {
            "task": self.task,
            "model": json.dumps(self.model),
            "license": "depends on the training data",
        }
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
        with atomic_open(self.run.models / f"{name}.safetensors") as file:
            file.write(save(tensors, metadata))

    def info(self, text: str) -> None:
        logger.info("%s", text)


def train(session: Session, argv: list[str], resume: bool) -> int:
    """Train to the end, or until a signal; everything that can be wrong is found before a folder is made."""
    from vheatir.backbone.training.batches import checked, train_loader
    from vheatir.backbone.training.loop import Loop

    recipe, accelerator = session.recipe, session.accelerator
    run = Run(Path(recipe.path.experiments_root), recipe.name, resume, session.command)
    report = None if resume else session.pretrained()
    model = with_shared_norms(session.model.to(accelerator.device), accelerator.device, accelerator.num_processes)
    main = accelerator.is_main_process
    journal = Folder(run, session.task_name, session.network, recipe.logger.keep_checkpoints) if main else None
    with as_user_error(str(session.path)):
        samples = session.samples()
        plan = session.plan(len(samples))
        settings, optimizer = session.settings(plan), session.optimizer(plan)
        rates = session.rates(optimizer, plan)
        loop = Loop(session.task(), model, optimizer, rates, settings, accelerator, journal)
        if run.resumed is not None:
            loop.restore(run.resumed)
    accelerator.wait_for_everyone()  # all have read the run before the first one changes its folder
    if main:
        run.open(session.path, asdict(recipe), argv)
    try:
        if main:
            _announce(loop, plan, report)
        pin = accelerator.device.type == "cuda"
        loader = train_loader(samples, plan, loop.step, settings.steps, recipe.data.workers, pin)
        finished = loop.run(checked(loader))
        if main:
            _conclude(run, loop)
        return 0 if finished else 130
    except (DataError, FloatingPointError) as error:
        logger.error("%s", error)
        raise UserError(str(error)) from error
    finally:
        if main:
            run.close()


def _announce(loop, plan, report: str | None) -> None:
    count = sum(parameter.numel() for parameter in loop.bare.parameters())
    logger.info(
        "%s parameters on %s, %d process(es), %d images, %d steps of %d images an epoch",
        f"{count:,}",
        loop.device,
        loop.accelerator.num_processes,
        plan.size,
        plan.steps_per_epoch,
        plan.images_per_step,
    )
    if report is not None:
        logger.info("weights to start from: %s", report)
    if loop.step:
        logger.info("resumed at step %d", loop.step)


def _conclude(run: Run, loop) -> None:
    from vheatir.runs.curves import plot_curves

    for name, best in loop.best.items():
        logger.info("%s: %s %.2f after step %d", name, best["metric"], best["value"], best["iteration"])
    try:
        if (run.folder / "curves.jsonl").is_file():  # a run may be stopped before its first line
            logger.info("curves: %s", ", ".join(str(path) for path in plot_curves(run.folder)))
    except ImportError as error:
        logger.warning("no plots (%s); curves.jsonl has the figures", error)
    logger.info("weights: %s", run.models)


def best_weights(recipe: Any, otherwise: str = "") -> str:
    """The best weights of the recipe's run.

    Raises:
        UserError: there are none; `otherwise` says what else could be done.
    """
    best = Path(recipe.path.experiments_root) / recipe.name / "models" / "best.safetensors"
    if not best.is_file():
        raise UserError(f"{best} does not exist; give --weights FILE{otherwise}")
    return str(best)
