"""`expunge models`, `rollback` and `reconcile`: the versions of models, and which one serves."""

import click
from rich.console import Console

from expunge_pipelines.cli.options import json_option
from expunge_pipelines.cli.oracles import format_training
from expunge_pipelines.cli.output import (
    MANY_COLUMNS,
    Result,
    create_table,
    format_grade,
    format_indices,
    print_result,
)


@click.command()
@click.argument("name", required=False)
@json_option
def models(name: str | None, as_json: bool) -> None:
    """List the versions of all models, or of NAME.

    Oracles are listed only if NAME is the model that holds them, such as digits-oracles.
    """
    from expunge_pipelines.jobs.models import list_models

    print_result(list_models(name), as_json, print_models)


@click.command("rollback")
@click.argument("name")
@json_option
def rollback_command(name: str, as_json: bool) -> None:
    """Make the previous champion of NAME champion again.

    It is refused if that version still knows a class that was erased since.
    """
    from expunge_pipelines.jobs.models import rollback

    print_result(rollback(name), as_json, print_rollback)


@click.command("reconcile")
@click.argument("name")
@json_option
def reconcile_command(name: str, as_json: bool) -> None:
    """Set MLflow's aliases of NAME as the ledger has them.

    Somebody may have moved them by hand.
    """
    from expunge_pipelines.jobs.models import reconcile

    print_result(reconcile(name), as_json, print_reconciliation)


def print_models(console: Console, value: Result) -> None:
    """Print the versions, and the seed and test accuracy of each if they are oracles."""
    seeded = any(row["seed"] is not None for row in value["models"])
    table = create_table(
        *("model", "version", "alias", "kind", "grade", "forgotten", "made from"),
        *(("seed", "test accuracy") if seeded else ()),
        "created",
    )
    for row in value["models"]:
        table.add_row(
            row["model"],
            str(row["version"]),
            ", ".join(row["aliases"]),
            row["kind"],
            format_grade(row["grade"]),
            format_indices(row["forgotten"]),
            row["parent"] or "",
            *(format_training(row) if seeded else ()),
            row["created"],
        )
    shown = table if value["models"] else "No model yet: expunge demo makes one."
    console.print(shown, width=max(console.width, MANY_COLUMNS))


def print_rollback(console: Console, value: Result) -> None:
    """Print which version serves again."""
    console.print(
        f"{value['model']}: version {value['version']} is champion again, "
        f"{value['replaced']} is previous"
    )


def print_reconciliation(console: Console, value: Result) -> None:
    """Print which aliases were put right, and which requests are settled by that."""
    console.print(f"{value['model']}: version {value['champion']} is champion")
    for row in value["restored"]:
        stood = f"stood on version {row['found']}" if row["found"] else "was not set"
        put = f"is back on {row['restored']}" if row["restored"] else "is taken away"
        console.print(f"Alias {row['alias']} {stood} and {put}")
    for request in value["fulfilled"]:
        console.print(f"Request {request} is fulfilled")
