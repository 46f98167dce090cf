"""Grade of a model: its metrics beside those of oracles, and what they can tell in this run.

An oracle is a model retrained from scratch without the classes. A metric passes when its gap to the
oracles' mean is small beside what they differ by among themselves. It counts only where it can
tell: where the original model and the mask, which forgot nothing, fail it in the same run.

- failed: the outputs still give the class.
- suppressed: the outputs do not. What the body holds was not shown.
- forgotten: every metric that counts passes, and for each forgotten class one that looks into the
  body is among them. The body is what the head reads: its last features, not each of its layers.

A metric of several forgotten classes counts, and passes, for each of them on its own. That the
original and the mask are never graded forgotten follows from this rule; the control that can fail
is the oracle that is held out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeGuard

from expunge.core.attacks import ATTACKS
from expunge.core.grading.checks import Check, limit_margin

Grade = Literal["failed", "suppressed", "forgotten"]
Values = Mapping[str, Sequence[float | None]]
Counting = Mapping[str, tuple[bool, ...]]  # by metric, for each forgotten class

LEAST_ORACLES = 3
# One of these has to count before a model is graded forgotten.
BODY = tuple(attack.name for attack in ATTACKS.values() if attack.looks_into_body)
# Of the attacks that are compared with oracles at all.
TOLERANCES = {a.name: a.tolerance for a in ATTACKS.values() if a.tolerance is not None}
# Two-sided, over a whole battery, for oracles whose spread is known. It is estimated from three, so
# z alone would let a retrained model fail too often; the margins are what holds the rate.
FALSE_ALARM = 0.05


# The share of the original's accuracy at which a class has come back under the original's head.
# Bodies that never saw the class can reach it too, by chance and far apart from each other: no
# comparison with oracles, and no part of a grade.
RETURNED = 0.8


@dataclass(frozen=True)
class Comparison:
    """One metric: the oracles' mean for each forgotten class, and the gap that is let pass.

    `spread` is their standard deviation, pooled over the classes, before the cap.
    """

    name: str
    means: tuple[float, ...]
    spread: float
    thresholds: tuple[float, ...]
    samples: tuple[int, ...]

    def passes(self, values: Sequence[float]) -> tuple[bool, ...]:
        """Return whether the gap is small enough, by class."""
        return tuple(excess <= 0 for excess in self._compute_excess(values))

    def find_worst(self, values: Sequence[float], counts: Sequence[bool]) -> int:
        """Return the position of the class whose gap exceeds its threshold most.

        It is one that counts, where there is one.
        """
        excess = self._compute_excess(values)
        return max(range(len(values)), key=lambda k: (counts[k], excess[k]))

    def check(self, values: Sequence[float], counts: Sequence[bool]) -> Check:
        """Return the check of that class."""
        k = self.find_worst(values, counts)
        return Check(
            self.name,
            abs(values[k] - self.means[k]),
            "<=",
            self.thresholds[k],
            samples=self.samples[k],
            about="oracles",
            counts=counts[k],
        )

    def _compute_excess(self, values: Sequence[float]) -> list[float]:
        rows = zip(values, self.means, self.thresholds, strict=True)
        return [abs(value - mean) - threshold for value, mean, threshold in rows]


def compare(
    oracles: Sequence[Values], samples: Mapping[str, Sequence[int]]
) -> dict[str, Comparison]:
    """Return what the oracles say: the means and thresholds of each metric that all of them have.

    threshold = max(margin, 3 / n) + z min(spread, cap), where z is the two-sided normal quantile
    of `FALSE_ALARM` over the number of comparisons (Bonferroni) and n, in `samples` by metric and
    class, the number of images that the metric was measured on.

    Raises:
        ValueError: there are fewer than `LEAST_ORACLES`.
    """
    if len(oracles) < LEAST_ORACLES:
        raise ValueError(f"{len(oracles)} oracles to compare with; at least {LEAST_ORACLES}")
    columns = {
        name: list(zip(*(oracle[name] for oracle in oracles), strict=True))
        for name in TOLERANCES
        if all(_is_known(oracle.get(name)) for oracle in oracles)
    }
    z = NormalDist().inv_cdf(1 - FALSE_ALARM / 2 / max(1, sum(map(len, columns.values()))))
    found = {}
    for name, by_class in columns.items():
        tolerance, spread = TOLERANCES[name], _pool_spread(by_class)
        granted = z * min(spread, tolerance.cap)
        found[name] = Comparison(
            name=name,
            means=tuple(sum(values) / len(values) for values in by_class),
            spread=spread,
            thresholds=tuple(limit_margin(tolerance.margin, n) + granted for n in samples[name]),
            samples=tuple(samples[name]),
        )
    return found


def _is_known(values: Sequence[float | None] | None) -> TypeGuard[Sequence[float]]:
    return values is not None and all(v is not None and math.isfinite(v) for v in values)


def _pool_spread(by_class: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation over seeds, pooled over classes.

    It is the root of the mean variance.
    """
    total = 0.0
    for values in by_class:
        mean = sum(values) / len(values)
        total += sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return float((total / len(by_class)) ** 0.5)


def find_most_returned(swapped: Sequence[float], original: Sequence[float]) -> int:
    """Return the position of the class that came back furthest under the original's head.

    Both are accuracies by forgotten class: after the swap, and of the original.
    """
    gains = [mine - RETURNED * full for mine, full in zip(swapped, original, strict=True)]
    return max(range(len(gains)), key=lambda k: gains[k])


def check_swap(
    swapped: Sequence[float], original: Sequence[float], samples: Sequence[int]
) -> Check:
    """Check whether a class comes back when the original's head is put on the body.

    It needs no oracle. It is evidence where a class does, and none where none does, so it takes no
    part in a grade.
    """
    k = find_most_returned(swapped, original)
    threshold = RETURNED * original[k]
    return Check("head_swap", swapped[k], "<=", threshold, samples=samples[k], about="body")


def can_tell(comparisons: Mapping[str, Comparison], controls: Sequence[Values]) -> Counting:
    """Return for each metric and class whether every control was measured by it and fails it."""
    found = {}
    for name, comparison in comparisons.items():
        verdicts = [comparison.passes(v) for c in controls if _is_known(v := c.get(name))]
        all_measured = bool(controls) and len(verdicts) == len(controls)
        found[name] = tuple(
            all_measured and not any(passed[k] for passed in verdicts)
            for k in range(len(comparison.means))
        )
    return found


def check_against_oracles(
    comparisons: Mapping[str, Comparison], values: Values, counting: Counting
) -> dict[str, Check]:
    """Check one model against the oracles, by metric.

    A metric that the model has no value for, since the attack found nothing to go by, has none.
    """
    return {
        name: comparison.check(mine, counting[name])
        for name, comparison in comparisons.items()
        if _is_known(mine := values.get(name))
    }


def grade(
    outputs_forget: bool,
    comparisons: Mapping[str, Comparison],
    values: Values,
    counting: Counting,
) -> Grade:
    """Return the grade, by the rule of the module.

    `outputs_forget` is whether every check of the outputs passed.
    """
    if not outputs_forget:
        return "failed"
    looked_inside = zip(*(counting[name] for name in BODY if name in counting), strict=True)
    seen_into = [any(row) for row in looked_inside]
    alike = all(
        passed or not counts
        for name, comparison in comparisons.items()
        for passed, counts in zip(
            _passes(comparison, values.get(name)), counting[name], strict=True
        )
    )
    return "forgotten" if seen_into and all(seen_into) and alike else "suppressed"


def _passes(comparison: Comparison, values: Sequence[float | None] | None) -> tuple[bool, ...]:
    """Return whether each class passes; what was not measured did not."""
    if _is_known(values):
        return comparison.passes(values)
    return (False,) * len(comparison.means)
