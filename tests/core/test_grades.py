import math
from statistics import NormalDist, stdev

import pytest

from expunge.core import grades
from expunge.core.gate import Check
from expunge.core.grades import TOLERANCES, can_tell, compare, grade, oracle_checks, swap_check

SAMPLES = [1000]


def oracles(*values: float, name: str = "head_recovery") -> list[dict[str, list[float | None]]]:
    return [{name: [value]} for value in values]


def test_the_threshold_is_margin_and_spread() -> None:
    found = compare(oracles(0.50, 0.51, 0.52), SAMPLES)["head_recovery"]
    z = NormalDist().inv_cdf(1 - 0.05 / 2)
    expected = TOLERANCES["head_recovery"].margin + z * stdev([0.50, 0.51, 0.52])
    assert found.thresholds == (pytest.approx(expected),)
    assert found.means == (pytest.approx(0.51),)


def test_equal_oracles_leave_the_margin_alone() -> None:
    found = compare(oracles(0.5, 0.5, 0.5), SAMPLES)["head_recovery"]
    assert (found.spread, found.thresholds) == (0, (TOLERANCES["head_recovery"].margin,))


def test_no_margin_is_finer_than_the_test_set_can_tell() -> None:
    found = compare(oracles(0.5, 0.5, 0.5), [30])["head_recovery"]
    assert found.thresholds == (0.1,)


def test_noisy_oracles_do_not_let_more_through() -> None:
    wild = compare(oracles(0.1, 0.5, 0.9), SAMPLES)["head_recovery"]
    wilder = compare(oracles(0.0, 0.5, 1.0), SAMPLES)["head_recovery"]
    assert wild.thresholds == wilder.thresholds
    assert wilder.spread > wild.spread


def test_the_spread_is_pooled_over_classes_and_z_is_corrected() -> None:
    rows = [{"head_recovery": [a, b]} for a, b in ((0.50, 0.8), (0.52, 0.8), (0.51, 0.8))]
    found = compare(rows, [1000, 1000])["head_recovery"]
    assert found.spread == pytest.approx(math.sqrt(0.0001 / 2))
    z = NormalDist().inv_cdf(1 - 0.05 / 4)
    expected = TOLERANCES["head_recovery"].margin + z * found.spread
    assert found.thresholds == (pytest.approx(expected),) * 2


def test_a_metric_that_an_oracle_lacks_is_not_compared() -> None:
    rows = oracles(0.5, 0.5, 0.5)
    rows[1]["membership"] = rows[0]["membership"] = [0.5]
    rows[2]["membership"] = [None]
    assert set(compare(rows, SAMPLES)) == {"head_recovery"}


def test_two_oracles_are_too_few() -> None:
    with pytest.raises(ValueError, match="2 oracles to compare with; at least 3"):
        compare(oracles(0.5, 0.5), SAMPLES)


def test_a_check_is_the_absolute_gap_of_the_worst_class() -> None:
    found = compare([{"head_recovery": [0.5, 0.8]}] * 3, [1000, 2000])
    check = oracle_checks(found, {"head_recovery": [0.5, 0.7]}, [1000, 2000])["head_recovery"]
    assert (check.value, check.samples, check.passed) == (pytest.approx(0.1), 2000, False)
    above = oracle_checks(found, {"head_recovery": [0.51, 0.8]}, [1000, 2000])["head_recovery"]
    assert (above.value, above.samples, above.passed) == (pytest.approx(0.01), 1000, False)
    assert oracle_checks(found, {"head_recovery": [0.5, 0.8]}, [1000, 2000])["head_recovery"].passed


def test_what_was_not_measured_has_no_check() -> None:
    found = compare(oracles(0.5, 0.5, 0.5), SAMPLES)
    assert oracle_checks(found, {}, SAMPLES) == {}
    assert oracle_checks(found, {"head_recovery": [math.nan]}, SAMPLES) == {}


def test_a_class_that_came_back_under_the_original_head() -> None:
    assert not swap_check([0.95], [0.97], [100]).passed
    assert swap_check([0.6], [0.97], [100]).passed
    check = swap_check([0.1, 0.9], [0.97, 0.97], [10, 20])
    assert (check.value, check.samples, check.passed) == (0.9, 20, False)


def verdicts(**passed: bool) -> dict[str, Check]:
    return {name: Check(name, 0.0 if ok else 1.0, "<=", 0.5) for name, ok in passed.items()}


def test_a_check_counts_where_original_and_mask_fail_it() -> None:
    original = verdicts(head_recovery=False, relearning=False, cmia=True)
    mask = verdicts(head_recovery=False, relearning=True, cmia=False)
    assert can_tell([original, mask]) == {"head_recovery"}
    assert can_tell([original, verdicts()]) == frozenset()
    assert can_tell([]) == frozenset()


def test_grades() -> None:
    body, all_of_it = frozenset({"head_recovery"}), frozenset({"head_recovery", "relearning"})
    good = verdicts(head_recovery=True, relearning=True)
    assert grade(True, good, all_of_it) == "forgotten"
    assert grade(False, good, all_of_it) == "failed"
    # relearning alone looks at no body, and what cannot tell shows nothing
    assert grade(True, good, frozenset({"relearning"})) == "suppressed"
    assert grade(True, good, frozenset()) == "suppressed"
    half = verdicts(head_recovery=True, relearning=False)
    assert grade(True, half, all_of_it) == "suppressed"
    assert grade(True, half, body) == "forgotten"
    # a check that could not be made is not one that passed
    assert grade(True, verdicts(head_recovery=True), all_of_it) == "suppressed"


def test_body_checks_are_compared() -> None:
    assert set(grades.BODY) <= set(TOLERANCES)
