"""Claims of the queue: what a run holds, until it settles that or its lease runs out.

Each claim has a fencing token that only ever grows. A claim whose lease ran out, or whose process
on this machine is gone, is closed by the next run, which puts its requests back; from then on the
late run's token is worth nothing, and `ledger.champions` refuses its promotion.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, insert, select, update

from expunge import processes
from expunge.errors import RefusedError
from expunge.ledger.database import begin_read, begin_write, now, stamp
from expunge.ledger.events import append
from expunge.ledger.requests import Request, select_requests
from expunge.ledger.schema import claims, requests
from expunge.states import ATTEMPTS, CLAIMED, FULFILLED, PARKED, PENDING, REJECTED, UNAPPROVED
from expunge.verdicts import PASSED, UNTRUSTWORTHY

ACTIVE, CLOSED = "active", "closed"
# How a claim ends for the requests that are not fulfilled by then.
FAILED, OVERTAKEN, INTERRUPTED = "failed", "overtaken", "interrupted"


@dataclass(frozen=True)
class Claim:
    """What one run holds. `classes` are what is to be forgotten of version `base_version`."""

    token: int
    model: str
    run: str
    holder: str | None  # the process that runs it, where that is known
    active: bool
    lease_until: str
    base_version: int
    classes: tuple[int, ...]
    requests: tuple[str, ...]  # ids of those that it still holds, the first due first
    mlflow_run: str | None
    verdict: str | None
    failed_checks: tuple[str, ...]
    outcome: str | None


def claim_requests(
    model: str,
    run: str,
    *,
    base_version: int,
    classes: int,
    forgotten: Collection[int],
    lease_seconds: float,
    holder: str | None = None,
    only: Sequence[str] = (),
    approval: bool = False,
) -> Claim | None:
    """Claim every pending request of a model for a run, or `only` those named; None for none.

    One transaction: of two runs, one gets a request. A run that has a claim gets that one again.
    Version `base_version` has `classes` classes and has `forgotten` some. A request that no run can
    fulfil from there is parked, with the reason. One that was rejected together with others is
    taken alone. With `approval`, requests that nobody approved are left, and wait for that.

    Raises:
        RefusedError: one of `only` is held by another run, or waits for approval.
    """
    with begin_write("claim requests") as connection:
        held = _select_claims(connection, claims.c.run == run, claims.c.state == ACTIVE)
        if held:
            return held[0]
        candidates, waiting = _select_candidates(connection, model, only, approval)
        taken: list[Request] = []
        while candidates and not taken and not (only and waiting):
            chosen = candidates if only else _choose_batch(candidates)
            taken = _take_fitting(connection, chosen, classes, forgotten)
            candidates = [entry for entry in candidates if entry not in chosen]
        if taken:
            moment = now(connection)
            return _open_claim(
                connection,
                taken,
                model=model,
                run=run,
                holder=holder,
                state=ACTIVE,
                opened_at=stamp(moment),
                lease_until=stamp(moment + timedelta(seconds=lease_seconds)),
                base_version=base_version,
                classes=sorted({i for entry in taken for i in entry.classes} - set(forgotten)),
            )
    if only and waiting:  # which is written down by now, so that they can be approved
        raise RefusedError(
            f"request {waiting[0].id} waits for a second person: "
            f"`expunge request approve {waiting[0].id}`"
        )
    return None


def _open_claim(connection: Connection, taken: Sequence[Request], **values: Any) -> Claim:
    """Insert a claim, move its requests to it, and return it."""
    token = connection.execute(insert(claims).returning(claims.c.token).values(values)).scalar_one()
    ids = [entry.id for entry in taken]
    connection.execute(
        update(requests)
        .where(requests.c.id.in_(ids))
        .values(state=CLAIMED, token=token, attempts=requests.c.attempts + 1, settled_at=None)
    )
    for request in ids:
        append(connection, "request-claimed", values["model"], request,
               token=token, run=values["run"], base_version=values["base_version"])  # fmt: skip
    return _select_claims(connection, claims.c.token == token)[0]


def _select_candidates(
    connection: Connection, model: str, only: Sequence[str], approval: bool
) -> tuple[list[Request], list[Request]]:
    """Return the requests that a run may take, and those that wait for approval.

    Those with the fewest failures come first, and of these the first due.
    """
    if only:
        found = select_requests(connection, model=model, ids=only)
        for entry in found:
            if entry.state == CLAIMED:
                raise RefusedError(
                    f"request {entry.id} is being worked on by run {entry.run}; wait for it"
                )
        found = [entry for entry in found if entry.state in (PENDING, REJECTED, PARKED, UNAPPROVED)]
    else:
        found = select_requests(connection, model=model, states=[PENDING])
        found.sort(key=lambda entry: entry.attempts)  # what fails again and again waits
    missing = [
        entry for entry in found if entry.state == UNAPPROVED or (approval and not entry.approved)
    ]
    for entry in missing:  # some were filed under a policy that asked for no approval
        if entry.state != UNAPPROVED:
            connection.execute(
                update(requests)
                .where(requests.c.id == entry.id)
                .values(state=UNAPPROVED, settled_at=None)
            )
            append(connection, "approval-demanded", model, entry.id)
    return [entry for entry in found if entry not in missing], missing


def _choose_batch(candidates: Sequence[Request]) -> list[Request]:
    """Return what goes into one run: the first due, if it is to be alone, or all that are not."""
    if candidates[0].alone:
        return [candidates[0]]
    return [entry for entry in candidates if not entry.alone]


def _take_fitting(
    connection: Connection,
    candidates: Sequence[Request],
    classes: int,
    forgotten: Collection[int],
) -> list[Request]:
    """Return those that can be forgotten together; park what can never be, and leave the rest."""
    taken: list[Request] = []
    gone = set(forgotten)
    for entry in candidates:
        unknown = [index for index in entry.classes if index >= classes]
        if unknown:
            _park_request(
                connection, entry, f"class {unknown[0]} is none of the champion's {classes}"
            )
        elif set(entry.classes) <= set(forgotten):
            continue  # it is fulfilled by the champion, as soon as somebody looks
        elif classes - len({*forgotten, *entry.classes}) < 2:
            reason = "it would leave fewer than two classes; withdraw the model instead"
            _park_request(connection, entry, reason)
        elif classes - len(gone | set(entry.classes)) >= 2:
            taken.append(entry)
            gone |= set(entry.classes)
    return taken


def extend_claim(run: str, lease_seconds: float) -> bool:
    """Renew the lease of a run's claim, and return whether it still has one."""
    with begin_write("extend a claim") as connection:
        until = stamp(now(connection) + timedelta(seconds=lease_seconds))
        chosen = (claims.c.run == run) & (claims.c.state == ACTIVE)
        return bool(
            connection.execute(update(claims).where(chosen).values(lease_until=until)).rowcount
        )


def note_verdict(run: str, verdict: str, failed_checks: Sequence[str], mlflow_run: str) -> None:
    """Keep what the gate said with the run's claim, if it has one, for when it is closed."""
    with begin_write("keep a verdict") as connection:
        connection.execute(
            update(claims)
            .where(claims.c.run == run, claims.c.state == ACTIVE)
            .values(verdict=verdict, failed_checks=list(failed_checks), mlflow_run=mlflow_run)
        )


def find_claim(run: str) -> Claim | None:
    """Return the last claim of a run; None where it has never had one."""
    with begin_read("read a claim") as connection:
        found = _select_claims(connection, claims.c.run == run)
        return found[-1] if found else None


def list_held_requests(token: int) -> list[Request]:
    """Return the requests of a claim that are not settled yet, the first due first."""
    with begin_read("read a claim") as connection:
        return select_requests(connection, token=token, states=[CLAIMED])


def list_lost_claims(model: str) -> list[Claim]:
    """Return active claims of a model whose lease ran out, or whose process here has ended."""
    with begin_read("read the claims") as connection:
        moment = stamp(now(connection))
        active = _select_claims(connection, claims.c.model == model, claims.c.state == ACTIVE)
    return [
        claim for claim in active if claim.lease_until < moment or processes.has_ended(claim.holder)
    ]


def close_claim(
    run: str, outcome: str, *, error: str = "", attempts: int = ATTEMPTS
) -> Claim | None:
    """Settle what a run still holds, and return its claim; None where it has no active one.

    A request that the champion fulfils is settled before (`ledger.champions.fulfil`). Of the rest:
    where the gate rejected, a request that was alone is rejected; several are put back, each to be
    tried alone. An untrustworthy verdict parks them. Neither counts in a run that was overtaken:
    its champion no longer serves. Anything else puts them back. An `outcome` of "failed" counts as
    one of `attempts`: from the second on each is tried alone, after the last parked with `error`.
    """
    with begin_write("close a claim") as connection:
        active = _select_claims(connection, claims.c.run == run, claims.c.state == ACTIVE)
        if not active:
            return None
        claim = active[0]
        left = select_requests(connection, token=claim.token, states=[CLAIMED])
        if not left:
            outcome = FULFILLED
        elif outcome != OVERTAKEN and claim.verdict not in (None, PASSED):
            outcome = str(claim.verdict)
        # Settled ones count: what was in the run together may have failed together.
        several = len(select_requests(connection, token=claim.token)) > 1
        ending = _Ending(outcome, several, claim.failed_checks, error, attempts)
        for entry in left:
            _settle_request(connection, entry, ending)
        connection.execute(
            update(claims)
            .where(claims.c.token == claim.token)
            .values(state=CLOSED, outcome=outcome, closed_at=stamp(now(connection)))
        )
        append(connection, "claim-closed", claim.model, token=claim.token, outcome=outcome)
        return _select_claims(connection, claims.c.token == claim.token)[0]


def explain_failure(run: str, error: str) -> None:
    """Say what a run failed of, where more is known than when its claim was closed."""
    with begin_write("explain a failure") as connection:
        token = select(claims.c.token).where(claims.c.run == run, claims.c.state == CLOSED)
        connection.execute(
            update(requests)
            .where(requests.c.token.in_(token), requests.c.error.is_not(None))
            .where(requests.c.state.in_([PENDING, PARKED]))
            .values(error=error)
        )


@dataclass(frozen=True)
class _Ending:
    """How a claim ended, for each of the requests that it still holds."""

    outcome: str
    several: bool  # whether the run had more than one request
    failed_checks: tuple[str, ...]
    error: str
    attempts: int  # failures after which a person has to look


def _settle_request(connection: Connection, entry: Request, ending: _Ending) -> None:
    """Move a request to where its run's ending puts it."""
    outcome, checks = ending.outcome, list(ending.failed_checks)
    if outcome == "rejected":
        apart = {"alone": 1} if ending.several else {}
        state, what = (PENDING, "set-apart") if apart else (REJECTED, "rejected")
        _move_request(connection, entry, state, what, attempts=0, failed_checks=checks, **apart)
    elif outcome == UNTRUSTWORTHY:
        _park_request(connection, entry, "the measurement could not be trusted: a control failed")
    elif outcome == FAILED and entry.attempts >= ending.attempts:
        _park_request(connection, entry, ending.error or "the run failed")
    elif outcome == FAILED:  # twice: of several, one may be what makes it fail
        alone, error = (ending.several and entry.attempts > 1) or entry.alone, ending.error or None
        _move_request(connection, entry, PENDING, "put-back", error=error, alone=int(alone))
    else:  # overtaken or interrupted: no fault of the request, and no attempt
        _move_request(connection, entry, PENDING, "put-back", attempts=entry.attempts - 1)


def _park_request(connection: Connection, entry: Request, error: str) -> None:
    _move_request(connection, entry, PARKED, "parked", error=error)


def _move_request(
    connection: Connection, entry: Request, state: str, what: str, **values: Any
) -> None:
    """Move a request; the error stays out of the log, as it may quote anything."""
    moment = append(
        connection,
        f"request-{what}",
        entry.model,
        entry.id,
        token=entry.token,
        failed_checks=values.get("failed_checks", []),
    )
    if state in (REJECTED, PARKED):
        values["settled_at"] = moment
    connection.execute(
        update(requests).where(requests.c.id == entry.id).values(state=state, **values)
    )


def _select_claims(connection: Connection, *conditions: Any) -> list[Claim]:
    query = select(claims).where(*conditions).order_by(claims.c.token)
    rows = connection.execute(query).mappings().all()
    return [
        Claim(
            token=row["token"],
            model=row["model"],
            run=row["run"],
            holder=row["holder"],
            active=row["state"] == ACTIVE,
            lease_until=row["lease_until"],
            base_version=row["base_version"],
            classes=tuple(row["classes"]),
            requests=tuple(entry.id for entry in select_requests(connection, token=row["token"])),
            mlflow_run=row["mlflow_run"],
            verdict=row["verdict"],
            failed_checks=tuple(row["failed_checks"] or ()),
            outcome=row["outcome"],
        )
        for row in rows
    ]
