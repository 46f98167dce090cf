"""A validation report is the same document after it was stored, and one of today is read."""

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from forget_reports import validation, with_oracles

from expunge.core.grading.checks import Check
from expunge.errors import UserError
from expunge.validation_report import SCHEMA, AttackRow, CheckRow, ValidationReport

TRAINING: dict[str, Any] = {
    "classes": [],
    "class_names": ["a", "b"],
    "data_digest": "8a7f",
    "samples": [10, 12],
    "after": {"test_accuracy": 0.95, "per_class": [0.9, 1.0]},
    "checks": [
        {
            "name": "test_accuracy", "value": 0.95, "compare": ">=", "threshold": 0.75,
            "samples": 22, "passed": True, "about": "utility", "blocks": True, "counts": None,
        }
    ],
    "passed": True,
    "grade": "trained",
}  # fmt: skip
LADDER: dict[str, Any] = {
    "rungs": [
        {
            "rule": "paper", "grade": "hidden", "passed": False, "rejections": ["grade hidden"],
            "seconds": 0.5, "judging_seconds": 4.25,
        }
    ],
    "next_rule": "replay",
}  # fmt: skip
# What `validate` writes of every forget, and what the reports written by hand leave out.
ALWAYS = {"problems": [], "unmade": []}


@pytest.mark.parametrize(
    "document",
    [TRAINING, validation() | ALWAYS, with_oracles() | ALWAYS, validation() | ALWAYS | LADDER],
    ids=["training", "alone", "with oracles", "ladder"],
)
def test_a_report_of_today_is_read_and_keeps_its_keys(document: dict[str, Any]) -> None:
    report = ValidationReport.from_json(document)
    written = report.to_json()
    assert written == document | {"schema": SCHEMA}
    assert ValidationReport.from_json(json.loads(json.dumps(written))) == report


def test_what_stands_in_it() -> None:
    report = ValidationReport.from_json(with_oracles())
    assert (report.classes, report.grade, report.passed, report.oracles) == (
        (3,),
        "forgotten",
        True,
        3,
    )
    assert report.verdict.controls["held-out"] == "forgotten"
    row = report.attacks["head_recovery"]
    assert (row.values["original"], row.oracles, row.threshold) == (
        0.984,
        (0.95, 0.953, 0.949),
        0.013,
    )
    assert report.attacks["anamnesis"].oracle_steps == (20, 25, 25)
    assert report.relearning is not None
    assert len(report.relearning.oracles) == 3
    assert report.depth.layers[0].name == "hidden.weight"


def test_a_row_without_oracles_says_nothing_of_them() -> None:
    row = AttackRow({"unlearned": 0.5}, threshold=0.8)
    assert row.to_json() == {"unlearned": 0.5, "threshold": 0.8}
    assert replace(row, oracles=()).to_json() == {"unlearned": 0.5, "threshold": 0.8, "oracles": []}


def test_a_report_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        ValidationReport.from_json(TRAINING).oracles = 3  # type: ignore[misc]


def test_a_report_of_another_schema_is_refused() -> None:
    with pytest.raises(UserError, match=r"has the schema 'expunge.validation/2'; expected 'expung"):
        ValidationReport.from_json(TRAINING | {"schema": "expunge.validation/2"})


def test_what_is_no_report_is_refused() -> None:
    with pytest.raises(UserError, match="the validation report lacks checks, passed; expected one"):
        ValidationReport.from_json({"grade": "trained"})


def test_a_check_is_stored_with_its_verdict() -> None:
    check = Check("budget", 0.01, "<=", 0.02, 300, about="utility")
    row = {
        "name": "budget", "value": 0.01, "compare": "<=", "threshold": 0.02,
        "samples": 300, "passed": True, "about": "utility", "blocks": True, "counts": None,
    }  # fmt: skip
    assert CheckRow.from_check(check, ["budget"]).to_json() == row
    assert CheckRow.from_check(check, ["another"]).to_json() == row | {"blocks": False}
