"""Tug of war (ToW): how near a model is to retrained ones on all data together.

Source: Zhao et al., "What makes unlearning hard and what to do about it" (2024).
"""

from collections.abc import Sequence

from expunge.core.attacks.case import Case, Seen


def learn(case: Case, oracles: Sequence[Seen]) -> list[Seen]:
    """Return the oracles themselves."""
    return list(oracles)


def measure(case: Case, seen: Seen, learnt: Sequence[Seen]) -> list[float]:
    """Return one value for all forgotten classes together.

    Forget accuracy is that on the forgotten classes' test images, test accuracy that on a sample of
    the retained classes', drawn alike from each.
    """

    def measure_gap(part: str) -> float:
        values = [getattr(other, part).right for other in learnt]
        gap: float = getattr(seen, part).right - sum(values) / len(values)
        return gap

    gaps = [measure_gap(part) for part in ("forget_test", "retain_train", "retain_test")]
    return [multiply_closeness(*gaps)]


def multiply_closeness(forget_gap: float, retain_gap: float, test_gap: float) -> float:
    """Return (1 - |forget gap|) (1 - |retain gap|) (1 - |test gap|); 1 is best.

    The gaps are those of the accuracy on forgotten data, on retained training data and on test
    data, to the mean of retrained models.
    """
    return (1 - abs(forget_gap)) * (1 - abs(retain_gap)) * (1 - abs(test_gap))
