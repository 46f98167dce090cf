import math
from statistics import NormalDist, stdev

import pytest

from expunge.core.grading import grades
from expunge.core.grading.grades import (
    GRADES,
    TOLERANCES,
    at_least,
    can_tell,
    check_against_oracles,
    compare,
    grade,
)

SAMPLES = {"head_recovery": [1000], "membership": [1000]}
TWO = {"head_recovery": [1000, 2000]}


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
    found = compare(oracles(0.5, 0.5, 0.5), {"head_recovery": [30]})["head_recovery"]
    assert found.thresholds == (0.1,)


def test_noisy_oracles_do_not_let_more_through() -> None:
    wild = compare(oracles(0.1, 0.5, 0.9), SAMPLES)["head_recovery"]
    wilder = compare(oracles(0.0, 0.5, 1.0), SAMPLES)["head_recovery"]
    assert wild.thresholds == wilder.thresholds
    assert wilder.spread > wild.spread


def test_the_spread_is_pooled_over_classes_and_z_is_corrected() -> None:
    rows = [{"head_recovery": [a, b]} for a, b in ((0.50, 0.8), (0.52, 0.8), (0.51, 0.8))]
    found = compare(rows, TWO)["head_recovery"]
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
    found = compare([{"head_recovery": [0.5, 0.8]}] * 3, TWO)["head_recovery"]
    neither = (False, False)
    check = found.check([0.5, 0.7], neither)
    assert (check.value, check.samples, check.passed) == (pytest.approx(0.1), 2000, False)
    above = found.check([0.51, 0.8], neither)
    assert (above.value, above.samples, above.passed) == (pytest.approx(0.01), 1000, False)
    assert found.check([0.5, 0.8], neither).passed
    assert found.passes([0.5, 0.7]) == (True, False)


def test_a_check_shows_a_class_that_counts() -> None:
    found = compare([{"head_recovery": [0.5, 0.8]}] * 3, TWO)["head_recovery"]
    shown = found.check([0.5, 0.7], (True, False))
    assert (shown.value, shown.samples, shown.counts) == (0, 1000, True)
    assert not found.check([0.5, 0.7], (False, False)).counts


def test_what_was_not_measured_has_no_check() -> None:
    found = compare(oracles(0.5, 0.5, 0.5), SAMPLES)
    counting = {"head_recovery": (True,)}
    assert check_against_oracles(found, {}, counting) == {}
    assert check_against_oracles(found, {"head_recovery": [math.nan]}, counting) == {}
    assert set(check_against_oracles(found, {"head_recovery": [0.5]}, counting)) == {
        "head_recovery"
    }


ORACLES = [{"head_recovery": [0.5, 0.5], "relearning": [0.1, 0.1], "tow": [1.0]}] * 3
BOTH = {"head_recovery": [1000] * 2, "relearning": [200] * 2, "tow": [2000]}
COMPARISONS = compare(ORACLES, BOTH)


def values(*recovery: float, relearning: float = 0.1, tow: float = 1.0) -> grades.Values:
    return {"head_recovery": recovery, "relearning": [relearning] * 2, "tow": [tow]}


def test_a_check_counts_where_original_and_mask_fail_it_class_by_class() -> None:
    original, mask = values(0.9, 0.5, relearning=0.9, tow=0.1), values(0.9, 0.9)
    assert can_tell(COMPARISONS, [original, mask]) == {
        "head_recovery": (True, False),
        "relearning": (False, False),  # the mask passes
        "tow": (False,),
    }
    unmeasured = {"head_recovery": [None, 0.9], "relearning": [0.9, 0.9]}
    assert can_tell(COMPARISONS, [original, unmeasured])["head_recovery"] == (False, False)
    assert not any(any(row) for row in can_tell(COMPARISONS, []).values())


def graded(found: grades.Values, *, outputs: bool = True, **counting: tuple[bool, ...]) -> str:
    none = {name: (False,) * len(c.means) for name, c in COMPARISONS.items()}
    return grade(outputs, COMPARISONS, found, none | counting)


def test_grades() -> None:
    body, relearned = (True, True), (True, True)
    alike = values(0.5, 0.5)
    assert graded(alike, head_recovery=body, relearning=relearned) == "forgotten"
    assert graded(alike, outputs=False, head_recovery=body) == "failed"
    # relearning alone looks at no body, and what cannot tell shows nothing
    assert graded(alike, relearning=relearned) == "suppressed"
    assert graded(alike) == "suppressed"
    again = values(0.5, 0.5, relearning=0.9)
    assert graded(again, head_recovery=body, relearning=relearned) == "suppressed"
    assert graded(again, head_recovery=body) == "forgotten"
    # what could not be measured did not pass
    unknown = {"head_recovery": [None, None]}
    assert graded(unknown, head_recovery=body) == "suppressed"
    assert grade(True, {}, {}, {}) == "suppressed"


def test_one_class_that_was_shown_in_the_body_makes_it_hidden() -> None:
    assert grade(True, {}, {}, {}, held=(False, True)) == "hidden"
    assert grade(True, {}, {}, {}, held=(False, False)) == "suppressed"
    assert grade(False, {}, {}, {}, held=(True, True)) == "failed"


def test_a_body_that_oracles_have_too_hides_nothing() -> None:
    """Its new heads may find as much as the original's do: so do those of the oracles."""
    counting = {"head_recovery": (True, True), "relearning": (False,) * 2, "tow": (False,)}
    held = (True, False)
    assert grade(True, COMPARISONS, values(0.5, 0.5), counting, held=held) == "forgotten"
    assert grade(True, COMPARISONS, values(0.5, 0.9), counting, held=held) == "hidden"


def test_grades_rise() -> None:
    assert GRADES == ("failed", "hidden", "suppressed", "forgotten")
    for i, given in enumerate(GRADES):
        assert [at_least(given, needed) for needed in GRADES] == [i >= k for k in range(4)]
    with pytest.raises(ValueError, match="grade is 'trained'; expected one of failed, hidden"):
        at_least("trained", "hidden")


def test_each_forgotten_class_needs_evidence_of_its_own() -> None:
    """For the second class nothing could tell; that the first was forgotten says nothing of it."""
    assert graded(values(0.5, 0.9), head_recovery=(True, False)) == "suppressed"
    assert graded(values(0.5, 0.9), head_recovery=(True, True)) == "suppressed"
    assert graded(values(0.5, 0.5), head_recovery=(True, True)) == "forgotten"


def test_body_checks_are_compared() -> None:
    assert set(grades.BODY) <= set(TOLERANCES)
