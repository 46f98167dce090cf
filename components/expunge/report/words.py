"""What the report says in sentences. None of them says more than the checks of this run do."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Check = Mapping[str, Any]

# As validation names them.
MODELS = ("unlearned", "original", "mask", "soft-mask", "held-out")

_LIKE_RETRAINED = "compared with models retrained without the class"
# One line for each check and each metric of the attacks.
MEANINGS = {
    "forget_error": "Error on the test images of a class to forget; the lowest where there are "
    "several.",
    "erased_stay_erased": "The same for the classes that earlier requests took out.",
    "retain_accuracy_drop": "Accuracy that the change cost on all other classes together.",
    "worst_class_drop": "Accuracy that it cost on the one other class that lost most.",
    "codes_forgotten": "Share of the codes of the classes to forget that are classified wrong.",
    "codes_retained": "Share of the other classes' codes that are classified right.",
    "onnx_max_difference": "Largest difference of a probability between the exported file and the "
    "model that was measured.",
    "onnx_equal_argmax": "1 where the exported file and the model name the same class for every "
    "test image.",
    "head_swap": "Accuracy on the class with the original's last layer on this model's body. Where "
    "it comes back, and further than in any retrained model, the body may hold the class; where it "
    "does not, nothing is shown. No grade goes by it.",
    "head_recovery": "Accuracy on the class of a new last layer, trained on a few labelled images "
    f"while the body is frozen; {_LIKE_RETRAINED}.",
    "prototype_recovery": "Accuracy on the class when its row of the last layer is made from the "
    f"features of 1 to 10 of its images; {_LIKE_RETRAINED}.",
    "relearning": "How much of the class a copy has back while it is fine-tuned on a few images: "
    f"the area under that curve, {_LIKE_RETRAINED}.",
    "anamnesis": "Steps to relearn the class, over what models retrained without it take: near 1 "
    "like them, near 0 back at once. No check goes by it.",
    "membership": "Share of the class's training images that an attacker, who sees how sure the "
    f"outputs are, takes for training images; {_LIKE_RETRAINED}.",
    "output_distance": "How differently the class's test images fall on the other classes "
    "(total variation of the predictions from those of models retrained without the class).",
    "cmia": "How well discriminators, fitted to the outputs of models retrained without the class, "
    f"recognise this model's outputs on it; {_LIKE_RETRAINED}.",
    "activation_distance": "Mean distance of the output probabilities from those of models "
    "retrained without the class, on the class's training images.",
    "tow": "Tug of war: closeness to models retrained without the class on that class, on training "
    "images of the others and on their test images, multiplied; 1 is best.",
}
# For a value above 0, and for one that is not.
_DROPS = {
    "retain_accuracy_drop": (
        "Accuracy on the other classes is {value} points lower (at most {threshold} are allowed).",
        "Accuracy on the other classes is no lower than before.",
    ),
    "worst_class_drop": (
        "The other class that lost most lost {value} points (at most {threshold} are allowed).",
        "No other class lost accuracy.",
    ),
}
_SHOWN = {
    "forget_error": "The error on {classes} is {value} at least, on {samples} test images "
    "({threshold} or more is asked for).",
    "erased_stay_erased": "Classes that earlier requests took out stay out: the error on them is "
    "{value} at least ({threshold} or more is asked for).",
    "codes_forgotten": "No code of {classes} is recognised any more.",
    "codes_retained": "Every code of the other classes still is.",
    "onnx_equal_argmax": "The exported file names the same class as the measured model for every "
    "test image.",
}


def label(name: str) -> str:
    """A check's or metric's name as it stands in sentences and plots."""
    known = {"cmia": "class membership", "tow": "tug of war"}
    return known.get(name, name.replace("_", " "))


def number(value: float | None) -> str:
    """Four digits, or that there is none."""
    return "none" if value is None else f"{value:.4g}"


def percent(value: float | None) -> str:
    """A fraction in per cent; what is not 0 or 1 is never rounded to it."""
    if value is None:
        return "not measured"
    for digits in (1, 2, 3, 4):
        text = f"{100 * value + 0.0:.{digits}f}"
        if value in (0, 1) or abs(float(text)) not in (0, 100):
            return f"{text} %"
    return "over 99.9999 %" if abs(value) > 0.5 else "under 0.0001 %"


def apart(value: float | None, threshold: float | None) -> tuple[str, str]:
    """Both with four digits, or as many more as tell them apart."""
    if value is None or threshold is None or value == threshold:
        return number(value), number(threshold)
    for digits in range(4, 18):
        pair = f"{value:.{digits}g}", f"{threshold:.{digits}g}"
        if pair[0] != pair[1]:
            break
    return pair


def listed(texts: Iterable[str]) -> str:
    """The texts with commas, the last with "and"."""
    *first, last = list(texts)
    return f"{', '.join(first)} and {last}" if first else last


def classes(indices: Sequence[int], most: int = 20) -> str:
    """The classes by index, such as "classes 3 and 5"."""
    if len(indices) > most:
        rest = f"{len(indices) - most} more"
        return f"classes {listed([*map(str, indices[:most]), rest])}"
    return f"class{'es' if len(indices) > 1 else ''} {listed(map(str, indices))}"


def metrics(validation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rows of the attacks in the order of their meanings: JSON keeps none."""
    return _ordered(validation.get("attacks") or {}, list(MEANINGS))


def controls(validation: Mapping[str, Any]) -> dict[str, str]:
    """The grade of each control, from the one that holds most of the class."""
    return _ordered(validation.get("controls") or {}, list(MODELS))


def _ordered(found: Mapping[str, Any], order: list[str]) -> dict[str, Any]:
    return {key: found[key] for key in sorted(found, key=[*order, *sorted(found)].index)}


def meaning(validation: Mapping[str, Any]) -> str:
    """What the grade says, in one sentence."""
    which = classes(validation["classes"])
    if not validation.get("trustworthy", True):
        return (
            "The controls did not get the grades that they must get, so the measurement itself is "
            "in doubt and this grade is not to be relied on."
        )
    if validation["grade"] == "suppressed":
        return (
            f"The outputs make the error on {which} that is asked for. That the layers before the "
            "last have let go was not shown."
        )
    if validation["grade"] == "forgotten":
        return (
            f"No comparison that counts told this model from models retrained without {which}, "
            "and at least one of them looks at the features that the last layer reads."
        )
    return f"A check that has to hold does not, so nothing may be said to have let go of {which}."


def shown(validation: Mapping[str, Any]) -> list[str]:
    """What the run shows: the checks that passed and are worth something."""
    if not validation.get("trustworthy", True):
        return []
    which = classes(validation["classes"])
    found = []
    for row in validation["checks"]:
        name = row["name"]
        if not row["passed"] or (name not in _SHOWN and name not in _DROPS):
            continue
        values = {key: percent(row[key]) for key in ("value", "threshold")}
        text = _SHOWN.get(name, "")
        if name in _DROPS:
            text = _DROPS[name][row["value"] <= 0]
            values = {key: value.removesuffix(" %") for key, value in values.items()}
        found.append(text.format(classes=which, samples=row.get("samples") or 0, **values))
    alike = [label(row["name"]) for row in _compared(validation) if row["counts"] and row["passed"]]
    if alike:
        found.append(
            f"Compared with {validation['oracles']} models retrained without {which}, this model "
            f"is no further from them than the threshold allows by {listed(alike)}. The original "
            "model and a mask, which hides the class and nothing more, are further."
        )
    graded = controls(validation)
    if graded:
        given = listed(f"{name} {grade}" for name, grade in graded.items())
        found.append(
            f"The controls have the grades that they must have: {given}. The original and the "
            "masks forgot nothing; only what they fail counts."
        )
    return found


def not_shown(validation: Mapping[str, Any]) -> list[str]:
    """What the run does not show, and what nobody looked at."""
    found = [_failed(row) for row in validation["checks"] if not row["passed"] and _tells(row)]
    blind = [label(row["name"]) for row in _compared(validation) if not row["counts"]]
    if blind:
        found.append(
            "In this run the original or a mask passes these comparisons too, so that passing them "
            f"shows nothing: {listed(blind)}."
        )
    for row in validation["checks"]:
        if row["name"] == "head_swap" and row["passed"]:
            found.append(
                "The class does not come back under the original's last layer. That shows nothing "
                "either way: features that are merely turned round have the same effect."
            )
    if not validation.get("oracles"):
        found.append(
            "Nothing was compared with retrained models. Nothing else is known of what the layers "
            "before the last hold, of how fast the class can be relearned, or of whether its "
            "training images can be recognised."
        )
    else:
        found += _unmeasured(validation)
    if validation["grade"] != "forgotten" or not validation.get("trustworthy", True):
        found.append("That the layers before the last let go of the class was not shown.")
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


def _compared(validation: Mapping[str, Any]) -> list[Check]:
    """The comparisons with retrained models."""
    return [row for row in validation["checks"] if row.get("about") == "oracles"]


def _tells(row: Check) -> bool:
    return row.get("about") != "oracles" or bool(row["counts"])


def _failed(row: Check) -> str:
    value, threshold = apart(row["value"], row["threshold"])
    side = "at least" if row["compare"] == ">=" else "at most"
    rejects = "; this rejects the forget" if row.get("blocks") else ""
    return f"The check {row['name']} failed: {value}, where {side} {threshold} passes{rejects}."


def _unmeasured(validation: Mapping[str, Any]) -> list[str]:
    """The metrics that have no value for the unlearned model."""
    absent = [name for name, row in metrics(validation).items() if row.get("unlearned") is None]
    found = []
    if "anamnesis" in absent:
        found.append(
            "Neither this model nor the retrained ones relearned the class within the steps that "
            "were made, so there is no anamnesis index."
        )
    others = [label(name) for name in absent if name != "anamnesis"]
    if others:
        found.append(f"Has no value for this model in this run: {listed(others)}.")
    return found
