"""Errors that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A problem in what the user gave: says what was expected, what came and what to do next.

    Commands print its message without a traceback and exit with status 2.
    """


class DataError(ValueError):
    """A file of a data set that cannot be used; names it."""


@contextmanager
def as_user_error(where: str = "") -> Iterator[None]:
    """Turn an error of the backbone that states what the user gave into a `UserError`.

    These are ValueError and FileNotFoundError, and an OSError that names its file, such as one that may not be read.

    Args:
        where: file or option that goes before the message; "" for none.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror or text}"  # the refusal of a server has a text alone
        elif isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # of a stream, or of the system
        raise UserError(f"{where}: {text}" if where else text) from error
