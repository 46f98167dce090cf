"""Tables of the report, as rows of texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expunge.report import words
from expunge.report.drawing import clean_name
from expunge.validation_report import MODELS, AttackRow, ValidationReport

DASH = "\N{EN DASH}"  # where a value makes no sense


@dataclass(frozen=True)
class Table:
    """`head` names the columns, the first being that of the rows' names."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class CheckTexts:
    """One check in words; `passed` chooses the look of the verdict."""

    name: str
    meaning: str
    value: str
    compare: str
    threshold: str
    samples: str
    passed: bool
    blocks: str
    counts: str


def tabulate_classes(report: ValidationReport) -> Table:
    """Return the accuracy of every class before and after, with its test images."""
    before_by_class = report.before.per_class if report.before else ()
    pairs = zip(before_by_class, report.after.per_class, strict=True)
    rows = []
    for index, (before, after) in enumerate(pairs):
        count = report.samples[index] if index < len(report.samples) else None
        # a class without test images has accuracy 0 in the report, which nobody measured
        values = [before, after] if count != 0 else [None, None]
        texts = [words.format_number(value) for value in (*values, count)]
        name = clean_name(report.class_names[index], 60)
        asked = "to forget" if index in report.classes else ""
        rows.append((str(index), name, *texts, asked))
    return Table(("class", "name", "before", "after", "test images", ""), tuple(rows))


def tabulate_attacks(report: ValidationReport) -> Table | None:
    """Return every metric of every model; None where no attack was made."""
    found = words.order_attacks(report)
    models = [model for model in MODELS if any(model in row.values for row in found.values())]
    with_oracles = any(row.oracles for row in found.values())
    rows = []
    for name, row in found.items():
        values = [words.format_number(row.values.get(model)) for model in models]
        if with_oracles:
            values.append(_format_range(row))
        rows.append((name, *values, words.format_number(row.threshold)))
    head = ("metric", *models, *(["oracles"] if with_oracles else []), "threshold")
    return Table(head, tuple(rows)) if rows else None


def tabulate_blocks(report: ValidationReport) -> Table | None:
    """Return what new heads find of the class on each block; None where none was looked at."""
    found = report.depth.blocks
    models = [model for model in MODELS if any(model in row.values for row in found.values())]
    rows = []
    for name, row in found.items():
        values = [words.format_number(row.values.get(model)) for model in models]
        rows.append((name, *values, _format_range(row)))
    return Table(("block", *models, "oracles"), tuple(rows)) if rows else None


def _format_range(row: AttackRow) -> str:
    oracles = [value for value in row.oracles or () if value is not None]
    return f"{min(oracles):.4g} to {max(oracles):.4g}" if oracles else "none"


def tabulate_rungs(report: ValidationReport) -> Table | None:
    """Return each rule that a ladder tried, the last being this model's; None without a ladder."""
    rows = []
    for number, rung in enumerate(report.rungs, start=1):
        outcome = "passed" if rung.passed else ", ".join(rung.rejections) or "not trusted"
        seconds = [f"{value:.1f}" for value in (rung.seconds, rung.judging_seconds)]
        rows.append((str(number), rung.rule, rung.grade, outcome, *seconds))
    head = ("rung", "rule", "grade", "gate", "seconds to forget", "seconds to judge")
    return Table(head, tuple(rows)) if rows else None


def tabulate_checks(report: ValidationReport) -> list[CheckTexts]:
    """Return every check of the gate in words."""
    rows = []
    for row in report.checks:
        value, threshold = words.format_pair(row.value, row.threshold)
        rows.append(
            CheckTexts(
                name=row.name,
                meaning=words.MEANINGS.get(row.name, ""),
                value=value,
                compare=words.SIDES[row.compare],
                threshold=threshold,
                samples=DASH if row.samples is None else str(row.samples),
                passed=row.passed,
                blocks="yes" if row.blocks else "no",
                counts=DASH if row.counts is None else "yes" if row.counts else "no",
            )
        )
    return rows


def list_unchecked(report: ValidationReport) -> list[tuple[str, str]]:
    """Return what the metrics mean that no check goes by; the table of checks has the others."""
    checked = {row.name for row in report.checks}
    found = words.order_attacks(report)
    return [(name, words.MEANINGS.get(name, "")) for name in found if name not in checked]


def tabulate_making(report: ValidationReport, work: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how the model was made and by what it was judged; what is unknown is left out."""
    rows = [
        ("rule", work.get("rule")),
        ("sign", {1: "+1", -1: "-1"}.get(work.get("sign") or 0)),
        ("strength", _format_value(work.get("strength"))),
        ("lambda1, lambda2", _format_value(work.get("lambdas"))),
        ("trials made", _format_value(len(work.get("trials") or []))),
        ("lowest loss of a code to forget, nats", _format_value(work.get("forget_loss"))),
        ("mean loss of the other codes, nats", _format_value(work.get("retain_loss"))),
        ("damage to the predictions of the others, nats", _format_value(work.get("damage"))),
        (
            "strong enough" if work.get("stage") else "strong enough on the codes",
            _format_value(work.get("sufficient")),
        ),
        ("last stage begins at", work.get("stage")),
        ("last stage was", work.get("way")),
        ("distance to the answers on the others, nats", _format_value(work.get("distance"))),
        ("rank of the class statistics", _format_value(work.get("rank"))),
        *_list_depths(work),
        ("repair started from", work.get("start")),
        ("steps of the repair", _format_value(work.get("repair_steps"))),
        (
            "images of the repair, in shares of those that a training goes through",
            _format_value(work.get("repair_share")),
        ),
        ("loss of the repair, nats", _format_value(work.get("repair_loss"))),
        ("seconds of calibration", _format_value(work.get("calibration_seconds"))),
        ("seconds of the change itself", _format_value(work.get("perturbation_seconds"))),
        ("SHA-256 of the test split", report.data_digest),
    ]
    policy = sorted(report.policy.items())
    rows += [(f"policy: {key}", _format_value(value)) for key, value in policy]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _list_depths(work: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how far rule replay moved each class, and where that came from."""
    return [
        (f"depth of class {index}", f"{_format_value(row['depth'])} ({row['from']})")
        for index, row in (work.get("depths") or {}).items()
    ]


def _format_value(value: Any) -> str:
    if isinstance(value, bool):  # before the numbers: to Python a truth is one
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_format_value(entry) for entry in value)
    return "" if value is None else str(value)
