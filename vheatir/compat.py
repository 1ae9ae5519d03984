"""Lets BasicSR 1.4.2 import beside today's torchvision. The only place that touches `sys.modules`' lookup."""

import importlib
import importlib.abc
import importlib.util
import sys

_ALIASES = {
    # removed from torchvision in 0.17; the same functions live on under the private name
    "torchvision.transforms.functional_tensor": "torchvision.transforms._functional_tensor",
}


class _AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Resolves a removed module name to the module that took its place, on first import only."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname in _ALIASES:
            return importlib.util.spec_from_loader(fullname, self)
        return None

    def create_module(self, spec):
        return importlib.import_module(_ALIASES[spec.name])

    def exec_module(self, module):
        pass  # already executed under its own name


def install() -> None:
    """Put the finder last in `sys.meta_path` (once), so that a real module always wins."""
    if not any(isinstance(finder, _AliasFinder) for finder in sys.meta_path):
        sys.meta_path.append(_AliasFinder())
