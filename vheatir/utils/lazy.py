"""Packages whose names load on first use, and which are called as the function of the same name.

`vheatir.restore` is a package with modules of its own and, for `vheatir.restore("in.jpg", "out.jpg", task="denoise")`,
the function of the command `vheatir restore`.
"""

import importlib
import inspect
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A module that passes calls on to its member of the module's own name."""

    _lazy: Mapping[str, str]  # public name -> the module that defines it

    def __getattr__(self, name: str) -> Any:
        if name not in self._lazy:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(self._lazy[name]), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._lazy})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())

    def _function(self) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])


def callable_package(module: str, lazy: Mapping[str, str] | None = None) -> None:
    """Make a module callable; for its own use, while it is imported.

    Args:
        module: its `__name__`; the last part is also the name of the function that calls go to.
        lazy: public names that are imported on first use, each with the module that defines it.
    """
    found = sys.modules[module]
    found._lazy = dict(lazy or {})  # type: ignore[attr-defined]
    found.__class__ = CallablePackage
