"""Findings of the battery, as rows and sentences of a validation report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from expunge.core.attacks import layer_recovery, relearning
from expunge.core.attacks.case import Case, Seen
from expunge.core.grading import body
from expunge.core.grading.checks import Check
from expunge.core.grading.grades import Grade, at_least
from expunge.core.grading.judge import Judgement
from expunge.validation_report import (
    HELD_OUT,
    MASK,
    ORIGINAL,
    SOFT_MASK,
    UNLEARNED,
    AttackRow,
    Depth,
    RelearningCurves,
)

# What finds a class again in a body, as sentences say it.
FINDERS = {
    "head_recovery": "a new head",
    "head_recovery_logistic": "one with little penalty",
    "prototype_recovery": "a row made of a few images",
}


@dataclass(frozen=True)
class Findings:
    """What was found beside the checks without oracles.

    `grades` is the grade of each model by what it shows of forgetting alone, `checks` the unlearned
    model's comparisons with oracles. `reasons` say why no more could be shown, `problems` why the
    run cannot be trusted. `oracles` counts those compared with; `attacks` are by metric.
    """

    grades: Mapping[str, Grade]
    depth: Depth
    checks: tuple[Check, ...] = ()
    reasons: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    oracles: int = 0
    attacks: Mapping[str, AttackRow] = field(default_factory=dict)
    relearning: RelearningCurves | None = None


def build_row(
    values: Mapping[str, float | None],
    oracles: Sequence[float | None] | None = None,
    threshold: float | None = None,
) -> AttackRow:
    """Return the row of a metric; JSON has only finite numbers, so what is none is None."""
    return AttackRow(
        values={model: _keep_finite(value) for model, value in values.items()},
        oracles=None if oracles is None else tuple(map(_keep_finite, oracles)),
        threshold=threshold,
    )


def build_metric_row(name: str, found: Judgement, position: int) -> AttackRow:
    """Return a metric of every model, for the forgotten class that the unlearned one's check shows.

    Where there is no check, it is the class at `position`.
    """
    comparison = found.comparisons.get(name)
    mine = [value for value in found.values[UNLEARNED][name] if value is not None]
    threshold = None
    if comparison is not None and len(mine) == len(comparison.means):
        position = comparison.find_worst(mine, found.counting[name])
        threshold = comparison.thresholds[position]
    return build_class_row(name, found, position, threshold)


def build_class_row(
    name: str, found: Judgement, position: int, threshold: float | None
) -> AttackRow:
    """Return a metric of every model for one forgotten class."""
    return build_row(
        {model: values[name][position] for model, values in found.values.items()},
        [values[name][position] for values in found.oracles] if found.oracles else None,
        threshold,
    )


def build_anamnesis_row(
    case: Case, models: Mapping[str, Seen], oracles: Sequence[Seen]
) -> AttackRow:
    """Return the steps to relearn over the oracles' mean, by model.

    There is no value where neither side relearned within the steps that were made.
    """
    steps = [relearning.count_steps(case, oracle) for oracle in oracles]
    index = relearning.compute_anamnesis_index
    return AttackRow(
        values={
            name: index(relearning.count_steps(case, seen), steps, relearning.STEPS)
            for name, seen in models.items()
        },
        oracles=(),
        cap=relearning.STEPS,
        oracle_steps=tuple(steps),
    )


def build_block_rows(
    case: Case, models: Mapping[str, Seen], oracles: Sequence[Seen], position: int
) -> dict[str, AttackRow]:
    """Return what a new head on each block finds of the forgotten class at `position`.

    The masks have the original's body, and no row of their own.
    """
    shown = {name: models[name] for name in (UNLEARNED, ORIGINAL, HELD_OUT)}
    own = {name: layer_recovery.measure_blocks(case, seen) for name, seen in shown.items()}
    retrained = [layer_recovery.measure_blocks(case, oracle) for oracle in oracles]
    return {
        block: build_row(
            {name: rows[block][position] for name, rows in own.items()},
            [rows[block][position] for rows in retrained],
        )
        for block in own[UNLEARNED]
    }


def build_curves(models: Mapping[str, Seen], oracles: Sequence[Seen]) -> RelearningCurves:
    """Return the curves of relearning, of the class that came back furthest at each step."""

    def read(seen: Seen) -> tuple[float | None, ...]:
        return tuple(map(_keep_finite, seen.relearning.highest))

    return RelearningCurves(
        steps=models[ORIGINAL].relearning.steps,
        curves={name: read(seen) for name, seen in models.items()},
        oracles=tuple(read(oracle) for oracle in oracles),
    )


def _keep_finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def explain_grade(forget: Sequence[int], found: Judgement) -> list[str]:
    """Return why the grade is not higher, and what else tells the model from retrained ones."""
    reasons = []
    inside = [found.counting[name] for name in body.CHECKS if name in found.counting]
    blind = [c for k, c in enumerate(forget) if not any(row[k] for row in inside)]
    if blind:
        reasons.append(
            "No comparison that looks into the body could tell the original and the mask from "
            f"retrained models in this run for classes {blind}, so none can show that the body "
            "forgot them."
        )
    checks = found.checks[UNLEARNED]
    failed = {name for name, check in checks.items() if not check.passed}
    # sorted, since a set has no order and the sentences are stored
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
            f"It also differs from retrained models by {', '.join(rest)}. These do not count in "
            "this run."
        )
    return reasons


def explain_return(swap: Check, original: float) -> str:
    """Say what it shows that a class comes back under the original's head.

    `original` is what that head gives on its own body.
    """
    return (
        f"Under the original's head the class comes back: its accuracy is {swap.value:.3f}, where "
        f"the original's is {original:.3f}."
    )


def explain_body(names: Sequence[str], found: Judgement) -> list[str]:
    """Say in figures what new heads find of the class that the body holds most of.

    `names` are those of the forgotten classes. Of outputs that still give the class nothing is
    said, as no new head is needed to find it.
    """
    if found.grades[UNLEARNED] == "failed":
        return []
    mine, full, held = found.values[UNLEARNED], found.values[ORIGINAL], found.held[UNLEARNED]
    k = body.find_most_held(mine, full, held)
    figures: list[str] = []
    for name, finder in FINDERS.items():
        own, whole = (_keep_finite(values[name][k]) if name in values else None
                      for values in (mine, full))  # fmt: skip
        if own is not None and whole is not None:
            first = f" of class {names[k]} where the original's finds" if not figures else " where"
            verb = " finds" if not figures else ""
            figures.append(f"{finder}{verb} {100 * own:.0f} %{first} {100 * whole:.0f} %")
    if not figures:
        return []
    text = f"{', '.join(figures)}."
    return [f"The class is still in the body: {text}" if held[k] else text[0].upper() + text[1:]]


def find_problems(given: Mapping[str, Grade]) -> tuple[str, ...]:
    """Return what the controls got and must not get; it says that the instrument is broken."""
    problems = [
        f"The {name} control, which holds the class in its body, was graded {given[name]}."
        for name in (MASK, SOFT_MASK)
        if name in given and at_least(given[name], "suppressed")
    ]
    # a class that the original gets wrong anyway cannot show forgetting
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
