"""Gradients of layers by their formulas, for the passes of backward that are differentiated again."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def formula_gradients(formula: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor) -> tuple[Any, ...]:
    """Gradients that can be differentiated again.

    Args:
        formula: takes the inputs.
        inputs: tensors, or None where the formula allows it.
        grad: gradient of the formula's result.

    Returns:
        One for each input, None for those that need none.
    """
    wanted = [one for one in inputs if one is not None and one.requires_grad]
    if not wanted:
        return (None,) * len(inputs)
    found = iter(torch.autograd.grad(formula(*inputs), wanted, grad, create_graph=True))
    return tuple(next(found) if one is not None and one.requires_grad else None for one in inputs)
