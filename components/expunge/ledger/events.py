"""Event log: append-only, each event with the hash of the one before.

    hash = SHA-256(canonical JSON of seq, at, kind, model, request, body, previous)

A personal text enters an event by its digest alone, SHA-256(salt + text) with 32 random bytes of
salt, and stands beside the log in `texts`. Erasing text and salt leaves the chain as it is, and a
digest from which nobody can guess a name back. The database refuses to change or delete events; the
chain shows where somebody did so all the same, and `head` where the end was cut off.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from expunge.errors import OperationalError
from expunge.ledger.database import FIRST, begin_read, begin_write, now, stamp
from expunge.ledger.schema import events, head, requests, texts

_BROKEN = "somebody wrote into its database by hand: compare it with a backup"


@dataclass(frozen=True)
class Event:
    """One entry of the log; `body` depends on the kind, and holds digests for personal texts."""

    seq: int
    at: str
    kind: str
    model: str
    request: str | None
    body: Mapping[str, Any]
    hash: str


def append(
    connection: Connection, kind: str, model: str, request: str | None = None, **body: Any
) -> str:
    """Add an event to the end of the log, in the caller's transaction, and return its time."""
    # Nobody comes between: `begin_write` has locked this row.
    seq, previous = connection.execute(select(head.c.seq, head.c.hash)).one()
    row = {
        "seq": seq + 1,
        "at": stamp(now(connection)),
        "kind": kind,
        "model": model,
        "request": request,
        "body": _dump_canonical(body),
        "previous": previous,
    }
    row["hash"] = _hash_event(row)
    connection.execute(insert(events).values(row))
    connection.execute(update(head).values(seq=row["seq"], hash=row["hash"]))
    return str(row["at"])


def keep_text(connection: Connection, request: str, field: str, text: str) -> str:
    """Keep a personal text of a request beside the log, and return the digest that stands in it."""
    # Names are few enough to be guessed one by one: without a salt, a digest would tell them.
    salt = secrets.token_bytes(32)
    digest = _hash_text(salt.hex(), text)
    row = {"digest": digest, "request": request, "field": field, "salt": salt.hex(), "text": text}
    connection.execute(insert(texts).values(row))
    return digest


def erase_texts(request: str, model: str) -> int:
    """Erase the personal texts of a request for good, and return how many there were.

    With them goes what its last run failed with, which may quote a name. What was asked of which
    class index, when and with what outcome stays.
    """
    with begin_write("erase texts") as connection:
        connection.execute(update(requests).where(requests.c.id == request).values(error=None))
        chosen = (texts.c.request == request) & (texts.c.text.is_not(None))
        count = connection.execute(
            update(texts).where(chosen).values(text=None, salt=None)
        ).rowcount
        if count:
            append(connection, "texts-erased", model, request, texts=count)
        return int(count)


def list_events(model: str | None = None, request: str | None = None) -> list[Event]:
    """Return the events of a model or a request, oldest first; all where neither is given."""
    query = select(events).order_by(events.c.seq)
    if model is not None:
        query = query.where(events.c.model == model)
    if request is not None:
        query = query.where(events.c.request == request)
    with begin_read("read the events") as connection:
        return [_build_event(row) for row in connection.execute(query)]


def verify_events() -> list[Event]:
    """Return all events, oldest first, after a check of each and of every text still there.

    Raises:
        OperationalError: an event was changed, added, left out or cut off, or a text changed.
    """
    with begin_read("verify the events") as connection:
        previous, count = FIRST, 0
        rows = connection.execute(select(events).order_by(events.c.seq)).all()
        for row in (entry._mapping for entry in rows):
            count += 1
            if row["seq"] != count:
                raise OperationalError(f"event {count} of the ledger is missing; {_BROKEN}")
            if row["previous"] != previous or row["hash"] != _hash_event(row):
                raise OperationalError(f"event {count} of the ledger was changed; {_BROKEN}")
            previous = row["hash"]
        end = connection.execute(select(head.c.seq, head.c.hash)).one()
        if tuple(end) != (count, previous):
            raise OperationalError(
                f"the ledger has {count} events and its head says {end.seq}; {_BROKEN}"
            )
        for row in connection.execute(select(texts).where(texts.c.text.is_not(None))).mappings():
            if _hash_text(row["salt"], row["text"]) != row["digest"]:
                raise OperationalError(
                    f"the {row['field']} of request {row['request']} was changed; {_BROKEN}"
                )
        return [_build_event(row) for row in rows]


def _build_event(row: Row[Any]) -> Event:
    return Event(
        seq=row.seq,
        at=row.at,
        kind=row.kind,
        model=row.model,
        request=row.request,
        body=json.loads(row.body),
        hash=row.hash,
    )


def _hash_event(row: Mapping[Any, Any]) -> str:
    fields = ("seq", "at", "kind", "model", "request", "body", "previous")
    return hashlib.sha256(_dump_canonical({key: row[key] for key in fields}).encode()).hexdigest()


def _hash_text(salt: str, text: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + text.encode()).hexdigest()


def _dump_canonical(value: Mapping[str, Any]) -> str:
    """Return JSON that is the same for the same value: the hash is of these bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
