"""Floating-point operations of the operators, as `torch.utils.flop_counter` counts them: two for a multiply-accumulate.

By the definition, whatever path computes it: four products with cosine matrices, and half a product with the decay.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

_COUNTER = "torch.utils.flop_counter"
_waiting: list[Callable[[ModuleType], None]] = []  # what the counter is told when it is loaded


def transformed(shape: Sequence[int]) -> int:
    """Of one transform of (B, H, W, C) maps, there or back."""
    batch, height, width, channels = shape
    return 2 * batch * channels * height * width * (height + width)


def conducted(shape: Sequence[int], *args, out_shape=None, **kwargs) -> int:
    """Of the operator.

    Args:
        shape: of the maps, (B, H, W, C).
        *args: further shapes that PyTorch's counter hands on.
        out_shape: of the result.
        **kwargs: further arguments of the operator.
    """
    return 2 * transformed(shape) + torch.Size(shape).numel()


def _gradients(shape: Sequence[int], *args, out_shape=None, **kwargs) -> int:
    return conducted(shape) + 2 * torch.Size(shape).numel()  # and the product of two spectra, summed over the batch


def _one_transform(shape: Sequence[int], *args, out_shape=None, **kwargs) -> int:
    return transformed(shape)


def when_counting(tell: Callable[[ModuleType], None]) -> None:
    """Call a function with PyTorch's counter, now or as soon as it is loaded.

    It is not loaded for this: it takes triton along, and few processes count.
    """
    if _COUNTER in sys.modules:
        tell(sys.modules[_COUNTER])
        return
    _waiting.append(tell)
    if not any(isinstance(finder, _Listener) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Listener())


def register() -> None:
    """Tell PyTorch's counter what the operators cost, now or as soon as it is loaded."""
    when_counting(_register)


def _register(counter: ModuleType) -> None:
    operators = torch.ops.vheatir
    forms = [operators.conduct, operators.conduct_with_spectrum, operators.conduct_prepared]
    counter.register_flop_formula(forms)(conducted)
    counter.register_flop_formula(operators.conduct_gradients)(_gradients)
    counter.register_flop_formula(operators.cosine_transform)(_one_transform)


class _Listener:
    """Waits in `sys.meta_path` until the counter is loaded, which it leaves to the other finders."""

    def __init__(self):
        self._asks = False

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != _COUNTER or self._asks:
            return None
        self._asks = True  # the search comes here, too
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asks = False
        if spec is not None and spec.loader is not None:  # it may be asked for without a load
            spec.loader.exec_module = self._followed(spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def _followed(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def both(module: ModuleType, /) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            while _waiting:
                _waiting.pop()(module)

        return both
