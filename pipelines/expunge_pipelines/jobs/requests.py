"""Requests to forget classes: file, list, show, approve, withdraw, put back."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from expunge import class_selection, ledger, registry, states
from expunge.errors import OperationalError, RefusedError, UserError
from expunge.formats.model import ModelInfo
from expunge.ledger import Added, Request
from expunge.lifecycle import promotion
from expunge.oracles import check_model_name


@dataclass(frozen=True)
class Selection:
    """Classes of one version of a model, which is able to forget them."""

    version: registry.Version
    info: ModelInfo
    classes: tuple[int, ...]

    @property
    def names(self) -> Mapping[int, str | None]:
        """The name of each class; None for one that this version has forgotten already."""
        forgotten = self.info.forgotten
        return {i: None if i in forgotten else self.info.class_names[i] for i in self.classes}


def select_classes(
    name: str,
    class_texts: Sequence[str],
    *,
    base_version: int | None = None,
    or_fulfilled: bool = False,
) -> Selection:
    """Return the classes that a user named, checked against the version that is to forget them.

    That version is the champion, unless `base_version` names another. With `or_fulfilled`, a class
    may be forgotten already if a request for it is fulfilled: that request stands for it.

    Raises:
        UserError: there is no such model, version or class, or the version cannot forget it.
    """
    # Before the champion is looked up: an alias that was moved by hand would give another one.
    promotion.reconcile(name)
    version = registry.resolve(name, base_version)
    info = registry.read_model_info(version)
    classes = class_selection.find_classes(info, class_texts)
    done: set[int] = set()
    if or_fulfilled:
        fulfilled = ledger.list_requests(name, [states.FULFILLED])
        done = {index for request in fulfilled for index in request.classes}
    class_selection.check_forgettable(info, [index for index in classes if index not in done])
    return Selection(version, info, classes)


def file_missing_requests(selection: Selection, *, reason: str, by: str, approval: bool) -> Added:
    """Return the requests that stand for exactly the selected classes; file what is missing.

    A run that takes them forgets the selected classes and no other.

    Raises:
        UserError: one of them stands for another class too, which nobody named.
        RefusedError: one of them waits for approval; what was missing is filed all the same, so
            that it can be approved.
    """
    name, chosen = selection.version.name, set(selection.classes)
    for request in ledger.list_requests(name, states.OPEN):
        more = sorted(set(request.classes) - chosen)
        if more and set(request.classes) & chosen:
            union = ",".join(str(index) for index in sorted({*chosen, *request.classes}))
            raise UserError(
                f"request {request.id} asks for class {more[0]} too; run it whole with "
                f"`expunge forget {name} --classes {union}`, or `expunge run-requests {name}`"
            )
    added = ledger.add_request(
        name, selection.names, reason=reason, requester=by, approval=approval
    )
    for request in added.requests:
        if request.state == states.UNAPPROVED:
            raise RefusedError(
                f"request {request.id} waits for a second person: `expunge request approve "
                f"{request.id}`, then give the same command again"
            )
    return added


def file_request(
    name: str,
    class_texts: Sequence[str],
    *,
    reason: str,
    by: str,
    due: str = "",
    approval: bool = False,
) -> dict[str, Any]:
    """File a request to forget classes of a model, given by index or name.

    A class that has a request already is not asked for twice: the document has that request under
    `existing`.

    Raises:
        UserError: there is no such model or class, the model cannot forget it, or `due` is not a
            day to come.
    """
    check_model_name(name)
    deadline = _read_deadline(due)
    if not reason.strip():
        raise UserError("the reason is empty; say why, such as --reason 'consent withdrawn'")
    selection = select_classes(name, class_texts, or_fulfilled=True)
    added = ledger.add_request(
        name, selection.names, reason=reason, requester=by, due=deadline, approval=approval
    )
    return {
        "created": build_document(added.created) if added.created else None,
        "existing": [build_document(request) for request in added.existing],
    }


def _read_deadline(due: str) -> datetime | None:
    """Return the end of a day such as 2027-01-31, in UTC; None for an empty text."""
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


def list_requests(name: str | None, chosen: Sequence[str], overdue: bool) -> dict[str, Any]:
    """Return the requests of a model or of all, the first due first.

    `chosen` are the states to look for, all if it is empty.

    Raises:
        UserError: the model is in neither the ledger nor the registry.
    """
    found = ledger.list_requests(name, chosen)
    if name is not None and not ledger.list_requests(name) and not registry.has_model(name):
        registry.resolve(name)  # raises, with the names that are known
    return {"requests": [build_document(entry) for entry in found if entry.overdue or not overdue]}


def show_request(request: str) -> dict[str, Any]:
    """Return one request with its events, and with what there still is that remembers its classes.

    Raises:
        UserError: there is no such request.
    """
    found = ledger.find_request(request)
    claim = ledger.find_claim(found.run) if found.run else None
    return build_document(found) | {
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


def cancel_request(request: str, by: str) -> dict[str, Any]:
    """Withdraw a request and return it.

    Raises:
        RefusedError: it is fulfilled, or a run holds it.
        UserError: there is no such request, or it is cancelled already.
    """
    from expunge.lifecycle.settlement import settle_lost

    # A run that died still holds its requests, and these could not be withdrawn.
    settle_lost(ledger.find_request(request).model)
    return build_document(ledger.cancel_request(request, by))


def approve_request(request: str, by: str) -> dict[str, Any]:
    """Approve a request as a second person and return it.

    Raises:
        RefusedError: the person who filed it cannot approve it.
        UserError: there is no such request, or it waits for no approval.
    """
    return build_document(ledger.approve_request(request, by))


def retry_request(request: str) -> dict[str, Any]:
    """Put a rejected or parked request back into the queue and return it.

    Raises:
        UserError: there is no such request, or it is in another state.
    """
    return build_document(ledger.retry_request(request))


def redact_request(request: str) -> dict[str, Any]:
    """Erase who asked, why, and the names of the classes; return the request.

    The event log has no such text, so its chain of hashes stays valid.

    Raises:
        UserError: there is no such request.
    """
    found = ledger.find_request(request)
    erased = ledger.erase_texts(found.id, found.model)
    return build_document(ledger.find_request(found.id)) | {"erased": erased}


def verify_log(kept: str = "") -> dict[str, Any]:
    """Check the whole event log; return its length and the hash of its last event.

    `kept` is a hash that was noted down earlier. The chain alone does not show that a log was
    written anew from its first event; a missing hash does.

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


def build_document(request: Request) -> dict[str, Any]:
    """Return a request as `--json` prints it."""
    value = dataclasses.asdict(request)
    # How the ledger finds the rows that a claim holds; it means nothing outside of the database.
    del value["token"]
    return value | {"names": {str(index): name for index, name in request.names.items()}}


def build_row(request: Request) -> dict[str, Any]:
    """Return a request for the document of a run: a log may keep it, so it has no personal text."""
    columns = ("id", "model", "state", "due_at", "overdue", "attempts", "version", "grade", "error")
    row = {key: getattr(request, key) for key in columns}
    lists = {"classes": request.classes, "failed_checks": request.failed_checks}
    return row | {key: list(value) for key, value in lists.items()}
