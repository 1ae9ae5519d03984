"""The training loop of all tasks: steps, accumulation, clipping, average of the weights, checkpoints, resume, log.

Works in one process or under torchrun (gloo or NCCL, through accelerate). What is random in a step depends on its
number alone, so that a run that goes on from a checkpoint, also amid an epoch, does what an unbroken one would.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from vheatir.backbone.training.batches import mixed, seed_all
from vheatir.backbone.training.precision import autocast_dtype
from vheatir.backbone.training.signals import stop_on_signal

_SIGNAL_EVERY = 10  # steps between the questions whether another process was told to stop

_DIVERGED = "go on from the last checkpoint with a lower learning rate, more warm-up or train.amp none"


class Task(Protocol):
    """What a task gives to the loop: its loss and its evaluation."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, already on the device, and further scalars to log."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Scores by name, the same in every process."""


class Journal(Protocol):
    """Where a run is written to; the main process has one."""

    def log_scalars(self, iteration: int, scalars: dict[str, float]) -> None: ...

    def save(self, iteration: int, state: dict[str, Any]) -> None: ...

    def save_weights(self, name: str, state: dict[str, Tensor]) -> None: ...

    def info(self, text: str) -> None: ...


@dataclass
class Settings:
    """Numbers of a run.

    Attributes:
        epochs, steps_per_epoch: its length; a step is one update of the weights.
        accumulate: forward passes for a step.
        grad_clip: largest norm of the gradient; None for no limit.
        amp: see `autocast_dtype`.
        ema_decay, ema_warmup: average of the weights; None for none.
        seed: of everything random.
        val_every: epochs between evaluations.
        best: score that decides which weights are best; `lower_is_better` for losses.
        print_freq, save_freq: steps between lines of the log, and between checkpoints beside those of each epoch.
        period: what an epoch is called in the log; runs counted in steps have none, but evaluations.
    """

    epochs: int
    steps_per_epoch: int
    accumulate: int = 1
    grad_clip: float | None = None
    amp: str = "none"
    ema_decay: float | None = None
    ema_warmup: bool = False
    seed: int = 0
    val_every: int = 1
    best: str = "top1"
    lower_is_better: bool = False
    print_freq: int = 50
    save_freq: int | None = None
    period: str = "epoch"

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def to_device(batch: Any, device: torch.device) -> Any:
    """Tensors in tuples, lists and tables moved to a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


class Loop:
    """One training run.

    Args:
        task: loss and evaluation.
        model: the network; moved to the device, and wrapped where several processes train.
        optimizer: of its parameters.
        set_rates: called with the number of the step, counted from 0, before each step.
        settings: numbers of the run.
        accelerator: device and processes.
        journal: where the main process writes; None elsewhere.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        set_rates: Callable[[int], None],
        settings: Settings,
        accelerator: Accelerator,
        journal: Journal | None,
    ):
        self.task, self.optimizer, self.set_rates = task, optimizer, set_rates
        self.settings, self.accelerator, self.journal = settings, accelerator, journal
        self.device = accelerator.device
        self.dtype = autocast_dtype(settings.amp, self.device, refuse_emulation=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.bare = model
        decay = settings.ema_decay
        self.ema = None if decay is None else ModelEmaV3(model, decay=decay, use_warmup=settings.ema_warmup)
        self.model = accelerator.prepare_model(model)
        self.step, self.best = 0, {}
        self.window: dict[str, list[float]] = {}  # sums and counts since the last line of the log
        self.last: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on; the random state is a function of the step."""
        return {
            "iteration": self.step,
            "best": self.best,
            "window": self.window,
            "model": self.bare.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            ValueError: it belongs to another model or other settings.
        """
        try:
            self.bare.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
            self.scaler.load_state_dict(state["scaler"] if self.scaler.is_enabled() else {})
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"the checkpoint does not fit these options: {error}") from error
        self.step, self.best, self.window = state["iteration"], state["best"], state["window"]

    def run(self, batches: Iterable) -> bool:
        """Train to the last step on batches that begin at `self.step`; False when a signal stopped it."""
        settings, main = self.settings, self.journal is not None
        started, first, source = time.perf_counter(), self.step, iter(batches)
        bar = tqdm(total=settings.steps, initial=first, unit="step", disable=None if main else True, smoothing=0.05)
        with stop_on_signal() as stop, bar:
            while self.step < settings.steps:
                self._advance(source)
                bar.update()
                if self.step % settings.print_freq == 0 or self.step == settings.steps:
                    self._log(bar, (time.perf_counter() - started) / (self.step - first))
                epoch, within = divmod(self.step, settings.steps_per_epoch)
                if within == 0 and (epoch % settings.val_every == 0 or epoch == settings.epochs):
                    self._evaluate(epoch)
                stopping = self._agreed(stop)
                if within == 0 or stopping or (settings.save_freq and self.step % settings.save_freq == 0):
                    self.save()
                if stopping and self.step < settings.steps:
                    if main:
                        self.journal.info(f"stopped at step {self.step}; go on with --resume")
                    return False
        return True

    def _agreed(self, stop: list[int]) -> bool:
        """Whether any process was told to stop; all must leave at the same step."""
        if self.accelerator.num_processes == 1:
            return bool(stop)
        if self.step % _SIGNAL_EVERY and self.step != self.settings.steps:
            return False
        told = torch.tensor(float(bool(stop)), device=self.device)
        return bool(self.accelerator.reduce(told, "sum") > 0)

    def _advance(self, source: Iterator) -> None:
        """One step: the gradients of `accumulate` batches, clipping, update, average."""
        self.model.train()
        self.set_rates(self.step)
        for part in range(self.settings.accumulate):
            batch = to_device(next(source), self.device)
            self._seed(part)
            last = part + 1 == self.settings.accumulate
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    loss, scalars = self.task.loss(self.model, batch)
                self.scaler.scale(loss / self.settings.accumulate).backward()
            self._note({"loss": loss, **scalars})
        self.scaler.unscale_(self.optimizer)
        if self.settings.grad_clip is not None:
            norm = nn.utils.clip_grad_norm_(self.bare.parameters(), self.settings.grad_clip)
            if torch.isfinite(norm) or not self.scaler.is_enabled():  # fp16 overflows now and then; its scale adapts
                self._note({"grad_norm": norm})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.bare, step=self.step)

    def _seed(self, part: int) -> None:
        seed = mixed(self.settings.seed, self.step, part, self.accelerator.process_index)
        seed_all(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _note(self, scalars: dict[str, Tensor]) -> None:
        for name, value in scalars.items():
            entry = self.window.setdefault(name, [0.0, 0])
            entry[0] = entry[0] + value.detach().double()  # stays on the device until it is printed
            entry[1] += 1

    def _means(self) -> dict[str, float]:
        """Means over the window and the processes."""
        means = torch.stack([torch.as_tensor(total / count) for total, count in self.window.values()]).to(self.device)
        means = self.accelerator.reduce(means.float(), "mean").tolist()
        return dict(zip(self.window, means, strict=True))

    def _log(self, bar: tqdm, seconds: float) -> None:
        means = self._means()
        self.window = {}
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(f"step {self.step}: the loss is {means['loss']}; {_DIVERGED}")
        scalars = {f"train/{name}": value for name, value in means.items()}
        scalars["train/lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        if self.journal is None:
            return
        self.journal.log_scalars(self.step, scalars)
        text = " ".join(f"{name.split('/')[1]} {value:.4g}" for name, value in scalars.items())
        text += "".join(
            f" {name} {value:.2f}" for name, value in self.last.items() if name.endswith(self.settings.best)
        )
        bar.set_postfix_str(text)
        if bar.disable:
            left = timedelta(seconds=round(seconds * (self.settings.steps - self.step)))
            self.journal.info(f"{self.step}/{self.settings.steps} {text} {seconds:.3g} s/step, {left} left")

    def _evaluate(self, epoch: int) -> None:
        """Score the weights and their average, log both, and keep the best of each."""
        self._share_buffers()
        networks = {"val": self.bare} | ({"ema": self.ema.module} if self.ema else {})
        self.last = {}
        for prefix, network in networks.items():
            scores = self.task.evaluate(network)
            self.last |= {f"{prefix}/{name}": value for name, value in scores.items()}
            value, name = scores[self.settings.best], "best" if prefix == "val" else "best_ema"
            former = self.best.get(name)
            sign = -1 if self.settings.lower_is_better else 1
            better = former is None or sign * value > sign * former["value"]
            if better and math.isfinite(value):  # against NaN, no later score would be the better one
                self.best[name] = {"metric": self.settings.best, "value": value, "epoch": epoch, "iteration": self.step}
                if self.journal is not None:
                    self.journal.save_weights(name, network.state_dict())
        if self.journal is not None:
            self.journal.log_scalars(self.step, {self.settings.period: epoch, **self.last})
            self.journal.info(
                f"{self.settings.period} {epoch}: " + ", ".join(f"{k} {v:.4g}" for k, v in self.last.items())
            )

    def _share_buffers(self) -> None:
        """The statistics of norms differ between processes on gloo; those of the first one count."""
        if self.accelerator.num_processes > 1:
            for network in [self.bare, *([self.ema.module] if self.ema else [])]:
                for buffer in network.buffers():
                    torch.distributed.broadcast(buffer, 0)

    def save(self) -> None:
        """Write weights and checkpoint, unless they are of no use.

        Raises:
            FloatingPointError: weights that are not finite; nothing is written.
        """
        if self.journal is None:
            return
        for name, value in self.bare.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise FloatingPointError(f"step {self.step}: NaN or infinity in {name}, nothing written; {_DIVERGED}")
        state = self.state()
        state["window"] = {name: [float(total), count] for name, (total, count) in self.window.items()}
        self.journal.save_weights("latest", state["model"])
        if self.ema is not None:
            self.journal.save_weights("latest_ema", state["ema"])
        self.journal.save(self.step, state)
