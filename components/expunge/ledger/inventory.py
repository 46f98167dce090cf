"""Inventory of everything written: where it is, what it is, and which classes it remembers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import func, insert, or_, select, update

from expunge.ledger.database import begin_read, begin_write, now, stamp
from expunge.ledger.schema import written
from expunge.oracles import name_oracle_model


@dataclass(frozen=True)
class Written:
    """One thing that was written. `classes` are those that it holds in any form."""

    address: str  # a path, or the URI of an object store or of the registry
    digest: str | None  # "sha256:..."; None where it is still being written
    kind: str
    model: str | None  # None where one thing may serve several models, as a data set does
    classes: tuple[int, ...]
    run: str | None
    written_at: str
    removed_at: str | None


def note_written(
    address: str,
    kind: str,
    classes: Collection[int],
    *,
    digest: str | None = None,
    model: str | None = None,
    run: str | None = None,
) -> None:
    """Record what is written at an address; what was there before counts as removed."""
    with begin_write("record what is written") as connection:
        moment = stamp(now(connection))
        connection.execute(
            update(written)
            .where(written.c.address == address, written.c.removed_at.is_(None))
            .values(removed_at=moment)
        )
        connection.execute(
            insert(written).values(
                address=address,
                digest=digest,
                kind=kind,
                model=model,
                classes=sorted(classes),
                run=run,
                written_at=moment,
            )
        )


def note_removed(address: str) -> int:
    """Record that an address, and all that lay under it, is gone; return how many entries."""
    folder = address.rstrip("/") + "/"
    # Not LIKE, for which SQLite takes A and a for the same.
    inside = func.substr(written.c.address, 1, len(folder)) == folder
    with begin_write("record what was removed") as connection:
        return int(
            connection.execute(
                update(written)
                .where(or_(written.c.address == address, inside), written.c.removed_at.is_(None))
                .values(removed_at=stamp(now(connection)))
            ).rowcount
        )


def list_addresses(model: str) -> set[str]:
    """Return every address where something of a model is, or was."""
    with begin_read("read what was written") as connection:
        return set(connection.scalars(select(written.c.address).where(written.c.model == model)))


def list_remembering(model: str, classes: Collection[int]) -> list[Written]:
    """Return what still exists of a model and its oracles and remembers one of these classes.

    An artifact whose step knew no model is the model's, unless its run wrote for another one.
    """
    wanted, names = set(classes), (model, name_oracle_model(model))
    elsewhere = select(written.c.run).where(
        written.c.model.is_not(None), written.c.model.not_in(names), written.c.run.is_not(None)
    )
    unnamed = written.c.model.is_(None) & (
        written.c.run.is_(None) | written.c.run.not_in(elsewhere)
    )
    query = (
        select(written)
        .where(written.c.removed_at.is_(None))
        .where(or_(written.c.model.in_(names), unnamed))
        .order_by(written.c.id)
    )
    with begin_read("read what was written") as connection:
        return [
            Written(
                address=row.address,
                digest=row.digest,
                kind=row.kind,
                model=row.model,
                classes=tuple(row.classes),
                run=row.run,
                written_at=row.written_at,
                removed_at=row.removed_at,
            )
            for row in connection.execute(query)
            if wanted & set(row.classes)  # here, since SQLite and PostgreSQL ask JSON differently
        ]
