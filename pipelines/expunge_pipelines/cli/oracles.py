"""`expunge oracles`: models retrained without classes, for a forget to be compared with."""

import click
from rich.console import Console

from expunge.oracles import NEEDED
from expunge_pipelines.cli.options import json_option, runner_option, split_list
from expunge_pipelines.cli.output import (
    Result,
    create_table,
    format_indices,
    format_percent,
    print_result,
    print_step,
)


@click.command()
@click.argument("name")
@click.option("--classes", "class_texts", required=True, help="Classes to leave out: 3,5 or names.")
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    default=NEEDED,
    show_default=True,
    help=f"How many oracles. A forget needs {NEEDED} or more to be compared.",
)
@click.option(
    "--base-version",
    type=int,
    help="The version whose recipe and data are used.  [default: the champion]",
)
@click.option(
    "--weights", default="", help="The file of pretrained weights that the version started from."
)
@runner_option
@json_option
def oracles(
    name: str,
    class_texts: str,
    seeds: int,
    base_version: int | None,
    weights: str,
    runner: str,
    as_json: bool,
) -> None:
    """Retrain model NAME from scratch, without classes.

    The retrained models are oracles: a forget of these classes is then compared with them.
    """
    from expunge_pipelines.jobs.oracles import make_oracles

    result = make_oracles(
        name,
        split_list(class_texts),
        seeds=seeds,
        base_version=base_version,
        weights=weights,
        on_start=print_step,
        runner=runner,
    )
    print_result(result, as_json, print_oracles)


def print_oracles(console: Console, value: Result) -> None:
    """Print which oracles there are now, and the command that compares with them."""
    console.print(
        f"\n[bold]{value['model']}[/bold]: retrained without {format_indices(value['without'])}, "
        f"as version {value['base_version']} was trained"
    )
    table = create_table("seed", "version", "test accuracy", "")
    for row in value["oracles"]:
        seed, accuracy = format_training(row)
        table.add_row(seed, str(row["version"]), accuracy, "was there" if row["reused"] else "new")
    console.print(table)
    found = len(value["oracles"])
    if value["serves"]:
        console.print(f"expunge forget finds them by itself: expunge forget {value['request']}")
    elif value["request"]:
        console.print(f"To compare with them: expunge forget {value['request']} --dry-run")
    more = f"; {NEEDED - found} more are needed." if found < NEEDED else "."
    console.print(f"A forget is compared with oracles if there are {NEEDED} or more{more}")


def format_training(row: Result) -> tuple[str, str]:
    """Return an oracle's seed and test accuracy; nothing for what is not known."""
    seed, accuracy = row["seed"], row["test_accuracy"]
    return (
        "" if seed is None else str(seed),
        "" if accuracy is None else format_percent(accuracy),
    )
