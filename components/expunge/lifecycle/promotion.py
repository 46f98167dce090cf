"""Promotion: which version of a model serves, for train, forget, rollback and reconcile.

The ledger's row is changed by compare-and-swap (`ledger.change_champion`); MLflow's aliases follow
it. Between the two a process may die, and in MLflow anybody may move an alias: `reconcile` puts
the aliases where the row says, at the beginning of whatever touches a champion.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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


def list_erased(name: str) -> dict[int, Erasure]:
    """Return the classes that a champion of this model ever forgot; no later one may know them."""
    # MLflow's tags fill in for a ledger that was lost; what the ledger says counts more.
    known = {
        index: Erasure(version, None) for index, version in registry.read_erased_tags(name).items()
    }
    return known | ledger.list_erasures(name)


def promote(
    name: str, version: int, expected: int | None, token: int | None = None
) -> list[Request]:
    """Make a version champion, and `previous` what it replaces; nothing if it is champion already.

    `expected` is the champion that the gate compared with, None for no champion; `token` that of
    the claim whose work the version is. Return the requests that are fulfilled by it.

    Raises:
        RefusedError: the version is an oracle or did not pass the gate, another champion came
            between, the claim was lost, or the version remembers a class that was erased.
        UserError: there is no such version.
    """
    _adopt_champion(name)
    _change_champion(registry.find_candidate(name, version), expected, token, "promoted")
    return ledger.fulfil(name)


def rollback(name: str) -> tuple[int, int]:
    """Make `previous` champion again, and what was champion `previous`: the new and the old number.

    Raises:
        RefusedError: the version did not pass the gate, or remembers a class that was erased.
        UserError: the model has no champion, or no previous one to go back to.
    """
    current = _adopt_champion(name)
    if current is None:
        registry.resolve(name)  # raises, with what there is
        raise UserError(f"model {name!r} has no champion; train it with `expunge train {name}`")
    if current.previous is None:
        raise UserError(f"model {name!r} has no previous champion; version {current.version} stays")
    target = registry.find_candidate(name, current.previous)
    _change_champion(target, current.version, None, "rolled-back")
    return target.version, current.version


def reconcile(name: str) -> Reconciled:
    """Put the aliases where the ledger's row says, and settle what the champion fulfils.

    A model that has no row yet, as one that an older version of expunge made, gets it from the
    alias, or from the newest version that was champion, if one of them may be so still. Where none
    may, or the champion's version was deleted, the alias is taken away.
    """
    row = _adopt_champion(name)
    if row is None and not registry.has_model(name):
        return Reconciled(None, False, {}, ())
    restored, known = _show_in_mlflow(name)
    for alias, (found, put) in restored.items():
        ledger.note_restored(name, alias, found, put)
    _record_versions(name, known.values())
    missing = row is not None and not _is_registered(row, known)
    fulfilled = tuple(ledger.fulfil(name)) if row and not missing else ()
    return Reconciled(row.version if row else None, missing, restored, fulfilled)


def _change_champion(candidate: Version, expected: int | None, token: int | None, why: str) -> None:
    """Change the ledger's row, and then the aliases."""
    name = candidate.name
    ledger.check_no_way_back(name, candidate.version, candidate.forgotten, list_erased(name))
    ledger.change_champion(
        name,
        candidate.version,
        forgotten=candidate.forgotten,
        grade=candidate.grade,
        weights=candidate.digests["weights"],
        expected=expected,
        token=token,
        why=why,
    )
    _show_in_mlflow(name)


def _show_in_mlflow(
    name: str,
) -> tuple[dict[str, tuple[int | None, int | None]], dict[int, Version]]:
    """Set the aliases that stand elsewhere.

    Return where each of them stood and where it is, and the model's versions by number.

    The row is read last, and once more when the aliases are set: another process may change it
    meanwhile, and show it first.
    """
    moved: dict[str, tuple[int | None, int | None]] = {}
    while True:
        found, known = registry.read_aliases(name), _map_versions(name)
        row = ledger.find_champion(name)
        champion = row.version if row and _is_registered(row, known) else None
        previous = row.previous if row and row.previous in known else None
        if row and champion and not known[champion].promoted:
            registry.tag_champion(name, champion, row.forgotten)
        for alias, version in ((registry.CHAMPION, champion), (registry.PREVIOUS, previous)):
            if found.get(alias) != version:
                registry.set_alias(name, alias, version)
                moved[alias] = (found.get(alias), version)
        if row == ledger.find_champion(name):
            return moved, known


def _is_registered(row: Champion, known: Mapping[int, Version]) -> bool:
    """Return whether the champion is there, and no other version has got its number."""
    entry = known.get(row.version)
    return entry is not None and entry.digests["weights"] == row.weights


def _record_versions(name: str, versions: Collection[Version]) -> None:
    """Record the versions that the ledger does not know yet."""
    # A process may be killed between the two, and a version may be older than its ledger.
    recorded = ledger.list_addresses(name)
    for version in versions:
        if version.uri not in recorded:
            classes = registry.read_model_info(version).retained
            ledger.note_written(version.uri, "version", classes, model=name)


def _map_versions(name: str) -> dict[int, Version]:
    """Return the versions of a model by number, the newest first."""
    return {entry.version: entry for entry in registry.list_versions(name)}


def _adopt_champion(name: str) -> Champion | None:
    """Return the ledger's row. Where there is none, adopt what MLflow says, if that may serve."""
    row = ledger.find_champion(name)
    if row is not None:
        return row
    found = registry.read_aliases(name)
    promoted = [version for version, entry in _map_versions(name).items() if entry.promoted]
    known = list_erased(name)
    for number in (found.get(registry.CHAMPION), *promoted):  # the newest first
        if number is None:
            continue
        try:
            version = registry.find_candidate(name, number)
            ledger.check_no_way_back(name, number, version.forgotten, known)
        except RefusedError:
            continue
        return ledger.adopt_champion(
            name,
            number,
            previous=found.get(registry.PREVIOUS),
            forgotten=version.forgotten,
            grade=version.grade,
            weights=version.digests["weights"],
            erased={index: entry.version for index, entry in known.items()},
        )
    return None
