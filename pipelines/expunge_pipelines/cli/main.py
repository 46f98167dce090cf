"""The command. The only module that prints and that ends the process."""

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from expunge import __version__, environment
from expunge.config import GateConfig, TrainConfig
from expunge.errors import ExpungeError, OperationalError, RefusedError, UserError
from expunge.oracles import NEEDED
from expunge.policy import Policy
from expunge.states import ATTEMPTS, CANCELLED, FULFILLED
from expunge.verdicts import UNTRUSTWORTHY, verdict
from expunge_pipelines.cli import output as show
from expunge_pipelines.cli.options import (
    by_option,
    cluster_option,
    json_option,
    normalize_option,
    policy_options,
    recipe_options,
    rule_option,
    runner_option,
    split_list,
)
from expunge_pipelines.cli.request import request
from expunge_pipelines.cli.schedule import schedule
from expunge_pipelines.cli.submit import submit
from expunge_pipelines.kubeflow.settings import ClusterSettings

INTERRUPTED = (
    "interrupted; `expunge models` shows what is champion, and a training that is started again "
    "goes on from its last epoch"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; every error becomes one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return cli.main(given, prog_name="expunge", standalone_mode=False) or 0
    except ExpungeError as error:
        return _fail(str(error), error.exit_code, given)
    except click.ClickException as error:
        return _fail(error.format_message(), UserError.exit_code, given)
    except (KeyboardInterrupt, click.Abort) as stop:
        said = getattr(stop.__cause__ or stop, "said", INTERRUPTED)  # of what runs elsewhere
        return _fail(said, 128 + _signal_of(stop), given)
    except Exception as error:  # the last place that can turn a bug into one line
        if os.environ.get("EXPUNGE_DEBUG"):
            traceback.print_exc()
        kind = type(error).__name__
        return _fail(f"{kind}: {error} (EXPUNGE_DEBUG=1 shows where)", 3, given)


def _fail(message: str, code: int, given: Sequence[str]) -> int:
    line = " ".join(message.split())
    click.echo(f"expunge: {line}", err=True)
    if "--json" in given:
        click.echo(json.dumps({"error": line, "exit_code": code}))
    return code


def _signal_of(stop: BaseException) -> int:
    """What interrupted; click puts an `Abort` in the place of a KeyboardInterrupt."""
    cause = stop.__cause__ or stop
    return int(cause.args[0]) if cause.args else signal.SIGINT


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def run() -> None:
    """The console script. A SIGTERM ends it as Ctrl-C does, with its steps and its MLflow run."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": normalize_option,
    }
)
@click.version_option(__version__, prog_name="expunge")
def cli() -> None:
    """Train an image classifier so that it can forget a class, and forget it in one shot.

    State lies in EXPUNGE_HOME (.expunge by default); MLFLOW_TRACKING_URI names a shared store.
    Exit codes: 0 done, 1 a considered no (the gate rejects, a rollback is refused), 2 a mistake in
    the request, 3 a failure around it or a measurement that cannot be trusted.
    """


@cli.command()
@runner_option
@json_option
def demo(runner: str, as_json: bool) -> int:
    """Train on the embedded digits, forget a class, validate and promote."""
    from expunge_pipelines.jobs.demo import run_demo

    result = run_demo(on_start=show.step_started, runner=runner)
    show.result(result, as_json, show.demo)
    _warn_of_page(result["forget"])
    return _gate_code(result["forget"])


@cli.command()
@click.argument("name")
@recipe_options
@runner_option
@json_option
def train(
    name: str,
    source: str,
    image_size: int,
    without: str,
    chance_factor: float,
    config: TrainConfig,
    runner: str,
    as_json: bool,
) -> int:
    """Train a new version of model NAME with mnemonic codes, and promote it if the gate passes."""
    gate = GateConfig(chance_factor=chance_factor)
    from expunge_pipelines.jobs import train as jobs

    result = jobs.train(
        name,
        source,
        config,
        image_size=image_size,
        gate=gate,
        without=split_list(without),
        on_start=show.step_started,
        runner=runner,
    )
    show.result(result, as_json, show.training)
    return _gate_code(result)


@cli.command()
@click.argument("name")
@click.option("--classes", required=True, help="Classes to forget: 3,5 or names.")
@rule_option
@click.option("--lambda1", type=float, help="The paper's, with --rule paper; else chosen.")
@click.option("--lambda2", type=float, help="The paper's, with --rule paper; else chosen.")
@click.option("--base-version", type=int, help="The version to start from; the champion if not.")
@click.option("--dry-run", is_flag=True, help="Validate, and register nothing.")
@click.option("--reason", default="", help="Why; kept with the request that this files.")
@by_option
@policy_options
@runner_option
@json_option
def forget(
    name: str,
    classes: str,
    rule: str,
    lambda1: float | None,
    lambda2: float | None,
    base_version: int | None,
    dry_run: bool,
    reason: str,
    by: str,
    policy: Policy,
    runner: str,
    as_json: bool,
) -> int:
    """Forget classes of model NAME in one shot; promote the result if the gate passes."""
    from expunge_pipelines.jobs import forget as forgetting

    result = forgetting.forget(
        name,
        split_list(classes),
        rule=rule,
        lambdas=tuple(value for value in (lambda1, lambda2) if value is not None),
        policy=policy,
        base_version=base_version,
        dry_run=dry_run,
        reason=reason,
        by=by,
        on_start=show.step_started,
        runner=runner,
    )
    show.result(result, as_json, show.forgetting)
    _warn_of_page(result)
    return _gate_code(result)


cli.add_command(request)
cli.add_command(schedule)
cli.add_command(submit)


@cli.command("run-requests")
@click.argument("name", required=False)
@rule_option
@click.option(
    "--attempts",
    type=click.IntRange(1, 1000),
    default=ATTEMPTS,
    show_default=True,
    help="Failed runs after which a request is parked for a person to look.",
)
@policy_options
@runner_option
@json_option
def run_requests(
    name: str | None, rule: str, attempts: int, policy: Policy, runner: str, as_json: bool
) -> int:
    """Process what is pending, of model NAME or of all; what cron or a timer calls."""
    from expunge_pipelines.jobs import forget as forgetting

    result = forgetting.run_requests(
        name,
        rule=rule,
        policy=policy,
        attempts=attempts,
        on_start=show.step_started,
        runner=runner,
    )
    show.result(result, as_json, show.processed)
    return _queue_code(result)


@cli.command()
@click.argument("name")
@json_option
def reconcile(name: str, as_json: bool) -> None:
    """Put MLflow's aliases of NAME where the ledger says, whoever moved them."""
    from expunge_pipelines.jobs import train as jobs

    show.result(jobs.reconcile(name), as_json, show.reconciled)


@cli.command()
@click.argument("name")
@click.option("--classes", required=True, help="Classes to leave out: 3,5 or names.")
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    default=NEEDED,
    show_default=True,
    help=f"How many; forget compares with {NEEDED} or more.",
)
@click.option("--base-version", type=int, help="Whose recipe and data; the champion's if not.")
@click.option("--weights", default="", help="The file of pretrained weights that it started from.")
@runner_option
@json_option
def oracles(
    name: str,
    classes: str,
    seeds: int,
    base_version: int | None,
    weights: str,
    runner: str,
    as_json: bool,
) -> None:
    """Retrain model NAME from scratch without classes, for forget to be compared with."""
    from expunge_pipelines.jobs.oracles import make_oracles

    result = make_oracles(
        name,
        split_list(classes),
        seeds=seeds,
        base_version=base_version,
        weights=weights,
        on_start=show.step_started,
        runner=runner,
    )
    show.result(result, as_json, show.retrained)


@cli.command()
@click.argument("name", required=False)
@json_option
def models(name: str | None, as_json: bool) -> None:
    """List the versions of all models, or of NAME; oracles only as NAME-oracles."""
    from expunge_pipelines.jobs import train as jobs

    show.result(jobs.list_models(name), as_json, show.models)


@cli.command()
@click.argument("name")
@json_option
def rollback(name: str, as_json: bool) -> None:
    """Make the previous champion of NAME the champion again, unless it remembers too much."""
    from expunge_pipelines.jobs import train as jobs

    show.result(jobs.rollback(name), as_json, show.rolled_back)


@cli.command("compile")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@cluster_option
@json_option
def compile_command(folder: Path, settings: ClusterSettings, as_json: bool) -> None:
    """Write the pipelines and their components as YAML into FOLDER."""
    from expunge_pipelines.kubeflow.compile import compile_all

    show.result({"files": compile_all(folder, settings)}, as_json, show.compiled)


@cli.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
def ui(port: int, host: str) -> None:
    """Open the MLflow UI on this state; it runs until Ctrl-C."""
    from expunge import registry

    uri = registry.prepare_uri()
    if uri.startswith("http"):
        raise UserError("MLFLOW_TRACKING_URI names a server, which has a UI of its own: open that")
    _check_free(host, port)
    click.echo(f"MLflow UI of {environment.home()} at http://{host}:{port}", err=True)
    server = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    server += ["--backend-store-uri", uri, "--host", host, "--port", str(port)]
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.stderr.flush()
    os.execv(server[0], server)  # noqa: S606 (our own interpreter, no shell)


def _check_free(host: str, port: int) -> None:
    """The server itself logs a port that is taken, and ends with 0."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UserError(
            f"the UI cannot be served at {host}:{port} ({error}); choose another --port or --host"
        ) from error


def _warn_of_page(result: Mapping[str, Any]) -> None:
    """A report that could not be copied changes nothing of what the pipeline did."""
    if result["report"] is None:
        folder = environment.home() / "exports"
        click.echo(
            f"expunge: warning: the report could not be copied to {folder} (check its permissions "
            f"and space); it is report.html of MLflow run {result['run_id']}",
            err=True,
        )


def _queue_code(result: Mapping[str, Any]) -> int:
    """3 where a run failed or its measurement cannot be trusted, 1 where a request is still due."""
    code = 0
    for run in result["runs"]:
        if "error" in run:
            click.echo(f"expunge: {run['model']}: {run['error']}", err=True)
            code = OperationalError.exit_code
        else:
            _warn_of_page(run)
            if verdict(run) == UNTRUSTWORTHY:
                code = _gate_code(run)
    settled = (FULFILLED, CANCELLED)
    due = any(entry["state"] not in settled for entry in result["requests"])
    return code or (RefusedError.exit_code if due else 0)


def _gate_code(result: Mapping[str, Any]) -> int:
    """The exit code of a pipeline that came to its end: what the gate said."""
    if verdict(result) == UNTRUSTWORTHY:
        reasons = " ".join(result.get("problems") or result["reasons"])
        click.echo(f"expunge: this measurement cannot be trusted: {reasons}", err=True)
        return OperationalError.exit_code
    return 0 if result["passed"] else RefusedError.exit_code


if __name__ == "__main__":
    run()
