"""Output of the command: results on stdout, progress and warnings on stderr."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from expunge import environment
from expunge.verdicts import TONES

Result = Mapping[str, Any]

# How the news is printed that a grade is; `expunge.verdicts` says which.
TONE_STYLES = {"good": "green", "bad": "bold red", "doubt": "yellow"}

# Columns that a table may take. A line that a narrow terminal wraps can be read; a name that is cut
# short cannot.
WIDEST = 400
# The least width of a table with many columns: a long line can be copied, a cut id cannot.
MANY_COLUMNS = 160


def print_step(step: str) -> None:
    """Say on stderr that a step begins."""
    click.echo(f"  {step} ...", err=True)


def print_result(
    value: Result, as_json: bool, print_table: Callable[[Console, Result], None]
) -> None:
    """Print a result as one JSON document, or for people, as `print_table` does."""
    if as_json:
        click.echo(json.dumps(value, indent=2, allow_nan=False))  # NaN is no JSON
    else:
        print_table(Console(highlight=False, soft_wrap=True, width=WIDEST), value)


def warn_of_missing_page(result: Result) -> None:
    """Warn on stderr if the report could not be copied; the pipeline has succeeded all the same."""
    if result["report"] is None:
        folder = environment.home() / "exports"
        click.echo(
            f"expunge: warning: the report could not be copied to {folder} (check its permissions "
            f"and space); it is report.html of MLflow run {result['run_id']}",
            err=True,
        )


def create_table(*columns: str) -> Table:
    """Return a table without lines: the first column to the left, the others to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def format_percent(fraction: float) -> str:
    """Return a fraction such as 0.968 as "96.8 %"."""
    return f"{100 * fraction:.1f} %"


def format_change(before: float, after: float) -> str:
    """Return the difference of two fractions in percentage points, with its sign."""
    return f"{100 * (after - before):+.1f}"


def format_number(value: float | None) -> str:
    """Return a number with three decimals; nothing for None."""
    return "" if value is None else f"{value:.3f}"


def format_seconds(value: float | None) -> str:
    """Return seconds with one decimal; nothing for None."""
    return "" if value is None else f"{value:.1f}"


def format_grade(grade: str | None) -> Text:
    """Return a grade in its colour; nothing for None, and what is no grade as it is."""
    return Text(grade or "", style=TONE_STYLES.get(TONES.get(grade or "", ""), ""))


def format_indices(indices: Sequence[int]) -> str:
    """Return indices as "3, 5"."""
    return ", ".join(str(index) for index in indices)
