"""`expunge submit ...`: runs of the pipelines on a Kubeflow cluster.

`kfp_run` is a run's document, as the server and `kubeflow.runs` describe it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from expunge.config import TrainConfig
from expunge.errors import OperationalError, RefusedError, UserError
from expunge.policy import Policy
from expunge_pipelines.cli.options import (
    Command,
    by_option,
    cluster_option,
    json_option,
    policy_options,
    recipe_options,
    rule_option,
    split_list,
    until_option,
)
from expunge_pipelines.cli.output import Result, create_table, print_result
from expunge_pipelines.cli.run_progress import RunProgress
from expunge_pipelines.kubeflow.settings import ClusterSettings


@dataclass(frozen=True)
class Wait:
    """How long a run is followed: not at all, to its end, or for `timeout` seconds at most."""

    follow: bool = False
    timeout: float | None = None


def wait_options(command: Command) -> Command:
    """Add `--wait` and `--timeout`; the command gets them as `wait`, one `Wait`."""

    @click.option("--wait", "follow", is_flag=True, help="Follow the run until it ends.")
    @click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Follow no longer than this. The run goes on.  [default: until it ends]",
    )
    @wraps(command)
    def call_command(follow: bool, timeout: float | None, **options: Any) -> Any:
        # A build that believes it waits, and does not, would take a started run for a good one.
        if timeout is not None and not follow:
            raise UserError("--timeout is given without --wait; add that, or leave it out")
        return command(wait=Wait(follow, timeout), **options)

    return call_command


@click.group()
def submit() -> None:
    """Run a pipeline on a Kubeflow cluster, and follow it.

    EXPUNGE_KFP_HOST names the cluster's Kubeflow Pipelines. With --wait the exit code is that of
    the run: 0 if it succeeded, 1 if the gate rejected, 3 if it failed or was cancelled.
    """


@submit.command()
@click.argument("name")
@recipe_options
@cluster_option
@wait_options
@json_option
def train(
    name: str,
    source: str,
    image_size: int,
    without: str,
    chance_factor: float,
    config: TrainConfig,
    settings: ClusterSettings,
    wait: Wait,
    as_json: bool,
) -> int:
    """Train a new version of model NAME on the cluster.

    It is what `expunge train` does on this machine. --without takes indices, not names. The run
    itself leaves erased classes out. A path of --data folder:PATH, --weights or --init-from is one
    on the volume that the settings name under data.
    """
    from expunge_pipelines.kubeflow.submit import submit_train

    started = submit_train(
        name,
        source,
        config,
        settings,
        image_size=image_size,
        chance_factor=chance_factor,
        without=split_list(without),
    )
    return _report_run(started, wait, as_json)


@submit.command()
@click.argument("name")
@click.option(
    "--classes",
    "class_texts",
    default="",
    help="File a request for these classes, and run it alone: 3,5 or names.",
)
@click.option("--reason", default="", help="Why. It is stored with the request that this files.")
@by_option
@rule_option
@until_option
@policy_options
@cluster_option
@wait_options
@json_option
def forget(
    name: str,
    class_texts: str,
    reason: str,
    by: str,
    rule: str,
    until: str,
    policy: Policy,
    settings: ClusterSettings,
    wait: Wait,
    as_json: bool,
) -> int:
    """Process the pending requests of model NAME on the cluster.

    With --classes, a request for these is filed first and runs alone. EXPUNGE_DATABASE_URL and
    MLFLOW_TRACKING_URI then have to name the ledger and the registry that the cluster's steps use.
    """
    from expunge_pipelines.kubeflow.submit import submit_forget

    started = submit_forget(
        name,
        rule,
        policy,
        settings,
        until=until,
        classes=split_list(class_texts),
        reason=reason,
        by=by,
    )
    return _report_run(started, wait, as_json)


@submit.command()
@click.argument("run")
@wait_options
@json_option
def status(run: str, wait: Wait, as_json: bool) -> int:
    """Show the state of RUN, an id or a link. With --wait, follow it until it ends."""
    from expunge_pipelines.kubeflow.submit import run_status

    kfp_run = _follow_run(run, wait.timeout) if wait.follow else run_status(run)
    print_result(kfp_run, as_json, _print_state)
    return _find_exit_code(kfp_run)


def _report_run(started: Mapping[str, Any], wait: Wait, as_json: bool) -> int:
    """Print a run that has just started, at its end if it is waited for; return the exit code."""
    if not wait.follow:  # 0 says no more than that the run has started
        print_result(started, as_json, _print_start)
        return 0
    # Before the first look: who interrupts this has to find the run again.
    click.echo(f"  run {started['run']}: {started['link']}", err=True)
    kfp_run = {**started, **_follow_run(started["run"], wait.timeout)}
    print_result(kfp_run, as_json, _print_state)
    return _find_exit_code(kfp_run)


def _follow_run(run: str, timeout: float | None) -> dict[str, Any]:
    from expunge_pipelines.kubeflow.submit import follow_run

    with RunProgress() as progress:
        return follow_run(run, timeout, progress.print_changes, progress.print_loss)


def _print_start(console: Console, value: Result) -> None:
    console.print(
        f"{value['model']}: run {value['run']} of the {value['pipeline']} pipeline, version "
        f"{value['version']}, has started",
        markup=False,
    )
    console.print(value["link"], markup=False)
    console.print(f"To follow it: expunge submit status {value['run']} --wait")


def _print_state(console: Console, value: Result) -> None:
    console.print(f"{value['name']}: {value['state'].lower()}, {value['link']}", markup=False)
    table = create_table("task", "state", "seconds")
    for task in value["tasks"]:
        seconds = "" if task["seconds"] is None else f"{task['seconds']:.0f}"
        table.add_row(Text(task["name"]), task["state"].lower(), seconds)
    if value["tasks"]:
        console.print(table)
    words = {
        "promoted": "The gate passed, and the new version is champion.",
        "rejected": "Rejected by the gate: nothing is registered, and the champion is as it was. "
        "Its report is in MLflow.",
        "nothing to do": "No request was pending.",
    }
    if value["outcome"] in words:
        console.print(words[value["outcome"]])


def _find_exit_code(kfp_run: Mapping[str, Any]) -> int:
    """Return the exit code for a run as it stands; what failed is printed on stderr."""
    from expunge_pipelines.kubeflow import runs

    outcome = kfp_run["outcome"]
    if outcome == runs.REJECTED:
        return RefusedError.exit_code
    if outcome == runs.BROKEN:
        lines = _describe_failure(kfp_run)
    elif outcome == runs.CANCELLED:
        lines = [f"run {kfp_run['run']} was cancelled"]
    elif outcome == runs.UNKNOWN:
        lines = [
            f"run {kfp_run['run']} ended well, but the server does not list what its tasks did; "
            f"whether the gate passed is to be seen at {kfp_run['link']}"
        ]
    else:
        return 0
    for line in lines:
        click.echo(f"expunge: {line}", err=True)
    return OperationalError.exit_code


def _describe_failure(kfp_run: Mapping[str, Any]) -> list[str]:
    """Return which tasks failed, with the server's message if any, and where their logs are."""
    from expunge_pipelines.kubeflow.connection import user_namespace

    run = kfp_run["run"]
    failed = [task for task in kfp_run["tasks"] if task["state"] == "FAILED"]
    lines = [f"run {run} failed" + (f": {kfp_run['error']}" if kfp_run["error"] else "")]
    for task in failed:
        lines.append(f"task {task['name']} failed: {task['error'] or 'its log says why'}")
    # Some versions of the server name no pod. All pods of the run bear its id as a label, and
    # without --tail kubectl gives ten lines of each.
    pods = [task["pod"] for task in failed]
    selected = pods if pods and all(pods) else [f"--selector pipeline/runid={run} --tail=-1"]
    space = f"--namespace {user_namespace()} " if user_namespace() else ""
    logs = [f"`kubectl logs {space}{pod} --container main`" for pod in selected]
    return [*lines, f"logs: {kfp_run['link']}, or {', '.join(logs)}"]
