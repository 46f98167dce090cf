"""The first step of a training: what it leaves out, what it starts from, whom it may replace.

On a cluster who submits a run has neither ledger nor registry at hand; here both are.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import NamedTuple

from expunge.config import TrainConfig
from expunge.errors import UserError
from expunge.models import check_architecture
from expunge.oracles import SUFFIX, holds_oracles

SERVING = -1  # for `expected`: whoever serves when the step runs


class Plan(NamedTuple):
    """What the rest of the pipeline takes from here."""

    without: list[int]
    expected: int  # the version of the champion that may be replaced; 0 for none
    init_from: str  # with the number of a version in place of its alias
    start: str  # digests of what `weights` or `init_from` names; "" where weights are drawn


def plan_training(config: TrainConfig, name: str, expected: int = SERVING) -> Plan:
    """Plan a training of model `name` as `config` has it.

    The champion that serves now is the one that the new version may replace, and every class that
    a champion of this model ever erased is left out beside those of `config`: there is no way
    back. Where `expected` is a version, or 0, whoever starts the pipeline has planned all that,
    and it stands as it is; nothing is looked up.

    Raises:
        UserError: the model name is one of oracles, or not usable; the architecture, the start or
            a class is unknown.
        OperationalError: MLflow or the ledger cannot be reached.
    """
    check_model_name(name)
    if expected != SERVING:
        start = _unlike_any() if config.init_from or config.weights else ""
        return Plan(sorted(config.without), expected, config.init_from, start)
    check_architecture(config.arch)
    from expunge import registry
    from expunge.lifecycle import promotion

    serving = promotion.reconcile(name).champion or 0
    known = {version.version: version for version in registry.list_versions(name)}
    if serving in known and config.without:
        classes = len(registry.read_model_info(known[serving]).class_names)
        if unknown := [index for index in config.without if index >= classes]:
            raise UserError(
                f"without names class {unknown[0]}; {name!r} has the classes 0 to {classes - 1}"
            )
    init_from, start = _start(config)
    return Plan(sorted({*config.without, *promotion.list_erased(name)}), serving, init_from, start)


def check_model_name(name: str) -> None:
    """Refuse a name that belongs to oracles.

    Raises:
        UserError: with the ending that makes it one.
    """
    if holds_oracles(name):
        raise UserError(
            f"the model name {name!r} is not usable: names that end with {SUFFIX} belong to "
            "oracles; choose another"
        )


def weights_digest(weights: str) -> str:
    """The digest of a weights file or model folder; "" for torchvision's name for weights.

    One that is not here, but where training runs, gets a value that no other run has: no cached
    training is taken for one from it.
    """
    from expunge.lifecycle import provenance

    path = Path(weights)
    if path.name and path.exists():
        return provenance.digest_path(path)
    return _unlike_any() if path.suffix else ""


def _start(config: TrainConfig) -> tuple[str, str]:
    """`init_from` as it is meant now, and the digest of what the weights come from."""
    from expunge import registry

    if config.init_from.startswith(registry.REGISTERED):
        version = registry.resolve_uri(config.init_from)
        return version.uri, f"{version.digests['info']} {version.digests['weights']}"
    digest = weights_digest(config.init_from or config.weights)
    return config.init_from, digest or (_unlike_any() if config.init_from else "")


def _unlike_any() -> str:
    return f"unknown:{uuid.uuid4().hex}"
