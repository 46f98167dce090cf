"""Body checks: what shows, beside the original and without oracles, that a class is in a body.

Each check compares a model with its original, class by class. A class was *held* by the body where
one of these two was found:

- The original's head on the model's body brings it back: at least `RETURNED` of what that head
  gives on its own body, for the class and for the retained ones. A body on which that head does not
  work can bring a class back by chance, also one that was trained anew without it.
- None of `CHECKS` (a new head of either strength, a prototype) fell against the original by more
  than the test images can tell. A fixed share of the original's value would not do: models that
  never saw the class reach 91 % of its head recovery on MNIST.

Neither shows that a class is gone. A fall is what an oracle has as well, and only a comparison with
oracles says whether it fell as far.
"""

import math
from collections.abc import Mapping, Sequence

from expunge.core.attacks import ATTACKS
from expunge.core.grading.checks import Check, limit_margin

Values = Mapping[str, Sequence[float | None]]

SWAP = "head_swap"
# The metrics whose fall is looked at, and one of which has to count before a model is forgotten.
CHECKS = tuple(attack.name for attack in ATTACKS.values() if attack.looks_into_body)
# The share of the original's accuracy at which a class has come back under the original's head.
RETURNED = 0.8
# Standard errors of the difference of two independent samples, below which a fall may be chance.
# One, and not two: both models are shown the same images, and where their answers correlate by 0.75
# it is twice the true error. Two of them took models trained anew without a class of the digits, on
# its 35 test images, for ones that hide it.
ERRORS = 1.0


def check_swap(
    swapped: Sequence[float], original: Sequence[float], samples: Sequence[int]
) -> Check:
    """Check whether a class comes back when the original's head is put on the body.

    The check is that of the class that comes back furthest. It needs no oracle. It is evidence
    where a class does, and none where none does.

    Args:
        swapped: the accuracy on each forgotten class after the swap.
        original: that of the original model.
        samples: how many images each was measured on.
    """
    k = find_most_returned(swapped, original, samples)
    threshold = _limit_return(original[k], samples[k])
    return Check(SWAP, swapped[k], "<", threshold, samples=samples[k], about="body")


def find_most_returned(
    swapped: Sequence[float], original: Sequence[float], samples: Sequence[int]
) -> int:
    """Return the position of the class that came back furthest under the original's head."""
    limits = [_limit_return(*row) for row in zip(original, samples, strict=True)]
    return max(range(len(limits)), key=lambda k: swapped[k] - limits[k])


def _limit_return(original: float, samples: int) -> float:
    # One image at least: of a class that the original never gets right, none coming back is none.
    # What floats round off may not decide, where just the share comes back.
    return max(RETURNED * original, 1 / samples) - 1e-9


def compute_noise(before: float, after: float, samples: int) -> float:
    """Return the largest fall that so many images cannot tell from none.

    max(3 / n, `ERRORS` sqrt((p (1 - p) + q (1 - q)) / n)), the second being binomial standard
    errors of the difference of two accuracies p and q on n images. A prototype's accuracy is a mean
    over draws and varies less, so that the bound holds for it as well.
    """
    variance = before * (1 - before) + after * (1 - after)
    return limit_margin(ERRORS * math.sqrt(max(0.0, variance) / samples), samples)


def find_held(
    values: Values,
    original: Values,
    samples: Mapping[str, Sequence[int]],
    *,
    fits: bool = True,
    oracles: Sequence[Values] = (),
) -> tuple[bool, ...]:
    """Return for each forgotten class whether it was shown to be in the body.

    Args:
        values: the model's metrics by class; those that were not measured show nothing.
        original: those of the original model.
        samples: how many images each metric was measured on, by class.
        fits: whether the original's head works on the body; where it does not, its swap shows
            nothing.
        oracles: those of the models to compare with. Bodies that never saw a class can bring it
            back under a foreign head by chance, so that a swap shows it only above all of them.
    """
    rows = zip(values[SWAP], original[SWAP], samples[SWAP], strict=True)
    found = []
    for k, (swapped, full, count) in enumerate(rows):
        highest = max((_read(oracle, SWAP, k) for oracle in oracles), default=-math.inf)
        mine = -math.inf if swapped is None else swapped
        returned = fits and mine >= _limit_return(full or 0.0, count) and mine > highest
        found.append(returned or _kept_all(values, original, samples, k))
    return tuple(found)


def _kept_all(
    values: Values, original: Values, samples: Mapping[str, Sequence[int]], k: int
) -> bool:
    """Return whether no check fell, of those that could have."""
    fell = []
    for name in CHECKS:
        before, after = _read(original, name, k), _read(values, name, k)
        if not (math.isfinite(before) and math.isfinite(after)):
            continue
        # where the original has next to nothing, a fall to nothing could not be told either
        if before > compute_noise(before, 0.0, samples[name][k]):
            fell.append(before - after > compute_noise(before, after, samples[name][k]))
    return bool(fell) and not any(fell)


def find_most_held(values: Values, original: Values, held: Sequence[bool]) -> int:
    """Return the position of the class that the body holds most of.

    It is one that was shown to be there, if any was, and then the one whose checks fell least.
    """

    def measure_change(k: int) -> float:
        changes = [_read(values, name, k) - _read(original, name, k) for name in (SWAP, *CHECKS)]
        return sum(change for change in changes if math.isfinite(change))

    return max(range(len(held)), key=lambda k: (held[k], measure_change(k)))


def _read(values: Values, name: str, k: int) -> float:
    """Return a value, or minus infinity where there is none."""
    value = values[name][k] if name in values else None
    return value if value is not None and math.isfinite(value) else -math.inf
