"""Fetch the oracles that a forget is compared with."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Found(NamedTuple):
    """How many oracles there are, and the splits of the data that a comparison with them needs."""

    oracles: int
    splits: list[str]


def load_oracles(
    base: Path, oracles: Path, name: str, classes: Sequence[int], grade: str = "suppressed"
) -> Found:
    """Copy the oracles for forgetting `classes` of the model folder `base` into folder `oracles`.

    Each becomes a model folder `seed-<seed>`. One with the seed of the base itself is passed over:
    it would start from the same weights. With too few to compare with, a validation reads the test
    split alone.

    Raises:
        RefusedError: grade "forgotten" is asked for and there are too few oracles for it.
    """
    from expunge import registry
    from expunge.artifacts import load_model_info
    from expunge.oracles import NEEDED, check_enough, recipe_key

    info = load_model_info(base)
    kept = registry.oracles(name, recipe_key(info, classes))
    found = [oracle for oracle in kept if oracle.seed != info.settings.get("seed")]
    check_enough(name, classes, len(found), grade)
    oracles.mkdir(parents=True, exist_ok=True)
    for oracle in found:
        registry.download(oracle, oracles / f"seed-{oracle.seed}")
    return Found(len(found), ["train", "test"] if len(found) >= NEEDED else ["test"])
