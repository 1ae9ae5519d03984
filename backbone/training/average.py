"""The exponential moving average of a network's weights, which is validated and published in place of the last ones."""

import copy
from typing import Literal

import torch
from torch import nn

Young = Literal["ratio", "power"]


class Average:
    """An average of a network's weights over the steps of its training.

    A young average follows quickly: after 100 steps, a decay of 0.999 would still be the untrained start.

    Args:
        network: what is averaged.
        decay: share of the average that each step keeps, once it is not young any more; below 1.
        young: how the decay begins in step n, counted from 1. "ratio": (1 + n) / (10 + n), as TensorFlow's
            ExponentialMovingAverage; "power": 1 - n^(-2/3), as timm's ModelEmaV3 with warm-up; None: at once, after a
            first step that copies. Restoration takes the first, the recipes of backbones state one of the others, and
            results on record depend on it.
        average_buffers: average buffers of floating point too, as the published recipes of backbones do; without it
            they are copied, so that running statistics are those of the network. Whole numbers are always copied.
        network_average: the network to keep the average in; by default a copy of `network`.
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float,
        *,
        young: Young | None = "ratio",
        average_buffers: bool = False,
        network_average: nn.Module | None = None,
    ):
        self.decay = decay
        self.young = young
        self.average_buffers = average_buffers
        self.network = copy.deepcopy(network) if network_average is None else network_average
        self.network.eval()

    def decay_at(self, step: int) -> float:
        """The decay in a step, counted from 1."""
        if self.young == "ratio":
            return min(self.decay, (1 + step) / (10 + step))
        if step <= 1:
            return 0.0
        return min(self.decay, 1 - step ** (-2 / 3)) if self.young == "power" else self.decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take the weights after a step, counted from 1, into the average."""
        kept = list(self.network.parameters())
        new = list(network.parameters())
        copied = []
        for own, other in zip(self.network.buffers(), network.buffers(), strict=True):
            if self.average_buffers and own.is_floating_point():
                kept.append(own)
                new.append(other)
            else:
                copied.append((own, other))
        torch._foreach_lerp_([value.data for value in kept], [value.data for value in new], 1 - self.decay_at(step))
        for own, other in copied:
            own.copy_(other)
