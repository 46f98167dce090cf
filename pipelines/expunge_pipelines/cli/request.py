"""`expunge request ...`: what a privacy officer files, looks up and approves."""

import click
from rich.console import Console
from rich.text import Text

from expunge.states import STATES
from expunge_pipelines.cli import output as show
from expunge_pipelines.cli.options import (
    by_option,
    json_option,
    policy_option,
    read_policy,
    split_list,
)
from expunge_pipelines.cli.output import Result


@click.group()
def request() -> None:
    """Requests to forget: file, list, show, approve, cancel."""


@request.command()
@click.argument("name")
@click.option("--classes", required=True, help="Classes to forget: 3,5 or names.")
@click.option("--reason", required=True, help="Why; kept beside the event log, and erasable.")
@click.option("--due", default="", metavar="DAY", help="Until when.  [default: in 30 days]")
@by_option
@policy_option
@json_option
def add(
    name: str, classes: str, reason: str, due: str, by: str, policy: str, as_json: bool
) -> None:
    """File a request to forget classes of model NAME; `expunge run-requests` processes it.

    A class that has a request already gives that one.
    """
    from expunge_pipelines.jobs import requests as filing

    value = filing.file_request(
        name,
        split_list(classes),
        reason=reason,
        by=by,
        due=due,
        approval=read_policy(policy).approval,
    )
    show.result(value, as_json, _filed)


@request.command("list")
@click.argument("name", required=False)
@click.option("--state", multiple=True, type=click.Choice(STATES), help="Only these.")
@click.option("--overdue", is_flag=True, help="Only those past their due date.")
@json_option
def list_command(name: str | None, state: tuple[str, ...], overdue: bool, as_json: bool) -> None:
    """List the requests of all models, or of NAME; the first due first."""
    from expunge_pipelines.jobs import requests as filing

    show.result(filing.list_filed(name, state, overdue), as_json, _listing)


@request.command("show")
@click.argument("request_id", metavar="ID")
@json_option
def show_command(request_id: str, as_json: bool) -> None:
    """Show a request, its events, and what there still is that remembers its classes."""
    from expunge_pipelines.jobs import requests as filing

    show.result(filing.show_filed(request_id), as_json, _details)


@request.command()
@click.argument("request_id", metavar="ID")
@by_option
@json_option
def cancel(request_id: str, by: str, as_json: bool) -> None:
    """Withdraw a request that is not fulfilled and that no run holds."""
    from expunge_pipelines.jobs import requests as filing

    show.result(filing.cancel_filed(request_id, by), as_json, _state)


@request.command()
@click.argument("request_id", metavar="ID")
@by_option
@json_option
def approve(request_id: str, by: str, as_json: bool) -> None:
    """Approve a request as a second person, where the policy asks for one."""
    from expunge_pipelines.jobs import requests as filing

    show.result(filing.approve_filed(request_id, by), as_json, _state)


@request.command()
@click.argument("request_id", metavar="ID")
@json_option
def retry(request_id: str, as_json: bool) -> None:
    """Put a rejected or parked request back into the queue."""
    from expunge_pipelines.jobs import requests as filing

    show.result(filing.retry_filed(request_id), as_json, _state)


@request.command()
@click.argument("request_id", metavar="ID")
@json_option
def redact(request_id: str, as_json: bool) -> None:
    """Erase who asked, why, and the names of the classes; what was done stays on record."""
    from expunge_pipelines.jobs import requests as filing

    show.result(filing.redact_filed(request_id), as_json, _redacted)


@request.command()
@click.option("--kept", default="", metavar="HASH", help="One noted down earlier, to look for.")
@json_option
def verify(kept: str, as_json: bool) -> None:
    """Check the event log from its first event to its last."""
    from expunge_pipelines.jobs import requests as filing

    show.result(filing.verify_log(kept), as_json, _verified)


def _verified(console: Console, value: Result) -> None:
    console.print(f"{value['events']} events, each as it was written. The last one's hash:")
    console.print(value["head"])


def _filed(console: Console, value: Result) -> None:
    created = value["created"]
    if created:
        console.print(
            f"Request {created['id']} is {_standing(created)}: forget {_classes(created)} of "
            f"{created['model']}, due {created['due_at'][:10]}",
            markup=False,
        )
    for entry in value["existing"]:
        console.print(
            f"Request {entry['id']}, which is {_standing(entry)}, stands for {_classes(entry)} of "
            f"{entry['model']} already",
            markup=False,
        )


def _listing(console: Console, value: Result) -> None:
    table = show.new_table(
        "request", "model", "classes", "state", "due", "", "version", "grade", ""
    )
    for entry in value["requests"]:
        table.add_row(
            entry["id"],
            entry["model"],
            ",".join(map(str, entry["classes"])),
            entry["state"],
            entry["due_at"][:10],
            "[bold red]OVERDUE[/bold red]" if entry["overdue"] else "",
            str(entry["version"] or ""),
            entry["grade"] or "",
            Text(_why(entry)),  # what failed may say anything, and is no markup
        )
    console.print(table if value["requests"] else "No request.", width=max(console.width, 160))


def _details(console: Console, value: Result) -> None:
    _state(console, value)
    rows = {
        "due": value["due_at"][:10] + (" OVERDUE" if value["overdue"] else ""),
        "filed": f"{value['created_at'][:19]} by {value['requester'] or 'erased'}",
        "approved by": (value["approver"] or "erased") if value["approved"] else "",
        "reason": value["reason"] or "erased",
        "attempts": str(value["attempts"] or ""),
        "run": value["run"] or "",
        "MLflow run": value["mlflow_run"] or "",
    }
    for label, text in rows.items():
        if text:
            console.print(f"  {label:12} {text}", markup=False)
    console.print("Events")
    for event in value["events"]:
        console.print(
            f"  {event['seq']:6} {event['at'][:19]}  {event['kind']:20} {event['hash'][:12]}"
        )
    if value["remembered_by"]:
        console.print("Still there, and remembers one of these classes")
        for entry in value["remembered_by"]:
            console.print(f"  {entry['kind']:10} {entry['address']}", markup=False)


def _state(console: Console, value: Result) -> None:
    console.print(
        f"Request {value['id']} is {_standing(value)}: forget {_classes(value)} of "
        f"{value['model']}",
        markup=False,
    )


def _redacted(console: Console, value: Result) -> None:
    _state(console, value)
    console.print(f"{value['erased']} texts are erased; the event log stays as it is.")


def _standing(entry: Result) -> str:
    words = {
        "unapproved": f"waiting for a second person: expunge request approve {entry['id']}",
        "fulfilled": f"fulfilled by version {entry['version']} (graded {entry['grade']})",
    }
    why = _why(entry)
    return str(words.get(entry["state"], entry["state"])) + (f" ({why})" if why else "")


def _why(entry: Result) -> str:
    """Why a request is still open after a run, and what is to be done."""
    if entry["state"] == "rejected":
        failed = ", ".join(entry["failed_checks"])
        classes = ",".join(map(str, entry["classes"]))
        return f"{failed}; retrain: expunge train {entry['model']} --without {classes}"
    if entry["state"] in ("parked", "pending") and entry["error"]:
        return str(entry["error"])
    return ""


def _classes(entry: Result) -> str:
    named = [(index, name) for index, name in entry["names"].items()]
    return ", ".join(f"{i} ({name})" if name and name != i else str(i) for i, name in named)
