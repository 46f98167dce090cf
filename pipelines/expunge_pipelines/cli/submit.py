"""`expunge submit ...`: a pipeline's run on a Kubeflow cluster, and how it stands."""

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
from expunge_pipelines.cli import output as show
from expunge_pipelines.cli.options import (
    Command,
    by_option,
    cluster_option,
    json_option,
    policy_options,
    recipe_options,
    rule_option,
    split_list,
)
from expunge_pipelines.cli.run_progress import Watching
from expunge_pipelines.kubeflow.settings import ClusterSettings


@dataclass(frozen=True)
class Wait:
    """How a run is followed; without `follow`, not at all."""

    follow: bool = False
    timeout: float | None = None


def wait_options(command: Command) -> Command:
    """`--wait` and `--timeout`, handed on as one `Wait`."""

    @click.option("--wait", "follow", is_flag=True, help="Follow the run until it ends.")
    @click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Follow no longer than this; the run goes on.  [default: until it ends]",
    )
    @wraps(command)
    def wrapped(follow: bool, timeout: float | None, **options: Any) -> Any:
        if timeout is not None and not follow:
            raise UserError("--timeout is given without --wait; add that, or leave it out")
        return command(wait=Wait(follow, timeout), **options)

    return wrapped


@click.group()
def submit() -> None:
    """Run a pipeline on a Kubeflow cluster, and follow it.

    EXPUNGE_KFP_HOST names the cluster's Kubeflow Pipelines. With --wait the exit code is that of
    the run: 0 it succeeded, 1 the gate rejected, 3 it failed or was cancelled.
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
    """Train a new version of model NAME on the cluster, as `expunge train` does here.

    --without takes indices. What an erased class forbids, the run finds out itself. A path, for
    --data folder:PATH, --weights or --init-from, is one on the volume that the settings name under
    data.
    """
    from expunge_pipelines.kubeflow import submit as submitting

    started = submitting.submit_train(
        name,
        source,
        config,
        settings,
        image_size=image_size,
        chance_factor=chance_factor,
        without=split_list(without),
    )
    return _shown(started, wait, as_json)


@submit.command()
@click.argument("name")
@click.option("--classes", default="", help="File a request for these alone: 3,5 or names.")
@click.option("--reason", default="", help="Why; kept with the request that this files.")
@by_option
@rule_option
@policy_options
@cluster_option
@wait_options
@json_option
def forget(
    name: str,
    classes: str,
    reason: str,
    by: str,
    rule: str,
    policy: Policy,
    settings: ClusterSettings,
    wait: Wait,
    as_json: bool,
) -> int:
    """Process on the cluster what is pending for model NAME, or what --classes names.

    --classes files a request first, so EXPUNGE_DATABASE_URL and MLFLOW_TRACKING_URI have to name
    the ledger and the registry that the cluster's steps use.
    """
    from expunge_pipelines.kubeflow import submit as submitting

    started = submitting.submit_forget(
        name, rule, policy, settings, classes=split_list(classes), reason=reason, by=by
    )
    return _shown(started, wait, as_json)


@submit.command()
@click.argument("run")
@wait_options
@json_option
def status(run: str, wait: Wait, as_json: bool) -> int:
    """Show how RUN, an id or a link, stands; with --wait, follow it until it ends."""
    from expunge_pipelines.kubeflow import submit as submitting

    found = _followed(run, wait.timeout) if wait.follow else submitting.run_status(run)
    show.result(found, as_json, _standing)
    return _code(found)


def _shown(started: Mapping[str, Any], wait: Wait, as_json: bool) -> int:
    if not wait.follow:
        show.result(started, as_json, _started)
        return 0
    click.echo(f"  run {started['run']}: {started['link']}", err=True)
    found = {**started, **_followed(started["run"], wait.timeout)}
    show.result(found, as_json, _standing)
    return _code(found)


def _followed(run: str, timeout: float | None) -> dict[str, Any]:
    from expunge_pipelines.kubeflow import submit as submitting

    with Watching() as watching:
        return submitting.follow_run(run, timeout, watching.polled, watching.lost)


def _started(console: Console, value: show.Result) -> None:
    console.print(
        f"{value['model']}: run {value['run']} of the {value['pipeline']} pipeline, version "
        f"{value['version']}, has started",
        markup=False,
    )
    console.print(value["link"], markup=False)
    console.print(f"To follow it: expunge submit status {value['run']} --wait")


def _standing(console: Console, value: show.Result) -> None:
    console.print(f"{value['name']}: {value['state'].lower()}, {value['link']}", markup=False)
    table = show.new_table("task", "state", "seconds")
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


def _code(found: Mapping[str, Any]) -> int:
    """The exit code for a run as it stands; what failed is said on stderr."""
    from expunge_pipelines.kubeflow import runs

    outcome = found["outcome"]
    if outcome == runs.REJECTED:
        return RefusedError.exit_code
    if outcome == runs.BROKEN:
        said = _failures(found)
    elif outcome == runs.CANCELLED:
        said = [f"run {found['run']} was cancelled"]
    elif outcome == runs.UNKNOWN:
        said = [
            f"run {found['run']} ended well, but the server does not list what its tasks did; "
            f"whether the gate passed is to be seen at {found['link']}"
        ]
    else:
        return 0
    for line in said:
        click.echo(f"expunge: {line}", err=True)
    return OperationalError.exit_code


def _failures(found: Mapping[str, Any]) -> list[str]:
    """Which tasks failed, with the server's message where it has one, and where their logs are."""
    from expunge_pipelines.kubeflow.connection import user_namespace

    failed = [task for task in found["tasks"] if task["state"] == "FAILED"]
    lines = [f"run {found['run']} failed" + (f": {found['error']}" if found["error"] else "")]
    for task in failed:
        lines.append(f"task {task['name']} failed: {task['error'] or 'its log says why'}")
    pods = [task["pod"] for task in failed]
    chosen = pods if pods and all(pods) else [f"--selector pipeline/runid={found['run']} --tail=-1"]
    space = f"--namespace {user_namespace()} " if user_namespace() else ""
    logs = [f"`kubectl logs {space}{pod} --container main`" for pod in chosen]
    return [*lines, f"logs: {found['link']}, or {', '.join(logs)}"]
