"""Activation distance: how far a model's output probabilities are from retrained models'.

Shapes: N images, C classes. Source: Chundawat et al., "Zero-shot machine unlearning" (2023); also
Golatkar et al. (2020).
"""

from collections.abc import Sequence

from torch import Tensor

from expunge.core.attacks.case import Case, Seen
from expunge.core.heads import Observed


def learn(case: Case, oracles: Sequence[Seen]) -> list[Observed]:
    """Return what the oracles say of the forgotten classes' training images."""
    return [oracle.forget_train for oracle in oracles]


def measure(case: Case, seen: Seen, learnt: Sequence[Observed]) -> list[float]:
    """Return the mean distance to the oracles on each forgotten class's training images."""
    found = []
    for index in case.forget:
        own_NC = seen.forget_train.of(index).logits_NC
        distances = [compute_distance(own_NC, other.of(index).logits_NC) for other in learnt]
        found.append(sum(distances) / len(distances))
    return found


def compute_distance(logits_NC: Tensor, other_NC: Tensor) -> float:
    """Return the mean over the samples of the L2 distance of two softmax outputs, 0 to sqrt(2)."""
    difference_NC = logits_NC.double().softmax(dim=1) - other_NC.double().softmax(dim=1)
    return float(difference_NC.norm(dim=1).mean())
