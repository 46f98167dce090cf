"""The original's head on this model's body."""

from collections.abc import Sequence

from expunge.core.attacks.case import Case, Seen
from expunge.core.heads import Head, Observed


def measure(case: Case, seen: Seen) -> list[float]:
    """Return the accuracy on each forgotten class's test samples under the original's head."""
    return swap_head(seen.forget_test, case.original.head, case.forget)


def swap_head(test: Observed, original: Head, forget: Sequence[int]) -> list[float]:
    """Return the accuracy on each forgotten class under the original's head, on this body.

    When it comes back, the body still holds the class. When it does not, nothing is shown: a
    rotation of the features defeats it.
    """
    swapped = test.under(original)
    return [swapped.of(index).right for index in forget]
