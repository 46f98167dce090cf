"""What `expunge request` does, without printing: file, list, show, approve, cancel, put back."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from expunge import class_selection, ledger, registry, states
from expunge.errors import OperationalError, UserError
from expunge.ledger import Added, Request
from expunge.lifecycle import promotion
from expunge.oracles import check_model_name


def as_document(request: Request) -> dict[str, Any]:
    """A request as `--json` prints it."""
    value = dataclasses.asdict(request)
    del value["token"]
    return value | {"names": {str(index): name for index, name in request.names.items()}}


def as_row(request: Request) -> dict[str, Any]:
    """A request in the result of a run, which may go into a log: without any personal text."""
    kept = ("id", "model", "state", "due_at", "overdue", "attempts", "version", "grade", "error")
    row = {key: getattr(request, key) for key in kept}
    lists = {"classes": request.classes, "failed_checks": request.failed_checks}
    return row | {key: list(value) for key, value in lists.items()}


def file_request(
    name: str,
    wanted: Sequence[str],
    *,
    reason: str,
    by: str,
    due: str = "",
    approval: bool = False,
) -> dict[str, Any]:
    """File a request to forget classes of a model, by index or name.

    A class that has a request already is not asked for twice: that request is returned instead.

    Raises:
        UserError: there is no such model or class, the model cannot forget it, or `due` is no day
            to come.
    """
    check_model_name(name)
    deadline = _deadline(due)
    if not reason.strip():
        raise UserError("the reason is empty; say why, such as --reason 'consent withdrawn'")
    promotion.reconcile(name)
    info = registry.read_model_info(registry.resolve(name))
    chosen = class_selection.find_classes(info, wanted)
    known = ledger.list_requests(name)
    done = {i for entry in known if entry.state == states.FULFILLED for i in entry.classes}
    class_selection.check_forgettable(info, [index for index in chosen if index not in done])
    added = ledger.add_request(
        name,
        {index: None if index in info.forgotten else info.class_names[index] for index in chosen},
        reason=reason,
        requester=by,
        due=deadline,
        approval=approval,
    )
    return _added(added)


def _added(added: Added) -> dict[str, Any]:
    return {
        "created": as_document(added.created) if added.created else None,
        "existing": [as_document(entry) for entry in added.existing],
    }


def file_missing_requests(
    name: str, names: Mapping[int, str], *, reason: str, by: str, approval: bool
) -> Added:
    """The requests that stand for exactly these classes; what is missing is filed.

    Raises:
        UserError: one of them stands for another class too, which nobody named.
    """
    for entry in ledger.list_requests(name, states.OPEN):
        more = sorted(set(entry.classes) - set(names))
        if more and set(entry.classes) & set(names):
            listed = ",".join(str(index) for index in sorted({*names, *entry.classes}))
            raise UserError(
                f"request {entry.id} asks for class {more[0]} too; run it whole with "
                f"`expunge forget {name} --classes {listed}`, or `expunge run-requests {name}`"
            )
    return ledger.add_request(name, names, reason=reason, requester=by, approval=approval)


def _deadline(due: str) -> datetime | None:
    """The end of a day such as 2027-01-31, in UTC; None for no day."""
    if not due:
        return None
    try:
        day = datetime.strptime(due, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise UserError(f"the due date is {due!r}; expected a day such as 2027-01-31") from None
    deadline = day + timedelta(days=1, microseconds=-1)
    if deadline < datetime.now(UTC):
        raise UserError(f"the due date {due} is past; expected a day to come")
    return deadline


def list_filed(name: str | None, chosen: Sequence[str], overdue: bool) -> dict[str, Any]:
    """The requests of a model or of all, those that are due first at the top.

    Raises:
        UserError: nothing is known of the model.
    """
    found = ledger.list_requests(name, chosen)
    if name is not None and not ledger.list_requests(name) and not registry.has_model(name):
        registry.resolve(name)  # raises, with the names that are known
    return {"requests": [as_document(entry) for entry in found if entry.overdue or not overdue]}


def show_filed(request: str) -> dict[str, Any]:
    """One request with its events, and what there still is that remembers its classes.

    Raises:
        UserError: there is no such request.
    """
    found = ledger.find_request(request)
    claim = ledger.find_claim(found.run) if found.run else None
    return as_document(found) | {
        "mlflow_run": claim.mlflow_run if claim else None,
        "events": [
            {"seq": entry.seq, "at": entry.at, "kind": entry.kind, "hash": entry.hash}
            | {"body": dict(entry.body)}
            for entry in ledger.list_events(request=found.id)
        ],
        "remembered_by": [
            {key: getattr(entry, key) for key in ("address", "kind", "digest", "written_at")}
            for entry in ledger.list_remembering(found.model, found.classes)
        ],
    }


def cancel_filed(request: str, by: str) -> dict[str, Any]:
    """Withdraw a request; a run that died while it held it is settled first.

    Raises:
        RefusedError: it is fulfilled, or a run holds it.
        UserError: there is no such request, or it is cancelled already.
    """
    from expunge.lifecycle.settlement import settle_lost

    settle_lost(ledger.find_request(request).model)
    return as_document(ledger.cancel_request(request, by))


def approve_filed(request: str, by: str) -> dict[str, Any]:
    """Approve a request as a second person.

    Raises:
        RefusedError: it is who filed it.
        UserError: there is no such request, or it waits for no approval.
    """
    return as_document(ledger.approve_request(request, by))


def retry_filed(request: str) -> dict[str, Any]:
    """Put a rejected or parked request back into the queue.

    Raises:
        UserError: there is no such request, or it is in another state.
    """
    return as_document(ledger.retry_request(request))


def verify_log(kept: str = "") -> dict[str, Any]:
    """Check the whole event log; its length and the hash of its last event.

    With `kept`, a hash that was noted down earlier, also that this event is in it still.

    Raises:
        OperationalError: an event was changed, added, left out or cut off.
    """
    hashes = [event.hash for event in ledger.verify_events()]
    if kept and kept not in hashes:
        raise OperationalError(
            f"no event of the ledger has the hash {kept}: it was written anew since that was noted "
            "down, or the hash is another ledger's"
        )
    return {"events": len(hashes), "head": hashes[-1] if hashes else ""}


def redact_filed(request: str) -> dict[str, Any]:
    """Erase who asked, why, and the names of the classes; the log and its chain stay.

    Raises:
        UserError: there is no such request.
    """
    found = ledger.find_request(request)
    erased = ledger.erase_texts(found.id, found.model)
    return as_document(ledger.find_request(found.id)) | {"erased": erased}
