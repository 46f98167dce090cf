"""Which version of a model serves: the one rule for train, forget, rollback and reconcile.

The ledger's row is changed by compare-and-swap (`ledger.change_champion`); MLflow's aliases follow
it. Between the two a process may die, and in MLflow anybody may move an alias: `reconcile` puts
the aliases where the row says, at the beginning of whatever touches a champion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from expunge import ledger, registry
from expunge.errors import RefusedError, UserError
from expunge.ledger import Champion, Erasure, Request
from expunge.registry import Version


@dataclass(frozen=True)
class Reconciled:
    """What `reconcile` found: the champion, aliases that were put right, requests now settled."""

    champion: int | None
    missing: bool  # the champion's version was deleted from the registry
    restored: Mapping[str, tuple[int | None, int | None]]  # by alias: where it stood, where it is
    fulfilled: tuple[Request, ...]


def erased(name: str) -> dict[int, Erasure]:
    """The classes that a champion of this model ever forgot; no later one may know them."""
    known = {index: Erasure(version, None) for index, version in registry.erased_tags(name).items()}
    return known | ledger.erasures(name)


def promote(
    name: str, version: int, expected: int | None, token: int | None = None
) -> list[Request]:
    """Make a version champion, and `previous` what it replaces; nothing if it is champion already.

    `expected` is the champion that the gate compared with, None for no champion; `token` that of
    the claim whose work the version is. Returns the requests that are fulfilled by it.

    Raises:
        RefusedError: the version is an oracle or did not pass the gate, another champion came
            between, the claim was lost, or the version remembers a class that was erased.
        UserError: there is no such version.
    """
    _adopt(name)
    _change(registry.candidate(name, version), expected, token, "promoted")
    return ledger.fulfil(name)


def rollback(name: str) -> tuple[int, int]:
    """Make `previous` champion again, and what was champion `previous`: the new and the old number.

    Raises:
        RefusedError: the version did not pass the gate, or remembers a class that was erased.
        UserError: the model has no champion, or no previous one to go back to.
    """
    current = _adopt(name)
    if current is None:
        registry.resolve(name)  # raises, with what there is
        raise UserError(f"model {name!r} has no champion; train it with `expunge train {name}`")
    if current.previous is None:
        raise UserError(f"model {name!r} has no previous champion; version {current.version} stays")
    target = registry.candidate(name, current.previous)
    _change(target, current.version, None, "rolled-back")
    return target.version, current.version


def reconcile(name: str) -> Reconciled:
    """Put the aliases where the ledger's row says, and settle what the champion fulfils.

    A model that has no row yet, as one that an older version of expunge made, gets it from the
    alias, if that stands on a version which may be champion; if not, the alias is taken away, and
    so it is where the champion's version was deleted.
    """
    row = _adopt(name)
    restored = _show(name, row) if row or registry.has_model(name) else {}
    for alias, (found, put) in restored.items():
        ledger.note_restored(name, alias, found, put)
    fulfilled = tuple(ledger.fulfil(name)) if row else ()
    missing = row is not None and row.version not in _versions(name)
    return Reconciled(row.version if row else None, missing, restored, fulfilled)


def _change(candidate: Version, expected: int | None, token: int | None, why: str) -> None:
    """Change the ledger's row, and then the aliases."""
    name = candidate.name
    ledger.check_no_way_back(name, candidate.version, candidate.forgotten, erased(name))
    row = ledger.change_champion(
        name,
        candidate.version,
        forgotten=candidate.forgotten,
        grade=candidate.grade,
        expected=expected,
        token=token,
        why=why,
    )
    _show(name, row)


def _show(name: str, row: Champion | None) -> dict[str, tuple[int | None, int | None]]:
    """Set the aliases that stand elsewhere; returns where each stood and where it is.

    Another process may change the row meanwhile and show it first, hence the second look.
    """
    moved: dict[str, tuple[int | None, int | None]] = {}
    while True:
        moved |= _set_aliases(name, row)
        seen, row = row, ledger.champion(name)
        if row == seen:
            return moved


def _set_aliases(name: str, row: Champion | None) -> dict[str, tuple[int | None, int | None]]:
    found, known = registry.aliases(name), _versions(name)
    if row is not None and row.version in known and not known[row.version].promoted:
        registry.tag_champion(name, row.version, row.forgotten)
    wanted = {registry.CHAMPION: row and row.version, registry.PREVIOUS: row and row.previous}
    moved = {}
    for alias, version in wanted.items():
        target = version if version in known else None  # MLflow drops a deleted version's aliases
        if found.get(alias) != target:
            registry.set_alias(name, alias, target)
            moved[alias] = (found.get(alias), target)
    return moved


def _versions(name: str) -> dict[int, Version]:
    return {entry.version: entry for entry in registry.versions(name)}


def _adopt(name: str) -> Champion | None:
    """The ledger's row; where there is none, made from MLflow's aliases, if they may stand."""
    row = ledger.champion(name)
    if row is not None:
        return row
    found = registry.aliases(name)
    if registry.CHAMPION not in found:
        return None
    known = erased(name)
    try:
        version = registry.candidate(name, found[registry.CHAMPION])
        ledger.check_no_way_back(name, version.version, version.forgotten, known)
    except RefusedError:
        return None
    return ledger.adopt_champion(
        name,
        version.version,
        previous=found.get(registry.PREVIOUS),
        forgotten=version.forgotten,
        grade=version.grade,
        erased={index: entry.version for index, entry in known.items()},
    )
