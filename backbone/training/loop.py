"""The one training loop: steps, log, evaluation, best weights, checkpoints, signals, resume, for every kind of run.

Restoration, classification, detection, segmentation and the comparison at equal time are tasks of it. It works in one
process or in several (see `Processes`). What is random in a step depends on its number alone, so a run resumed from a
checkpoint, even in the middle of an epoch, gives the same result as an uninterrupted one.
"""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vheatir.backbone.errors import UserError
from vheatir.backbone.training.batches import fetched, mixed, seed_all
from vheatir.backbone.training.signals import stop_on_signal
from vheatir.backbone.training.task import LoopLogger, Task
from vheatir.backbone.training.until import Until
from vheatir.backbone.training.update import Update

DIVERGED = "a lower learning rate, train.grad_clip or train.amp: none may help; --resume starts at the last checkpoint"


@dataclass(frozen=True)
class LoopSettings:
    """What the loop does besides training.

    Attributes:
        seed: of everything random in a step.
        print_every: steps between lines of the log; None for no log.
        unit: what the log calls a step: "step" or "iteration".
        label: what stands beside the progress bar.
        bar: whether a terminal shows one.
    """

    seed: int = 0
    print_every: int | None = 50
    unit: str = "step"
    label: str = ""
    bar: bool = True


class Loop:
    """One training run.

    Args:
        task: batches, loss, evaluation.
        update: the network and what moves its weights; knows the processes.
        until: length of the run, and when it is evaluated and saved.
        settings: seed and log.
        logger: where the first process writes; None elsewhere.
    """

    def __init__(self, task: Task, update: Update, until: Until, settings: LoopSettings, logger: LoopLogger | None):
        self.task = task
        self.update = update
        self.until = until
        self.settings = settings
        self.logger = logger
        self.processes = update.processes
        self.step = 0
        self.best = {}
        self.window: dict[str, list[Any]] = {}  # sums and counts since the last line of the log
        self.last: dict[str, float] = {}  # scores of the last evaluation
        self.awaited = False  # whether the checkpoint is one before an evaluation
        self._unit = {"iteration": "it"}.get(until.unit, until.unit)

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on; the random state is a function of seed, step and place in the data.

        Each process asks for it, since all of their losses since the last line of the log are in it.
        """
        window = {name: [float(total), count] for name, (total, count) in self.window.items()}
        return {
            "iteration": self.step,
            "position": self.task.position(self.step),
            "random": {"seed": self.settings.seed},
            "best": self.best,
            "awaited": self.awaited,
            "windows": self.processes.gather(window),
            "until": self.until.state(),
            "task": self.task.state(),
            "model": self.update.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            UserError: it belongs to another network or other options.
        """
        try:
            if state["random"]["seed"] != self.settings.seed:
                raise ValueError(f"manual_seed was {state['random']['seed']}, is now {self.settings.seed}")
            self.update.load_state(state["model"])
            self.task.load_state(state["task"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--resume: the checkpoint does not fit these options ({error}); resume with the options of the run, "
                f"or start a new one from its weights with {self.task.weights_key}"
            ) from error
        self.until.load_state(state["until"])
        self.step = self.task.resume_at(state["iteration"], state["position"])
        self.best = state["best"]
        self.awaited = state.get("awaited", False) or (self.task.left_out and self.until.evaluates(self.step))
        self.window = self._window_of(state.get("windows") or [state["window"]])  # in older ones the first process's

    def _window_of(self, windows: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
        """This process's losses since the last line of the log; the mean where other processes wrote them."""
        if len(windows) == self.processes.world:
            return windows[self.processes.rank]
        shares = [[name, total / len(windows), count] for one in windows for name, (total, count) in one.items()]
        return {name: [sum(s for key, s, _ in shares if key == name), count] for name, _, count in shares}

    def run(self) -> bool:
        """Train to the end; False when a signal stopped it, after a checkpoint."""
        until = self.until
        settings = self.settings
        started = time.perf_counter()
        first = self.step
        self.processes.ignore_sigterm()  # again when the loop, which heeds it, is left
        with stop_on_signal() as stop, self._bar() as bar:
            if self.awaited:  # an evaluation that failed, or one to which no step led, see `Task.left_out`
                self._evaluate_kept()
                self.save()
            source = iter(self.task.batches(self.step))
            while not until.done(self.step):
                with until.timed():
                    self._advance(source)
                bar.update(until.position(self.step) - bar.n)
                is_last = until.done(self.step)
                if settings.print_every and (self.step % settings.print_every == 0 or is_last):
                    self._log(bar, (time.perf_counter() - started) / (self.step - first))
                evaluated = until.evaluates(self.step)
                is_best = evaluated and self._evaluate_kept()
                stopping = self.processes.any(bool(stop))
                if is_best or stopping or until.saves(self.step, evaluated):
                    self.save()
                if stopping and not is_last:
                    self._tell(f"stopped at {settings.unit} {self.step}; go on with --resume")
                    return False
        return True

    def _bar(self) -> tqdm:
        until = self.until
        silent = None if self.logger is not None and self.settings.bar else True  # None: where stderr is no terminal
        first = until.position(self.step)
        return tqdm(
            total=until.total,
            initial=first,
            unit=self._unit,
            desc=self.settings.label or None,
            disable=silent,
            file=sys.stderr,
            smoothing=0.05,
        )

    def _tell(self, text: str) -> None:
        if self.logger is not None:
            self.logger.info(text)

    def _advance(self, source: Iterator) -> None:
        """One step."""
        self.update.bare.train()
        self.task.set_lr(self.step)
        seen: list[Any] = []
        try:
            noted = self.update.step(
                self._parts(source, seen), self.task.loss, self.step + 1, self.task.batches_per_step
            )
        except FloatingPointError as error:  # alike in all processes
            raise self._failure(error, seen) from error
        self.step += 1
        self._note(noted)

    def _parts(self, source: Iterator, seen: list[Any]) -> Iterator[tuple[Any, bool]]:
        """What the forward passes of the next step take, and whether it is the last one."""
        for number in range(self.task.batches_per_step):
            batch = self.processes.agree(partial(fetched, source))
            if self.update.check_each:
                seen.append(batch)
            self._seed(number)
            parts = self.task.parts(batch, self.step + 1, self.update.device)
            is_last = number + 1 == self.task.batches_per_step
            for index, part in enumerate(parts):
                yield part, is_last and index + 1 == len(parts)

    def _seed(self, batch: int) -> None:
        """What a step draws itself (mixing, stochastic depth) is a function of seed, step, batch and process."""
        seed = mixed(self.settings.seed, self.step, batch, self.processes.rank)
        seed_all(seed)
        if self.update.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _failure(self, error: FloatingPointError, seen: list[Any]) -> UserError:
        batches = [batch for part in self.processes.gather(seen) for batch in part]
        number = self.step + 1
        name = f"nonfinite_{number:08d}.pt"
        if self.logger is not None:
            state = {"iteration": number, "batches": batches, "model": self.update.state()}
            self.logger.save_failure(name, state)
        what = f"{error}{self.task.culprits(batches)}"
        return UserError(f"{what}; batch and weights are in {name} of the run; {DIVERGED}")

    def _note(self, noted: dict[str, list[Tensor]]) -> None:
        if self.update.check_each:
            self.window = {}  # the log has the values of its own step
        for name, values in noted.items():
            if name == "loss":
                if self.task.total is None:
                    continue
                name = self.task.total
            entry = self.window.setdefault(name, [0.0, 0])
            for value in values:
                entry[0] = entry[0] + value.double()  # stays on the device until it is printed
                entry[1] += 1

    def _means(self) -> dict[str, float]:
        """Means over the window and the processes."""
        device = self.update.device
        means = [total / count for total, count in self.window.values()]  # numbers where they are of a checkpoint
        means = torch.stack([torch.as_tensor(one, dtype=torch.float64, device=device) for one in means])
        means = self.processes.mean_(means.float()).tolist()
        return dict(zip(self.window, means, strict=True))

    def _log(self, bar: tqdm, seconds: float) -> None:
        means = self._means()
        further = self.processes.gather(self.task.last_scores())
        self.window = {}
        means |= {name: sum(part[name] for part in further) / len(further) for name in further[0]}
        total = means.get(self.task.total or "", 0.0)
        if not math.isfinite(total):
            raise UserError(f"the loss is {total} at {self.settings.unit} {self.step}; {DIVERGED}")
        scalars = {f"train/{name}": value for name, value in means.items()}
        scalars["train/lr"] = max(group["lr"] for group in self.update.optimizer.param_groups)
        if self.logger is None:
            return
        self.logger.log_scalars(self.step, scalars)
        shown = {name.split("/")[1]: f"{value:.4g}" for name, value in scalars.items()}
        shown |= {name: f"{value:.2f}" for name, value in self.last.items() if name.endswith(f"/{self.task.best}")}
        text = " ".join(f"{name} {value}" for name, value in shown.items())
        bar.set_postfix_str(text)
        if bar.disable:
            position = self.until.position(self.step)
            total = self.until.total
            left = timedelta(seconds=round(seconds * (total - position)))
            self.logger.info(f"{position}/{total} {text} {seconds:.3g} s/{self._unit}, {left} left")

    def _evaluate_kept(self) -> bool:
        """Evaluate, where a checkpoint is due after one first, so that nothing is lost if it fails; see `_evaluate`."""
        if not self.awaited and self.until.saves(self.step, True):
            self.awaited = True
            self.save()
        is_best = self._evaluate()
        self.awaited = False
        return is_best

    def _evaluate(self) -> bool:
        """Score the networks, log that, keep the best weights of each; whether the first of them is the best so far."""
        self.update.share_buffers()
        average = self.update.average
        networks = self.task.networks(self.update.bare, None if average is None else average.network)
        self.last = {}
        is_best = False
        for ending, network in networks.items():
            scores = self.task.evaluate(network)
            if not scores:
                return False
            self.last |= self.task.named(ending, scores)
            improved = self._keep_if_best(f"best{ending}", network, self.task.decides(scores))
            is_best = is_best or (improved and ending == "")
        marks = self.until.marks(self.step)
        where = " ".join(f"{name} {value}" for name, value in (marks or {self.settings.unit: self.step}).items())
        if self.logger is not None:
            self.logger.log_scalars(self.step, {**marks, **self.last})
            self.logger.info(self.task.report(where, self.last))
        return is_best

    def _keep_if_best(self, name: str, network: nn.Module, value: float | None) -> bool:
        former = self.best.get(name)
        sign = -1 if self.task.lower_is_better else 1
        # against NaN, no later score would be the better one
        if value is None or not math.isfinite(value) or (former and sign * value <= sign * former["value"]):
            return False
        record = {"metric": self.task.best, "value": value, "iteration": self.step, **self.until.marks(self.step)}
        self.best[name] = record
        if self.logger is not None:
            self.logger.save_weights(name, network, self.step)
        return True

    def save(self) -> None:
        """Write the current weights and, after them, a checkpoint; neither when they are of no use.

        Raises:
            UserError: weights that are not finite; nothing is written.
        """
        average = self.update.average
        networks = self.task.networks(self.update.bare, None if average is None else average.network)
        for network in networks.values():
            for name, value in network.state_dict().items():
                if value.is_floating_point() and not torch.isfinite(value).all():
                    where = f"{self.settings.unit} {self.step}"
                    raise UserError(f"{where}: NaN or infinity in {name}, nothing written; {DIVERGED}")
        state = self.state()
        if self.logger is None:
            return
        for ending, network in networks.items():
            self.logger.save_weights(f"latest{ending}", network, self.step)
        best = self.best.get("best")
        self.logger.save(self.step, state, best["iteration"] if best else None)
