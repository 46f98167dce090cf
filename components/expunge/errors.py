"""One error tree, and the file that carries an error from a step's process to the command.

Only `cli.main` catches an `ExpungeError`; each class carries the exit code of the command. Misuse
of `expunge.core` is a `ValueError`: a caller's bug, not a user's mistake.
"""

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# The variable that names the file. Only what runs a pipeline on this machine sets it.
ERROR_FILE = "EXPUNGE_ERROR_FILE"
FULL_DISK = "No space left on device"  # strerror of ENOSPC, which torch quotes in errors of its own


class ExpungeError(Exception):
    """Anything that ends a command with one clear line instead of a traceback."""

    exit_code = 3


class UserError(ExpungeError):
    """A request that cannot be carried out as it was made. Nothing was changed."""

    exit_code = 2


class DataError(UserError):
    """A data source that cannot be read; the message names the file."""


class RefusedError(ExpungeError):
    """A request that is well formed and that a rule of the operation forbids."""

    exit_code = 1


class OperationalError(ExpungeError):
    """A failure around the work: a store that is down, a full disk, a step that was killed."""

    exit_code = 3


# By name, since that is what a file can carry. A name that is not here belongs to somebody else's
# error: sqlalchemy and psycopg have a DataError and an OperationalError of their own.
KINDS = {
    kind.__name__: kind
    for kind in (ExpungeError, UserError, DataError, RefusedError, OperationalError)
}


@dataclass(frozen=True)
class ErrorRecord:
    """The error that ended a process: a name in `KINDS` or a dotted class name, and the message."""

    kind: str
    message: str

    @classmethod
    def from_error(cls, error: BaseException) -> Self:
        """Return the record of an error, or of an error behind it that says more to a user.

        The error of ours that is nearest to the end of the traceback says what to do. A full disk
        shows itself as anything: what writes a file wraps it in its own error.
        """
        behind: BaseException | None = error
        while behind is not None:
            if isinstance(behind, ExpungeError):
                named = (base.__name__ for base in type(behind).__mro__)
                return cls(next(name for name in named if name in KINDS), str(behind))
            if FULL_DISK in str(behind):
                return cls(OperationalError.__name__, say_full_disk())
            hidden = behind.__suppress_context__
            behind = behind.__cause__ or (None if hidden else behind.__context__)
        return cls(f"{type(error).__module__}.{type(error).__qualname__}", str(error))

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Return the record that `to_json` made a document of."""
        return cls(str(document["kind"]), str(document["message"]))

    def to_json(self) -> dict[str, str]:
        """Return the record as a document."""
        return asdict(self)

    def rebuild(self) -> ExpungeError | None:
        """Return the error as it was raised; None for one that is not ours."""
        return KINDS[self.kind](self.message) if self.kind in KINDS else None

    def __str__(self) -> str:
        first = self.message.strip().partition("\n")[0]  # as the last line of a traceback has it
        name = self.kind.rpartition(".")[2]
        return f"{name}: {first}" if first else name


def say_full_disk() -> str:
    """Return what a command says when there is no space left."""
    return f"{FULL_DISK.lower()}; free some and run it again"


def read_error(path: Path) -> ErrorRecord | None:
    """Return the error that a process left in a file; None where it left none."""
    with suppress(OSError, ValueError, KeyError):  # killed, or on a full disk in the middle of it
        return ErrorRecord.from_json(json.loads(path.read_text()))
    return None


def record_uncaught_error() -> None:
    """Let this process write the error that ends it into the file of `EXPUNGE_ERROR_FILE`, if set.

    The traceback is printed as well: people read it in the log of the run.
    """
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    print_error = sys.excepthook

    def write_and_print(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):  # an interrupt is no failure of the step
            with suppress(OSError):  # the printed text has to do
                Path(path).write_text(json.dumps(ErrorRecord.from_error(error).to_json()))
        print_error(kind, error, traceback)

    sys.excepthook = write_and_print
