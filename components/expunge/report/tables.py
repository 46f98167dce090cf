"""The report's tables, as rows of texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expunge.report import words
from expunge.report.drawing import readable

DASH = "\N{EN DASH}"  # where a value makes no sense


@dataclass(frozen=True)
class Table:
    """`head` names the columns, the first being that of the rows' names."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class CheckRow:
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


def per_class(validation: Mapping[str, Any]) -> Table:
    """Accuracy of every class before and after, with its test images."""
    names, samples = validation["class_names"], validation.get("samples") or []
    pairs = zip(validation["before"]["per_class"], validation["after"]["per_class"], strict=True)
    rows = []
    for index, (before, after) in enumerate(pairs):
        count = samples[index] if index < len(samples) else None
        values = ["none", "none"] if count == 0 else [words.number(v) for v in (before, after)]
        asked = "to forget" if index in validation["classes"] else ""
        rows.append((str(index), readable(names[index], 60), *values, words.number(count), asked))
    return Table(("class", "name", "before", "after", "test images", ""), tuple(rows))


def attacks(validation: Mapping[str, Any]) -> Table | None:
    """Every metric of every model."""
    found = words.metrics(validation)
    models = [model for model in words.MODELS if any(model in row for row in found.values())]
    with_oracles = any(row.get("oracles") for row in found.values())
    rows = []
    for name, row in found.items():
        values = [words.number(row.get(model)) for model in models]
        oracles = [value for value in row.get("oracles") or [] if value is not None]
        if with_oracles:
            spread = f"{min(oracles):.4g} to {max(oracles):.4g}" if oracles else "none"
            values.append(spread)
        rows.append((name, *values, words.number(row.get("threshold"))))
    head = ("metric", *models, *(["oracles"] if with_oracles else []), "threshold")
    return Table(head, tuple(rows)) if rows else None


def checks(validation: Mapping[str, Any]) -> list[CheckRow]:
    """Every check of the gate."""
    rows = []
    for row in validation["checks"]:
        value, threshold = words.apart(row["value"], row["threshold"])
        counts = row.get("counts")
        rows.append(
            CheckRow(
                row["name"],
                words.MEANINGS.get(row["name"], ""),
                value,
                {">=": "at least", "<=": "at most"}[row["compare"]],
                threshold,
                DASH if row.get("samples") is None else str(row["samples"]),
                row["passed"],
                "yes" if row.get("blocks") else "no",
                DASH if counts is None else "yes" if counts else "no",
            )
        )
    return rows


def unchecked(validation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the metrics mean that no check goes by; the table of checks explains the others."""
    checked = {row["name"] for row in validation["checks"]}
    found = words.metrics(validation)
    return [(name, words.MEANINGS.get(name, "")) for name in found if name not in checked]


def making(validation: Mapping[str, Any], work: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the model was made and by what it was judged; what is not known is left out."""
    policy = validation.get("policy") or {}
    rows = [
        ("rule", work.get("rule")),
        ("sign", {1: "+1", -1: "-1"}.get(work.get("sign") or 0)),
        ("strength", _plain(work.get("strength"))),
        ("lambda1, lambda2", _plain(work.get("lambdas"))),
        ("trials made", _plain(len(work.get("trials") or []))),
        ("lowest loss of a code to forget, nats", _plain(work.get("forget_loss"))),
        ("mean loss of the other codes, nats", _plain(work.get("retain_loss"))),
        ("damage to the predictions of the others, nats", _plain(work.get("damage"))),
        ("strong enough on the codes", _plain(work.get("sufficient"))),
        ("seconds of calibration", _plain(work.get("calibration_seconds"))),
        ("seconds of the change itself", _plain(work.get("perturbation_seconds"))),
        ("SHA-256 of the test split", validation.get("data_digest")),
    ]
    rows += [(f"policy: {key}", _plain(value)) for key, value in sorted(policy.items())]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(entry) for entry in value)
    return "" if value is None else str(value)
