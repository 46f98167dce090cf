"""Registered versions: what there is, which one is meant, and a copy of it as a model folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge.errors import OperationalError, UserError
from expunge.formats.files import digest_file
from expunge.formats.fisher import FISHER
from expunge.formats.model import CODES, MODEL, ONNX, WEIGHTS, ModelInfo, load_model_info
from expunge.formats.statistics import STATISTICS
from expunge.oracles import SUFFIX, check_model_name, holds_oracles, name_oracle_model
from expunge.registry.store import connect, iterate_pages, translate_errors

CHAMPION, PREVIOUS = "champion", "previous"
REGISTERED = "models:/"  # how the address of a registered version begins
# a version's files, and the ends of the tags that hold the SHA-256 of each
FILES = {MODEL: "info", WEIGHTS: "weights", CODES: "codes", FISHER: "fim_total", ONNX: "onnx"}
DIGEST_TAG = "expunge.sha256."
KIND_TAG = "expunge.kind"  # every version of ours has it, and no other
ORACLE = "oracle"  # the kind of a model to compare with, which never serves
KEY_TAG, SEED_TAG = "expunge.oracle", "expunge.oracle.seed"
ACCURACY_TAG = "expunge.test_accuracy"


# files that a version may have
OPTIONAL_FILES = {STATISTICS: "statistics"}


def list_files(kind: str) -> tuple[str, ...]:
    """Return the files of a version; an oracle forgets nothing, so it needs no Fisher total."""
    return tuple(file for file in FILES if kind != ORACLE or file != FISHER)


def list_files_of(folder: Path, kind: str) -> tuple[str, ...]:
    """Return the files of the version that a folder would become."""
    return (*list_files(kind), *(file for file in OPTIONAL_FILES if (folder / file).exists()))


def name_digest_tag(file: str) -> str:
    """Return the tag that holds the SHA-256 of one of a version's files."""
    return DIGEST_TAG + (FILES | OPTIONAL_FILES)[file]


@dataclass(frozen=True)
class Version:
    """A registered version. `source` is its data's; `forgotten` are class indices, rising."""

    name: str
    version: int
    aliases: tuple[str, ...]
    created: str  # ISO 8601, UTC
    run_id: str
    source: str
    forgotten: tuple[int, ...]
    parent: str | None  # "NAME/VERSION"
    grade: str
    kind: str  # "train", "forget" or "oracle"
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """What any MLflow client loads it by."""
        return f"{REGISTERED}{self.name}/{self.version}"

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of its files: info, weights, codes, onnx, fim_total and statistics.

        An oracle has no fim_total, and not every version has statistics.
        """
        names = FILES | OPTIONAL_FILES
        return {names[file]: self.tags.get(name_digest_tag(file), "") for file in self.files}

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it has beside MLflow's own."""
        optional = [file for file in OPTIONAL_FILES if name_digest_tag(file) in self.tags]
        return (*list_files(self.kind), *optional)

    @property
    def seed(self) -> int | None:
        """The seed of an oracle's training."""
        return int(self.tags[SEED_TAG]) if self.kind == ORACLE else None

    @property
    def test_accuracy(self) -> float | None:
        """An oracle's, on the test images of the classes that it knows, where it was kept."""
        text = self.tags.get(ACCURACY_TAG)
        return float(text) if text else None

    @property
    def promoted(self) -> bool:
        """Whether it has ever been champion."""
        return self.tags.get("expunge.promoted") == "true"


def parse_classes(text: str) -> tuple[int, ...]:
    """Return the class indices of a tag such as "3,5"; an empty one has none."""
    return tuple(int(index) for index in text.split(",") if index)


@translate_errors("list the models")
def list_models() -> list[Version]:
    """Return every expunge version of every model but oracles: by name, the newest first."""
    client = connect()
    registered = {entry.name: entry for entry in iterate_pages(client.search_registered_models)}
    found = _select_versions(client, registered, "")
    return [entry for entry in found if entry.kind != ORACLE]


@translate_errors("list the versions")
def list_versions(name: str) -> list[Version]:
    """Return every expunge version of one model, the newest first; none for an unknown model."""
    client = connect()
    check_model_name(name, oracles=True)
    query = f"name = '{name}'"
    found = iterate_pages(client.search_registered_models, filter_string=query)
    return _select_versions(client, {entry.name: entry for entry in found}, query)


def list_oracles(name: str, key: str) -> list[Version]:
    """Return the oracles of model `name` with this key (`compute_recipe_key`), by their seed."""
    found = {
        entry.seed: entry  # the newest first, so that of two with one seed the older stays
        for entry in list_versions(name_oracle_model(name))
        if entry.kind == ORACLE and entry.tags.get(KEY_TAG) == key
    }
    return [entry for _, entry in sorted(found.items())]


def _select_versions(client: Any, registered: Mapping[str, Any], query: str) -> list[Version]:
    found = [
        _build_version(entry, registered[entry.name])
        for entry in iterate_pages(client.search_model_versions, filter_string=query)
        if KIND_TAG in entry.tags and entry.name in registered
    ]
    return sorted(found, key=lambda entry: (entry.name, -entry.version))


def _build_version(entry: Any, registered: Any) -> Version:
    number, tags = int(entry.version), dict(entry.tags)
    aliases = [alias for alias, target in registered.aliases.items() if int(target) == number]
    created = datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC)
    return Version(
        name=entry.name,
        version=number,
        aliases=tuple(sorted(aliases)),
        created=created.isoformat(timespec="seconds"),
        run_id=entry.run_id or "",
        source=tags.get("expunge.source", ""),
        forgotten=parse_classes(tags.get("expunge.forgotten", "")),
        parent=tags.get("expunge.base"),
        grade=tags.get("expunge.grade", ""),
        kind=tags[KIND_TAG],
        tags=tags,
    )


def resolve(name: str, version: int | None = None) -> Version:
    """Return the version that is meant; the champion where none is given.

    Raises:
        UserError: there is no such model or version, the model has no champion, or the version was
            registered by something else.
    """
    found = list_versions(name)
    for entry in found:
        if entry.version == version or (version is None and CHAMPION in entry.aliases):
            return entry
    if version is not None and version_exists(name, version):
        raise UserError(
            f"version {version} of {name!r} was not registered by expunge (it has no {MODEL}); "
            f"use one of {_list_numbers(found)}"
        )
    if not found and holds_oracles(name):
        raise UserError(
            f"there is no model {name!r}, a name that holds oracles; name the model that they are "
            f"for, {name.removesuffix(SUFFIX)!r}, or make them with `expunge oracles`"
        )
    if not found:
        known = ", ".join(dict.fromkeys(entry.name for entry in list_models())) or "none yet"
        raise UserError(
            f"there is no model {name!r} (known: {known}); make it with `expunge train {name}`"
        )
    if version is None:
        check_model_name(name)
        raise UserError(
            f"model {name!r} has no champion among its versions {_list_numbers(found)}; "
            "name one of them, or train it anew"
        )
    raise UserError(f"model {name!r} has no version {version}; use one of {_list_numbers(found)}")


def resolve_uri(uri: str) -> Version:
    """Return the version at `models:/NAME/VERSION` or `models:/NAME@champion`.

    Raises:
        UserError: the address is another, or there is no such version.
    """
    name, at, alias = uri.removeprefix(REGISTERED).partition("@")
    name, _, number = (name, "", "") if at else name.partition("/")
    if not (alias == CHAMPION if at else number.isdecimal()):
        raise UserError(
            f"init_from is {uri!r}; a registered version is models:/NAME/VERSION or "
            "models:/NAME@champion"
        )
    return resolve(name, int(number) if number else None)


def _list_numbers(found: list[Version]) -> str:
    return ", ".join(str(entry.version) for entry in reversed(found)) or "none yet"


@translate_errors("read a version")
def version_exists(name: str, version: int) -> bool:
    """Return whether MLflow knows such a version, whoever registered it."""
    found = iterate_pages(connect().search_model_versions, filter_string=f"name = '{name}'")
    return any(int(entry.version) == version for entry in found)


def has_model(name: str) -> bool:
    """Return whether there is a version of ours under this name."""
    return bool(list_versions(name))


@translate_errors("read a version")
def read_model_info(version: Version) -> ModelInfo:
    """Return the version's `model.json` alone, without its weights.

    Raises:
        UserError: the version holds none.
    """
    import mlflow

    connect()
    with tempfile.TemporaryDirectory() as folder:
        try:
            mlflow.artifacts.download_artifacts(f"{version.uri}/{MODEL}", dst_path=folder)
        except Exception as error:
            if (Path(folder) / MODEL).exists():
                raise
            raise UserError(
                f"{version.uri} holds no {MODEL} ({error}); it is no version of expunge"
            ) from error
        return load_model_info(Path(folder))


@translate_errors("download a version")
def download(version: Version, folder: Path) -> None:
    """Copy the version's files into `folder`, each checked against the digest in its tag.

    Raises:
        UserError: the version holds no model folder.
        OperationalError: a file is missing or is not the one that was registered.
    """
    import mlflow

    connect()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as fresh:
        got = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=fresh))
        if not (got / MODEL).is_file():
            raise UserError(f"{version.uri} holds no {MODEL}; it is no version of expunge")
        files = version.files
        for name in files:
            expected = version.tags.get(name_digest_tag(name), "")
            actual = digest_file(got / name) if (got / name).is_file() else "missing"
            if actual != expected:
                raise OperationalError(
                    f"{name} of {version.uri} is not what was registered: its SHA-256 is {actual} "
                    f"and the version's tag says {expected or 'nothing'}; do not use this version"
                )
        # Only now, so that the folder never holds a part of what is not as it was registered.
        for name in files:
            shutil.move(got / name, folder / name)


@translate_errors("export a version's ONNX file")
def export_file(version: Version, folder: Path) -> Path:
    """Copy the version's ONNX file to `<folder>/<name>-<version>.onnx` and return that path."""
    import mlflow

    connect()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as fresh:
        got = mlflow.artifacts.download_artifacts(f"{version.uri}/{ONNX}", dst_path=fresh)
        target = folder / f"{version.name}-{version.version}.onnx"
        Path(got).replace(target)
    return target
