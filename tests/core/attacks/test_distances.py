"""Metrics that compare a model with another."""

import math

import pytest
import torch

from expunge.core import metrics
from expunge.core.attacks.activation_distance import compute_distance
from expunge.core.attacks.output_distance import (
    compute_prediction_shares,
    compute_total_variation,
)
from expunge.core.attacks.relearning import compute_anamnesis_index
from expunge.core.attacks.tug_of_war import multiply_closeness

RETAIN = [0, 1, 3]


def test_shares_are_of_the_retained_classes_alone() -> None:
    logits_NC = torch.tensor([[0.0, 1, 9, 0], [5, 1, 9, 0], [0, 1, 9, 2], [0, 1, -9, 2]])
    shares_R = compute_prediction_shares(logits_NC, RETAIN)
    assert shares_R.tolist() == [0.25, 0.25, 0.5]


def test_total_variation() -> None:
    one, other = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0.5, 0.5])
    assert compute_total_variation(one, one) == 0
    assert compute_total_variation(one, other) == 1
    assert compute_total_variation(one, (one + other) / 2) == 0.5


def test_activation_distance() -> None:
    certain_NC = 1e4 * torch.eye(3)
    assert compute_distance(certain_NC, certain_NC + 5) == 0
    found = compute_distance(certain_NC, certain_NC.roll(1, dims=1))
    assert found == pytest.approx(math.sqrt(2))


def test_tug_of_war() -> None:
    assert multiply_closeness(0, 0, 0) == 1
    assert multiply_closeness(-1, 0, 0) == 0
    assert multiply_closeness(0.1, -0.2, 0.3) == pytest.approx(0.9 * 0.8 * 0.7)


def test_relative_changes() -> None:
    before = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2), "c": torch.ones(2)}
    after = {"a": torch.tensor([3.0, 3.0]), "b": torch.tensor([0.0, 2.0]), "c": torch.ones(2)}
    assert metrics.relative_changes(before, after) == {"a": 0.2, "b": 2.0, "c": 0.0}


@pytest.mark.parametrize(
    ("steps", "oracles", "index"),
    [
        (20, [20, 20], 1.0),
        (5, [20, 20], 0.25),
        (0, [20, 10], 0.0),
        (50, [20, 30], 2.0),
        (25, [50, 50], 0.5),
        (50, [50, 50], None),
        (0, [0, 0], 1.0),
        (5, [0, 0], 5.0),
    ],
)
def test_anamnesis_index(steps: int, oracles: list[int], index: float | None) -> None:
    assert compute_anamnesis_index(steps, oracles, cap=50) == index
