"""The error a user can act on."""


class UserError(ValueError):
    """A problem in what the user gave: says what was expected, what came and what to do next.

    Commands print its message without a traceback and exit with status 2.
    """
