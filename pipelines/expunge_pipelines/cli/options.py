"""Options that several commands share; a group of them reaches its command as one object."""

import getpass
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from expunge.config import AUGMENTATIONS, PRECISIONS, RULES, SCHEDULES, GateConfig, TrainConfig
from expunge.policy import Policy, load_policy
from expunge_pipelines.kubeflow.settings import read_settings
from expunge_pipelines.runners.docker import LOCAL, RUNNERS

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
        type=click.Choice(RULES),
        default="auto",
        show_default=True,
        help="How the weights are changed; auto takes the rule that does the least damage.",
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
        type=click.Choice(RUNNERS),
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


_RECIPE = TrainConfig(arch="mlp")
_TRAINING = (
    click.option("--data", "source", required=True, help="digits, mnist, folder:PATH, s3://... "),
    click.option("--arch", required=True, help="mlp, resnet20, resnet18-cifar or torchvision's."),
    click.option("--epochs", default=_RECIPE.epochs, show_default=True),
    click.option("--batch-size", default=_RECIPE.batch_size, show_default=True),
    click.option("--lr", "learning_rate", default=_RECIPE.learning_rate, show_default=True),
    click.option("--momentum", default=_RECIPE.momentum, show_default=True),
    click.option("--weight-decay", default=_RECIPE.weight_decay, show_default=True),
    click.option("--schedule", type=click.Choice(SCHEDULES), default=_RECIPE.schedule),
    click.option("--t-mix", default=_RECIPE.t_mix, show_default=True, help="Share of codes."),
    click.option("--seed", default=_RECIPE.seed, show_default=True),
    click.option("--weights", default="", help="Pretrained: torchvision's name, or a file."),
    click.option(
        "--init-from", default="", help="An existing classifier: models:/NAME/1 or a file."
    ),
    click.option("--precision", type=click.Choice(PRECISIONS), default=_RECIPE.precision),
    click.option("--augment", type=click.Choice(AUGMENTATIONS), default=_RECIPE.augment),
    click.option(
        "--processes", default=_RECIPE.processes, show_default=True, help="On a node; one GPU each."
    ),
    click.option(
        "--nodes", default=_RECIPE.nodes, show_default=True, help="Machines, on a cluster."
    ),
    click.option(
        "--workers", default=_RECIPE.workers, show_default=True, help="Decoding processes."
    ),
    click.option("--image-size", default=0, show_default=True, help="Resize; 0 keeps the size."),
    click.option("--without", default="", help="Classes to leave out: 3,5 or names."),
    click.option(
        "--chance-factor", default=3.0, show_default=True, help="Test accuracy over chance."
    ),
)


def recipe_options(command: Command) -> Command:
    """What a training takes. The recipe is handed on as one `TrainConfig`, without its `without`.

    The rest is handed on as `source`, `image_size`, `without` (a text) and `chance_factor`.
    """

    @wraps(command)
    def wrapped(**options: Any) -> Any:
        fields = [field for field in TrainConfig.__dataclass_fields__ if field != "without"]
        recipe = {field: options.pop(field) for field in fields}
        return command(config=TrainConfig(**recipe), **options)

    for option in reversed(_TRAINING):
        wrapped = option(wrapped)
    return wrapped
