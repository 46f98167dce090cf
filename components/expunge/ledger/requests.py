"""Queue of erasure requests: who asked to forget which classes, until when, and what became of it.

A class has one request for each model, for good: `one_request_a_class` holds that in the database.
Cancelling is the only way to free a class again.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, insert, select, update

from expunge.errors import RefusedError, UserError
from expunge.ledger.database import begin_read, begin_write, now, stamp
from expunge.ledger.events import append, keep_text
from expunge.ledger.schema import claims, request_classes, requests, texts
from expunge.states import (
    CANCELLED,
    CLAIMED,
    FULFILLED,
    OPEN,
    PARKED,
    PENDING,
    REJECTED,
    UNAPPROVED,
)

DUE = timedelta(days=30)  # GDPR's Art. 12(3) gives one month


@dataclass(frozen=True)
class Request:
    """A request as it stands. Texts that were erased are None, and so are names never given."""

    id: str
    model: str
    classes: tuple[int, ...]
    names: Mapping[int, str | None]
    state: str
    created_at: str  # ISO 8601, UTC, as every time here
    due_at: str
    overdue: bool
    requester: str | None
    reason: str | None
    approver: str | None
    approved: bool
    alone: bool  # to be forgotten in a run of its own, after a rejection of a run of several
    attempts: int
    token: int | None  # of its last claim
    run: str | None  # the pipeline run of its last claim
    version: int | None  # what fulfilled it, and with which grade
    grade: str | None
    failed_checks: tuple[str, ...]
    error: str | None
    settled_at: str | None


@dataclass(frozen=True)
class Added:
    """What became of classes that were asked for: each stands in exactly one of these requests."""

    created: Request | None  # for the classes that no request stood for
    existing: tuple[Request, ...]

    @property
    def requests(self) -> tuple[Request, ...]:
        """All of them."""
        return (*((self.created,) if self.created else ()), *self.existing)


def add_request(
    model: str,
    classes: Mapping[int, str | None],
    *,
    reason: str,
    requester: str,
    due: datetime | None = None,
    approval: bool = False,
) -> Added:
    """File a request for classes, by index with their names, and return what became of each.

    A class that a request of this model stands for already is left to that one, which is returned
    as it is. With `approval` a second person has to approve before any run takes it.
    """
    with begin_write("file a request") as connection:
        owners = select_owners(connection, model, classes)
        fresh = {index: name for index, name in classes.items() if index not in owners}
        created = None
        if fresh:
            created = _insert_request(
                connection,
                model,
                fresh,
                reason=reason,
                requester=requester,
                due=due,
                approval=approval,
            )
        known = sorted(set(owners.values()))
        found = {entry.id: entry for entry in select_requests(connection, ids=[*known, created])}
    return Added(
        found[created] if created else None,
        tuple(found[request] for request in known),
    )


def _insert_request(
    connection: Connection,
    model: str,
    classes: Mapping[int, str | None],
    *,
    reason: str,
    requester: str,
    due: datetime | None,
    approval: bool,
) -> str:
    """Insert a request with its texts and classes, and return its id."""
    moment = now(connection)
    # The day, which people recognise, and 40 random bits, so that nobody can guess another's.
    request = f"{moment:%Y%m%d}-{secrets.token_hex(5)}"
    row: dict[str, Any] = {
        "id": request,
        "model": model,
        "state": UNAPPROVED if approval else PENDING,
        "created_at": stamp(moment),
        "due_at": stamp(due or moment + DUE),
        "requester": keep_text(connection, request, "requester", requester),
        "reason": keep_text(connection, request, "reason", reason),
        "alone": 0,
        "attempts": 0,
    }
    connection.execute(insert(requests).values(row))
    names = {
        index: None if name is None else keep_text(connection, request, f"name of {index}", name)
        for index, name in classes.items()
    }
    connection.execute(
        insert(request_classes),
        [
            {"request": request, "class_index": index, "model": model, "stands": 1, "name": name}
            for index, name in names.items()
        ],
    )
    append(
        connection,
        "request-added",
        model,
        request,
        classes=sorted(classes),
        names=[names[index] for index in sorted(names)],
        requester=row["requester"],
        reason=row["reason"],
        due_at=row["due_at"],
        state=row["state"],
    )
    return request


def find_request(request: str) -> Request:
    """Return the request with this id, or the only one whose id ends with it.

    Raises:
        UserError: there is none, or there are several.
    """
    with begin_read("read a request") as connection:
        return _select_request(connection, request)


def _select_request(connection: Connection, request: str) -> Request:
    query = select(requests.c.id).where(requests.c.id.endswith(request, autoescape=True))
    found = list(connection.scalars(query)) if request else []
    if len(found) != 1:
        problem = f"means {len(found)} requests" if found else "is not known"
        raise UserError(f"request {request!r} {problem}; `expunge request list` shows their ids")
    return select_requests(connection, ids=found)[0]


def list_requests(model: str | None = None, states: Sequence[str] = ()) -> list[Request]:
    """Return the requests of a model, or of all, in these states or in any: the first due first."""
    with begin_read("list the requests") as connection:
        return select_requests(connection, model=model, states=states)


def cancel_request(request: str, by: str) -> Request:
    """Withdraw a request that no run holds and that is not fulfilled.

    Raises:
        RefusedError: it is fulfilled, or a run holds it.
        UserError: there is no such request, or it is cancelled already.
    """
    with begin_write("cancel a request") as connection:
        found = _select_request(connection, request)
        if found.state == CANCELLED:
            raise UserError(f"request {found.id} is cancelled already")
        if found.state == FULFILLED:
            raise RefusedError(
                f"request {found.id} is fulfilled by version {found.version} of {found.model!r}; "
                "what is forgotten does not come back"
            )
        if found.state == CLAIMED:
            raise RefusedError(
                f"request {found.id} is being worked on by run {found.run}; cancel it after that, "
                "if it is still open"
            )
        connection.execute(
            update(request_classes).where(request_classes.c.request == found.id).values(stands=0)
        )
        digest = keep_text(connection, found.id, "canceller", by)
        return _move_request(connection, found, CANCELLED, "request-cancelled", by=digest)


def approve_request(request: str, by: str) -> Request:
    """Approve a request as a second person, so that a run may take it.

    Raises:
        RefusedError: `by` is who asked, or who asked was erased.
        UserError: there is no such request, or it waits for no approval.
    """
    with begin_write("approve a request") as connection:
        found = _select_request(connection, request)
        if found.state != UNAPPROVED:
            raise UserError(f"request {found.id} is {found.state}; it waits for no approval")
        if found.requester is None:
            raise RefusedError(
                f"request {found.id} has its texts erased, and nobody can tell who filed it; "
                "cancel it, and file it anew"
            )
        if found.requester.casefold() == by.casefold():
            raise RefusedError(
                f"request {found.id} was filed by {by!r}; a second person has to approve it"
            )
        digest = keep_text(connection, found.id, "approver", by)
        connection.execute(
            update(requests).where(requests.c.id == found.id).values(approver=digest)
        )
        return _move_request(connection, found, PENDING, "request-approved", by=digest)


def retry_request(request: str) -> Request:
    """Put a rejected or parked request back into the queue, with its attempts counted anew.

    Raises:
        UserError: there is no such request, or it is in another state.
    """
    with begin_write("put a request back") as connection:
        found = _select_request(connection, request)
        if found.state not in (REJECTED, PARKED):
            raise UserError(
                f"request {found.id} is {found.state}; only a rejected or parked one is put back"
            )
        connection.execute(update(requests).where(requests.c.id == found.id).values(attempts=0))
        return _move_request(connection, found, PENDING, "request-put-back")


def _move_request(
    connection: Connection, found: Request, state: str, kind: str, **body: Any
) -> Request:
    moment = append(connection, kind, found.model, found.id, **body)
    settled = moment if state == CANCELLED else None
    connection.execute(
        update(requests).where(requests.c.id == found.id).values(state=state, settled_at=settled)
    )
    return select_requests(connection, ids=[found.id])[0]


def select_owners(connection: Connection, model: str, classes: Collection[int]) -> dict[int, str]:
    """Return the request that stands for each of these classes, where there is one."""
    query = select(request_classes.c.class_index, request_classes.c.request).where(
        request_classes.c.model == model,
        request_classes.c.stands == 1,
        request_classes.c.class_index.in_(list(classes)),
    )
    return {row.class_index: row.request for row in connection.execute(query)}


def select_requests(
    connection: Connection,
    *,
    model: str | None = None,
    states: Sequence[str] = (),
    ids: Sequence[str | None] | None = None,
    token: int | None = None,
) -> list[Request]:
    """Return the requests that are chosen, the first due first, in the caller's transaction."""
    conditions = []
    if model is not None:
        conditions.append(requests.c.model == model)
    if states:
        conditions.append(requests.c.state.in_(list(states)))
    if ids is not None:
        conditions.append(requests.c.id.in_([entry for entry in ids if entry]))
    if token is not None:
        conditions.append(requests.c.token == token)
    query = (
        select(requests, claims.c.run)
        .outerjoin(claims, claims.c.token == requests.c.token)
        .where(*conditions)
        .order_by(requests.c.due_at, requests.c.created_at, requests.c.id)
    )
    rows = connection.execute(query).mappings().all()
    chosen = select(requests.c.id).where(*conditions)  # a list of ids has its limits
    words = {
        row.digest: row.text
        for row in connection.execute(
            select(texts.c.digest, texts.c.text).where(texts.c.request.in_(chosen))
        )
    }
    names: dict[str, dict[int, str | None]] = {}
    for part in connection.execute(
        select(request_classes)
        .where(request_classes.c.request.in_(chosen))
        .order_by(request_classes.c.class_index)
    ):
        names.setdefault(part.request, {})[part.class_index] = words.get(part.name or "")
    moment = stamp(now(connection))
    return [_build_request(row, names[row["id"]], words, moment) for row in rows]


def _build_request(
    row: Mapping[Any, Any],
    names: Mapping[int, str | None],
    words: Mapping[str, str | None],
    moment: str,
) -> Request:
    return Request(
        id=row["id"],
        model=row["model"],
        classes=tuple(names),
        names=names,
        state=row["state"],
        created_at=row["created_at"],
        due_at=row["due_at"],
        overdue=row["state"] in OPEN and row["due_at"] < moment,
        requester=words.get(row["requester"]),
        reason=words.get(row["reason"]),
        approver=words.get(row["approver"] or ""),
        approved=row["approver"] is not None,
        alone=bool(row["alone"]),
        attempts=row["attempts"],
        token=row["token"],
        run=row["run"],
        version=row["version"],
        grade=row["grade"],
        failed_checks=tuple(row["failed_checks"] or ()),
        error=row["error"],
        settled_at=row["settled_at"],
    )
