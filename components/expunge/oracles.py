"""Oracles: models retrained from scratch without the classes that a request forgets.

They are versions of the registered model `NAME-oracles`, of kind "oracle", and found again by a key
over all that their training shares with the model's own: the data, the recipe, the classes left
out. Only the seed differs from one to the next, and the seeds follow from the key.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expunge.config import AFTERWARDS, TrainConfig
from expunge.core.grading.grades import LEAST_ORACLES
from expunge.errors import RefusedError, UserError
from expunge.knobs import list_fields

if TYPE_CHECKING:
    from expunge.formats.model import ModelInfo

SUFFIX = "-oracles"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # of a model that serves
NEEDED = LEAST_ORACLES + 1  # those to compare with, and one held out as a control
# Settings that differ between trainings of one recipe: the seed; the classes, which the key has as
# what was left out in the end; how the work was shared out.
APART = ("seed", "without", "workers", "processes", "nodes")


def name_oracle_model(name: str) -> str:
    """Return the registered model that holds the oracles of model `name`."""
    return name + SUFFIX


def holds_oracles(name: str) -> bool:
    """Return whether this is the name of a registered model of oracles."""
    return name.endswith(SUFFIX)


def check_model_name(name: str, *, oracles: bool = False) -> str:
    """Return the name, if it may be that of a model that serves.

    With `oracles` it may also be that of a model of oracles, which is longer by its ending.

    Raises:
        UserError: MLflow takes no such name for a registered model, an experiment and a logged
            model; or it is one of oracles where none is meant.
    """
    if NAME.fullmatch(name.removesuffix(SUFFIX)) is None:
        raise UserError(
            f"the model name {name!r} is not usable; expected up to 100 letters, digits, '-' and "
            "'_', the first one a letter or a digit"
        )
    if holds_oracles(name) and not oracles:
        raise UserError(
            f"{name!r} holds oracles; name the model that they are for: "
            f"{name.removesuffix(SUFFIX)!r}, or choose one that does not end with {SUFFIX}"
        )
    return name


def list_left_out(info: ModelInfo, classes: Sequence[int] = ()) -> tuple[int, ...]:
    """Return what an oracle for forgetting `classes` leaves out.

    It is these classes, and those that the model has forgotten before.
    """
    return tuple(sorted({*info.forgotten, *classes}))


def describe_recipe(info: ModelInfo, classes: Sequence[int] = ()) -> dict[str, Any]:
    """Return all that a model and the oracles for forgetting `classes` of it share.

    An oracle has forgotten what it left out, so that its own recipe is the one with no classes.
    Weights stand in it by their digest, whether they came by name or as a file.
    """
    settings = {key: value for key, value in info.settings.items() if key not in APART}
    if "weights" in settings:
        settings["weights"] = settings["weights"].rpartition(" ")[2]
    return {
        "data": {split: info.data_digests.get(split, "") for split in ("train", "test")},
        "arch": info.arch,
        "input_shape": list(info.input_shape),
        "mean": list(info.mean),
        "std": list(info.std),
        "settings": settings,
        "without": list(list_left_out(info, classes)),
    }


def compute_recipe_key(info: ModelInfo, classes: Sequence[int] = ()) -> str:
    """Return the SHA-256 of the recipe as canonical JSON, in hexadecimal."""
    text = json.dumps(
        describe_recipe(info, classes), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def derive_oracle_seeds(key: str, count: int) -> tuple[int, ...]:
    """Return the first `count` seeds of the oracles with this key, below 2**31 and all different.

    They are digests. So none is a seed that somebody chose for the model itself, with which an
    oracle would start from the same weights; a version that forgot does not say its seed.
    """
    # A dict keeps the order and drops a digest that comes a second time.
    seeds: dict[int, None] = {}
    number = 0
    while len(seeds) < count:
        number += 1
        digest = hashlib.sha256(f"{key}/{number}".encode()).hexdigest()
        seeds.setdefault(int(digest[:8], 16) % 2**31)
    return tuple(seeds)


def check_same_recipe(base: ModelInfo, oracle: ModelInfo) -> None:
    """Refuse a model that was not trained as its base was, the classes apart.

    Raises:
        UserError: with what differs.
    """
    expected, found = (_flatten(describe_recipe(info)) for info in (base, oracle))
    expected["without"] = list(list_left_out(base, oracle.forgotten))
    differ = [key for key in expected | found if expected.get(key) != found.get(key)]
    if differ:
        named = ", ".join(f"{key} is {found.get(key)!r}" for key in differ)
        wanted = ", ".join(f"{expected.get(key)!r}" for key in differ)
        raise UserError(
            f"this is no oracle: {named}, and the model that it is for has {wanted}; train it with "
            "the settings of that version"
        )


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with its settings and digests beside the rest."""
    flat = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    for part in ("settings", "data"):
        flat |= {f"{part} {key}": value for key, value in values[part].items()}
    return flat


def spell_request(name: str, info: ModelInfo, classes: Sequence[int], version: int = 0) -> str:
    """Return what `expunge oracles` and `expunge forget` take for `classes` of a version.

    An example is "shapes --classes 3,index:5 --base-version 2", where 5 is the name of another
    class. Version 0 means the champion, and then the text names no version.
    """
    names = {index: info.class_names[index] for index in info.retained}
    listed = ",".join(
        f"index:{index}"
        if any(known == str(index) for other, known in names.items() if other != index)
        else str(index)
        for index in classes
    )
    return f"{name} --classes {listed}" + (f" --base-version {version}" if version else "")


def check_enough_oracles(
    name: str, info: ModelInfo, classes: Sequence[int], found: int, grade: str, version: int = 0
) -> None:
    """Refuse a request for a grade that so few oracles cannot show.

    `version` is the one that is to forget, 0 for the champion, and `info` describes it.

    Raises:
        RefusedError: with the command that makes them.
    """
    if grade == "forgotten" and found < NEEDED:
        listed = ",".join(str(index) for index in classes)
        raise RefusedError(
            f"grade forgotten needs {NEEDED} oracles of {name!r} without classes {listed} and "
            f"there are {found}; make them with "
            f"`expunge oracles {spell_request(name, info, classes, version)}`"
        )


def build_oracle_config(info: ModelInfo, classes: Sequence[int], weights: str = "") -> TrainConfig:
    """Return the recipe of an oracle for forgetting `classes` of a model, with the first seed.

    `weights` is the file of the pretrained weights that the model started from: the model has only
    their digest. Weights of torchvision it has by name.

    Raises:
        UserError: the model does not say how it was trained, was not trained from scratch, or
            `weights` is missing or too much.
    """
    fields = set(list_fields(TrainConfig))
    known = {key: value for key, value in info.settings.items() if key in fields}
    # the number of nodes stands there where it is not 1
    missing = sorted(fields - {*known, "seed", "nodes", *AFTERWARDS})
    if missing:
        raise UserError(
            f"the model does not say how it was trained (its {', '.join(missing)}); an oracle can "
            "be made for a version that `expunge train` made, or for one that came from it"
        )
    if known["init_from"]:
        raise UserError(
            "the model was fine-tuned from an existing classifier (--init-from), and an oracle is "
            "trained from scratch; train a version of it without --init-from to compare with "
            "oracles"
        )
    return TrainConfig(
        **{
            **known,
            "without": list_left_out(info, classes),
            "statistics": 0.0,  # nobody forgets a class of an oracle
            "weights": _choose_weights(known["weights"], weights),
            "seed": derive_oracle_seeds(compute_recipe_key(info, classes), 1)[0],
        }
    )


def _choose_weights(stored: str, given: str) -> str:
    """Return the name or the file of weights that stand as "NAME sha256:..." or "sha256:..."."""
    if given and not stored:
        raise UserError(
            f"--weights is {given!r}, and the model was trained without pretrained weights; leave "
            "it out"
        )
    name, _, digest = stored.rpartition(" ")
    if stored and not (given or name):
        raise UserError(
            f"the model started from a file of pretrained weights ({digest}); name that file: "
            "--weights FILE"
        )
    return given or name
