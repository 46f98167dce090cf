"""Entry point of the command: the group, the exit codes of errors, and what a signal does.

Only this folder prints, and only this module ends the process.
"""

import json
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

import click

from expunge import __version__
from expunge.errors import ExpungeError, UserError
from expunge_pipelines.cli import COMMANDS

BUG = 3  # the exit code of an error that is none of ours
# A shell gives a process that a signal ended this exit code and the signal's number.
SIGNALLED = 128
INTERRUPTED = (
    "interrupted; `expunge models` shows what is champion, and a training that is started again "
    "goes on from its last epoch"
)


def normalize_option(name: str) -> str:
    """Return an option as the command has it: `mlflow run -P batch_size=32` writes underscores."""
    return name.replace("_", "-")


class LazyGroup(click.Group):
    """The commands of `COMMANDS`, each imported when it is asked for.

    `commands` has only those that were imported so far. `list_commands` and `get_command` know all.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table; click would sort them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of this name, or None if there is none."""
        if cmd_name not in self.commands and cmd_name in COMMANDS:
            self.add_command(pkgutil.resolve_name(COMMANDS[cmd_name]), cmd_name)
        return self.commands.get(cmd_name)


@click.group(
    cls=LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": normalize_option,
    },
)
@click.version_option(__version__, prog_name="expunge")
def cli() -> None:
    """Train an image classifier so that it can forget a class, and forget it in one shot.

    The gate is a table of checks. A version that passes it becomes champion, the one that serves.
    The ledger is the database of requests, champions and events.

    EXPUNGE_HOME is the folder of all state, .expunge by default. MLFLOW_TRACKING_URI names a shared
    MLflow server, if there is one.

    Exit codes: 0 done, 1 refused (by the gate, for example), 2 a mistake in the request, 3 a
    failure or a measurement that cannot be trusted.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; every error becomes one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return cli.main(words, prog_name="expunge", standalone_mode=False) or 0
    except ExpungeError as error:
        return _report_error(str(error), error.exit_code, words)
    except click.ClickException as error:
        return _report_error(error.format_message(), UserError.exit_code, words)
    except (KeyboardInterrupt, click.Abort) as stop:
        # What follows a run on a cluster says in `said` that the run goes on.
        message = getattr(stop.__cause__ or stop, "said", INTERRUPTED)
        return _report_error(message, SIGNALLED + _find_signal(stop), words)
    except Exception as error:  # the last place that can turn a bug into one line
        if os.environ.get("EXPUNGE_DEBUG"):
            traceback.print_exc()
        kind = type(error).__name__
        return _report_error(f"{kind}: {error} (EXPUNGE_DEBUG=1 shows where)", BUG, words)


def _report_error(message: str, code: int, words: Sequence[str]) -> int:
    """Print an error and return its exit code."""
    line = " ".join(message.split())
    click.echo(f"expunge: {line}", err=True)
    # Not click's option: the error may be that the words could not be parsed.
    if "--json" in words:
        click.echo(json.dumps({"error": line, "exit_code": code}))
    return code


def _find_signal(stop: BaseException) -> int:
    """Return the number of the signal that interrupted the command."""
    cause = stop.__cause__ or stop  # click raises an `Abort` from a KeyboardInterrupt
    return int(cause.args[0]) if cause.args else signal.SIGINT


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def run() -> None:
    """Run the command as the console script does, and end the process.

    A SIGTERM ends it as Ctrl-C does: its steps and its MLflow run end with it.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
