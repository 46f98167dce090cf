"""Sentences of the report. None of them says more than the checks of this run do."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from expunge.core.attacks import ATTACKS
from expunge.validation_report import MODELS, UNLEARNED, AttackRow, CheckRow, ValidationReport

Row = TypeVar("Row")

# A ratio of steps that is reported beside the relearning; no check goes by it.
ANAMNESIS = "anamnesis"
# One line for each check of outputs, utility, codes and file; the attacks have their own.
_BASE_MEANINGS = {
    "forget_error": "Error on the test images of a class to forget; the lowest where there are "
    "several.",
    "erased_stay_erased": "The same for the classes that earlier requests took out.",
    "retain_accuracy_drop": "Accuracy that the change cost on all other classes together.",
    "worst_class_drop": "Accuracy that the change cost on the other class that lost most.",
    "codes_forgotten": "Share of the codes of the classes to forget that are classified wrong.",
    "codes_retained": "Share of the other classes' codes that are classified right.",
    "onnx_max_difference": "Largest difference of a probability between the exported file and the "
    "measured model.",
    "onnx_equal_argmax": "1 where the exported file and the model name the same class for every "
    "test image.",
}
_ANAMNESIS_MEANING = (
    "Steps to relearn the class, over the steps that models retrained without it take. Near 1 is "
    "like them; near 0, the class is back at once. No check goes by it."
)


def _collect_meanings() -> dict[str, str]:
    """Return one line for each check and metric, in the order of the page."""
    meanings = dict(_BASE_MEANINGS)
    for attack in ATTACKS.values():
        meanings[attack.name] = attack.meaning
        if attack.name == "relearning":
            meanings[ANAMNESIS] = _ANAMNESIS_MEANING
    return meanings


MEANINGS = _collect_meanings()
# For a value above 0, and for one that is not.
_DROPS = {
    "retain_accuracy_drop": (
        "Accuracy on the other classes is {value} points lower; at most {threshold} are allowed.",
        "Accuracy on the other classes is no lower than before.",
    ),
    "worst_class_drop": (
        "The other class that lost most lost {value} points; at most {threshold} are allowed.",
        "No other class lost accuracy.",
    ),
}
_SHOWN = {
    "forget_error": "The error on {classes} is at least {value}, on {samples} test images. At "
    "least {threshold} is asked for.",
    "erased_stay_erased": "Classes that earlier requests took out stay out. The error on them is "
    "at least {value}; at least {threshold} is asked for.",
    "codes_forgotten": "No code of {classes} is recognised any more.",
    "codes_retained": "Every code of the other classes is still recognised.",
    "onnx_equal_argmax": "The exported file names the same class as the measured model for every "
    "test image.",
}
SIDES = {">=": "at least", "<=": "at most", "<": "below"}
_BODY_NOT_SHOWN = "It was not shown that the layers before the last let go of the class."


def name_metric(name: str) -> str:
    """Return a check's or metric's name as it stands in sentences and plots."""
    attack = ATTACKS.get(name)
    return (attack.label if attack else "") or name.replace("_", " ")


def format_number(value: float | None) -> str:
    """Return four digits, or that there is no number."""
    return "none" if value is None else f"{value:.4g}"


def format_percent(value: float | None) -> str:
    """Return a fraction in per cent; what is not 0 or 1 is never rounded to it."""
    if value is None:
        return "not measured"
    for digits in (1, 2, 3, 4):
        text = f"{100 * value + 0.0:.{digits}f}"  # adding 0.0 turns -0.0 into 0.0
        if value in (0, 1) or abs(float(text)) not in (0, 100):
            return f"{text} %"
    return "over 99.9999 %" if abs(value) > 0.5 else "under 0.0001 %"


def format_pair(value: float | None, threshold: float | None) -> tuple[str, str]:
    """Return both with four digits, or as many more as tell them apart."""
    if value is None or threshold is None or value == threshold:
        return format_number(value), format_number(threshold)
    for digits in range(4, 18):
        pair = f"{value:.{digits}g}", f"{threshold:.{digits}g}"
        if pair[0] != pair[1]:
            break
    return pair


def join_texts(texts: Iterable[str]) -> str:
    """Return the texts with commas, the last with "and"."""
    *first, last = list(texts)
    return f"{', '.join(first)} and {last}" if first else last


def name_classes(indices: Sequence[int], most: int = 20) -> str:
    """Return the classes by index, such as "classes 3 and 5"."""
    if len(indices) > most:
        rest = f"{len(indices) - most} more"
        return f"classes {join_texts([*map(str, indices[:most]), rest])}"
    return f"class{'es' if len(indices) > 1 else ''} {join_texts(map(str, indices))}"


def order_attacks(report: ValidationReport) -> dict[str, AttackRow]:
    """Return the rows of the attacks in the order of their meanings: JSON keeps none."""
    return _order(report.attacks, list(MEANINGS))


def order_controls(report: ValidationReport) -> dict[str, str]:
    """Return the grade of each control, from the one that holds most of the class."""
    return _order(report.verdict.controls, list(MODELS))


def _order(found: Mapping[str, Row], order: list[str]) -> dict[str, Row]:
    # what is not in the order, such as a metric of a later version, comes last by name
    return {key: found[key] for key in sorted(found, key=[*order, *sorted(found)].index)}


def explain_grade(report: ValidationReport) -> str:
    """Return what the grade says, in a sentence or two."""
    which = name_classes(report.classes)
    if not report.verdict.trustworthy:
        return (
            "The controls did not get the grades that they must get. The measurement itself is in "
            "doubt, and this grade is not to be relied on."
        )
    if report.grade == "hidden":
        return (
            f"The outputs get {which} wrong at least as often as is asked for, but the layers "
            "before the last still hold it. A new last layer brings it back."
        )
    if report.grade == "suppressed":
        return (
            f"The outputs get {which} wrong at least as often as is asked for. It was not shown "
            "that the layers before the last have let go."
        )
    if report.grade == "forgotten":
        return (
            f"No comparison that counts told this model from models retrained without {which}. At "
            "least one of them looks at the features that the last layer reads."
        )
    return (
        "A check that has to pass failed, so this run does not show that the model let go of "
        f"{which}."
    )


def list_shown(report: ValidationReport) -> list[str]:
    """Return what the run shows: the checks that passed and are worth something."""
    # an instrument that is wrong shows nothing, whatever it reads
    if not report.verdict.trustworthy:
        return []
    which = name_classes(report.classes)
    found = []
    for row in report.checks:
        if not row.passed or row.value is None or row.name not in _SHOWN | _DROPS:
            continue
        values = {"value": format_percent(row.value), "threshold": format_percent(row.threshold)}
        text = _SHOWN.get(row.name, "")
        if row.name in _DROPS:
            text = _DROPS[row.name][row.value <= 0]
            # a difference of percentages is in points
            values = {key: value.removesuffix(" %") for key, value in values.items()}
        found.append(text.format(classes=which, samples=row.samples or 0, **values))
    alike = [name_metric(r.name) for r in _list_comparisons(report) if r.counts and r.passed]
    if alike:
        found.append(
            f"This model was compared with {report.oracles} models retrained without {which}. It "
            f"is no further from them than the threshold allows by {join_texts(alike)}. The "
            "original model is further, and so is a mask, which only hides the class."
        )
    graded = order_controls(report)
    if graded:
        given = join_texts(f"{name} {grade}" for name, grade in graded.items())
        found.append(
            f"The controls have the grades that they must have: {given}. The original and the "
            "masks forgot nothing, so only what they fail counts."
        )
    return found


def list_not_shown(report: ValidationReport) -> list[str]:
    """Return what the run does not show, and what nobody looked at."""
    found = [_describe_failure(row) for row in report.checks if not row.passed and _can_tell(row)]
    blind = [name_metric(row.name) for row in _list_comparisons(report) if not row.counts]
    if blind:
        found.append(
            "In this run the original or a mask passes these comparisons too, so passing them "
            f"shows nothing: {join_texts(blind)}."
        )
    for row in report.checks:
        # the one check whose passing would be read as good news, and is none
        if row.name == "head_swap" and row.passed:
            found.append(
                "The class does not come back under the original's last layer. That shows nothing "
                "either way: features that are merely turned round have the same effect."
            )
    if not report.oracles:
        found.append(
            "Nothing was compared with retrained models. So this run does not tell what else the "
            "layers before the last hold, how fast the class can be relearned, or whether its "
            "training images can be recognised."
        )
    else:
        found += _describe_unmeasured(report)
    if report.grade == "hidden" and report.verdict.trustworthy:
        found.append("That the class is gone: it was found in the layers before the last.")
    elif report.grade != "forgotten" or not report.verdict.trustworthy:
        found.append(_BODY_NOT_SHOWN)
    else:
        found.append(
            "The attacks saw the features that the last layer reads, not what each layer before it "
            "holds."
        )
    found.append(
        "No attack was made other than those named here; a stronger one may find more. This is no "
        "proof that the training data cannot be inferred from the model."
    )
    found.append("Earlier versions, exported files and copies of the model were not looked at.")
    return found


def _list_comparisons(report: ValidationReport) -> list[CheckRow]:
    """Return the comparisons with retrained models."""
    return [row for row in report.checks if row.about == "oracles"]


def _can_tell(row: CheckRow) -> bool:
    return row.about != "oracles" or bool(row.counts)


def _describe_failure(row: CheckRow) -> str:
    value, threshold = format_pair(row.value, row.threshold)
    side = SIDES[row.compare]
    rejects = "; this rejects the forget" if row.blocks else ""
    return f"The check {row.name} failed: {value}, where {side} {threshold} passes{rejects}."


def _describe_unmeasured(report: ValidationReport) -> list[str]:
    """Return what is said of the metrics that have no value for the unlearned model."""
    rows = order_attacks(report).items()
    absent = [name for name, row in rows if row.values.get(UNLEARNED) is None]
    found = []
    if ANAMNESIS in absent:
        found.append(
            "Neither this model nor the retrained ones relearned the class within the steps that "
            "were made, so there is no anamnesis index."
        )
    others = [name_metric(name) for name in absent if name != ANAMNESIS]
    if others:
        found.append(f"There is no value for this model in this run of: {join_texts(others)}.")
    return found
