"""The search for a strength along a path."""

import dataclasses

import pytest

from expunge.core.rules.paths import Trial, WeightPath, deepen, find_strength

PATH = WeightPath("any", 1, lowest=1e-3, highest=1e2, change=lambda strength: {})
START = Trial("any", 1, 0.1, (), forget_loss=0.1, retain_loss=0, forgotten=1, retained=1, damage=0)


@pytest.mark.parametrize("edge", [2e-3, 0.05, 1.0, 73.0])
def test_the_lowest_strength_is_found_to_half_a_per_cent(edge: float) -> None:
    found = find_strength(PATH, lambda strength: strength >= edge)
    assert found is not None
    assert edge <= found <= 1.005 * edge


def test_an_edge_beyond_the_path_is_not_found() -> None:
    asked: list[float] = []
    assert find_strength(PATH, lambda strength: bool(asked.append(strength))) is None
    assert asked == sorted(asked)
    assert asked[-1] == PATH.highest


def test_the_search_starts_where_it_is_told() -> None:
    asked: list[float] = []
    find_strength(PATH, lambda strength: bool(asked.append(strength)), start=5.0)
    assert min(asked) > 5.0


def measure(path: WeightPath, strength: float) -> Trial:
    """Damage is the strength, and a retained code is lost above 2."""
    return dataclasses.replace(
        START,
        strength=strength,
        forget_loss=strength,
        damage=strength,
        retained=float(strength < 2),
    )


@pytest.mark.parametrize(("limit", "deepest"), [(0.5, 0.5), (10.0, 2.0)])
def test_deepening_stops_at_the_limit_or_where_a_retained_code_is_lost(
    limit: float, deepest: float
) -> None:
    found = deepen(PATH, START, limit, measure)
    assert 0.99 * deepest <= found.strength <= deepest


def test_a_start_beyond_the_limit_is_no_deeper() -> None:
    start = dataclasses.replace(START, damage=1.0)
    assert deepen(PATH, start, 0.5, measure) is start
