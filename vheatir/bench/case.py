"""One thing that `vheatir bench` measures, and values with gradients to check it by."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

BASELINE = "published"


@dataclass
class Case:
    """One thing measured: `candidates` by name, each returning tensors by name, which `expected` holds in float64.

    Attributes:
        baseline: the candidate whose time the others' is compared with.
        slack: how many times the tolerance of one operator is allowed, for networks of many layers.
        flops: floating-point operations of a call, by candidate; for the operator those of four dense products.
        traffic: bytes that a call must at least read and write; 0 where nothing is said.
    """

    name: str
    dtype: str
    device: torch.device
    candidates: dict[str, Callable[[], dict[str, Tensor]]]
    expected: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)
    baseline: str = BASELINE
    slack: float = 1.0
    flops: dict[str, float] = field(default_factory=dict)
    traffic: float = 0.0


def gradients(function: Callable, x: Tensor, decay: Any, cotangent: Tensor) -> dict[str, Tensor]:
    """y and the gradients of <y, cotangent>; the decay's where it asks for one.

    Args:
        function: of x and the decay.
        x: (B, H, W, C).
        decay: a tensor, or a prepared decay.
        cotangent: of the shape of y.
    """
    wanted = {"dx": x} | ({"ddecay": decay} if getattr(decay, "requires_grad", False) else {})
    y = function(x, decay)
    return {"y": y.detach()} | dict(zip(wanted, torch.autograd.grad(y, list(wanted.values()), cotangent), strict=True))


def inference(function: Callable, *inputs: Any) -> dict[str, Tensor]:
    """The value of a function without gradients."""
    with torch.inference_mode():
        return {"y": function(*inputs)}
