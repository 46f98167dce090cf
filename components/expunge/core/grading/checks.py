"""The gate: a table of checks, each with its value, its threshold and its verdict.

All values are fractions in [0, 1] unless a check says otherwise. A threshold on test accuracy is
never finer than the test set can tell: with n samples it is at least 3 / n away from the ideal,
three samples being what a change of nothing but rounding can move.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Compare = Literal[">=", "<=", "<"]
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
        """Whether the value is on the right side; not-a-number never is."""
        if self.compare == ">=":
            return self.value >= self.threshold
        if self.compare == "<":
            return self.value < self.threshold
        return self.value <= self.threshold


def limit_margin(margin: float, samples: int) -> float:
    """Return the margin, or 3 / n where n samples cannot tell one so fine.

    Raises:
        ValueError: there is no sample, so nothing can be told at all.
    """
    if samples < 1:
        raise ValueError(f"a margin of {margin} on {samples} samples; at least one is needed")
    return max(margin, 3 / samples)


def compute_accuracy_floor(num_classes: int, chance_factor: float) -> float:
    """Return `chance_factor` times chance, but never more than half-way from chance to 1.

    The half-way mark is what keeps the floor reachable for two or three classes, where three times
    chance is 1 or more.
    """
    chance = 1 / num_classes
    return min(chance_factor * chance, (1 + chance) / 2)


def check_training(
    *,
    code_accuracy: float,
    test_accuracy: float,
    test_samples: int,
    num_classes: int,
    chance_factor: float,
) -> list[Check]:
    """Check that every code is classified right, and that test accuracy is above a floor.

    A broken model misses the floor. All accuracies are fractions.

    Args:
        code_accuracy: the share of the codes that is classified right.
        test_accuracy: the share of the test images that is classified right.
        test_samples: how many test images there are of the classes that took part.
        num_classes: how many classes took part in the training.
        chance_factor: how many times chance the floor is; see `compute_accuracy_floor`.
    """
    floor = compute_accuracy_floor(num_classes, chance_factor)
    return [
        Check("code_accuracy", code_accuracy, ">=", 1.0, about="codes"),
        Check("test_accuracy", test_accuracy, ">=", floor, samples=test_samples, about="utility"),
    ]


def check_forget(
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
    """Check a forget by test data and codes; no oracle is needed.

    All accuracies, errors and shares are fractions.

    Args:
        before: the base version's test accuracy, by class index.
        after: the unlearned model's test accuracy, by class index.
        samples: how many test samples each class has.
        forget: the requested classes.
        erased: the classes that were forgotten before and must stay so, as far as there are images
            of them.
        forget_error: the least error on a forgotten class.
        budget: the largest drop of the accuracy on all retained classes together.
        worst_drop: the largest drop of the accuracy on one of them.
        codes_forgotten: the share of the forgotten classes' codes that is classified wrong.
        codes_retained: the share of the retained classes' codes that is classified right.

    Raises:
        ValueError: a requested or a retained class has no test sample.
    """
    requested, gone = sorted(set(forget)), sorted(set(erased))
    retained = [i for i in range(len(after)) if i not in requested and i not in gone]
    drops = {i: before[i] - after[i] for i in retained}
    worst = max(drops, key=lambda i: drops[i] - limit_margin(worst_drop, samples[i]))
    total = sum(samples[i] for i in retained)
    drop = sum((before[i] - after[i]) * samples[i] for i in retained) / max(total, 1)
    checks = [
        check_error("forget_error", after, samples=samples, classes=requested, least=forget_error),
        Check(
            "retain_accuracy_drop",
            drop,
            "<=",
            limit_margin(budget, total),
            samples=total,
            about="utility",
        ),
        Check(
            "worst_class_drop",
            drops[worst],
            "<=",
            limit_margin(worst_drop, samples[worst]),
            samples=samples[worst],
            about="utility",
        ),
        Check("codes_forgotten", codes_forgotten, ">=", 1.0, about="codes"),
        Check("codes_retained", codes_retained, ">=", 1.0, about="codes"),
    ]
    # erased data may have been deleted, and without images there is nothing to check
    gone = [i for i in gone if samples[i]]
    if gone:
        checks.append(
            check_error(
                "erased_stay_erased", after, samples=samples, classes=gone, least=forget_error
            )
        )
    return checks


def check_error(
    name: str,
    accuracy: Sequence[float],
    *,
    samples: Sequence[int],
    classes: Iterable[int],
    least: float,
) -> Check:
    """Check the error of the class that misses its own threshold most.

    Each class has its own threshold, since each has its own number of samples.

    Args:
        name: the check's name.
        accuracy: the accuracy of each class, a fraction.
        samples: how many images each class's accuracy was measured on.
        classes: the positions in `accuracy` and `samples` that are looked at.
        least: the least error that passes, where the samples can tell it.
    """
    thresholds = {i: 1 - limit_margin(1 - least, samples[i]) for i in classes}
    weakest = min(thresholds, key=lambda i: 1 - accuracy[i] - thresholds[i])
    return Check(name, 1 - accuracy[weakest], ">=", thresholds[weakest], samples=samples[weakest])


def check_parity(max_difference: float, equal_argmax: bool, atol: float) -> list[Check]:
    """Check the exported graph against the model it came from, over the whole test set.

    The tolerance is absolute, on probabilities. Exporters fold BatchNorm into the weights before
    it, so a relative one would judge rounding on outputs near zero.
    """
    return [
        Check("onnx_max_difference", max_difference, "<=", atol, about="file"),
        Check("onnx_equal_argmax", float(equal_argmax), ">=", 1.0, about="file"),
    ]
