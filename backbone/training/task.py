"""What the training loop asks of a kind of training, and of the place that a run is written to."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


def to_device(batch: Any, device: torch.device) -> Any:
    """Tensors in tuples, lists and tables moved to a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


class Task(ABC):
    """What a kind of training gives to the loop: batches, their loss, an evaluation, and what to save.

    Attributes:
        batches_per_step: batches of the loader for one update of the weights.
        total: name of the sum of all losses in the log; None leaves it out.
        weights_key: option that names weights to start from.
        best: name of the score that decides which weights are best; `lower_is_better` for losses.
        left_out: whether the run goes on behind a period of the data of which too little was left for a step, so that
            none led to its end; see `resume_at`.
        saves_memory: what of the options takes less memory, for the message where that ran out.
    """

    batches_per_step = 1
    total: str | None = "loss"
    weights_key = ""
    best: str = ""
    lower_is_better = False
    left_out = False
    saves_memory = "smaller batches or images need less"

    @abstractmethod
    def batches(self, step: int) -> Iterable:
        """This process's batches from after `step` steps on."""

    def parts(self, batch: Any, step: int, device: torch.device) -> Sequence[Any]:
        """A batch of step `step` (counted from 1) on the device, in what one forward pass takes each.

        Args:
            batch: as the loader gives it.
            step: counted from 1.
            device: of the network.
        """
        return [to_device(batch, device)]

    @abstractmethod
    def loss(self, network: nn.Module, part: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a part, and further scalars to log. Called in autocast."""

    @abstractmethod
    def set_lr(self, step: int) -> None:
        """Set the learning rates of a step, counted from 0."""

    @abstractmethod
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Scores of a network by name, the same in every process; empty where there is nothing to evaluate."""

    def networks(self, network: nn.Module, average: nn.Module | None) -> dict[str, nn.Module]:
        """Networks that are evaluated and saved, by what their weights' names end in."""
        return {"": network} if average is None else {"": network, "_ema": average}

    def named(self, ending: str, scores: Mapping[str, float]) -> dict[str, float]:
        """Scores under the names that curves have."""
        return {f"{'ema' if ending else 'val'}/{name}": value for name, value in scores.items()}

    def decides(self, scores: Mapping[str, float]) -> float | None:
        """What of the scores decides which weights are best; None where none are."""
        return scores[self.best] if self.best else None

    def report(self, where: str, scores: Mapping[str, float]) -> str:
        """The scores of all networks for the log."""
        return f"{where}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items())

    def last_scores(self) -> dict[str, float]:
        """Further scalars for the log, of the last batch; computed when they are logged."""
        return {}

    def culprits(self, batches: Sequence[Any]) -> str:
        """What the message on a loss that is not finite says of the batches, those of all processes."""
        return ""

    def position(self, step: int) -> dict[str, Any]:
        """How far the run has come in its data after `step` steps, whatever the number of processes."""
        return {}

    def resume_at(self, step: int, position: Mapping[str, Any]) -> int:
        """Go on from a position; the number of steps done, which differs where a step takes other batches now."""
        return step

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides weights and place."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        if state:
            raise ValueError(f"it is that of another kind of run, with {', '.join(state)}")


class LoopLogger(Protocol):
    """Where a run is written to; the first process has one."""

    def log_scalars(self, iteration: int, scalars: dict[str, float]) -> None: ...

    def save(self, iteration: int, state: dict[str, Any], best: int | None) -> None:
        """Write a checkpoint; that of the step `best` is kept beside the newest ones.

        Args:
            iteration: steps done.
            state: of the loop.
            best: step of the best evaluation so far; None before the first.
        """

    def save_weights(self, name: str, network: nn.Module, step: int) -> None: ...

    def save_failure(self, name: str, state: dict[str, Any]) -> None:
        """Write what a step that failed was given."""

    def info(self, text: str) -> None: ...
