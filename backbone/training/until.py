"""How long a run lasts, and when it is evaluated and saved: counted in steps, in epochs or in seconds."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Until(Protocol):
    """Length of a run.

    Attributes:
        total: length, and `unit` what it is counted in, for the progress bar.
    """

    @property
    def total(self) -> int: ...

    @property
    def unit(self) -> str: ...

    def done(self, step: int) -> bool:
        """Whether the run ends after so many steps."""
        ...

    def position(self, step: int) -> int:
        """What of `total` is done."""
        ...

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation follows; asked once after each step."""
        ...

    def saves(self, step: int, evaluated: bool) -> bool:
        """Whether a checkpoint follows."""
        ...

    def marks(self, step: int) -> dict[str, int]:
        """What an evaluation is counted by besides the step, for the curves."""
        ...

    def timed(self) -> AbstractContextManager:
        """Around each step."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the step."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        ...


class _ByStep:
    """A length that the number of the step tells alone."""

    unit = "step"

    def timed(self) -> AbstractContextManager:
        return nullcontext()

    def position(self, step: int) -> int:
        return step

    def marks(self, step: int) -> dict[str, int]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing: the step says it all."""


@dataclass(frozen=True)
class Steps(_ByStep):
    """`total` steps, with an evaluation after `evaluate_every` of them and a checkpoint after `save_every`."""

    total: int
    evaluate_every: int
    save_every: int
    unit: str = "step"

    def done(self, step: int) -> bool:
        return step >= self.total

    def evaluates(self, step: int) -> bool:
        return step % self.evaluate_every == 0 or step == self.total

    def saves(self, step: int, evaluated: bool) -> bool:
        return step % self.save_every == 0 or step == self.total


@dataclass(frozen=True)
class Epochs(_ByStep):
    """`epochs` of `steps_per_epoch` steps, with a checkpoint after each.

    Attributes:
        evaluate_every: epochs between evaluations.
        save_every: steps between further checkpoints; None for none.
        period: what an epoch is called; runs counted in steps have none, but evaluations.
    """

    epochs: int
    steps_per_epoch: int
    evaluate_every: int = 1
    save_every: int | None = None
    period: str = "epoch"

    @property
    def total(self) -> int:
        return self.epochs * self.steps_per_epoch

    def done(self, step: int) -> bool:
        return step >= self.total

    def evaluates(self, step: int) -> bool:
        epoch, within = divmod(step, self.steps_per_epoch)
        return within == 0 and (epoch % self.evaluate_every == 0 or epoch == self.epochs)

    def saves(self, step: int, evaluated: bool) -> bool:
        return step % self.steps_per_epoch == 0 or bool(self.save_every and step % self.save_every == 0)

    def marks(self, step: int) -> dict[str, int]:
        return {self.period: step // self.steps_per_epoch}


class TrainingClock:
    """Seconds spent in `with clock:` blocks.

    On a CPU `used` counts the processor time of this process, all its threads, so that a busy machine or a pause costs
    no network anything; on a GPU it is wall time with the device's queue drained. `wall` always counts wall time.

    Args:
        device: of the network.
        used: seconds of a former part of the run.
        wall: the same by wall time.
    """

    def __init__(self, device: torch.device, used: float = 0.0, wall: float = 0.0):
        self.used = used
        self.wall = wall
        self._cuda = device.type == "cuda"

    def _now(self) -> tuple[float, float]:
        if self._cuda:
            torch.cuda.synchronize()
        wall = time.perf_counter()
        return (wall if self._cuda else time.process_time()), wall

    def __enter__(self) -> "TrainingClock":
        self._started = self._now()
        return self

    def __exit__(self, *exception) -> None:
        used, wall = self._now()
        self.used += used - self._started[0]
        self.wall += wall - self._started[1]


class Seconds:
    """So many seconds of training on a clock that runs in steps alone, evaluated and saved each `evaluate_every`.

    Args:
        seconds: of the run.
        evaluate_every: seconds between evaluations.
        clock: runs in steps alone.
    """

    unit = "s"

    def __init__(self, seconds: float, evaluate_every: float, clock: TrainingClock):
        self.seconds = seconds
        self.evaluate_every = evaluate_every
        self.clock = clock
        self.evaluated = 0

    @property
    def total(self) -> int:
        return round(self.seconds)

    def done(self, step: int) -> bool:
        return self.clock.used >= self.seconds

    def position(self, step: int) -> int:
        return round(self.clock.used)

    def evaluates(self, step: int) -> bool:
        due = min(self.seconds, self.evaluate_every * (self.evaluated + 1))
        # a last evaluation closer than half a period to the end would only repeat the end's
        due = self.seconds if self.seconds - due < self.evaluate_every / 2 else due
        is_due = self.clock.used >= due
        self.evaluated += is_due
        return is_due

    def saves(self, step: int, evaluated: bool) -> bool:
        return evaluated

    def marks(self, step: int) -> dict[str, int]:
        return {}

    def timed(self) -> AbstractContextManager:
        return self.clock

    def state(self) -> dict[str, Any]:
        return {"used_s": self.clock.used, "wall_s": self.clock.wall, "evaluated": self.evaluated}

    def load_state(self, state: dict[str, Any]) -> None:
        self.clock.used = state["used_s"]
        self.clock.wall = state["wall_s"]
        self.evaluated = state["evaluated"]
