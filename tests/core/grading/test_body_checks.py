import math

import pytest

from expunge.core.grading import body
from expunge.core.grading.body import (
    CHECKS,
    check_swap,
    compute_noise,
    find_held,
    find_most_held,
)

SAMPLES = {name: [1000, 1000] for name in (body.SWAP, *CHECKS)}


def values(swap: float, *recovered: float, second: float = 0.0) -> body.Values:
    """Return the metrics of two classes: of the first as given, of the other `second` in all."""
    own = dict(zip(CHECKS, recovered, strict=True))
    return {body.SWAP: [swap, second]} | {name: [value, second] for name, value in own.items()}


ORIGINAL = values(0.9, 0.8, 0.9, 0.7, second=0.9)


def held(found: body.Values, **options: object) -> tuple[bool, ...]:
    return find_held(found, ORIGINAL, SAMPLES, **options)  # type: ignore[arg-type]


def test_the_checks_look_at_the_last_features_in_three_ways() -> None:
    assert CHECKS == ("head_recovery", "head_recovery_logistic", "prototype_recovery")


def test_a_class_that_came_back_under_the_original_head() -> None:
    assert not check_swap([0.95], [0.97], [100]).passed
    assert check_swap([0.6], [0.97], [100]).passed
    check = check_swap([0.1, 0.9], [0.97, 0.97], [10, 20])
    assert (check.value, check.samples, check.passed) == (0.9, 20, False)
    assert check.counts is None
    # at 80 % just so it is back, and nothing comes back of a class that was never there
    assert not check_swap([0.4], [0.5], [10]).passed
    assert check_swap([0.0], [0.0], [10]).passed


def test_a_body_holds_what_the_original_head_brings_back() -> None:
    gone = (0.2, 0.3, 0.2)
    assert held(values(0.72, *gone)) == (True, False)
    assert held(values(0.71, *gone)) == (False, False)
    assert held(values(0.72, *gone), fits=False) == (False, False)
    # a body that never saw the class did the same, by chance
    assert held(values(0.72, *gone), oracles=[values(0.75, *gone)]) == (False, False)
    assert held(values(0.76, *gone), oracles=[values(0.75, *gone)]) == (True, False)


def test_a_body_holds_what_no_check_found_less_of() -> None:
    assert held(values(0.0, 0.8, 0.9, 0.7)) == (True, False)
    assert held(values(0.0, 0.79, 0.89, 0.7)) == (True, False)  # within a standard error
    for k in range(3):
        fallen = [0.8, 0.9, 0.7]
        fallen[k] -= 0.05
        assert held(values(0.0, *fallen)) == (False, False)
    # more than the original is no fall
    assert held(values(0.0, 0.9, 0.95, 0.9)) == (True, False)


def test_91_percent_of_the_original_is_a_fall() -> None:
    """Oracles of MNIST have as much, and they never saw the class."""
    assert held(values(0.1, 0.8 * 0.91, 0.9 * 0.91, 0.7)) == (False, False)


def test_what_was_not_measured_shows_nothing() -> None:
    nothing: body.Values = {body.SWAP: [0.1, 0.1]}
    assert held(nothing) == (False, False)
    unknown = values(0.0, math.nan, 0.9, 0.7)
    assert held(unknown) == (True, False)
    assert held({**unknown, body.SWAP: [None, None]}) == (True, False)


def test_a_check_that_cannot_fall_shows_nothing() -> None:
    """A new head on three images, or one that finds nothing in the original either."""
    few = {name: [3, 3] for name in SAMPLES}
    same = values(0.0, 0.8, 0.9, 0.7)
    assert find_held(same, ORIGINAL, few) == (False, False)
    empty = values(0.0, 0.0, 0.0, 0.0)
    assert find_held(empty, {**empty, body.SWAP: [0.9, 0.9]}, SAMPLES) == (False, False)


def test_the_noise_is_that_of_two_samples_and_three_images_at_least() -> None:
    assert compute_noise(0.5, 0.5, 200) == pytest.approx(math.sqrt(0.5 / 200))
    assert compute_noise(1.0, 1.0, 200) == 3 / 200
    assert compute_noise(0.5, 0.5, 8) == 3 / 8


def test_the_class_that_is_shown_is_held_and_fell_least() -> None:
    found = values(0.5, 0.3, 0.3, 0.3, second=0.6)
    assert find_most_held(found, ORIGINAL, (False, False)) == 1
    assert find_most_held(found, ORIGINAL, (True, False)) == 0
