"""One recipe of a comparison at equal time: its training against the clock, and what it costs."""

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vheatir.backbone.layers.freezing import frozen
from vheatir.backbone.training.loop import Loop, LoopSettings
from vheatir.backbone.training.until import Seconds, TrainingClock
from vheatir.errors import UserError
from vheatir.runs.checkpoints import load_latest, save_checkpoint
from vheatir.train.build import build_model
from vheatir.train.task import RestorationTask
from vheatir.utils.files import atomic_open
from vheatir.utils.timing import interleave, peak_mib

WARMUP = 0.03
LAST_RATE = 1e-3  # share of the budget; share of the recipe's learning rate
_IMAGE = (321, 481)  # height and width of the BSD images, at which inference is timed
_ENDLESS = 2**62


def rate_at(share: float) -> float:
    """The learning rate, as a share of the recipe's, when `share` (0 to 1) of the budget is used.

    Linear from a tenth to one over the first 3 %, then a cosine down to a thousandth.
    """
    if share < WARMUP:
        return 0.1 + 0.9 * share / WARMUP
    progress = min(1.0, (share - WARMUP) / (1 - WARMUP))
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


class TimedTask(RestorationTask):
    """Restoration against the clock: the rate follows the used share of the time, validation adds to `points`.

    Args:
        *arguments: those of `RestorationTask`.
        clock: of the training time.
        seconds: training time in all.
    """

    def __init__(self, *arguments: Any, clock: TrainingClock, seconds: float):
        super().__init__(*arguments)
        self.clock = clock
        self.seconds = seconds
        self.points: list[dict[str, Any]] = []

    def set_lr(self, step: int) -> None:
        self.iteration = step + 1
        rate = self.options["train"]["optim_g"]["lr"] * rate_at(self.clock.used / self.seconds)
        for optimizer in self.model.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Score every validation set and add the point to the curve; no weights are best, the last ones count."""
        minutes = {"minutes": self.clock.used / 60, "wall_minutes": self.clock.wall / 60}
        point: dict[str, Any] = {**minutes, "iteration": self.iteration}
        for phase, dataset in self.validation_sets.items():
            result = self.model.validate(dataset)
            point[phase] = {"images": result["images"], **{side: result[side] for side in ("input", "restored")}}
        self.points.append(point)
        return {}

    def state(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state(self, state: Any) -> None:
        self.points = state["points"]


@dataclass(frozen=True)
class Entry:
    """What the training of one recipe needs, in this process or in another.

    Attributes:
        path: the recipe's file.
        options: its options, checked and complete.
        folder: for checkpoints and weights.
        seconds: of training.
        every: seconds between validations.
        resume: whether it goes on from the newest checkpoint in `folder`.
        alone: whether no other recipe trains beside it, so that a progress bar may be drawn.
    """

    path: Path
    options: dict[str, Any]
    folder: Path
    seconds: float
    every: float
    resume: bool = False
    alone: bool = True

    @property
    def name(self) -> str:
        return self.options["name"]


Note = Callable[[str, list[dict[str, Any]], dict[str, Any] | None], None]
"""Called with a recipe's name, the points of its curve so far and, once it is trained, its costs."""


def train_entry(entry: Entry, datasets: dict[str, Any], note: Note) -> bool:
    """Train one recipe for its time, and measure what the network costs.

    Args:
        entry: what to train.
        datasets: by phase, the same for all recipes.
        note: called after each checkpoint and at the end.

    Returns:
        Whether it had its time; False where a signal stopped it.

    Raises:
        UserError: the training failed; names the recipe.
    """
    contestant = Contestant(entry, datasets, note)
    entry.folder.mkdir(parents=True, exist_ok=True)
    if entry.resume:
        contestant.resume()
    if not contestant.train():
        return False
    contestant.save_result()
    note(entry.name, contestant.task.points, contestant.cost())
    return True


class Contestant:
    """One recipe under the budget, and the loop's logger of it.

    Args:
        entry: what to train.
        datasets: by phase, the same for all recipes.
        note: called after each checkpoint.
    """

    def __init__(self, entry: Entry, datasets: dict[str, Any], note: Note):
        options = entry.options
        torch.manual_seed(options["manual_seed"])
        if options.get("threads"):
            torch.set_num_threads(options["threads"])
        self.options = options
        self.folder = entry.folder
        self.note = note
        validation_sets = dict(datasets)
        self.train_set = validation_sets.pop("train")
        self.model = build_model(entry.path, options)
        clock = TrainingClock(self.model.device)
        self.task = TimedTask(
            self.model, self.train_set, validation_sets, options, _ENDLESS, clock=clock, seconds=entry.seconds
        )
        settings = LoopSettings(options["manual_seed"], None, "iteration", entry.name, entry.alone)
        self.loop = Loop(self.task, self.model.update, Seconds(entry.seconds, entry.every, clock), settings, self)

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, where there is one."""
        state = load_latest(self.folder)
        if state is not None:
            self.loop.restore(state)

    def log_scalars(self, iteration: int, scalars: dict[str, float]) -> None:
        """Nothing: the curve is in the result."""

    def save(self, iteration: int, state: dict[str, Any], best: int | None) -> None:
        """Write a checkpoint.

        Args:
            iteration: of the state.
            state: what the run goes on from.
            best: iteration of the best weights; not kept here.
        """
        save_checkpoint(self.folder, iteration, state, keep=2)
        self.note(self.options["name"], self.task.points, None)

    def save_weights(self, name: str, network: nn.Module, step: int) -> None:
        """Nothing: the checkpoint has them, and `finish` writes the last ones.

        Args:
            name: of the file.
            network: whose weights they are.
            step: of them.
        """

    def save_failure(self, name: str, state: dict[str, Any]) -> None:
        """Write what a step that failed was given."""
        with atomic_open(self.folder / name) as file:
            torch.save(state, file)

    def info(self, text: str) -> None:
        """A line on stderr."""
        sys.stderr.write(f"{self.options['name']}: {text}\n")

    def train(self) -> bool:
        """Train until the budget is used up; False when a signal stopped it.

        Raises:
            UserError: the training failed; names the recipe.
        """
        try:
            return self.loop.run()
        except UserError as error:
            raise UserError(f"{self.options['name']}: {error}") from error

    def cost(self) -> dict[str, Any]:
        """Parameters, pace, peak memory in MiB and seconds for an image of 481x321, measured after the training."""
        batch = next(iter(self.task.batches(self.loop.step)))
        network = self.model.network_for_test()
        device = self.model.device
        self.model.feed_data(batch)
        image = torch.rand(1, self.model.lq.shape[1], *_IMAGE, device=device)  # of clips all frames
        inputs = (image,) if "level" not in batch else (image, torch.full((1,), 0.1, device=device))
        with frozen(network), torch.no_grad():
            clock = "wall" if device.type == "cuda" else "cpu"
            timing = interleave({"": lambda: network(*inputs)}, device, rounds=3, warmup=1, clock=clock)[""]
            inference_mib = peak_mib(lambda: network(*inputs), device)
        last = self.task.points[-1]
        return {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "iterations_per_s": last["iteration"] / (60 * last["minutes"]),
            "training_peak_mib": peak_mib(lambda: self._step(batch), device),
            "inference_peak_mib": inference_mib,
            "inference_s": statistics.median(timing.microseconds) / 1e6,
        }

    def _step(self, batch: dict[str, Any]) -> None:
        self.model.feed_data(batch)
        self.model.optimize_parameters(self.loop.step + 1)

    def save_result(self) -> None:
        """The trained network as BasicSR's .pth beside the checkpoints."""
        with atomic_open(self.folder / f"{self.options['name']}.pth") as file:
            torch.save({"params": self.model.network_for_test().state_dict()}, file)
