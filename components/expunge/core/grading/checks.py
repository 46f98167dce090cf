"""The gate: a table of checks, each with its value, its threshold and its verdict.

All values are fractions in [0, 1] unless a check says otherwise. A threshold on test accuracy is
never finer than the test set can tell: with n samples it is at least 3 / n away from the ideal,
three samples being what a change of nothing but rounding can move.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Compare = Literal[">=", "<="]
About = Literal["outputs", "utility", "codes", "file", "body", "oracles"]


@dataclass(frozen=True)
class Check:
    """`value` compared with `threshold`; `samples` is n where the value was measured on data.

    `about` says what it looks at. `counts` belongs to a comparison with oracles: whether it can
    tell in this run, the original and the mask failing it.
    """

    name: str
    value: float
    compare: Compare
    threshold: float
    samples: int | None = None
    about: About = "outputs"
    counts: bool | None = None

    @property
    def passed(self) -> bool:
        """Whether the value is on the right side; equal is right, not-a-number never is."""
        if self.compare == ">=":
            return self.value >= self.threshold
        return self.value <= self.threshold

    def as_row(self, block: Collection[str] = ()) -> dict[str, object]:
        """The check as it is stored with the run; `block` are the names of those that reject."""
        return {
            "name": self.name,
            "value": self.value,
            "compare": self.compare,
            "threshold": self.threshold,
            "samples": self.samples,
            "passed": self.passed,
            "about": self.about,
            "blocks": self.name in block,
            "counts": self.counts,
        }


def resolvable(margin: float, samples: int) -> float:
    """The margin, or 3 / n where n samples cannot tell one so fine.

    Raises:
        ValueError: there is no sample, so nothing can be told at all.
    """
    if samples < 1:
        raise ValueError(f"a margin of {margin} on {samples} samples; at least one is needed")
    return max(margin, 3 / samples)


def accuracy_floor(num_classes: int, chance_factor: float) -> float:
    """`chance_factor` times chance, but never more than half-way from chance to 1.

    The half-way mark is what keeps the floor reachable for two or three classes, where three times
    chance is 1 or more.
    """
    chance = 1 / num_classes
    return min(chance_factor * chance, (1 + chance) / 2)


def train_checks(
    *,
    code_accuracy: float,
    test_accuracy: float,
    test_samples: int,
    num_classes: int,
    chance_factor: float,
) -> list[Check]:
    """Every code classified right, and test accuracy above a floor that a broken model misses.

    `num_classes` counts the classes that took part in the training.
    """
    floor = accuracy_floor(num_classes, chance_factor)
    return [
        Check("code_accuracy", code_accuracy, ">=", 1.0, about="codes"),
        Check("test_accuracy", test_accuracy, ">=", floor, test_samples, "utility"),
    ]


def forget_checks(
    *,
    before: Sequence[float],
    after: Sequence[float],
    samples: Sequence[int],
    forget: Iterable[int],
    erased: Iterable[int],
    forget_error: float,
    budget: float,
    worst_drop: float,
    codes_forgotten: float,
    codes_retained: float,
) -> list[Check]:
    """The checks of a forget that need test data and codes, and no oracle.

    `before`, `after` and `samples` are by class index: test accuracy of the base version, of the
    unlearned model, and how many test samples that class has. `forget` are the requested classes;
    `erased` were forgotten before and must stay so, as far as there are images of them.
    `codes_forgotten` is the share of forgotten codes classified wrong, `codes_retained` the share
    of retained codes classified right.

    Raises:
        ValueError: a requested or a retained class has no test sample.
    """
    requested, gone = sorted(set(forget)), sorted(set(erased))
    retained = [i for i in range(len(after)) if i not in requested and i not in gone]
    drops = {i: before[i] - after[i] for i in retained}
    worst = max(drops, key=lambda i: drops[i] - resolvable(worst_drop, samples[i]))
    total = sum(samples[i] for i in retained)
    drop = sum((before[i] - after[i]) * samples[i] for i in retained) / max(total, 1)
    checks = [
        error_check("forget_error", after, samples, requested, forget_error),
        Check("retain_accuracy_drop", drop, "<=", resolvable(budget, total), total, "utility"),
        Check(
            "worst_class_drop",
            drops[worst],
            "<=",
            resolvable(worst_drop, samples[worst]),
            samples[worst],
            "utility",
        ),
        Check("codes_forgotten", codes_forgotten, ">=", 1.0, about="codes"),
        Check("codes_retained", codes_retained, ">=", 1.0, about="codes"),
    ]
    gone = [i for i in gone if samples[i]]
    if gone:
        checks.append(error_check("erased_stay_erased", after, samples, gone, forget_error))
    return checks


def error_check(
    name: str,
    accuracy: Sequence[float],
    samples: Sequence[int],
    classes: Iterable[int],
    least: float,
) -> Check:
    """The error against `least`, of the class that misses its own threshold most.

    The classes index `accuracy` and `samples`.
    """
    thresholds = {i: 1 - resolvable(1 - least, samples[i]) for i in classes}
    weakest = min(thresholds, key=lambda i: 1 - accuracy[i] - thresholds[i])
    return Check(name, 1 - accuracy[weakest], ">=", thresholds[weakest], samples[weakest])


def parity_checks(max_difference: float, equal_argmax: bool, atol: float) -> list[Check]:
    """The exported graph against the model it came from, over the whole test set.

    An absolute tolerance on probabilities: exporters fold BatchNorm into the weights before it, so
    a relative one would judge rounding on outputs near zero.
    """
    return [
        Check("onnx_max_difference", max_difference, "<=", atol, about="file"),
        Check("onnx_equal_argmax", float(equal_argmax), ">=", 1.0, about="file"),
    ]
