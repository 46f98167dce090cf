"""Grade of a model: what its outputs, its body and the oracles beside it show.

An oracle is a model retrained from scratch without the classes. A metric passes when its gap to the
oracles' mean is small beside what they differ by among themselves. It counts only where it can
tell: where the original model and the mask, which forgot nothing, fail it in the same run.

- failed: the outputs still give the class.
- hidden: the outputs do not, and the class was shown to be in the body, as `core.grading.body`
  says. No oracle is needed for that. One class of several is enough.
- suppressed: the outputs do not, and no check of the body brings the class back so far.
- forgotten: every metric that counts passes, and for each forgotten class one that looks into the
  body is among them. The body is what the head reads: its last features, not each of its layers.

The last goes before hidden. A body that no comparison tells from those of oracles holds what they
hold, and they never saw the class. So an oracle beside others is forgotten also where its new heads
find as much as the original's do, as on a body that was pretrained with the class.

A metric of several forgotten classes counts, and passes, for each of them on its own. That the
original and the mask are never graded forgotten follows from this rule. The controls that can fail
are the oracle that is held out, which has to be forgotten, and the masks, which have to be hidden.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeGuard, get_args

from expunge.core.attacks import ATTACKS
from expunge.core.grading import body
from expunge.core.grading.body import Values
from expunge.core.grading.checks import Check, limit_margin

Grade = Literal["failed", "hidden", "suppressed", "forgotten"]
GRADES: tuple[Grade, ...] = get_args(Grade)  # the lesser first
Counting = Mapping[str, tuple[bool, ...]]  # by metric, for each forgotten class

LEAST_ORACLES = 3
# One of these has to count before a model is graded forgotten.
BODY = body.CHECKS
# Of the attacks that are compared with oracles at all.
TOLERANCES = {a.name: a.tolerance for a in ATTACKS.values() if a.tolerance is not None}
# Two-sided, over a whole battery, for oracles whose spread is known. It is estimated from three, so
# z alone would let a retrained model fail too often; the margins are what holds the rate.
FALSE_ALARM = 0.05


def at_least(grade: str, needed: str) -> bool:
    """Return whether a grade is the needed one or a higher one.

    Raises:
        ValueError: one of them is no grade.
    """
    for word in (grade, needed):
        if word not in GRADES:
            raise ValueError(f"grade is {word!r}; expected one of {', '.join(GRADES)}")
    order: tuple[str, ...] = GRADES
    return order.index(grade) >= order.index(needed)


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
    *,
    held: Sequence[bool] = (),
) -> Grade:
    """Return the grade, by the rule of the module.

    Args:
        outputs_forget: whether every check of the outputs passed.
        comparisons: what the oracles say, by metric; empty where there are none.
        values: the model's metrics.
        counting: which comparisons can tell, by class.
        held: whether each forgotten class was shown to be in the body; empty where nothing looked.
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
    if seen_into and all(seen_into) and alike:
        return "forgotten"
    return "hidden" if any(held) else "suppressed"


def _passes(comparison: Comparison, values: Sequence[float | None] | None) -> tuple[bool, ...]:
    """Return whether each class passes; what was not measured did not."""
    if _is_known(values):
        return comparison.passes(values)
    return (False,) * len(comparison.means)
