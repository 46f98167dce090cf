"""`expunge run-requests`: the queue of requests, worked through."""

import click
from rich.console import Console

from expunge.policy import Policy
from expunge.states import ATTEMPTS
from expunge_pipelines.cli.exit_codes import find_queue_code
from expunge_pipelines.cli.forget import print_forgetting
from expunge_pipelines.cli.options import (
    json_option,
    policy_options,
    rule_option,
    runner_option,
    until_option,
)
from expunge_pipelines.cli.output import (
    Result,
    create_table,
    format_grade,
    format_indices,
    print_result,
    print_step,
)


@click.command("run-requests")
@click.argument("name", required=False)
@rule_option
@until_option
@click.option(
    "--attempts",
    type=click.IntRange(1, 1000),
    default=ATTEMPTS,
    show_default=True,
    help="Failed runs after which a request is parked, and a person has to look.",
)
@policy_options
@runner_option
@json_option
def run_requests_command(
    name: str | None,
    rule: str,
    until: str,
    attempts: int,
    policy: Policy,
    runner: str,
    as_json: bool,
) -> int:
    """Process the pending requests of NAME, or of all models.

    Let cron or a timer call this.
    """
    from expunge_pipelines.jobs.queue import run_requests

    result = run_requests(
        name,
        rule=rule,
        until=until,
        policy=policy,
        attempts=attempts,
        on_start=print_step,
        runner=runner,
    )
    print_result(result, as_json, print_queue)
    return find_queue_code(result)


def print_queue(console: Console, value: Result) -> None:
    """Print what each run measured, and what became of the requests."""
    for run in value["runs"]:
        if "error" not in run:  # an error is said on stderr, beside the exit code that it gives
            print_forgetting(console, run)
    if not value["requests"]:
        console.print("No request is pending.")
        return
    table = create_table("request", "model", "classes", "state", "version", "grade")
    for entry in value["requests"]:
        table.add_row(
            entry["id"],
            entry["model"],
            format_indices(entry["classes"]),
            entry["state"],
            str(entry["version"] or ""),
            format_grade(entry["grade"]),
        )
    console.print()
    console.print(table)
