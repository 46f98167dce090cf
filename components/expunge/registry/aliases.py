"""The aliases `champion` and `previous`, and the rule that a forgotten class does not come back.

MLflow's aliases know no compare-and-set: the champion is read, compared and then set, so two
promotions of one model at the same moment can both pass. The tags that say what was erased are
written before the alias moves, and only ever added, so the rule itself survives that.
"""

from __future__ import annotations

import time
from typing import Any

from expunge.errors import RefusedError, UserError
from expunge.registry.store import connect, pages, store_errors
from expunge.registry.versions import (
    CHAMPION,
    ORACLE,
    PREVIOUS,
    Version,
    exists,
    resolve,
    versions,
)

PROMOTED_TAG = "expunge.promoted"
# on the registered model, a tag a class with the version that erased it: it outlives that version
ERASED_TAG = "expunge.erased."
ALIAS_TRIES = 4  # two first settings at once: one of them gets a 400


def erased_classes(name: str) -> frozenset[int]:
    """The classes that some champion of this model, past or present, had forgotten."""
    return frozenset(_erased(name))


@store_errors("read what was erased")
def _erased(name: str) -> dict[int, int]:
    """The erased classes and the version that erased each: the first champion without it."""
    erased = {
        index: entry.version
        for entry in versions(name)  # the newest first, so that the oldest stays
        if entry.promoted
        for index in entry.forgotten
    }
    query = f"name = '{name}'"
    for model in pages(connect().search_registered_models, filter_string=query):
        for key, value in model.tags.items():
            if key.startswith(ERASED_TAG):
                erased[int(key.removeprefix(ERASED_TAG))] = int(value)
    return erased


def promote(name: str, version: int, expected: int | None) -> None:
    """Make a version champion, and `previous` what it replaces; nothing if it is champion already.

    `expected` is the champion that the gate compared with, None for no champion.

    Raises:
        RefusedError: the version is an oracle or did not pass the gate, another champion came
            between, or the version remembers a class that this model has erased.
        UserError: there is no such version.
    """
    candidate = _candidate(name, version)
    if CHAMPION in candidate.aliases:
        return
    current = _holder(name, CHAMPION)
    number = current.version if current else None
    if number != expected:
        raise RefusedError(
            f"the champion of {name!r} is {_say(number)} by now and version {version} was compared "
            f"with {_say(expected)}; run the pipeline again from the new champion"
        )
    _check_no_way_back(candidate)
    with store_errors("promote a version"):
        client = connect()
        known = _erased(name)
        for index in candidate.forgotten:
            if index not in known:
                client.set_registered_model_tag(name, f"{ERASED_TAG}{index}", str(version))
        client.set_model_version_tag(name, str(version), PROMOTED_TAG, "true")
        if current is not None:
            _set_alias(client, name, PREVIOUS, current.version)
        _set_alias(client, name, CHAMPION, version)


def rollback(name: str) -> Version:
    """Make `previous` champion again, and what was champion `previous`; returns the new champion.

    Raises:
        RefusedError: the version did not pass the gate, or remembers a class that was erased.
        UserError: the model has no champion, or no previous one to go back to.
    """
    current = resolve(name)
    target = _holder(name, PREVIOUS)
    if target is None or target.version == current.version:
        raise UserError(f"model {name!r} has no previous champion; version {current.version} stays")
    _candidate(name, target.version)
    _check_no_way_back(target)
    with store_errors("roll back"):
        client = connect()
        _set_alias(client, name, CHAMPION, target.version)
        _set_alias(client, name, PREVIOUS, current.version)
    return resolve(name)


def _candidate(name: str, version: int) -> Version:
    """The version, if it is one of ours that passed the gate."""
    for entry in versions(name):
        if entry.version == version and entry.kind == ORACLE:
            raise RefusedError(
                f"version {version} of {name!r} is an oracle, which is there to be compared with; "
                "it never becomes champion"
            )
        if entry.version == version and entry.tags.get("expunge.gate") == "passed":
            return entry
    if exists(name, version):
        raise RefusedError(
            f"version {version} of {name!r} was not registered by expunge with a passed gate; "
            "only such a version can become champion"
        )
    return resolve(name, version)  # which says what is wrong


def _check_no_way_back(candidate: Version) -> None:
    erased = _erased(candidate.name)
    remembered = sorted(index for index in erased if index not in candidate.forgotten)
    if remembered:
        named = ", ".join(
            f"class {index} (erased by version {erased[index]})" for index in remembered
        )
        raise RefusedError(
            f"version {candidate.version} of {candidate.name!r} remembers {named}; an erased class "
            "does not come back: forget it in this version too, or train without it"
        )


def _holder(name: str, alias: str) -> Version | None:
    for entry in versions(name):
        if alias in entry.aliases:
            return entry
    return None


def _say(version: int | None) -> str:
    return "none" if version is None else f"version {version}"


def _set_alias(client: Any, name: str, alias: str, version: int) -> None:
    for left in reversed(range(ALIAS_TRIES)):
        try:
            client.set_registered_model_alias(name, alias, str(version))
        except Exception as error:
            if left == 0 or getattr(error, "error_code", "") != "BAD_REQUEST":
                raise
            time.sleep(0.1)
        else:
            return
