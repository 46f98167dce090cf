"""The step that fetches the oracles to compare a forget with."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Found(NamedTuple):
    """How many oracles there are, and which splits of the data the validation asks for.

    It needs `splits`. It takes `optional_splits` along where the source has them.
    """

    oracles: int
    splits: list[str]
    optional_splits: list[str]


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
    folder `seed-<seed>`. Where there are too few to compare with, none is copied.

    Raises:
        RefusedError: grade "forgotten" is asked for and there are too few oracles for it.
    """
    from expunge import registry
    from expunge.formats.model import load_model_info
    from expunge.oracles import NEEDED, check_enough_oracles, compute_recipe_key

    info = load_model_info(base)
    found = registry.list_oracles(name, compute_recipe_key(info, classes))
    check_enough_oracles(name, info, classes, len(found), grade, version)
    # Also where it stays empty: the validation lists what is in it.
    oracles.mkdir(parents=True, exist_ok=True)
    if len(found) < NEEDED:
        # New heads are trained on a few training images. Where these are gone, the test images do.
        return Found(len(found), ["test"], ["train"])
    for oracle in found:
        registry.download(oracle, oracles / f"seed-{oracle.seed}")
    return Found(len(found), ["train", "test"], [])
