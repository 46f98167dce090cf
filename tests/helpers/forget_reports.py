"""Reports of a forget, written by hand as `validate` and `perturb` write theirs."""

import math
from collections.abc import Sequence
from typing import Any

from expunge.config import BASE_CHECKS
from expunge.report import render
from expunge.validation_report import MODELS, ValidationReport

Report = dict[str, Any]

# Values by metric: unlearned, original, mask, soft-mask, held-out, oracles; threshold.
ATTACKS: dict[str, tuple[list[float | None], list[float], float | None]] = {
    "head_swap": ([0.31, 0.98, 0.98, 0.98, 0.42], [0.35, 0.5, 0.28], 0.784),
    "head_recovery": ([0.952, 0.984, 0.984, 0.984, 0.951], [0.95, 0.953, 0.949], 0.013),
    "head_recovery_logistic": ([0.961, 0.99, 0.99, 0.99, 0.96], [0.955, 0.962, 0.958], 0.062),
    "prototype_recovery": ([0.63, 0.93, 0.93, 0.93, 0.6], [0.58, 0.61, 0.63], 0.12),
    "layer_recovery": ([0.931, 0.97, 0.97, 0.97, 0.93], [0.929, 0.933, 0.93], 0.027),
    "relearning": ([0.52, 0.97, 0.94, 0.55, 0.48], [0.47, 0.5, 0.51], 0.11),
    "membership": ([None] * 5, [0.4, 0.42, 0.41], None),
    "output_distance": ([0.11, 0.22, 0.22, 0.22, 0.07], [0.05, 0.06, 0.08], 0.16),
    "cmia": ([0.91, 0.4, 0.6, 0.62, 0.93], [0.94, 0.92, 0.95], 0.1),
    "activation_distance": ([0.31, 1.12, 0.62, 0.6, 0.24], [0.22, 0.25, 0.21], 0.15),
    "tow": ([0.985, 0.02, 0.97, 0.97, 0.992], [0.991, 0.994, 0.99], 0.035),
}


def render_document(report: Report, made: Report) -> str:
    """Render what is written as JSON."""
    return render(ValidationReport.from_json(report), made)


def check(name: str, value: float | None, compare: str, threshold: float, **more: Any) -> Report:
    passed = value is not None and (value >= threshold if compare == ">=" else value <= threshold)
    rejects = name in BASE_CHECKS
    row = {"name": name, "value": value, "compare": compare, "threshold": threshold}
    row |= {"samples": None, "passed": passed, "about": "outputs", "blocks": rejects}
    return row | {"counts": None} | more


def base_checks(samples: int = 980) -> list[Report]:
    return [
        check("forget_error", 0.9969, ">=", 0.95, samples=samples),
        check("retain_accuracy_drop", 0.0021, "<=", 0.015, samples=9000, about="utility"),
        check("worst_class_drop", 0.0088, "<=", 0.06, samples=1028, about="utility"),
        check("codes_forgotten", 1.0, ">=", 1.0, about="codes"),
        check("codes_retained", 1.0, ">=", 1.0, about="codes"),
        check("onnx_max_difference", 3.6e-07, "<=", 1e-05, about="file"),
        check("onnx_equal_argmax", 1.0, ">=", 1.0, about="file"),
    ]


def validation(classes: Sequence[int] = (3,), count: int = 10) -> Report:
    """Without oracles, suppressed and passed."""
    before = [0.97 + 0.02 * math.sin(index) for index in range(count)]
    after = [
        0.0031 if index in classes else accuracy - 0.004 * (1 + math.cos(7 * index))
        for index, accuracy in enumerate(before)
    ]
    names = [f"forgotten-{i}" if i in classes else f"digit {i}" for i in range(count)]
    swap: Report = dict(zip(MODELS[:4], ATTACKS["head_swap"][0], strict=False))
    swapped = check("head_swap", 0.31, "<", 0.784, about="body", counts=True, samples=980)
    layers = [("hidden.weight", 0.071), ("hidden.bias", 0.12), ("head.weight", 0.204)]
    return {
        "classes": list(classes),
        "class_names": names,
        "data_digest": "8a7fe43a" * 8,
        "samples": [980] * count,
        "before": {"forget_error": 0.0193, "retain_accuracy": 0.9712, "per_class": before},
        "after": {"forget_error": 0.9969, "retain_accuracy": 0.9691, "per_class": after},
        "checks": [*base_checks(), swapped],
        "grade": "suppressed",
        "needed": "suppressed",
        "passed": True,
        "trustworthy": True,
        "reasons": [
            "Nothing was compared with retrained models: there are fewer than 4 "
            "(3 to compare with, one held out as a control)."
        ],
        "controls": {"original": "failed", "mask": "hidden", "soft-mask": "hidden"},
        "oracles": 0,
        "attacks": {"head_swap": swap | {"threshold": 0.784}},
        "relearning": None,
        "depth": {
            "layers": [{"name": name, "relative_change": value} for name, value in layers],
            "head_alone": 0.41,
            "body_alone": 0.69,
            "both": 0.9969,
        },
        "policy": {
            "grade": "suppressed",
            "budget": 0.015,
            "forget_error": 0.95,
            "worst_drop": 0.06,
            "block": list(BASE_CHECKS),
        },
    }


def hidden(needed: str = "suppressed") -> Report:
    """Without oracles: the class comes back, which rejects it unless the policy allows it."""
    report = validation()
    report["checks"][-1] |= {"value": 0.946, "passed": False}
    report["attacks"]["head_swap"]["unlearned"] = 0.946
    reason = (
        "The class is still in the body: a new head finds 92 % of class 3 where the original's "
        "finds 93 %."
    )
    return report | {
        "grade": "hidden",
        "needed": needed,
        "passed": needed == "hidden",
        "reasons": [reason, *report["reasons"]],
    }


def with_oracles(classes: Sequence[int] = (3,), count: int = 10) -> Report:
    """Like three oracles wherever it could be told, so forgotten; two comparisons could not."""
    report = validation(classes, count)
    blind = ("relearning", "tow")
    for name, (values, oracles, threshold) in ATTACKS.items():
        row: Report = dict(zip(MODELS, values, strict=True))
        report["attacks"][name] = row | {"oracles": oracles, "threshold": threshold}
        mine = values[0]
        if name != "head_swap" and mine is not None and threshold is not None:
            gap = abs(mine - sum(oracles) / len(oracles))
            more = {"about": "oracles", "counts": name not in blind, "samples": 980}
            report["checks"].append(check(name, gap, "<=", threshold, **more))
    report["attacks"]["anamnesis"] = dict(zip(MODELS, (1.1, 0.0, 0.2, 1.0, 0.9), strict=True)) | {
        "oracles": [],
        "threshold": None,
        "cap": 50,
        "oracle_steps": [20, 25, 25],
    }
    steps = list(range(0, 55, 5))
    rises = {"unlearned": 18, "original": 0.2, "mask": 4, "soft-mask": 16, "held-out": 20}
    curves: Report = {
        name: [round(1 - math.exp(-(step + 0.01) / rise), 4) * 0.98 for step in steps]
        for name, rise in rises.items()
    }
    curves["oracles"] = [[0.97 * (1 - math.exp(-s / r)) for s in steps] for r in (19, 22, 24)]
    report["relearning"] = {"steps": steps, "curves": curves}
    return report | {
        "oracles": 3,
        "grade": "forgotten",
        "needed": "forgotten",
        "reasons": [],
        "controls": report["controls"] | {"held-out": "forgotten"},
    }


def work(classes: Sequence[int] = (3,)) -> Report:
    """Return the report of a calibration on three paths."""
    trials = []
    for rule, sign, lambdas, scale in (
        ("paper", 1, [10.0], 1e-3),
        ("paper", 1, [100.0], 4e-4),
        ("natural", 1, [], 0.3),
    ):
        for step in range(-6, 5):
            strength = scale * 10 ** (step / 2)
            depth = 4 * 10 ** (step / 2)
            trials.append(
                {
                    "rule": rule,
                    "sign": sign,
                    "strength": strength,
                    "lambdas": [strength, *lambdas] if lambdas else [],
                    "forget_loss": None if step == 4 and rule == "paper" else depth,
                    "retain_loss": 0.01 * depth,
                    "forgotten": float(depth > 1),
                    "retained": 1.0,
                    "damage": 0.003 * depth**1.4 if step % 3 else None,
                }
            )
    chosen = trials[18] | {"strength": 6e-4, "lambdas": [6e-4, 100.0]}
    chosen |= {"forget_loss": 6.0, "damage": 0.0147, "forgotten": 1.0}
    return {
        "classes": list(classes),
        **chosen,
        "sufficient": True,
        "trials": trials,
        "calibration_seconds": 0.215,
        "perturbation_seconds": 0.0021,
    }
