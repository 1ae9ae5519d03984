"""Gradients of layers by their formulas, where the native kernels cannot make them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vheatir.kernels.plain import are_plain


def by_formula(*grads: Tensor | None) -> bool:
    """Whether a backward needs formulas: it is differentiated again, or its gradients are batches of `vmap`, or traced.

    PyTorch gives such batches for `is_grads_batched`, as `torch.autograd.functional.jacobian(vectorize=True)` does.
    """
    return torch.is_grad_enabled() or not are_plain(*(grad for grad in grads if grad is not None))


def formula_gradients(formula: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor) -> tuple[Any, ...]:
    """Gradients, which can be differentiated again where that is asked for.

    Args:
        formula: takes the inputs.
        inputs: tensors, or None where the formula allows it.
        grad: gradient of the formula's result.

    Returns:
        One for each input, None for those that need none.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Of views: of the inputs themselves it would count what one depends on by way of another, as of shared weights.
        views = [one if one is None or not one.requires_grad else one.view_as(one) for one in inputs]
        wanted = [one for one in views if one is not None and one.requires_grad]
        if not wanted:
            return (None,) * len(inputs)
        found = iter(torch.autograd.grad(formula(*views), wanted, grad, create_graph=again))
    return tuple(next(found) if one is not None and one.requires_grad else None for one in views)
