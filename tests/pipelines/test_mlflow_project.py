"""The MLflow project: its entry points are the command, and its run is the pipeline's."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from command import list_commands
from mlflow.projects.utils import load_project
from trained_store import GONE, NAME, Store

from expunge import registry
from expunge.registry import store as connection
from expunge_pipelines.cli.main import cli

ROOT = Path(__file__).parents[2]
REQUIRED = {"train": {"name": NAME}, "forget": {"name": NAME, "classes": "5, a b"}}
REQUIRED["validate"] = REQUIRED["oracles"] = REQUIRED["forget"]


def parse(entry: str, parameters: dict[str, str]) -> tuple[click.Command, dict[str, Any]]:
    """Return the command that an entry point calls, and what it is given."""
    project = load_project(str(ROOT / "mlflow_project"))
    text = project.get_entry_point(entry).compute_command(parameters, None)
    assert text.startswith("cd .. && expunge ")
    _, name, *arguments = shlex.split(text.removeprefix("cd .. && "))
    return list_commands()[name], parse_arguments(name, *arguments)


def parse_arguments(name: str, *arguments: str) -> dict[str, Any]:
    # The whole command's context: it is what takes an underscore for a hyphen.
    outer = click.Context(cli, **cli.context_settings)
    return list_commands()[name].make_context(name, list(arguments), parent=outer).params


@pytest.mark.parametrize("entry", REQUIRED)
def test_an_entry_point_is_the_command_with_its_own_defaults(entry: str) -> None:
    command, given = parse(entry, REQUIRED[entry])
    least = [NAME, "--data", "digits", "--arch", "mlp"] if entry == "train" else [NAME]
    least += ["--classes", "5, a b"] if entry != "train" else []
    expected = parse_arguments(str(command.name), *least)
    assert given == expected | ({"dry_run": True} if entry == "validate" else {})


@pytest.mark.parametrize("entry", REQUIRED)
def test_every_option_that_takes_a_value_is_a_parameter(entry: str) -> None:
    """With an underscore or a hyphen in its name, whether the project lists it or not."""
    command, _ = parse(entry, REQUIRED[entry])
    options = {
        option.opts[0].removeprefix("--"): option
        for option in command.params
        if isinstance(option, click.Option) and not option.is_flag
    }
    values = {name: value_of(option) for name, option in options.items()}
    for spelled in (dict(values), {name.replace("-", "_"): v for name, v in values.items()}):
        _, given = parse(entry, REQUIRED[entry] | spelled)
        for name, option in options.items():
            expected = values[name] if isinstance(given[str(option.name)], str) else "3"
            assert str(given[str(option.name)]).removesuffix(".0") == expected


def value_of(option: click.Option) -> str:
    """Return a text that the option takes, and that is not its default."""
    if isinstance(option.type, click.Choice):
        return str(option.type.choices[-1])
    return "3"


@pytest.mark.parametrize("entry", ["train", "forget"])
def test_an_empty_text_leaves_an_option_at_its_default(entry: str) -> None:
    """As in a form or a script that hands on what nobody set."""
    texts = {
        "train": ("without", "weights", "init_from"),
        "forget": ("policy", "budget", "forget_error", "worst_drop"),
    }
    _, given = parse(entry, REQUIRED[entry] | dict.fromkeys(texts[entry], ""))
    assert given == parse(entry, REQUIRED[entry])[1]


def mlflow_run(trained_store: Store, entry: str, **parameters: str) -> tuple[int, str, Any]:
    """`mlflow run` as the project's README has it: exit code, output, and the run it opened."""
    variables = {key: text for key, text in os.environ.items() if not key.startswith("MLFLOW_")}
    variables["MLFLOW_TRACKING_URI"] = f"sqlite:///{trained_store.home / 'mlflow.db'}"
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pairs = [word for key, value in parameters.items() for word in ("-P", f"{key}={value}")]
    command = [sys.executable, "-m", "mlflow", "run", "mlflow_project", "-e", entry, *pairs]
    done = subprocess.run(
        [*command, "--env-manager", "local"],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    newest = ["attributes.start_time DESC"]
    found = connection.connect().search_runs(["0"], order_by=newest, max_results=1)
    assert found, done.stdout
    assert found[0].info.run_id in done.stdout
    return done.returncode, done.stdout, found[0]


def test_a_mistake_shows_as_a_failed_run(trained_store: Store) -> None:
    code, output, run = mlflow_run(trained_store, "forget", name=NAME, classes=str(GONE))
    assert code == 1
    assert f"expunge: class {GONE} is already forgotten by this version" in output
    assert run.info.status == "FAILED"


@pytest.mark.slow
def test_validate_says_what_the_gate_says_in_the_run_that_mlflow_opened(
    trained_store: Store,
) -> None:
    versions = registry.list_versions(NAME)
    code, output, run = mlflow_run(trained_store, "validate", name=NAME, classes="5")
    assert code == 0, output
    assert "A dry run registers nothing" in output
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith((trained_store.home / "mlartifacts").as_uri())
    assert (run.data.params["classes"], run.data.params["dry_run"]) == ("5", "True")
    assert run.data.tags["gate"] == "passed"
    assert run.data.metrics["check/forget_error"] >= run.data.metrics["threshold/forget_error"]
    assert registry.list_versions(NAME) == versions


@pytest.mark.slow
def test_a_gate_that_rejects_ends_mlflow_run_with_1_and_says_so_in_the_run(
    trained_store: Store,
) -> None:
    """Options that the project does not list are handed on; at zero strength nothing changes."""
    versions = registry.list_versions(NAME)
    nothing = {"rule": "paper", "lambda1": "0", "lambda2": "0"}
    code, output, run = mlflow_run(trained_store, "forget", name=NAME, classes="5", **nothing)
    assert code == 1
    assert "Rejected by the gate (forget_error" in output
    # mlflow run marks what ends with 1, and does not see that the pipeline had finished the run
    assert run.info.status == "FAILED"
    assert run.data.tags["gate"] == "rejected"
    assert registry.list_versions(NAME) == versions
