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
    """Turn a `ValueError` or `FileNotFoundError` of the backbone, which states what the user gave, into a `UserError`.

    Args:
        where: file or option that goes before the message; "" for none.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error
