"""Tables of what was measured and decided, which several commands print."""

from rich.console import Console

from expunge.core.grading.grades import at_least
from expunge.verdicts import IN_DOUBT, REJECTED, UNTRUSTWORTHY, Verdict
from expunge_pipelines.cli.output import (
    TONE_STYLES,
    Result,
    create_table,
    format_change,
    format_number,
    format_percent,
)

# Models that an unlearned one is compared with, beside the oracles: each forgot nothing inside.
COMPARED = ("original", "mask", "soft-mask")


def print_accuracies(console: Console, value: Result) -> None:
    """Print the accuracy on each class before and after, and what they come to."""
    table = create_table("class", "before", "after", "change")
    before, after = value["before"], value["after"]
    for index, pair in enumerate(zip(before["per_class"], after["per_class"], strict=True)):
        gone = index in value["classes"]
        label = f"{index} (forgotten)" if gone else str(index)
        cells = (*(format_percent(part) for part in pair), format_change(*pair))
        table.add_row(label, *cells, style="bold red" if gone else None)
    table.add_section()
    for label, key in (("forget error E_F", "forget_error"), ("retained A_R", "retain_accuracy")):
        pair = (before[key], after[key])
        table.add_row(label, *(format_percent(part) for part in pair), format_change(*pair))
    console.print(table)


def print_rungs(console: Console, value: Result) -> None:
    """Print each rule that a ladder tried, the last one being what the other tables are about."""
    table = create_table("rung", "rule", "grade", "gate", "seconds", "to judge")
    for number, rung in enumerate(value["rungs"], start=1):
        failed = ", ".join(rung["rejections"]) or "not trusted"
        table.add_row(
            str(number),
            rung["rule"],
            rung["grade"],
            "[green]passed[/green]" if rung["passed"] else f"[bold red]{failed}[/bold red]",
            f"{rung['seconds']:.1f}",
            f"{rung['judging_seconds']:.1f}",
        )
    console.print(table)


def print_remedy(console: Console, value: Result) -> None:
    """Print what is left to do where no rung of a ladder was enough."""
    console.print(
        f"No rung is enough. To train a version without the class: {value['remedy']}", markup=False
    )


def print_checks(console: Console, value: Result) -> None:
    """Print each check with its threshold, and what its failure means."""
    table = create_table("check", "value", "", "threshold", "samples", "verdict", "")
    for check in value["checks"]:
        if check["passed"]:
            outcome = "[green]passed[/green]"
        else:
            outcome = (
                "[bold red]FAILED[/bold red]" if check["blocks"] else "[yellow]failed[/yellow]"
            )
        table.add_row(
            check["name"],
            f"{check['value']:.4g}",
            check["compare"],
            f"{check['threshold']:.4g}",
            str(check["samples"] or ""),
            outcome,
            ", ".join(_list_roles(check)),
        )
    console.print(table)


def _list_roles(check: Result) -> list[str]:
    """Return whether a check blocks, and whether it tells anything about the grade."""
    counts = {True: ["counts"], False: ["does not count"], None: []}[check["counts"]]
    return (["blocks"] if check["blocks"] else []) + counts


def print_attacks(console: Console, value: Result) -> None:
    """Print what each attack found on this model, on those that forgot nothing, and on oracles."""
    beside = ["oracles' mean"] if value["oracles"] else []
    table = create_table("attack", "this model", *COMPARED, *beside)
    for name, row in value["attacks"].items():
        measured = [found for found in row.get("oracles", []) if found is not None]
        mean = sum(measured) / len(measured) if measured else None
        cells = [*map(row.get, ("unlearned", *COMPARED)), *([mean] if beside else [])]
        table.add_row(name, *(format_number(cell) for cell in cells))
    console.print(table)


def print_verdict(console: Console, value: Result) -> None:
    """Print the headline of the grade, what the gate said, and what that did to the champion."""
    verdict = Verdict.from_json(value)
    if verdict.outcome == UNTRUSTWORTHY:
        console.print(
            f"[bold red]{IN_DOUBT}[/bold red]: a control got a grade that it must not get. "
            "Nothing is registered, and the champion is as it was."
        )
        return
    # the colour is that of the grade: what a policy lets pass may be hidden all the same
    style = TONE_STYLES[verdict.tone]
    console.print(f"[{style}]{verdict.headline}[/{style}]")
    if verdict.outcome == REJECTED:
        console.print(
            f"[bold red]Rejected[/bold red] by the gate ({', '.join(verdict.rejections)}): "
            "nothing is registered, and the champion is as it was."
        )
    elif value.get("dry_run"):
        console.print("The gate passed. A dry run registers nothing.")
    else:
        console.print(
            f"[{style}]Passed[/{style}]: version {value['version']} is champion, graded "
            f"{value['grade']}."
        )


def print_grade(console: Console, value: Result) -> None:
    """Print the grade in plain words, why it is not higher, and what can be done about that."""
    words = {
        "failed": "Failed: the outputs still show the class, or a check that blocks failed.",
        "hidden": "Hidden: the outputs do not give the class, and the layers before them still "
        "hold it. A new last layer brings it back.",
        "suppressed": "Suppressed: the outputs do not give the class, and a check of the body "
        "finds less of it than before. Nobody has shown that it is gone.",
        "forgotten": f"Forgotten: by every check that counts, this model is like the "
        f"{value['oracles']} models that were retrained without the class.",
    }
    console.print(words[value["grade"]])
    if value["needed"] and not at_least(value["grade"], value["needed"]):
        console.print(f"The policy asks for grade {value['needed']}.")
    for reason in value["reasons"]:
        console.print(f"  {reason}", markup=False)
    if value["grade"] == "suppressed" and not value["oracles"]:
        console.print(
            f"To compare it with retrained models: expunge oracles {value['request']}, then "
            f"expunge forget {value['request']} --dry-run"
        )
