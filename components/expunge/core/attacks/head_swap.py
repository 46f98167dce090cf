"""The original's head on this model's body."""

from collections.abc import Sequence

from expunge.core.attacks.case import Body, Case
from expunge.core.heads import Head, Observed


def measure(case: Case, seen: Body) -> list[float]:
    """Return the accuracy on each forgotten class's test samples under the original's head."""
    return swap_head(seen.forget_test, case.original.head, case.forget)


def measure_fit(case: Case, seen: Body) -> float | None:
    """Return how well the original's head works on this body: a share of what it does on its own.

    It is the accuracy on the retained classes' part of the sample, over the original's. None where
    there is no sample, or the original gets none of it right.
    """
    full, got = (
        sum(_count_right(part.of(index)) for index in case.retain)
        for part in (case.original.head_train, seen.head_train.under(case.original.head))
    )
    return got / full if full else None


def _count_right(part: Observed) -> int:
    return int((part.logits_NC.argmax(dim=1) == part.labels_N).sum())


def swap_head(test: Observed, original: Head, forget: Sequence[int]) -> list[float]:
    """Return the accuracy on each forgotten class under the original's head, on this body.

    When it comes back, the body still holds the class. When it does not, nothing is shown: a
    rotation of the features defeats it.
    """
    swapped = test.under(original)
    return [swapped.of(index).right for index in forget]
