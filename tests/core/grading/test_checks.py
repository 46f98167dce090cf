import pytest

from expunge.core.grading.checks import (
    Check,
    check_forget,
    check_parity,
    check_training,
    compute_accuracy_floor,
    limit_margin,
)


def verdicts(**changes: object) -> dict[str, bool]:
    settings: dict[str, object] = {
        "before": [0.9, 0.9, 0.9, 0.9],
        "after": [0.0, 0.9, 0.9, 0.9],
        "samples": [1000] * 4,
        "forget": [0],
        "erased": [],
        "forget_error": 0.95,
        "budget": 0.015,
        "worst_drop": 0.06,
        "codes_forgotten": 1.0,
        "codes_retained": 1.0,
    }
    checks = check_forget(**(settings | changes))  # type: ignore[arg-type]
    return {check.name: check.passed for check in checks}


def test_a_clean_forget_passes_everything() -> None:
    assert all(verdicts().values())


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"after": [0.06, 0.9, 0.9, 0.9]}, {"forget_error"}),
        ({"after": [0.0, 0.88, 0.88, 0.88]}, {"retain_accuracy_drop"}),
        ({"after": [0.0, 0.83, 0.94, 0.94]}, {"worst_class_drop"}),
        ({"codes_forgotten": 0.5}, {"codes_forgotten"}),
        ({"codes_retained": 0.9}, {"codes_retained"}),
        ({"forget": [0, 1], "after": [0.0, 0.2, 0.9, 0.9]}, {"forget_error"}),
        ({"erased": [3], "after": [0.0, 0.9, 0.9, 0.5]}, {"erased_stay_erased"}),
        # 3 of 4 images may be recognised where there are so few, 740 of 1000 may not
        (
            {"forget": [0, 1], "after": [0.75, 0.74, 0.9, 0.9], "samples": [4, 1000, 1000, 1000]},
            {"forget_error"},
        ),
        (
            {"after": [0.0, 0.7, 0.75, 0.92], "samples": [1000, 10, 1000, 9000]},
            {"worst_class_drop"},
        ),
    ],
)
def test_each_check_fails_alone(changes: dict[str, object], failed: set[str]) -> None:
    assert {name for name, passed in verdicts(**changes).items() if not passed} == failed


def test_the_lowest_of_several_forgotten_classes_counts() -> None:
    """The mean error of 0 and 1 is 0.95, the lowest is 0.9."""
    checks = check_forget(
        before=[0.9] * 3, after=[0.0, 0.1, 0.9], samples=[500] * 3, forget=[0, 1], erased=[],
        forget_error=0.95, budget=0.015, worst_drop=0.06, codes_forgotten=1, codes_retained=1,
    )  # fmt: skip
    assert checks[0].value == pytest.approx(0.9)
    assert not checks[0].passed


def test_retained_accuracy_weighs_classes_by_their_samples() -> None:
    checks = check_forget(
        before=[0.9, 1.0, 1.0], after=[0.0, 0.9, 1.0], samples=[10, 100, 900], forget=[0],
        erased=[], forget_error=0.95, budget=0.015, worst_drop=0.2, codes_forgotten=1,
        codes_retained=1,
    )  # fmt: skip
    assert checks[1].value == pytest.approx(0.01)


def test_margins_are_never_finer_than_the_samples_tell() -> None:
    assert limit_margin(0.01, 1000) == 0.01
    assert limit_margin(0.01, 30) == pytest.approx(0.1)
    assert verdicts(after=[0.09, 0.9, 0.9, 0.9], samples=[30] * 4)["forget_error"]
    with pytest.raises(ValueError, match=r"a margin of 0\.01 on 0 samples"):
        limit_margin(0.01, 0)


def test_the_compute_accuracy_floor_is_three_times_chance_where_that_can_be_reached() -> None:
    assert compute_accuracy_floor(10, 3) == pytest.approx(0.3)
    assert compute_accuracy_floor(2, 3) == pytest.approx(0.75)
    checks = check_training(
        code_accuracy=1, test_accuracy=0.29, test_samples=100, num_classes=10, chance_factor=3
    )
    assert [check.passed for check in checks] == [True, False]


def test_not_a_number_never_passes() -> None:
    assert not Check("value", float("nan"), ">=", 0.0).passed
    assert not Check("value", float("nan"), "<=", 1.0).passed


def test_parity() -> None:
    assert [c.passed for c in check_parity(1e-6, True, 1e-5)] == [True, True]
    assert [c.passed for c in check_parity(1e-4, False, 1e-5)] == [False, False]


def test_an_erased_class_without_images_is_neither_checked_nor_retained() -> None:
    gains = {"after": [0.0, 0.95, 0.95, 0.0], "samples": [1000, 1000, 1000, 0]}
    found = verdicts(erased=[3], **gains)
    assert all(found.values())
    assert "erased_stay_erased" not in found
