"""What the battery found, in the words and rows of a validation's report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.core import metrics
from expunge.core.attacks import RELEARN_STEPS
from expunge.core.grading import grades
from expunge.core.grading.checks import Check
from expunge.core.grading.grades import Grade
from expunge.core.grading.judge import Judgement
from expunge.core.heads import MASK, SOFT_MASK
from expunge.formats import files

# How the models are named in reports. The held-out oracle is a control: it has to be forgotten.
UNLEARNED, ORIGINAL, HELD_OUT = "unlearned", "original", "held-out"


@dataclass(frozen=True)
class Findings:
    """What was found beside the checks without oracles.

    `grades` is the grade of each model by what it shows of forgetting alone, `checks` the unlearned
    model's comparisons with oracles, `report` the battery's part of validation's. `reasons` say why
    no more could be shown, `problems` why the run cannot be trusted.
    """

    grades: Mapping[str, Grade]
    checks: tuple[Check, ...]
    report: dict[str, Any]
    reasons: tuple[str, ...]
    problems: tuple[str, ...]


def report_part(
    attacks: Mapping[str, Any],
    *,
    depth: Mapping[str, Any],
    oracles: int = 0,
    relearning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The battery's part of validation's report; what is no number is None."""
    report = {"oracles": oracles, "attacks": attacks, "relearning": relearning, "depth": depth}
    kept: dict[str, Any] = files.replace_non_finite(report)
    return kept


def values_of(name: str, found: Judgement, position: int) -> dict[str, Any]:
    """A metric of every model for one forgotten class."""
    row: dict[str, Any] = {model: values[name][position] for model, values in found.values.items()}
    return row | {"oracles": [values[name][position] for values in found.oracles]}


def row_of(name: str, found: Judgement, position: int) -> dict[str, Any]:
    """A metric of every model, for the forgotten class that the unlearned one's check shows.

    Where there is no check, it is the class at `position`.
    """
    comparison = found.comparisons.get(name)
    mine = [value for value in found.values[UNLEARNED][name] if value is not None]
    if comparison is None or len(mine) != len(comparison.means):
        return values_of(name, found, position) | {"threshold": None}
    worst = comparison.worst(mine, found.counting[name])
    return values_of(name, found, worst) | {"threshold": comparison.thresholds[worst]}


def anamnesis(found: Judgement) -> dict[str, Any]:
    """Steps to relearn over the oracles' mean; no value where both never did within the cap."""
    steps = [measured.steps_to_relearn for measured in found.oracles_alone]
    row: dict[str, Any] = {
        name: metrics.anamnesis_index(measured.steps_to_relearn, steps, RELEARN_STEPS)
        for name, measured in found.alone.items()
    }
    return row | {"oracles": [], "threshold": None, "cap": RELEARN_STEPS, "oracle_steps": steps}


def reasons_of(forget: Sequence[int], found: Judgement) -> list[str]:
    """Why the grade is not higher, and what else tells the model from retrained ones."""
    reasons = []
    body = [found.counting[name] for name in grades.BODY if name in found.counting]
    blind = [c for k, c in enumerate(forget) if not any(row[k] for row in body)]
    if blind:
        reasons.append(
            "No comparison that looks into the body could tell the original and the mask from "
            f"retrained models in this run for classes {blind}, so none can show that the body "
            "forgot them."
        )
    checks = found.checks[UNLEARNED]
    failed = {name for name, check in checks.items() if not check.passed}
    counted = sorted(name for name in failed if checks[name].counts)
    if counted:
        reasons.append(f"It differs from retrained models by {', '.join(counted)}.")
    missing = sorted(
        name for name, row in found.counting.items() if any(row) and name not in checks
    )
    if missing:
        reasons.append(f"Could not be measured on this model: {', '.join(missing)}.")
    if rest := sorted(failed.difference(counted)):
        reasons.append(
            f"It differs from retrained models by {', '.join(rest)} as well, which do not count "
            "in this run."
        )
    return reasons


def came_back(swap: Check) -> str:
    """What a class that came back under the original's head shows."""
    full = swap.threshold / grades.RETURNED
    return (
        f"Under the original's head the class comes back: its accuracy is {swap.value:.3f}, where "
        f"the original's is {full:.3f}."
    )


def problems_of(given: Mapping[str, Grade]) -> tuple[str, ...]:
    """What the controls got and must not get; it says that the instrument is broken."""
    problems = [
        f"The {name} control, which forgot nothing, was graded forgotten."
        for name in (ORIGINAL, MASK, SOFT_MASK)
        if given.get(name) == "forgotten"
    ]
    if given[ORIGINAL] != "failed":
        problems.append(
            "The original model was not graded failed: it makes the error that is asked for "
            "already, so that its outputs cannot show forgetting."
        )
    if HELD_OUT in given and given[HELD_OUT] != "forgotten":
        problems.append(
            f"The held-out oracle, retrained without the class, was graded {given[HELD_OUT]}."
        )
    return tuple(problems)
