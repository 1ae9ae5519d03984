"""The errors a user can act on."""

from collections.abc import Sequence
from typing import Any

from vheatir.backbone.errors import UserError

__all__ = ["UnwrittenError", "UserError"]


class UnwrittenError(UserError):
    """The work is done, but something beside its results could not be written.

    Args:
        message: for the user.
        results: what would have been returned.
    """

    def __init__(self, message: str, results: Sequence[Any]):
        super().__init__(message)
        self.results = list(results)
