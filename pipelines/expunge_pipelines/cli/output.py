"""Tables for people: results on stdout, progress on stderr."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from expunge.oracles import NEEDED
from expunge.verdicts import REJECTED, UNTRUSTWORTHY, rejected_by, verdict

Result = Mapping[str, Any]

# Columns that a table may take: what a narrow terminal wraps can be read, a name cut short cannot.
WIDEST = 400


def step_started(step: str) -> None:
    """Say on stderr that a step begins."""
    click.echo(f"  {step} ...", err=True)


def result(value: Result, as_json: bool, table: Callable[[Console, Result], None]) -> None:
    """Print a result as one JSON document, or as `table` lays it out."""
    if as_json:
        click.echo(json.dumps(value, indent=2, allow_nan=False))
    else:
        table(Console(highlight=False, soft_wrap=True, width=WIDEST), value)


def training(console: Console, value: Result) -> None:
    """What the train pipeline gave."""
    outcome = f"version {value['version']}" if value["version"] else "no version"
    console.print(
        f"\n[bold]{value['model']}[/bold]: trained, test accuracy "
        f"{_percent(value['after']['test_accuracy'])}, {outcome}"
    )
    if value["erased"]:
        console.print(f"Left out, since this model has erased them: {_list(value['erased'])}")
    for index, request in value["asked"].items():
        console.print(
            f"Request {request} asks to forget class {index}: --without {index} would fulfil it"
        )
    _checks(console, value)
    _verdict(console, value)
    for request in value["fulfilled"]:
        console.print(f"Request {request} is fulfilled by it")


def forgetting(console: Console, value: Result) -> None:
    """What the forget pipeline gave."""
    console.print(
        f"\n[bold]{value['model']}[/bold] version {value['base_version']}: forget "
        f"{_list(value['classes'])} by rule {value['rule']}"
    )
    _accuracies(console, value)
    _checks(console, value)
    if value["oracles"]:
        _attacks(console, value)
    _verdict(console, value)
    _grade(console, value)
    for entry in value["requests"]:
        console.print(f"Request {entry['id']} is {entry['state']}")
    if value["report"]:
        console.print(f"The whole report: {value['report']}", markup=False)


def retrained(console: Console, value: Result) -> None:
    """Which oracles there are now."""
    console.print(
        f"\n[bold]{value['model']}[/bold]: retrained without {_list(value['without'])}, as version "
        f"{value['base_version']} was trained"
    )
    table = new_table("seed", "version", "test accuracy", "")
    for row in value["oracles"]:
        seed, accuracy = _training(row)
        table.add_row(seed, str(row["version"]), accuracy, "was there" if row["reused"] else "new")
    console.print(table)
    found = len(value["oracles"])
    if value["serves"]:
        console.print(f"expunge forget finds them by itself: expunge forget {value['request']}")
    elif value["request"]:
        console.print(f"To compare with them: expunge forget {value['request']} --dry-run")
    more = f"; {NEEDED - found} more are needed." if found < NEEDED else "."
    console.print(f"A forget is compared with oracles from {NEEDED} on{more}")


def processed(console: Console, value: Result) -> None:
    """What became of the queue."""
    for run in value["runs"]:
        if "error" not in run:
            forgetting(console, run)
    if not value["requests"]:
        console.print("No request is pending.")
        return
    table = new_table("request", "model", "classes", "state", "version", "grade")
    for entry in value["requests"]:
        table.add_row(
            entry["id"],
            entry["model"],
            _list(entry["classes"]),
            entry["state"],
            str(entry["version"] or ""),
            entry["grade"] or "",
        )
    console.print()
    console.print(table)


def reconciled(console: Console, value: Result) -> None:
    """Which aliases were put right, and which requests are settled by that."""
    name = value["model"]
    console.print(f"{name}: version {value['champion']} is champion")
    for row in value["restored"]:
        stood = f"stood on version {row['found']}" if row["found"] else "was not set"
        put = f"is back on {row['restored']}" if row["restored"] else "is taken away"
        console.print(f"Alias {row['alias']} {stood} and {put}")
    for request in value["fulfilled"]:
        console.print(f"Request {request} is fulfilled")


def demo(console: Console, value: Result) -> None:
    """What the demonstration gave, where the time went, and what to look at."""
    forgetting(console, value["forget"])
    _times(console, value)
    name = value["model"]
    console.print("\nWhat to look at next")
    if value["onnx"]:
        console.print(f"  the unlearned model as ONNX    {value['onnx']}", markup=False)
    console.print(f"  its versions and their grades  expunge models {name}")
    console.print("  runs, checks and artifacts     expunge ui")
    console.print(f"  forget two more                expunge forget {name} --classes 5,8")
    console.print(
        f"  serve it                       mlflow models serve -m models:/{name}@champion"
    )


def models(console: Console, value: Result) -> None:
    """The versions of the registry."""
    seeded = any(row["seed"] is not None for row in value["models"])  # oracles
    table = new_table(
        *("model", "version", "alias", "kind", "grade", "forgotten", "made from"),
        *(("seed", "test accuracy") if seeded else ()),
        "created",
    )
    for row in value["models"]:
        table.add_row(
            row["model"],
            str(row["version"]),
            ", ".join(row["aliases"]),
            row["kind"],
            row["grade"],
            _list(row["forgotten"]),
            row["parent"] or "",
            *(_training(row) if seeded else ()),
            row["created"],
        )
    # Wider than a narrow terminal rather than cut: names and aliases are there to be copied.
    shown = table if value["models"] else "No model yet: expunge demo makes one."
    console.print(shown, width=max(console.width, 160))


def _training(row: Result) -> tuple[str, str]:
    """An oracle's seed and test accuracy, as far as they are known."""
    seed, accuracy = row["seed"], row["test_accuracy"]
    return ("" if seed is None else str(seed), "" if accuracy is None else _percent(accuracy))


def rolled_back(console: Console, value: Result) -> None:
    """Which version serves again."""
    console.print(
        f"{value['model']}: version {value['version']} is champion again, "
        f"{value['replaced']} is previous"
    )


def compiled(console: Console, value: Result) -> None:
    """The files written."""
    for path in value["files"]:
        console.print(path, markup=False)  # a path may have square brackets


def _accuracies(console: Console, value: Result) -> None:
    table = new_table("class", "before", "after", "change")
    before, after = value["before"], value["after"]
    for index, pair in enumerate(zip(before["per_class"], after["per_class"], strict=True)):
        gone = index in value["classes"]
        label = f"{index} (forgotten)" if gone else str(index)
        style = "bold red" if gone else None
        table.add_row(label, *(_percent(part) for part in pair), _change(*pair), style=style)
    table.add_section()
    for label, key in (("forget error E_F", "forget_error"), ("retained A_R", "retain_accuracy")):
        pair = (before[key], after[key])
        table.add_row(label, *(_percent(part) for part in pair), _change(*pair))
    console.print(table)


def _checks(console: Console, value: Result) -> None:
    table = new_table("check", "value", "", "threshold", "samples", "verdict", "")
    for check in value["checks"]:
        if check["passed"]:
            verdict = "[green]passed[/green]"
        else:
            verdict = (
                "[bold red]FAILED[/bold red]" if check["blocks"] else "[yellow]failed[/yellow]"
            )
        table.add_row(
            check["name"],
            f"{check['value']:.4g}",
            check["compare"],
            f"{check['threshold']:.4g}",
            str(check["samples"] or ""),
            verdict,
            ", ".join(_role(check)),
        )
    console.print(table)


def _role(check: Result) -> list[str]:
    """What a check is good for: that it blocks, and whether it tells anything about the grade."""
    counts = {True: ["counts"], False: ["does not count"], None: []}[check["counts"]]
    return (["blocks"] if check["blocks"] else []) + counts


def _attacks(console: Console, value: Result) -> None:
    """What each attack found on this model, on those that forgot nothing, and on the oracles."""
    models = ("unlearned", "original", "mask", "soft-mask")
    table = new_table("attack", "this model", *models[1:], "oracles' mean")
    for name, row in value["attacks"].items():
        known = [found for found in row.get("oracles", []) if found is not None]
        mean = sum(known) / len(known) if known else None
        table.add_row(name, *(_number(found) for found in (*map(row.get, models), mean)))
    console.print(table)


def _verdict(console: Console, value: Result) -> None:
    said = verdict(value)
    if said == UNTRUSTWORTHY:
        console.print(
            "[bold red]Not to be trusted[/bold red]: a control was graded as it must not be. "
            "Nothing is registered, and the champion is as it was."
        )
    elif said == REJECTED:
        console.print(
            f"[bold red]Rejected[/bold red] by the gate ({', '.join(rejected_by(value))}): nothing "
            "is registered, and the champion is as it was."
        )
    elif value.get("dry_run"):
        console.print("The gate passed. A dry run registers nothing.")
    else:
        console.print(
            f"[green]Passed[/green]: version {value['version']} is champion, graded "
            f"{value['grade']}."
        )


def _grade(console: Console, value: Result) -> None:
    """The grade in plain words, why it is not higher, and what can be done about that."""
    words = {
        "failed": "Failed: its outputs still give the class, or a check that blocks failed.",
        "suppressed": "Suppressed: its outputs forget. That the layers before do was not shown.",
        "forgotten": f"Forgotten: by every check that counts it is like the {value['oracles']} "
        "models that were retrained without the class.",
    }
    console.print(words[value["grade"]])
    if value["grade"] == "suppressed" and value["needed"] == "forgotten":
        console.print("The policy asks for grade forgotten.")
    for reason in value["reasons"]:
        console.print(f"  {reason}", markup=False)
    if value["grade"] == "suppressed" and not value["oracles"]:
        console.print(
            f"To compare it with retrained models: expunge oracles {value['request']}, then "
            f"expunge forget {value['request']} --dry-run"
        )


def _times(console: Console, value: Result) -> None:
    table = new_table("step", "train", "forget")
    train, forget = value["train"], value["forget"]
    steps = list(dict.fromkeys([*train["seconds"], *forget["seconds"]]))
    for step in steps:
        cells = (_seconds(job["seconds"].get(step)) for job in (train, forget))
        table.add_row(step, *cells)
    table.add_section()
    table.add_row("all", *(_seconds(job["total_seconds"]) for job in (train, forget)))
    console.print("\nWhere the time went, in seconds")
    console.print(table)


def new_table(*columns: str) -> Table:
    """A table without lines: the first column to the left, the others to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _change(before: float, after: float) -> str:
    return f"{100 * (after - before):+.1f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _list(indices: Sequence[int]) -> str:
    return ", ".join(str(index) for index in indices)
