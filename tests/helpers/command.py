"""The command in this process, as tests call it."""

import contextlib
import io
import json
from typing import Any

import click

from expunge_pipelines.cli.main import cli, main


def command(*arguments: str) -> tuple[int, str, str]:
    """Run the command in this process: exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def list_commands() -> dict[str, click.Command]:
    """Every command by its name, imported."""
    context = click.Context(cli)
    commands = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in commands.items() if command is not None}


def document(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Run the command with `--json`, which must end with `code`, and parse all of stdout."""
    found, out, err = command(*arguments, "--json")
    assert found == code, err
    value: dict[str, Any] = json.loads(out)
    return value
