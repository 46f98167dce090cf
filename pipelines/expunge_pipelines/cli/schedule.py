"""`expunge schedule`: the forget pipeline on a Kubeflow cluster, at fixed times."""

import click
from rich.console import Console
from rich.text import Text

from expunge.errors import UserError
from expunge.policy import Policy
from expunge_pipelines.cli.options import (
    cluster_option,
    json_option,
    policy_options,
    rule_option,
    until_option,
)
from expunge_pipelines.cli.output import MANY_COLUMNS, Result, create_table, print_result
from expunge_pipelines.kubeflow.settings import ClusterSettings

COLUMNS = ("model", "cron", "enabled", "version", "parameters", "created_at", "id")


@click.command()
@click.argument("name", required=False)
@click.option(
    "--cron",
    metavar="EXPRESSION",
    help='Six fields, seconds first: "0 0 2 * * *" is each night at two.',
)
@click.option("--remove", is_flag=True, help="Remove the schedule of NAME.")
@rule_option
@until_option
@policy_options
@cluster_option
@json_option
def schedule(
    name: str | None,
    cron: str | None,
    remove: bool,
    rule: str,
    until: str,
    policy: Policy,
    settings: ClusterSettings,
    as_json: bool,
) -> None:
    """Process requests at fixed times on a Kubeflow cluster.

    Each schedule is for one model, NAME.

    Without --cron and --remove, list the schedules of NAME, or all schedules. EXPUNGE_KFP_HOST
    names the cluster's Kubeflow Pipelines.
    """
    _check_options(name, cron, remove)
    from expunge_pipelines.kubeflow import schedules

    if name and cron is not None:
        from expunge_pipelines.jobs.parameters import forget_parameters

        parameters = forget_parameters(rule, policy, until=until)
        created = schedules.create_schedule(name, cron, parameters, settings)
        print_result(created, as_json, _print_created)
    elif name and remove:
        print_result(schedules.remove_schedule(name), as_json, _print_removed)
    else:
        print_result({"schedules": schedules.list_schedules(name)}, as_json, _print_schedules)


def _check_options(name: str | None, cron: str | None, remove: bool) -> None:
    if cron is not None and remove:
        raise UserError("--cron and --remove are both given; choose one of them")
    if name is None and (cron is not None or remove):
        option = "--remove" if remove else "--cron"
        raise UserError(f"{option} is given without a model; name the one that it is for")
    if name is not None:
        from expunge.oracles import check_model_name

        check_model_name(name, oracles=True)


def _print_created(console: Console, value: Result) -> None:
    console.print(
        f"{value['model']}: {'scheduled' if value['created'] else 'was scheduled already'} at "
        f"{value['cron']}, version {value['version']} of the pipeline",
        markup=False,
    )
    if value["replaced"]:
        console.print(f"Replaced: {', '.join(value['replaced'])}", markup=False)


def _print_removed(console: Console, value: Result) -> None:
    console.print(f"{value['model']}: removed {', '.join(value['removed'])}", markup=False)


def _print_schedules(console: Console, value: Result) -> None:
    if not value["schedules"]:
        console.print('No schedule yet: expunge schedule NAME --cron "0 0 2 * * *" makes one.')
        return
    table = create_table(*COLUMNS)
    for row in value["schedules"]:
        pairs = (f"{key}={value}" for key, value in row["parameters"].items())
        cells = row | {"enabled": "yes" if row["enabled"] else "no", "parameters": ", ".join(pairs)}
        table.add_row(*(Text(str(cells[column] or "")) for column in COLUMNS))
    console.print(table, width=max(console.width, MANY_COLUMNS))
