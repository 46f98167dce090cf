"""Options that belong together: each group is handed on to its command as one settings object."""

import getpass
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from expunge.config import AUGMENTATIONS, PRECISIONS, SCHEDULES, GateConfig, TrainConfig
from expunge.core.rules import list_rule_choices
from expunge.policy import Policy, load_policy
from expunge_pipelines.kubeflow.settings import read_settings
from expunge_pipelines.runners.base import LOCAL, RUNNERS

Command = Callable[..., Any]


def _number(text: str) -> float | None:
    """A number; an empty text is none, as `mlflow run` hands on what nobody set."""
    try:
        return float(text) if text else None
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a valid float.") from error


def rule_option(command: Command) -> Command:
    """`--rule`."""
    rules = click.Choice(list_rule_choices())
    return click.option("--rule", type=rules, default="auto", show_default=True)(command)


def by_option(command: Command) -> Command:
    """`--by`, the person who does this."""
    return click.option(
        "--by",
        default="",
        envvar="EXPUNGE_USER",
        callback=lambda _context, _option, value: value or _user(),
        help="Who does this.  [default: EXPUNGE_USER, or your user name here]",
    )(command)


def _user() -> str:
    """The user's name here; in a container, where a user may have none, the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def runner_option(command: Command) -> Command:
    """`--runner`."""
    return click.option(
        "--runner",
        type=click.Choice(list(RUNNERS)),
        default=LOCAL,
        envvar="EXPUNGE_RUNNER",
        show_default=True,
        show_envvar=True,
        help="Each step a process, or a container on Docker or Podman.",
    )(command)


def json_option(command: Command) -> Command:
    """`--json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
    )(command)


def split_list(text: str) -> list[str]:
    """The parts of a text such as "3,5"."""
    return [part for part in (piece.strip() for piece in text.split(",")) if part]


policy_option = click.option(
    "--policy",
    default="",
    envvar="EXPUNGE_POLICY",
    help="A YAML file with any of grade, budget, forget_error, worst_drop, block and approval.  "
    "[default: what EXPUNGE_POLICY names]",
)


def policy_options(command: Command) -> Command:
    """The policy of a forget, and what overrides it, handed on as one `Policy`."""
    defaults = GateConfig()

    @policy_option
    @click.option(
        "--budget",
        type=_number,
        metavar="FLOAT",
        help="Retained accuracy that forgetting may cost, a fraction.  "
        f"[default: the policy's, or {defaults.budget}]",
    )
    @click.option(
        "--forget-error",
        type=_number,
        metavar="FLOAT",
        help="Lowest error on a forgotten class that passes the gate.  "
        f"[default: the policy's, or {defaults.forget_error}]",
    )
    @click.option(
        "--worst-drop",
        type=_number,
        metavar="FLOAT",
        help="Largest drop of a retained class that passes the gate.  "
        f"[default: the policy's, or {defaults.worst_drop}]",
    )
    @wraps(command)
    def wrapped(
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

    return wrapped


def read_policy(path: str, **overrides: float | None) -> Policy:
    """The policy in a file, or the default one for no file, with those overrides that are set."""
    if path:
        return load_policy(Path(path), **overrides)
    given: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    return Policy(GateConfig(**given))


def cluster_option(command: Command) -> Command:
    """`--cluster`, handed on as the `ClusterSettings` that the file holds."""

    @click.option(
        "--cluster",
        default="",
        envvar="EXPUNGE_CLUSTER",
        metavar="FILE",
        help="A YAML file of settings for your cluster; docker/cluster.yaml is one to start from.  "
        "[default: what EXPUNGE_CLUSTER names]",
    )
    @wraps(command)
    def wrapped(cluster: str, **options: Any) -> Any:
        return command(settings=read_settings(cluster), **options)

    return wrapped


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
