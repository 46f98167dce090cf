from typing import Any

import pytest

from expunge.core.grading.grades import GRADES
from expunge.verdicts import HEADLINES, TONES, Verdict, read_verdict


def report(*, passed: bool, failed: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    names = ("forget_error", "head_recovery")
    checks = [{"name": n, "passed": n not in failed, "blocks": n == names[0]} for n in names]
    return {"passed": passed, "checks": checks, **more}


def rejections(document: dict[str, Any]) -> list[str]:
    return Verdict.from_json(document).rejections


def test_what_passed_was_rejected_by_nothing() -> None:
    found = report(passed=True, failed=("head_recovery",), trustworthy=True)
    assert (read_verdict(found), rejections(found)) == ("passed", [])


def test_only_a_check_that_blocks_rejects() -> None:
    found = report(passed=False, failed=("forget_error", "head_recovery"), trustworthy=True)
    assert (read_verdict(found), rejections(found)) == ("rejected", ["forget_error"])


def test_a_grade_that_is_too_low_rejects() -> None:
    found = report(passed=False, failed=("head_recovery",), trustworthy=True, grade="hidden")
    assert (read_verdict(found), rejections(found)) == ("rejected", ["grade hidden"])


def test_a_check_that_could_not_be_made_rejects() -> None:
    found = report(passed=False, failed=("head_recovery",), trustworthy=True, unmade=["cmia"])
    assert (read_verdict(found), rejections(found)) == ("rejected", ["cmia"])


def test_a_broken_measurement_says_so_before_all_else() -> None:
    found = report(passed=False, trustworthy=False)
    assert (read_verdict(found), rejections(found)) == ("untrustworthy", [])


def test_a_training_has_no_controls() -> None:
    assert read_verdict(report(passed=True)) == "passed"
    assert read_verdict(report(passed=False, failed=("forget_error",))) == "rejected"


@pytest.mark.parametrize("passed", [True, False])
def test_the_headline_follows_the_grade_and_not_the_gate(passed: bool) -> None:
    hidden = Verdict(passed=passed, grade="hidden", needed="hidden")
    assert (hidden.headline, hidden.tone) == ("Hidden, not removed", "bad")
    assert [Verdict(passed=passed, grade=grade).tone for grade in GRADES] == [
        "bad",
        "bad",
        "doubt",
        "good",
    ]
    broken = Verdict(passed=passed, grade="forgotten", trustworthy=False)
    assert (broken.headline, broken.tone) == ("Not to be trusted", "doubt")


def test_every_grade_has_a_headline() -> None:
    assert tuple(HEADLINES) == tuple(TONES) == GRADES
