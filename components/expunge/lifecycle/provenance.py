"""Provenance: what a step has written, in the ledger, so that what remembers a class is found."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from expunge import environment, ledger
from expunge.formats.dataset import DATASET, load_dataset_info
from expunge.formats.files import digest_file, read_json
from expunge.formats.model import MODEL, load_model_info, make_opaque_name
from expunge.validation_report import ValidationReport

if TYPE_CHECKING:
    from expunge.registry import Version


class Port(Protocol):
    """What kfp gives a step for an artifact: where it lies here, and its address for everybody."""

    path: str
    uri: str


def record_artifact(port: Port, kind: str, of: Port | None = None, model: str | None = None) -> str:
    """Record an artifact that a step has written, before kfp puts it where it is kept.

    The classes are those that the data set or model in it knows, or that in `of`, from which it
    was made. Return its digest, which is part of the key of every cached step that reads it.
    """
    path = Path(port.path)
    found = digest_path(path)
    if path.exists() and (path.is_file() or any(path.iterdir())):
        classes = find_classes_held(Path((of or port).path))
        ledger.note_written(
            port.uri,
            kind,
            classes,
            digest=found,
            model=model,
            run=environment.pipeline_run(),
        )
    return found


def record_version(version: Version, folder: Path) -> None:
    """Record a version that was registered from `folder`, by the URI that any client loads."""
    ledger.note_written(
        version.uri,
        "version",
        find_classes_held(folder),
        digest=digest_path(folder),
        model=version.name,
        run=environment.pipeline_run(),
    )


def find_classes_held(folder: Path) -> set[int]:
    """Return the class indices that a data set, a model or a folder of models holds anything of."""
    if (folder / DATASET).is_file():
        splits = load_dataset_info(folder).splits.values()
        return {i for split in splits for i, count in enumerate(split.counts) if count}
    return {i for path in folder.rglob(MODEL) for i in load_model_info(path.parent).retained}


def record_folder(folder: Path, kind: str, classes: Collection[int], model: str = "") -> None:
    """Record a folder or file of this machine that others read or that outlives the step."""
    ledger.note_written(
        str(folder.resolve()), kind, classes, model=model or None, run=environment.pipeline_run()
    )


def record_removal(folder: Path) -> None:
    """Record that a folder or file of this machine is gone, with all that was in it."""
    ledger.note_removed(str(folder.resolve()))


def record_report(address: str, page: Path, validation: Path, model: str) -> None:
    """Record a report, which names the classes that were not to be forgotten."""
    names = ValidationReport.from_json(read_json(validation)).class_names
    classes = [index for index, text in enumerate(names) if text != make_opaque_name(index)]
    ledger.note_written(
        address, "report", classes, digest=digest_path(page), model=model,
        run=environment.pipeline_run(),
    )  # fmt: skip


def digest_path(path: Path) -> str:
    """Return the `sha256:` of a file; of a folder, that of its files' names and digests.

    Of a data set it is that of its description, which has the digests of the images.
    """
    if path.is_file():
        return f"sha256:{digest_file(path)}"
    whole = hashlib.sha256()
    described = path / DATASET
    files = [described] if described.is_file() else sorted(path.rglob("*"))
    for file in files:
        if file.is_file():
            whole.update(f"{file.relative_to(path)} {digest_file(file)}\n".encode())
    return f"sha256:{whole.hexdigest()}"
