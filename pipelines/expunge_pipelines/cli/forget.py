"""`expunge forget`: classes of a model, at once."""

import click
from rich.console import Console

from expunge.policy import Policy
from expunge_pipelines.cli.exit_codes import find_gate_code
from expunge_pipelines.cli.options import (
    by_option,
    json_option,
    policy_options,
    rule_option,
    runner_option,
    split_list,
    until_option,
)
from expunge_pipelines.cli.output import (
    Result,
    format_indices,
    print_result,
    print_step,
    warn_of_missing_page,
)
from expunge_pipelines.cli.verdict_tables import (
    print_accuracies,
    print_attacks,
    print_checks,
    print_grade,
    print_remedy,
    print_rungs,
    print_verdict,
)


@click.command("forget")
@click.argument("name")
@click.option("--classes", "class_texts", required=True, help="Classes to forget: 3,5 or names.")
@rule_option
@until_option
@click.option(
    "--lambda1",
    type=float,
    help="The paper's lambda1, with --rule paper.  [default: chosen on the codes]",
)
@click.option(
    "--lambda2",
    type=float,
    help="The paper's lambda2, with --rule paper.  [default: chosen on the codes]",
)
@click.option(
    "--forget-data",
    default="",
    metavar="SOURCE",
    help="Images of the classes: they choose how deep rule replay goes, and nothing else.  "
    "[default: the version's own data]",
)
@click.option(
    "--base-version", type=int, help="The version to start from.  [default: the champion]"
)
@click.option("--dry-run", is_flag=True, help="Validate, and register nothing.")
@click.option("--reason", default="", help="Why. It is stored with the request that this files.")
@by_option
@policy_options
@runner_option
@json_option
def forget_command(
    name: str,
    class_texts: str,
    rule: str,
    until: str,
    lambda1: float | None,
    lambda2: float | None,
    forget_data: str,
    base_version: int | None,
    dry_run: bool,
    reason: str,
    by: str,
    policy: Policy,
    runner: str,
    as_json: bool,
) -> int:
    """Forget classes of model NAME in one shot.

    The result becomes champion if the gate passes. With --until, rules are tried in the order of
    their cost, and the first result that passes becomes champion.
    """
    from expunge_pipelines.jobs.forget import forget

    result = forget(
        name,
        split_list(class_texts),
        rule=rule,
        until=until,
        # One of the two alone is refused by the rule, which says how many it takes.
        lambdas=tuple(value for value in (lambda1, lambda2) if value is not None),
        forget_data=forget_data,
        policy=policy,
        base_version=base_version,
        dry_run=dry_run,
        reason=reason,
        by=by,
        on_start=print_step,
        runner=runner,
    )
    print_result(result, as_json, print_forgetting)
    warn_of_missing_page(result)
    return find_gate_code(result)


def print_forgetting(console: Console, value: Result) -> None:
    """Print what the forget pipeline measured, its grade, and where the whole report is."""
    console.print(
        f"\n[bold]{value['model']}[/bold] version {value['base_version']}: forget "
        f"{format_indices(value['classes'])} by rule {value['rule']}"
    )
    if value.get("rungs"):
        print_rungs(console, value)
    print_accuracies(console, value)
    print_checks(console, value)
    if value["attacks"]:
        print_attacks(console, value)
    print_verdict(console, value)
    print_grade(console, value)
    for entry in value["requests"]:
        console.print(f"Request {entry['id']} is {entry['state']}")
    if value["report"]:
        console.print(f"The whole report: {value['report']}", markup=False)
    if value.get("remedy"):
        print_remedy(console, value)
