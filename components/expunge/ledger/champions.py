"""Champion of each model, and the classes that its champions have erased.

The row of `champions` is the truth; MLflow's alias is a projection of it. A change of the row is a
compare-and-swap, in one transaction with the check that nothing erased comes back and that the run
which asks for it still holds its claim.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace

from sqlalchemy import Connection, insert, select, update

from expunge.errors import RefusedError
from expunge.ledger.claims import ACTIVE
from expunge.ledger.database import begin_read, begin_write
from expunge.ledger.events import append
from expunge.ledger.requests import Request, select_owners, select_requests
from expunge.ledger.schema import champions, claims, erased, requests
from expunge.states import FULFILLED, OPEN


@dataclass(frozen=True)
class Champion:
    """Which version serves, which one it replaced, and the classes that it has forgotten."""

    model: str
    version: int
    weights: str  # SHA-256 of its weights: where a model was deleted, numbers begin anew
    previous: int | None
    forgotten: tuple[int, ...]
    grade: str
    revision: int  # grows with each change


@dataclass(frozen=True)
class Erasure:
    """Which version erased a class first, and the request that asked for it, if there was one."""

    version: int
    request: str | None

    def __str__(self) -> str:
        if self.request:
            return f"erased by version {self.version} for request {self.request}"
        return f"erased by version {self.version}"


def find_champion(model: str) -> Champion | None:
    """Return the model's champion; None where it has none."""
    with begin_read("read the champion") as connection:
        return _read_champion(connection, model)


def list_champion_models() -> list[str]:
    """Return the models that have a champion, by name."""
    with begin_read("list the champions") as connection:
        return list(connection.scalars(select(champions.c.model).order_by(champions.c.model)))


def list_erasures(model: str) -> dict[int, Erasure]:
    """Return the classes that must not come back to a model, each with what erased it."""
    with begin_read("read what was erased") as connection:
        return _read_erasures(connection, model)


def change_champion(
    model: str,
    version: int,
    *,
    forgotten: Collection[int],
    grade: str,
    expected: int | None,
    weights: str = "",
    token: int | None = None,
    why: str = "promoted",
) -> Champion:
    """Make a version the champion, if `expected` is champion still (None: there is none).

    What it replaces becomes `previous`. A version that is the champion already is left as it is;
    `weights` is the digest of its weights, by which it is known for the same.
    `token` is that of the claim whose work this is.

    Raises:
        RefusedError: another champion came between, the claim was lost, or the version remembers a
            class that was erased.
    """
    with begin_write("change the champion") as connection:
        current = _read_champion(connection, model)
        # First: a step that Kubernetes starts again has promoted already and lost its claim since.
        if current is not None and (current.version, current.weights) == (version, weights):
            return current
        _check_claim(connection, model, version, token)
        found = current.version if current else None
        if found != expected:
            raise RefusedError(
                f"the champion of {model!r} is {_say_version(found)} by now and version {version} "
                f"was compared with {_say_version(expected)}; run the pipeline again from the new "
                "champion"
            )
        known = _read_erasures(connection, model)
        check_no_way_back(model, version, forgotten, known)
        _record_erasures(connection, model, version, set(forgotten) - set(known))
        replaced = found if found != version else None
        row = Champion(
            model=model,
            version=version,
            weights=weights,
            previous=replaced,
            forgotten=tuple(sorted(forgotten)),
            grade=grade,
            revision=0,
        )
        return _write_champion(connection, row, why, token)


def adopt_champion(
    model: str,
    version: int,
    *,
    previous: int | None,
    forgotten: Collection[int],
    grade: str,
    erased: Mapping[int, int],
    weights: str = "",
) -> Champion:
    """Take over the champion of a model that the ledger does not know yet; else leave its row.

    `erased` are the classes that must not come back, each with the version that erased it first;
    what the champion itself has forgotten is among them, whether `erased` names it or not.
    """
    with begin_write("adopt a champion") as connection:
        current = _read_champion(connection, model)
        if current is not None:
            return current
        for index, first in sorted({**dict.fromkeys(forgotten, version), **erased}.items()):
            _record_erasures(connection, model, first, {index})
        row = Champion(
            model=model,
            version=version,
            weights=weights,
            previous=previous,
            forgotten=tuple(sorted(forgotten)),
            grade=grade,
            revision=0,
        )
        return _write_champion(connection, row, "adopted")


def _write_champion(
    connection: Connection, row: Champion, why: str, token: int | None = None
) -> Champion:
    """Write the row of a model, as its next revision."""
    current = _read_champion(connection, row.model)
    row = replace(row, revision=current.revision + 1 if current else 1)
    values = {**asdict(row), "forgotten": list(row.forgotten)}
    values["changed_at"] = append(connection, f"champion-{why}", token=token, **values)
    if current is None:
        connection.execute(insert(champions).values(**values))
    else:
        chosen = champions.c.model == row.model
        connection.execute(update(champions).where(chosen).values(**values))
    return row


def check_no_way_back(
    model: str, version: int, forgotten: Collection[int], known: Mapping[int, Erasure]
) -> None:
    """Refuse a version that remembers a class which this model has erased.

    Raises:
        RefusedError: with each class, and the version and request that erased it.
    """
    remembered = [index for index in sorted(known) if index not in forgotten]
    if remembered:
        named = ", ".join(f"class {index} ({known[index]})" for index in remembered)
        raise RefusedError(
            f"version {version} of {model!r} remembers {named}; an erased class does not come "
            "back: forget it in this version too, or train without it"
        )


def fulfil(model: str) -> list[Request]:
    """Settle every open request whose classes the champion has forgotten, each once.

    To be called when the champion serves: a request that is fulfilled is so for everybody.
    """
    with begin_write("settle requests") as connection:
        current = _read_champion(connection, model)
        if current is None:
            return []
        done = [
            entry
            for entry in select_requests(connection, model=model, states=OPEN)
            if set(entry.classes) <= set(current.forgotten)
        ]
        for entry in done:
            moment = append(connection, "request-fulfilled", model, entry.id,
                            version=current.version, grade=current.grade)  # fmt: skip
            connection.execute(
                update(requests)
                .where(requests.c.id == entry.id)
                .values(
                    state=FULFILLED,
                    version=current.version,
                    grade=current.grade,
                    settled_at=moment,
                    error=None,
                    failed_checks=None,
                )
            )
        return select_requests(connection, ids=[entry.id for entry in done]) if done else []


def note_restored(model: str, alias: str, found: int | None, restored: int | None) -> None:
    """Log that an alias stood on another version than the ledger says, and was put right."""
    with begin_write("log a restored alias") as connection:
        append(connection, "alias-restored", model, alias=alias, found=found, restored=restored)


def _check_claim(connection: Connection, model: str, version: int, token: int | None) -> None:
    """Refuse the work of a run whose claim another run has closed.

    Not by the lease: a run that is late and that nobody has replaced may still promote.
    """
    if token is None:
        return
    held = (claims.c.token == token) & (claims.c.model == model)
    state = connection.scalar(select(claims.c.state).where(held))
    if state != ACTIVE:
        raise RefusedError(
            f"the run that made version {version} of {model!r} has lost its requests (claim "
            f"{token} is {'closed' if state else 'unknown'}); another run works on them or has "
            "settled them, so that this version is not promoted"
        )


def _record_erasures(
    connection: Connection, model: str, version: int, classes: Collection[int]
) -> None:
    """Note what a new champion has forgotten for good, and which request asked for it."""
    owners = select_owners(connection, model, classes)
    for index in sorted(classes):
        moment = append(connection, "class-erased", model, owners.get(index),
                        class_index=index, version=version)  # fmt: skip
        connection.execute(
            insert(erased).values(
                model=model,
                class_index=index,
                version=version,
                request=owners.get(index),
                erased_at=moment,
            )
        )


def _read_erasures(connection: Connection, model: str) -> dict[int, Erasure]:
    rows = connection.execute(select(erased).where(erased.c.model == model))
    return {row.class_index: Erasure(row.version, row.request) for row in rows}


def _read_champion(connection: Connection, model: str) -> Champion | None:
    row = connection.execute(select(champions).where(champions.c.model == model)).one_or_none()
    if row is None:
        return None
    return Champion(
        model=row.model,
        version=row.version,
        weights=row.weights,
        previous=row.previous,
        forgotten=tuple(row.forgotten),
        grade=row.grade,
        revision=row.revision,
    )


def _say_version(version: int | None) -> str:
    """Return the version in words."""
    return "none" if version is None else f"version {version}"
