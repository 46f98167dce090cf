from typing import Any

from expunge.verdicts import list_rejecting, read_verdict


def report(*, passed: bool, failed: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    names = ("forget_error", "head_recovery")
    checks = [{"name": n, "passed": n not in failed, "blocks": n == names[0]} for n in names]
    return {"passed": passed, "checks": checks, **more}


def test_what_passed_was_rejected_by_nothing() -> None:
    found = report(passed=True, failed=("head_recovery",), trustworthy=True)
    assert (read_verdict(found), list_rejecting(found)) == ("passed", [])


def test_only_a_check_that_blocks_rejects() -> None:
    found = report(passed=False, failed=("forget_error", "head_recovery"), trustworthy=True)
    assert (read_verdict(found), list_rejecting(found)) == ("rejected", ["forget_error"])


def test_a_grade_that_is_too_low_rejects() -> None:
    found = report(passed=False, failed=("head_recovery",), trustworthy=True)
    assert (read_verdict(found), list_rejecting(found)) == ("rejected", ["grade"])


def test_a_check_that_could_not_be_made_rejects() -> None:
    found = report(passed=False, failed=("head_recovery",), trustworthy=True, unmade=["cmia"])
    assert (read_verdict(found), list_rejecting(found)) == ("rejected", ["cmia"])


def test_a_broken_measurement_says_so_before_all_else() -> None:
    found = report(passed=False, trustworthy=False)
    assert (read_verdict(found), list_rejecting(found)) == ("untrustworthy", [])


def test_a_training_has_no_controls() -> None:
    assert read_verdict(report(passed=True)) == "passed"
    assert read_verdict(report(passed=False, failed=("forget_error",))) == "rejected"
