"""Fetch a registered version as a model folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from expunge.artifacts import ModelInfo, load_model_info
from expunge.errors import UserError
from expunge.oracles import SUFFIX


class Loaded(NamedTuple):
    """Which version it is, and where the data is that it was trained on."""

    version: int
    reference: str  # NAME/VERSION, what a version made from it calls its parent
    source: str
    image_size: int  # the side of its images; 0 where they are not square


def load_version(name: str, version: int, model: Path, classes: Sequence[int] = ()) -> Loaded:
    """Copy version `version` of `name`, or with 0 its champion, into the folder `model`.

    Raises:
        UserError: there is no such version, it has no codes, it cannot forget `classes`, or it is
            an oracle.
    """
    from expunge import registry
    from expunge.classes import check_forgettable

    found = registry.resolve(name, version or None)
    if found.kind == registry.ORACLE:
        raise UserError(
            f"version {found.version} of {name!r} is an oracle, which is there to be compared "
            f"with; forget classes of {name.removesuffix(SUFFIX)!r}"
        )
    registry.download(found, model)
    info = load_model_info(model)
    check_forgettable(info, classes)
    return Loaded(found.version, f"{found.name}/{found.version}", info.source, image_side(info))


def image_side(info: ModelInfo) -> int:
    """The side of a model's images in pixels, for `prepare_data`; 0 where they are not square."""
    _, height, width = info.input_shape
    return height if height == width else 0
