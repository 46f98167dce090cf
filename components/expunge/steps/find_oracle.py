"""The step that looks for an oracle before one is trained."""

from collections.abc import Sequence
from pathlib import Path


def find_oracle(dataset: Path, name: str, version: int, classes: Sequence[int], seed: int) -> bool:
    """Return whether the oracle of this seed is registered already.

    It is one for forgetting `classes` of version `version` of `name`; 0 means the champion.
    `dataset` is what it would be trained on: a data set folder with train and test.

    Raises:
        UserError: no class is named, the data is not what the version was trained on, or there is
            no such version.
    """
    from expunge import registry
    from expunge.errors import UserError
    from expunge.formats.dataset import load_dataset_info
    from expunge.oracles import compute_recipe_key

    # A form that nobody filled in has no classes, and an oracle of all of them tells nothing.
    if not classes:
        raise UserError("without is empty; name the classes that the oracles are to leave out")
    base = registry.resolve(name, version or None)
    info, data = registry.read_model_info(base), load_dataset_info(dataset)
    # By digests: a folder that somebody changed still has the name of the version's source.
    digests = {split: part.digest for split, part in data.splits.items()}
    changed = sorted(s for s, digest in info.data_digests.items() if digests.get(s) != digest)
    if changed:
        raise UserError(
            f"the images of split {' and '.join(changed)} of {data.source} are not those that "
            f"version {base.version} of {name!r} was trained on; an oracle has to learn from the "
            "same data: put it back, or train a new version on what is there now"
        )
    kept = registry.list_oracles(name, compute_recipe_key(info, classes))
    return any(oracle.seed == seed for oracle in kept)
