"""Aliases `champion` and `previous`, and the tags that say what a model has erased.

`expunge.lifecycle.promotion` decides which version is champion; here that is shown in MLflow. The
tags are only ever added, so that what was erased is known even where the ledger was lost.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from expunge.errors import RefusedError
from expunge.oracles import check_model_name
from expunge.registry.store import connect, iterate_pages, translate_errors
from expunge.registry.versions import (
    CHAMPION,
    ORACLE,
    PREVIOUS,
    Version,
    list_versions,
    resolve,
    version_exists,
)

PROMOTED_TAG = "expunge.promoted"
# on the registered model, a tag a class with the version that erased it: it outlives that version
ERASED_TAG = "expunge.erased."
# Two first settings at once: one of them gets a 400. An SQLite store that another process writes
# may refuse at once, in place of waiting.
TRIES, PAUSE = 8, 0.1


@translate_errors("read what was erased")
def read_erased_tags(name: str) -> dict[int, int]:
    """Return the erased classes by MLflow's tags, and the version that erased each first."""
    check_model_name(name, oracles=True)
    erased = {
        index: entry.version
        for entry in list_versions(name)  # the newest first, so that the oldest stays
        if entry.promoted
        for index in entry.forgotten
    }
    query = f"name = '{name}'"
    for model in iterate_pages(connect().search_registered_models, filter_string=query):
        for key, value in model.tags.items():
            if key.startswith(ERASED_TAG):
                erased[int(key.removeprefix(ERASED_TAG))] = int(value)
    return erased


@translate_errors("read the aliases")
def read_aliases(name: str) -> dict[str, int]:
    """Return the version that `champion` and `previous` stand on, whoever set them."""
    query = f"name = '{check_model_name(name, oracles=True)}'"
    for model in iterate_pages(connect().search_registered_models, filter_string=query):
        return {
            alias: int(version)
            for alias, version in model.aliases.items()
            if alias in (CHAMPION, PREVIOUS)
        }
    return {}


@translate_errors("set an alias")
def set_alias(name: str, alias: str, version: int | None) -> None:
    """Put an alias on a version, or take it away."""
    client = connect()
    if version is None:
        _call_patiently(client.delete_registered_model_alias, name, alias)
    else:
        _call_patiently(client.set_registered_model_alias, name, alias, str(version))


@translate_errors("tag a champion")
def tag_champion(name: str, version: int, forgotten: Collection[int]) -> None:
    """Mark a version as promoted, and on the model what it was the first to erase."""
    client, known = connect(), read_erased_tags(name)
    for index in sorted(forgotten):
        if index not in known:
            _call_patiently(
                client.set_registered_model_tag, name, f"{ERASED_TAG}{index}", str(version)
            )
    _call_patiently(client.set_model_version_tag, name, str(version), PROMOTED_TAG, "true")


def find_candidate(name: str, version: int) -> Version:
    """Return the version, if it is one of ours that passed the gate.

    Raises:
        RefusedError: it is an oracle, or did not pass.
        UserError: there is no such version.
    """
    for entry in list_versions(name):
        if entry.version == version and entry.kind == ORACLE:
            raise RefusedError(
                f"version {version} of {name!r} is an oracle, which is there to be compared with; "
                "it never becomes champion"
            )
        if entry.version == version and entry.tags.get("expunge.gate") == "passed":
            return entry
    if version_exists(name, version):
        raise RefusedError(
            f"version {version} of {name!r} was not registered by expunge with a passed gate; "
            "only such a version can become champion"
        )
    return resolve(name, version)  # which says what is wrong


def _call_patiently(call: Any, *arguments: str) -> None:
    """Call MLflow, and again where two first settings or two writers met."""
    for left in reversed(range(TRIES)):
        try:
            call(*arguments)
        except Exception as error:
            again = getattr(error, "error_code", "") == "BAD_REQUEST" or "locked" in str(error)
            if left == 0 or not again:
                raise
            time.sleep(PAUSE)
        else:
            return
