"""Fetch the oracles that a forget is compared with."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Found(NamedTuple):
    """How many oracles there are, and the splits of the data that a comparison with them needs."""

    oracles: int
    splits: list[str]


def load_oracles(
    base: Path,
    oracles: Path,
    name: str,
    classes: Sequence[int],
    grade: str = "suppressed",
    version: int = 0,
) -> Found:
    """Copy the oracles for forgetting `classes` of the model folder `base` into folder `oracles`.

    `base` is version `version` of `name`, or with 0 its champion. Each oracle becomes a model
    folder `seed-<seed>`. With too few to compare with nothing is copied, and a validation reads the
    test split alone.

    Raises:
        RefusedError: grade "forgotten" is asked for and there are too few oracles for it.
    """
    from expunge import registry
    from expunge.formats.model import load_model_info
    from expunge.oracles import NEEDED, check_enough_oracles, compute_recipe_key

    info = load_model_info(base)
    found = registry.list_oracles(name, compute_recipe_key(info, classes))
    check_enough_oracles(name, info, classes, len(found), grade, version)
    oracles.mkdir(parents=True, exist_ok=True)
    if len(found) < NEEDED:
        return Found(len(found), ["test"])
    for oracle in found:
        registry.download(oracle, oracles / f"seed-{oracle.seed}")
    return Found(len(found), ["train", "test"])
