"""What the training loop writes into a run's folder: curves, checkpoints, weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vheatir.runs.checkpoints import save_checkpoint
from vheatir.runs.folder import RunFolder, logger
from vheatir.utils.files import atomic_open

WriteWeights = Callable[[Path, str, nn.Module, int], None]


class RunLogger:
    """The loop's `LoopLogger` of a run.

    Args:
        run: its folder, open.
        keep: newest checkpoints that are kept.
        write_weights: called with the folder of the weights, their name, the network and the step.
    """

    def __init__(self, run: RunFolder, keep: int, write_weights: WriteWeights):
        self.run = run
        self.keep = keep
        self.write_weights = write_weights

    def log_scalars(self, iteration: int, scalars: dict[str, float]) -> None:
        """Add a point to the curves."""
        self.run.log_scalars(iteration, scalars)

    def save(self, iteration: int, state: dict[str, Any], best: int | None) -> None:
        """Write a checkpoint; that of the step `best` is kept beside the newest ones.

        Args:
            iteration: steps done.
            state: of the loop.
            best: step of the best evaluation so far; None before the first.
        """
        save_checkpoint(self.run.checkpoints, iteration, state | {"points": self.run.points}, self.keep, best)

    def save_weights(self, name: str, network: nn.Module, step: int) -> None:
        """Write the weights of a network.

        Args:
            name: of the file, without suffix.
            network: whose weights they are.
            step: steps done.
        """
        self.run.models.mkdir(exist_ok=True)
        self.write_weights(self.run.models, name, network, step)

    def save_failure(self, name: str, state: dict[str, Any]) -> None:
        """Write what a step that failed was given."""
        with atomic_open(self.run.folder / name) as file:
            torch.save(state, file)

    def info(self, text: str) -> None:
        """A line of the log."""
        logger.info("%s", text)
