"""Options that several commands share; a group of them reaches its command as one object."""

import dataclasses
import getpass
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from expunge.config import NEEDED_GRADES, GateConfig, TrainConfig
from expunge.core.rules import list_rule_choices
from expunge.knobs import Knob, list_fields
from expunge.policy import Policy, load_policy
from expunge_pipelines.kubeflow.settings import read_settings
from expunge_pipelines.runners.base import LOCAL, RUNNERS

Command = Callable[..., Any]

# A decorator below that replaces options by one object wraps the command with `functools.wraps`.
# Click keeps the options of a command on the function, and `wraps` copies them to the wrapper.


def _read_number(text: str) -> float | None:
    """Return a number; None for an empty text, which `mlflow run` hands on if nobody set it."""
    try:
        return float(text) if text else None
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a valid float.") from error


def rule_option(command: Command) -> Command:
    """Add `--rule` to a command."""
    return click.option(
        "--rule",
        type=click.Choice(list_rule_choices()),
        default="auto",
        show_default=True,
        help="How the weights are changed; auto is replay if the version has class statistics.",
    )(command)


def until_option(command: Command) -> Command:
    """Add `--until` to a command, the grade up to which it climbs the ladder."""
    return click.option(
        "--until",
        type=click.Choice(("", *NEEDED_GRADES)),
        default="",
        metavar="GRADE",
        help="Try codes, replay and align in turn, up to this grade: hidden, suppressed or "
        "forgotten.  [default: one rule]",
    )(command)


def by_option(command: Command) -> Command:
    """Add `--by` to a command, the person who gives it."""
    return click.option(
        "--by",
        default="",
        envvar="EXPUNGE_USER",
        callback=lambda _context, _option, value: value or _find_user_name(),
        # Written by hand: click's own default would show the name of whoever builds the manual.
        help="Who does this.  [default: EXPUNGE_USER, or your user name here]",
    )(command)


def _find_user_name() -> str:
    """Return the user's name on this machine, or the number of a user without one.

    In a container a user often has no entry in the password file.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def runner_option(command: Command) -> Command:
    """Add `--runner` to a command."""
    return click.option(
        "--runner",
        type=click.Choice(list(RUNNERS)),
        default=LOCAL,
        envvar="EXPUNGE_RUNNER",
        show_default=True,
        show_envvar=True,
        help="Run each step as a process, or in a container of Docker or Podman.",
    )(command)


def json_option(command: Command) -> Command:
    """Add `--json` to a command."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
    )(command)


def split_list(text: str) -> list[str]:
    """Return the parts of a text such as "3,5", without empty ones."""
    return [part for part in (piece.strip() for piece in text.split(",")) if part]


# A path and not a `Policy`: options that override the file are not known yet where it is parsed.
policy_option = click.option(
    "--policy",
    default="",
    envvar="EXPUNGE_POLICY",
    help="A YAML file with any of grade, budget, forget_error, worst_drop, block and approval.  "
    "[default: what EXPUNGE_POLICY names]",
)


def policy_options(command: Command) -> Command:
    """Add `--policy` and what overrides it; the command gets them as `policy`, one `Policy`."""
    defaults = GateConfig()

    # No defaults here: an option that is left out must not override the policy's file.
    @policy_option
    @click.option(
        "--budget",
        type=_read_number,
        metavar="FLOAT",
        help="Fraction of retained accuracy that forgetting may cost.  "
        f"[default: the policy's, or {defaults.budget}]",
    )
    @click.option(
        "--forget-error",
        type=_read_number,
        metavar="FLOAT",
        help="Lowest error on a forgotten class that passes the gate.  "
        f"[default: the policy's, or {defaults.forget_error}]",
    )
    @click.option(
        "--worst-drop",
        type=_read_number,
        metavar="FLOAT",
        help="Largest drop of a retained class that passes the gate.  "
        f"[default: the policy's, or {defaults.worst_drop}]",
    )
    @wraps(command)
    def call_command(
        policy: str,
        budget: float | None,
        forget_error: float | None,
        worst_drop: float | None,
        **options: Any,
    ) -> Any:
        given: dict[str, Any] = {
            "budget": budget,
            "forget_error": forget_error,
            "worst_drop": worst_drop,
        }
        return command(policy=read_policy(policy, **given), **options)

    return call_command


def read_policy(path: str, **overrides: float | None) -> Policy:
    """Return the policy in a file, or the default one, with those overrides that are set."""
    if path:
        return load_policy(Path(path), **overrides)
    given: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    return Policy(GateConfig(**given))


def cluster_option(command: Command) -> Command:
    """Add `--cluster`; the command gets the file's content as `settings`."""

    @click.option(
        "--cluster",
        default="",
        envvar="EXPUNGE_CLUSTER",
        metavar="FILE",
        help="A YAML file of settings for your cluster. Start from docker/cluster.yaml.  "
        "[default: what EXPUNGE_CLUSTER names]",
    )
    @wraps(command)
    def call_command(cluster: str, **options: Any) -> Any:
        return command(settings=read_settings(cluster), **options)

    return call_command


_DATA = click.option(
    "--data", "source", required=True, help="digits, mnist, folder:PATH, s3://... "
)
# Of a training, but not of its recipe.
_TRAINING = (
    click.option("--image-size", default=0, show_default=True, help="Resize; 0 keeps the size."),
    click.option("--without", default="", help="Classes to leave out: 3,5 or names."),
    click.option(
        "--chance-factor",
        default=3.0,
        show_default=True,
        help="Test accuracy that the gate asks for, over chance.",
    ),
)


def make_recipe_options(recipe: type[TrainConfig]) -> dict[str, Callable[[Command], Command]]:
    """Return an option for each field of a recipe that has a `Knob`, by the field's name."""
    made: dict[str, Callable[[Command], Command]] = {}
    for name, setting in list_fields(recipe).items():
        if "knob" not in setting.metadata:
            continue
        knob: Knob = setting.metadata["knob"]
        required = setting.default is dataclasses.MISSING
        more: dict[str, Any] = {"required": True} if required else {"default": setting.default}
        made[name] = click.option(
            f"--{knob.option or name.replace('_', '-')}",
            name,
            type=click.Choice(knob.choices) if knob.choices else None,
            # An empty text as the default says nothing to a person.
            show_default=not required and setting.default != "",
            help=knob.help,
            **more,
        )
    return made


def recipe_options(command: Command, recipe: type[TrainConfig] = TrainConfig) -> Command:
    """Give a command what a training takes.

    The recipe is handed on as one `TrainConfig`, without its `without`. The rest is handed on as
    `source`, `image_size`, `without` (a text) and `chance_factor`.
    """
    made = make_recipe_options(recipe)

    @wraps(command)
    def wrapped(**options: Any) -> Any:
        settings = {name: options.pop(name) for name in made}
        return command(config=recipe(**settings), **options)

    every: list[Callable[[Command], Command]] = [_DATA, *made.values(), *_TRAINING]
    # click puts an option that is added later before the others.
    extended: Command = wrapped
    for option in reversed(every):
        extended = option(extended)
    return extended
