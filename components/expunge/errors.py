"""One error tree. Only `cli.main` catches it; each class carries the exit code of the command.

Misuse of `expunge.core` is a `ValueError`: a caller's bug, not a user's mistake.
"""


class ExpungeError(Exception):
    """Anything that ends a command with one clear line instead of a traceback."""

    exit_code = 3


class UserError(ExpungeError):
    """A request that cannot be carried out as it was made. Nothing was changed."""

    exit_code = 2


class DataError(UserError):
    """A data source that cannot be read; the message names the file."""


class RefusedError(ExpungeError):
    """A considered no: the request is well formed, and a rule of the operation forbids it."""

    exit_code = 1


class OperationalError(ExpungeError):
    """A failure around the work: a store that is down, a full disk, a step that was killed."""

    exit_code = 3
