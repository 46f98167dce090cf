"""What a model is graded: its metrics beside those of oracles, and what that can tell in this run.

An oracle is a model retrained from scratch without the classes. A metric passes when its gap to the
oracles' mean is small beside what they differ by among themselves. It counts only where it can
tell: where the original model and the mask, which forgot nothing, fail it in the same run.

- failed: the outputs still give the class.
- suppressed: the outputs do not. What the body holds was not shown.
- forgotten: every metric that counts passes, and one that looks into the body is among them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeGuard

from expunge.core.gate import Check, resolvable

Grade = Literal["failed", "suppressed", "forgotten"]
Values = Mapping[str, Sequence[float | None]]

LEAST_ORACLES = 3
# Those that look into the body and that a new head cannot fool; one of them has to count.
BODY = ("head_recovery", "prototype_recovery")
# The chance that a retrained model fails a whole battery for no reason, by the corrected z.
FALSE_ALARM = 0.05


@dataclass(frozen=True)
class Tolerance:
    """`margin` is a gap that does not matter; `cap` bounds the standard deviation that is granted
    to the oracles, so that noisy ones do not let more through.
    """

    margin: float
    cap: float


# Set on MNIST, from what retrained models differ by and how far the original is from them
# (tests/benchmarks/battery.py prints both).
TOLERANCES = {
    "head_recovery": Tolerance(0.005, 0.02),
    "prototype_recovery": Tolerance(0.05, 0.03),
    "relearning": Tolerance(0.05, 0.03),
    "membership": Tolerance(0.05, 0.03),
    "output_distance": Tolerance(0.08, 0.03),
    "cmia": Tolerance(0.05, 0.03),
    "activation_distance": Tolerance(0.08, 0.03),
    "tow": Tolerance(0.02, 0.02),
}
# Measured on test images of the forgotten class, so that no gap finer than 3 / n can be told.
ON_TEST_IMAGES = ("head_recovery", "prototype_recovery", "output_distance", "cmia")
# The share of the original's accuracy at which a class has come back under the original's head.
# Bodies that never saw the class reached 0.6 of it on MNIST and 0.8 on CIFAR-10 (class 3), by
# chance and far apart from each other: no comparison with oracles, and no part of a grade.
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

    def check(self, values: Sequence[float], samples: Sequence[int]) -> Check:
        """The forgotten class whose gap exceeds its threshold most, as a check."""
        worst = self.worst(values)
        counted = samples[worst] if len(samples) == len(values) else sum(samples)
        gap, threshold = abs(values[worst] - self.means[worst]), self.thresholds[worst]
        return Check(self.name, gap, "<=", threshold, counted, about="oracles")

    def worst(self, values: Sequence[float]) -> int:
        """The position of that class."""
        return max(
            range(len(values)), key=lambda k: abs(values[k] - self.means[k]) - self.thresholds[k]
        )


def compare(oracles: Sequence[Values], samples: Sequence[int]) -> dict[str, Comparison]:
    """What the oracles say: for each metric that all of them have, its means and thresholds.

    threshold = max(margin, 3 / n) + z min(spread, cap), where z is the two-sided normal quantile
    of `FALSE_ALARM` over the number of comparisons (Bonferroni) and n the number of test samples.

    Raises:
        ValueError: there are fewer than `LEAST_ORACLES`.
    """
    if len(oracles) < LEAST_ORACLES:
        raise ValueError(f"{len(oracles)} oracles to compare with; at least {LEAST_ORACLES}")
    columns = {
        name: list(zip(*(oracle[name] for oracle in oracles), strict=True))
        for name in TOLERANCES
        if all(_known(oracle.get(name)) for oracle in oracles)
    }
    z = NormalDist().inv_cdf(1 - FALSE_ALARM / 2 / max(1, sum(map(len, columns.values()))))
    found = {}
    for name, by_class in columns.items():
        tolerance = TOLERANCES[name]
        spread = _pooled(by_class)
        granted = z * min(spread, tolerance.cap)
        tested = name in ON_TEST_IMAGES
        thresholds = [
            (resolvable(tolerance.margin, samples[k]) if tested else tolerance.margin) + granted
            for k in range(len(by_class))
        ]
        means = [sum(values) / len(values) for values in by_class]
        found[name] = Comparison(name, tuple(means), spread, tuple(thresholds))
    return found


def _known(values: Sequence[float | None] | None) -> TypeGuard[Sequence[float]]:
    return values is not None and all(v is not None and math.isfinite(v) for v in values)


def _pooled(by_class: Sequence[Sequence[float]]) -> float:
    """The standard deviation over seeds, pooled over classes: the root of the mean variance."""
    total = 0.0
    for values in by_class:
        mean = sum(values) / len(values)
        total += sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return float((total / len(by_class)) ** 0.5)


def swap_check(
    swapped: Sequence[float], original: Sequence[float], samples: Sequence[int]
) -> Check:
    """Whether a class comes back when the original's head is put on the body; no oracle is needed.

    Evidence where it does and none where it does not, so it takes no part in a grade. All by
    forgotten class: the accuracy after the swap, the original's, and the test samples.
    """
    shares = [mine - RETURNED * full for mine, full in zip(swapped, original, strict=True)]
    worst = max(range(len(shares)), key=lambda k: shares[k])
    threshold = RETURNED * original[worst]
    return Check("head_swap", swapped[worst], "<=", threshold, samples[worst], about="body")


def oracle_checks(
    comparisons: Mapping[str, Comparison], values: Values, samples: Sequence[int]
) -> dict[str, Check]:
    """The checks of one model against the oracles, by metric; whether they count is open.

    A metric that the model has no value for, since the attack found nothing to go by, has none.
    """
    found = {}
    for name, comparison in comparisons.items():
        mine = values.get(name)
        if _known(mine):
            found[name] = comparison.check(mine, samples)
    return found


def can_tell(controls: Sequence[Mapping[str, Check]]) -> frozenset[str]:
    """The metrics that every control, original and mask, was measured by and fails."""
    names = set.intersection(*(set(control) for control in controls)) if controls else set()
    return frozenset(
        name for name in names if not any(control[name].passed for control in controls)
    )


def grade(outputs_forget: bool, checks: Mapping[str, Check], counting: frozenset[str]) -> Grade:
    """See the module. `outputs_forget` is whether every check of the outputs passed."""
    if not outputs_forget:
        return "failed"
    looked_inside = any(name in counting for name in BODY)
    alike = all(name in checks and checks[name].passed for name in counting)
    return "forgotten" if looked_inside and alike else "suppressed"
