"""Plan of a training: what it leaves out, what it starts from, which champion it may replace."""

import dataclasses
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expunge import class_selection, registry
from expunge.config import TrainConfig
from expunge.errors import UserError
from expunge.lifecycle import promotion, provenance


@dataclass(frozen=True)
class TrainingPlan:
    """The completed recipe of a training, and what the rest of its pipeline needs beside it."""

    config: TrainConfig  # its `without` is complete
    expected: int  # the version of the champion that may be replaced; 0 for none
    erased: tuple[int, ...] = ()  # the classes that a champion of this model ever forgot
    start: str = ""  # digests of what the weights come from; "" where they are drawn


def plan_new_version(
    config: TrainConfig, name: str, class_texts: Sequence[str] = ()
) -> TrainingPlan:
    """Plan a new version of model `name`, trained as `config` says.

    The champion that serves now is the one that it may replace. It leaves out the classes of
    `config`, those that `class_texts` name, and every class that a champion of this model ever
    erased: there is no way back.

    Raises:
        UserError: the model name is not usable, or a class is unknown.
        OperationalError: MLflow or the ledger cannot be reached.
    """
    serving = promotion.reconcile(name).champion or 0
    known = {version.version: version for version in registry.list_versions(name)}
    # None also where somebody deleted the champion's version from the registry.
    champion = known.get(serving)
    if champion and config.without:
        count = len(registry.read_model_info(champion).class_names)
        if unknown := [index for index in config.without if index >= count]:
            raise UserError(
                f"without names class {unknown[0]}; {name!r} has the classes 0 to {count - 1}"
            )
    erased = promotion.list_erased(name)
    without = {*config.without, *_find_left_out(champion, class_texts), *erased}
    completed = dataclasses.replace(config, without=tuple(sorted(without)))
    return TrainingPlan(completed, serving, tuple(sorted(erased)))


def _find_left_out(champion: registry.Version | None, class_texts: Sequence[str]) -> set[int]:
    """Return the classes that the texts mean, and those that the champion has forgotten."""
    if not class_texts:
        return set()
    if champion is not None:
        info = registry.read_model_info(champion)
        return {*class_selection.find_classes(info, class_texts), *info.forgotten}
    if not all(text.isdecimal() for text in class_texts):
        raise UserError(
            f"--without is {','.join(class_texts)}; a model that has no champion yet takes indices"
        )
    return {int(text) for text in class_texts}


def resolve_start(config: TrainConfig) -> tuple[TrainConfig, str]:
    """Return the recipe with a version's number for its alias, and the digest of its start.

    The digest is that of what the weights come from, "" where the weights are drawn.

    Raises:
        UserError: there is no such version.
        OperationalError: MLflow cannot be reached.
    """
    if config.init_from.startswith(registry.REGISTERED):
        version = registry.resolve_uri(config.init_from)
        # An alias moves, and what is cached must not move with it.
        pinned = dataclasses.replace(config, init_from=version.uri)
        return pinned, f"{version.digests['info']} {version.digests['weights']}"
    digest = digest_weights(config.init_from or config.weights)
    return config, digest or (mark_unknown_start() if config.init_from else "")


def digest_weights(weights: str) -> str:
    """Return the digest of a weights file or model folder; "" for torchvision's name for weights.

    One that lies only where the training runs gets a value that no other run has. So no cached
    training is taken for one from it.
    """
    path = Path(weights)
    if path.name and path.exists():
        return provenance.digest_path(path)
    return mark_unknown_start() if path.suffix else ""


def mark_unknown_start() -> str:
    """Return a text that is in the key of no other run."""
    return f"unknown:{uuid.uuid4().hex}"
