"""`expunge demo`: train, forget and promote on the embedded digits."""

import click
from rich.console import Console

from expunge_pipelines.cli.exit_codes import find_gate_code
from expunge_pipelines.cli.forget import print_forgetting
from expunge_pipelines.cli.options import json_option, runner_option
from expunge_pipelines.cli.output import (
    Result,
    create_table,
    format_seconds,
    print_result,
    print_step,
    warn_of_missing_page,
)


@click.command()
@runner_option
@json_option
def demo(runner: str, as_json: bool) -> int:
    """Train on the embedded digits, then forget a class.

    Both results are validated, and what passes the gate becomes champion.
    """
    from expunge_pipelines.jobs.demo import run_demo

    result = run_demo(on_start=print_step, runner=runner)
    print_result(result, as_json, print_demo)
    warn_of_missing_page(result["forget"])
    return find_gate_code(result["forget"])


def print_demo(console: Console, value: Result) -> None:
    """Print the forget's tables, where the time went, and what to look at next."""
    print_forgetting(console, value["forget"])
    _print_times(console, value)
    name = value["model"]
    console.print("\nWhat to look at next")
    if value["onnx"]:
        console.print(f"  the unlearned model as ONNX    {value['onnx']}", markup=False)
    console.print(f"  its versions and their grades  expunge models {name}")
    console.print("  runs, checks and artifacts     expunge ui")
    console.print(f"  forget two more                expunge forget {name} --classes 5,8")
    console.print(
        f"  serve it                       mlflow models serve -m models:/{name}@champion"
    )


def _print_times(console: Console, value: Result) -> None:
    table = create_table("step", "train", "forget")
    jobs = (value["train"], value["forget"])
    # A step of both pipelines has one row, where it came first.
    for step in dict.fromkeys(step for job in jobs for step in job["seconds"]):
        table.add_row(step, *(format_seconds(job["seconds"].get(step)) for job in jobs))
    table.add_section()
    table.add_row("all", *(format_seconds(job["total_seconds"]) for job in jobs))
    console.print("\nWhere the time went, in seconds")
    console.print(table)
