"""What a validation report says in the end, and which checks decided it."""

from collections.abc import Mapping
from typing import Any

PASSED, REJECTED, UNTRUSTWORTHY = "passed", "rejected", "untrustworthy"


def verdict(report: Mapping[str, Any]) -> str:
    """What the gate said, or untrustworthy where a control got a grade that it must not have."""
    if not report.get("trustworthy", True):
        return UNTRUSTWORTHY
    return PASSED if report["passed"] else REJECTED


def rejected_by(report: Mapping[str, Any]) -> list[str]:
    """The checks that block and failed, or could not be made, by name.

    "grade" where nothing but the grade is lower than needed.
    """
    failed = [row["name"] for row in report["checks"] if row["blocks"] and not row["passed"]]
    failed += report.get("unmade", [])
    if failed or report["passed"] or verdict(report) == UNTRUSTWORTHY:
        return failed
    return ["grade"]
