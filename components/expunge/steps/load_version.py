"""Fetch a registered version as a model folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Loaded(NamedTuple):
    """Which version it is, and where the data is that it was trained on."""

    version: int
    reference: str  # NAME/VERSION, what a version made from it calls its parent
    source: str
    image_size: int  # the side of its images; 0 where they are not square


def load_version(name: str, version: int, model: Path, classes: Sequence[int] = ()) -> Loaded:
    """Copy version `version` of `name`, or with 0 its champion, into the folder `model`.

    Raises:
        UserError: there is no such version, it has no codes, or it cannot forget `classes`.
    """
    from expunge import registry
    from expunge.artifacts import load_model_info
    from expunge.classes import check_forgettable

    found = registry.resolve(name, version or None)
    registry.download(found, model)
    info = load_model_info(model)
    check_forgettable(info, classes)
    _, height, width = info.input_shape
    return Loaded(
        found.version,
        f"{found.name}/{found.version}",
        info.source,
        height if height == width else 0,
    )
