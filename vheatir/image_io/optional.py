"""Libraries that only some kinds of files need, imported when such a file comes."""

import importlib
from types import ModuleType

from vheatir.errors import UserError


def library(module: str, extra: str, name: str) -> ModuleType:
    """An optional library; a UserError that says what to install where it is missing.

    Args:
        module: its name in an import statement.
        extra: the extra of this package that brings it.
        name: the image file that needs it, which begins the message.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # it is there, and lacks something itself
            raise
        raise UserError(
            f"{name}: this kind of file needs {module}, which is not installed; run `pip install 'vheatir[{extra}]'`"
        ) from None
