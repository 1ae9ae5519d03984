"""Python files of the user's own, given by `--plugin`."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from vheatir.errors import UserError


def import_plugin(path: str | Path) -> ModuleType:
    """Run a Python file once, as the module of its name.

    Its folder goes into `sys.path`, so that processes that are started anew find it too.

    Raises:
        UserError: no such file, a name that another module has, or an error in it.
    """
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--plugin: expected a Python file, got {path}")
    sys.path.insert(0, str(path.resolve().parent))
    try:
        module = importlib.import_module(path.stem)
    except Exception as error:
        raise UserError(f"--plugin {path}: {type(error).__name__}: {error}") from error
    if Path(getattr(module, "__file__", None) or "").resolve() != path.resolve():
        raise UserError(f"--plugin {path}: another module is named {path.stem!r}; rename the file")
    return module
