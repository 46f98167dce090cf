"""Output distance: how differently a class's test images fall on the retained classes.

Shapes: N images, C classes, R retained classes, K forgotten classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.core.attacks.case import Case, Seen


def learn(case: Case, oracles: Sequence[Seen]) -> Tensor:
    """Return the oracles' mean prediction shares for each forgotten class, shape K x R."""
    rows = [
        torch.stack([_measure_shares(oracle, index, case.retain) for oracle in oracles]).mean(dim=0)
        for index in case.forget
    ]
    return torch.stack(rows)


def measure(case: Case, seen: Seen, learnt: Tensor) -> list[float]:
    """Return the total variation between the model's shares and the oracles', by class."""
    return [
        compute_total_variation(_measure_shares(seen, index, case.retain), shares_R)
        for index, shares_R in zip(case.forget, learnt, strict=True)
    ]


def compute_prediction_shares(logits_NC: Tensor, retain: Sequence[int]) -> Tensor:
    """Return how often each retained class is the likeliest of them, float64, shape R, sum 1."""
    likeliest_N = logits_NC[:, list(retain)].argmax(dim=1)
    return torch.bincount(likeliest_N, minlength=len(retain)).double() / len(logits_NC)


def compute_total_variation(shares_R: Tensor, other_R: Tensor) -> float:
    """Return half the L1 distance of two distributions: 0 for equal ones, 1 for disjoint ones."""
    return float((shares_R - other_R).abs().sum() / 2)


def _measure_shares(seen: Seen, index: int, retain: Sequence[int]) -> Tensor:
    return compute_prediction_shares(seen.forget_test.of(index).logits_NC, retain)
