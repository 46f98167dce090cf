"""`expunge request ...`: the queue as a privacy officer sees it; file, look up, approve."""

import click
from rich.console import Console
from rich.text import Text

from expunge.states import STATES
from expunge.verdicts import HEADLINES
from expunge_pipelines.cli.options import (
    by_option,
    json_option,
    policy_option,
    read_policy,
    split_list,
)
from expunge_pipelines.cli.output import (
    MANY_COLUMNS,
    Result,
    create_table,
    format_grade,
    print_result,
)


@click.group()
def request() -> None:
    """File, list, show, approve and withdraw requests to forget."""


@request.command()
@click.argument("name")
@click.option("--classes", "class_texts", required=True, help="Classes to forget: 3,5 or names.")
@click.option(
    "--reason", required=True, help="Why. It is stored beside the event log and can be erased."
)
@click.option(
    "--due", default="", metavar="DAY", help="Due date, such as 2027-01-31.  [default: in 30 days]"
)
@by_option
@policy_option
@json_option
def add(
    name: str, class_texts: str, reason: str, due: str, by: str, policy: str, as_json: bool
) -> None:
    """File a request to forget classes of model NAME.

    `expunge run-requests` processes it. If there is a request for a class already, that one stands.
    """
    from expunge_pipelines.jobs.requests import file_request

    value = file_request(
        name,
        split_list(class_texts),
        reason=reason,
        by=by,
        due=due,
        approval=read_policy(policy).approval,
    )
    print_result(value, as_json, _print_filed)


@request.command("list")
@click.argument("name", required=False)
@click.option("--state", multiple=True, type=click.Choice(STATES), help="Only those in this state.")
@click.option("--overdue", is_flag=True, help="Only those past their due date.")
@json_option
def list_command(name: str | None, state: tuple[str, ...], overdue: bool, as_json: bool) -> None:
    """List the requests of all models, or of NAME, the first due first."""
    from expunge_pipelines.jobs.requests import list_requests

    print_result(list_requests(name, state, overdue), as_json, _print_list)


@request.command()
@click.argument("request_id", metavar="ID")
@json_option
def show(request_id: str, as_json: bool) -> None:
    """Show a request and its events.

    It also lists what still remembers the classes.
    """
    from expunge_pipelines.jobs.requests import show_request

    print_result(show_request(request_id), as_json, _print_details)


@request.command()
@click.argument("request_id", metavar="ID")
@by_option
@json_option
def cancel(request_id: str, by: str, as_json: bool) -> None:
    """Withdraw a request, unless it is fulfilled or a run holds it."""
    from expunge_pipelines.jobs.requests import cancel_request

    print_result(cancel_request(request_id, by), as_json, _print_state)


@request.command()
@click.argument("request_id", metavar="ID")
@by_option
@json_option
def approve(request_id: str, by: str, as_json: bool) -> None:
    """Approve a request as a second person, if the policy asks for one."""
    from expunge_pipelines.jobs.requests import approve_request

    print_result(approve_request(request_id, by), as_json, _print_state)


@request.command()
@click.argument("request_id", metavar="ID")
@json_option
def retry(request_id: str, as_json: bool) -> None:
    """Put a rejected or parked request back into the queue."""
    from expunge_pipelines.jobs.requests import retry_request

    print_result(retry_request(request_id), as_json, _print_state)


@request.command()
@click.argument("request_id", metavar="ID")
@json_option
def redact(request_id: str, as_json: bool) -> None:
    """Erase who asked, why, and the names of the classes. What was done stays on record."""
    from expunge_pipelines.jobs.requests import redact_request

    print_result(redact_request(request_id), as_json, _print_redacted)


@request.command()
@click.option("--kept", default="", metavar="HASH", help="A hash noted down earlier, to look for.")
@json_option
def verify(kept: str, as_json: bool) -> None:
    """Check the event log from its first event to its last."""
    from expunge_pipelines.jobs.requests import verify_log

    print_result(verify_log(kept), as_json, _print_log)


def _print_log(console: Console, value: Result) -> None:
    console.print(f"{value['events']} events, each as it was written. The hash of the last one:")
    console.print(value["head"])


def _print_filed(console: Console, value: Result) -> None:
    created = value["created"]
    if created:
        console.print(
            f"Request {created['id']} is {_describe_state(created)}: forget "
            f"{_format_classes(created)} of {created['model']}, due {created['due_at'][:10]}",
            markup=False,
        )
    for entry in value["existing"]:
        console.print(
            f"Request {entry['id']} stands for {_format_classes(entry)} of {entry['model']} "
            f"already; it is {_describe_state(entry)}",
            markup=False,
        )


def _print_list(console: Console, value: Result) -> None:
    table = create_table("request", "model", "classes", "state", "due", "", "version", "grade", "")
    for entry in value["requests"]:
        table.add_row(
            entry["id"],
            entry["model"],
            ",".join(map(str, entry["classes"])),
            entry["state"],
            entry["due_at"][:10],
            "[bold red]OVERDUE[/bold red]" if entry["overdue"] else "",
            str(entry["version"] or ""),
            format_grade(entry["grade"]),
            Text(_describe_obstacle(entry)),  # what failed may say anything, and is no markup
        )
    shown = table if value["requests"] else "No request."
    console.print(shown, width=max(console.width, MANY_COLUMNS))


def _print_details(console: Console, value: Result) -> None:
    _print_state(console, value)
    # "erased" where `redact` took a personal text away; the rest has no line if it is empty.
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
        body = event["body"]
        # a version that hides a class fulfils a request by another grade than one that forgot it
        what = body.get("grade") or ", ".join(body.get("failed_checks") or [])
        console.print(
            f"  {event['seq']:6} {event['at'][:19]}  {event['kind']:20} {event['hash'][:12]}"
            + (f"  {what}" if what else ""),
            markup=False,
        )
    if value["remembered_by"]:
        console.print("What still remembers one of these classes")
        for entry in value["remembered_by"]:
            console.print(f"  {entry['kind']:10} {entry['address']}", markup=False)


def _print_state(console: Console, value: Result) -> None:
    console.print(
        f"Request {value['id']} is {_describe_state(value)}: forget {_format_classes(value)} of "
        f"{value['model']}",
        markup=False,
    )


def _print_redacted(console: Console, value: Result) -> None:
    _print_state(console, value)
    console.print(f"{value['erased']} texts are erased; the event log stays as it is.")


def _describe_state(entry: Result) -> str:
    words = {
        "unapproved": f"waiting for a second person: expunge request approve {entry['id']}",
        "fulfilled": f"fulfilled by version {entry['version']} (graded {entry['grade']})",
    }
    # its policy allowed that, and the classes are there all the same
    if entry["grade"] == "hidden":
        words["fulfilled"] = f"{HEADLINES['hidden'].lower()}, by version {entry['version']}"
    why = _describe_obstacle(entry)
    return str(words.get(entry["state"], entry["state"])) + (f" ({why})" if why else "")


def _describe_obstacle(entry: Result) -> str:
    """Return why a request is still open after a run, and what can be done; nothing for others."""
    if entry["state"] == "rejected":
        failed = ", ".join(entry["failed_checks"])
        classes = ",".join(map(str, entry["classes"]))
        return f"{failed}; retrain: expunge train {entry['model']} --without {classes}"
    if entry["state"] in ("parked", "pending") and entry["error"]:
        return str(entry["error"])
    return ""


def _format_classes(entry: Result) -> str:
    names = entry["names"].items()  # a name may be erased, or be the index itself
    return ", ".join(f"{i} ({name})" if name and name != i else str(i) for i, name in names)
