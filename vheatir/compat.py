"""Lets BasicSR 1.4.2 import beside today's torchvision, and says what to do where BasicSR or matplotlib is missing.

It also keeps the documented names of modules that were moved. The only module that changes how imports are resolved.
`import vheatir` puts the aliases in force, in spawned loader workers too, because unpickling anything of this package
imports it.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable

_ALIASES = {
    # removed from torchvision in 0.17; the same functions live on under the private name
    "torchvision.transforms.functional_tensor": "torchvision.transforms._functional_tensor",
    # documented here
    "vheatir.tiling": "vheatir.restore.tiling",
}


class _AliasLoader(importlib.abc.Loader):
    """Gives a removed module name the module that took its place."""

    def create_module(self, spec):
        module = importlib.import_module(_ALIASES[spec.name])
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module):
        """Leave the module as it is: it was executed under its own name, whose spec the import system has replaced."""
        module.__spec__ = self._own_spec


class _AliasFinder(importlib.abc.MetaPathFinder):
    """Resolves the removed names, on first import only."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname in _ALIASES:
            return importlib.util.spec_from_loader(fullname, _AliasLoader())
        return None


def install() -> None:
    """Put the finder last in `sys.meta_path` (once), so that a real module always wins."""
    if not any(isinstance(finder, _AliasFinder) for finder in sys.meta_path):
        sys.meta_path.append(_AliasFinder())


def require_basicsr() -> None:
    """Import BasicSR.

    Raises:
        UserError: BasicSR is not installed or does not import; says what to do.
    """
    from vheatir.errors import UserError  # this module is imported before the package finds backbone/

    if importlib.util.find_spec("basicsr") is None:
        how = (
            "run `make setup` in a clone, or `pip install --no-build-isolation basicsr==1.4.2` after torch, torchvision"
        )
        if sys.version_info >= (3, 13):
            how = "it cannot be built on Python 3.13: use 3.11 or 3.12, or a wheel built there (docs/contributing.md)"
        raise UserError(f"training needs BasicSR 1.4.2, which is not installed; {how}")
    try:
        importlib.import_module("basicsr")
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        # beside ImportError: what a torchvision of another torch, or a library that dropped a name, raises
        raise UserError(
            f"training needs BasicSR 1.4.2, which is installed but does not import ({error}); "
            "run `make setup` in a clone for an environment in which it does"
        ) from error


def basicsr_niqe() -> Callable[..., float]:
    """BasicSR's `calculate_niqe(img, crop_border, input_order)`: BGR or gray in 0-255.

    Raises:
        UserError: BasicSR is missing; says what to install.
    """
    require_basicsr()
    from basicsr.metrics.niqe import calculate_niqe

    return calculate_niqe


def require_matplotlib() -> type:
    """matplotlib's Figure, which draws without a screen.

    Raises:
        UserError: matplotlib is not installed; says what to do.
    """
    from vheatir.errors import UserError

    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"figures need matplotlib ({error}); `pip install matplotlib`") from error
    return Figure
