"""The gate's step: measure a model on test data and on its codes, and check it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.config import GateConfig
from expunge.core import metrics
from expunge.core.epoch import normalise
from expunge.core.grading import checks as gate
from expunge.core.grading.checks import Check
from expunge.data.batches import Share, Split, open_split
from expunge.device import best_device
from expunge.errors import UserError
from expunge.formats import onnx as export
from expunge.formats.dataset import DatasetInfo, load_dataset_info
from expunge.formats.model import StoredModel, load_model
from expunge.validation.attack import attack
from expunge.validation.findings import UNLEARNED, Findings

BATCH = 256
# No policy lets these pass: a class that the outputs still give, and a file that is not the model.
ALWAYS = ("forget_error", "erased_stay_erased", "onnx_equal_argmax")


def validate(
    config: GateConfig,
    dataset: Path,
    model: Path,
    onnx: Path,
    *,
    base: Path | None = None,
    oracles: Path | None = None,
    classes: Sequence[int] = (),
) -> dict[str, Any]:
    """Check a trained model, or with `base` and `classes` an unlearned one against its base.

    Accuracies are those of the float32 model on the test split; the ONNX file `onnx`, which is
    what will serve, is compared with it on every test image. A forget is attacked as well, beside
    its controls: `oracles` is a folder of model folders, models retrained without the classes.

    A forget passes when no check of `config.block` fails, its grade is `config.grade` or better,
    and the controls got the grades that they must. It is graded "failed" where a check of the
    outputs or one that blocks fails, and else as `core.grades` says.

    Raises:
        UserError: the data set does not fit the model, or lacks images of a class that it needs.
    """
    info = load_dataset_info(dataset)
    unlearned = load_model(model)
    original = load_model(base) if base else unlearned
    _check_fit(info, unlearned)
    split = open_split(dataset, info, "test", torch.device("cpu"))
    parity = export.parity(
        unlearned, onnx, (images.numpy() for images, _ in split.eval_batches(BATCH, Share()))
    )
    labels_N = split.labels_N
    num_classes = len(unlearned.info.class_names)
    samples = torch.bincount(labels_N, minlength=num_classes).tolist()
    after = _accuracies(torch.from_numpy(parity.predictions_N), labels_N, num_classes)
    report: dict[str, Any] = {
        "classes": sorted(classes),
        "class_names": list(unlearned.info.class_names),
        "data_digest": info.splits["test"].digest,
        "samples": samples,
    }
    # no two probabilities differ by more than 1, and JSON has no number for infinity
    difference = min(parity.max_abs_difference, 1.0)
    file_checks = gate.parity_checks(difference, parity.equal_argmax, config.onnx_atol)
    if base is None:
        trained = unlearned.info.retained
        _need_samples(info.source, samples, trained)
        right = sum(after[i] * samples[i] for i in trained)
        checks = gate.train_checks(
            code_accuracy=_codes_right(unlearned, unlearned).mean().item(),
            test_accuracy=right / sum(samples[i] for i in trained),
            test_samples=sum(samples[i] for i in trained),
            num_classes=len(trained),
            chance_factor=config.chance_factor,
        )
        report["after"] = {"test_accuracy": checks[1].value, "per_class": after}
        return report | _trained([*checks, *file_checks])
    retained = [i for i in original.info.retained if i not in classes]
    _need_samples(info.source, samples, [*classes, *retained])
    before = _accuracies(_predictions(original, split), labels_N, num_classes)
    right_K = _codes_right(unlearned, original)
    chosen_K = torch.isin(original.codes.classes_K, torch.tensor(list(classes)))
    checks = gate.forget_checks(
        before=before,
        after=after,
        samples=samples,
        forget=classes,
        erased=original.info.forgotten,
        forget_error=config.forget_error,
        budget=config.budget,
        worst_drop=config.worst_drop,
        codes_forgotten=1 - right_K[chosen_K].mean().item(),
        codes_retained=right_K[~chosen_K].mean().item(),
    )
    for key, accuracies in (("before", before), ("after", after)):
        report[key] = _paper_metrics(accuracies, samples, classes, retained)
    folders = _folders(oracles)
    changed = _changed_splits(info, original)
    if changed and folders:
        raise UserError(
            f"the images of split {' and '.join(changed)} of {info.source} are not those that the "
            "model and its oracles were trained on, so nothing can be compared; put them back"
        )
    findings = attack(
        dataset,
        info,
        original,
        unlearned,
        [load_model(folder) for folder in folders],
        classes,
        forget_error=config.forget_error,
    )
    if changed:
        text = f"Measured on other images than the model's own: split {' and '.join(changed)}."
        findings = dataclasses.replace(findings, reasons=(text, *findings.reasons))
    return report | findings.report | _forgotten(config, [*checks, *file_checks], findings)


def _trained(checks: Sequence[Check]) -> dict[str, Any]:
    """The verdict on a training: every check blocks."""
    passed = all(check.passed for check in checks)
    names = [check.name for check in checks]
    return {
        "checks": [check.as_row(names) for check in checks],
        "passed": passed,
        "grade": "trained" if passed else "failed",
    }


def _forgotten(config: GateConfig, checks: Sequence[Check], findings: Findings) -> dict[str, Any]:
    """The verdict on a forget."""
    every = [*checks, *findings.checks]
    rejecting = {*config.block, *ALWAYS}
    failed = [check.name for check in every if check.name in rejecting and not check.passed]
    made = {check.name for check in every}
    # of classes erased before there may be none
    unmade = [name for name in config.block if name not in made and name != "erased_stay_erased"]
    grade = "failed" if failed else findings.grades.get(UNLEARNED, "suppressed")
    enough = grade == "forgotten" or (grade, config.grade) == ("suppressed", "suppressed")
    reasons = [*findings.problems, *findings.reasons]
    if unmade:
        reasons.insert(0, f"The policy blocks on what could not be checked: {', '.join(unmade)}.")
    return {
        "checks": [check.as_row(rejecting) for check in every],
        "grade": grade,
        "needed": config.grade,
        "trustworthy": not findings.problems,
        "problems": list(findings.problems),
        "reasons": reasons,
        "unmade": unmade,
        "controls": {name: own for name, own in findings.grades.items() if name != UNLEARNED},
        "passed": enough and not unmade and not findings.problems,
        "policy": {
            "grade": config.grade,
            "budget": config.budget,
            "forget_error": config.forget_error,
            "worst_drop": config.worst_drop,
            "block": list(config.block),
        },
    }


def _folders(oracles: Path | None) -> list[Path]:
    """The model folders within, by name."""
    return sorted(path for path in oracles.iterdir() if path.is_dir()) if oracles else []


def _paper_metrics(
    accuracies: Sequence[float],
    samples: Sequence[int],
    forget: Sequence[int],
    retain: Sequence[int],
) -> dict[str, Any]:
    """E_F, the lowest of the forgotten classes', and A_R over all samples of the retained ones."""
    right = sum(accuracies[i] * samples[i] for i in retain)
    return {
        "forget_error": 1 - max(accuracies[i] for i in forget),
        "retain_accuracy": right / sum(samples[i] for i in retain),
        "per_class": list(accuracies),
    }


def _accuracies(predictions_N: Tensor, labels_N: Tensor, num_classes: int) -> list[float]:
    """Accuracy by class; 0 for a class without samples, which no check then reads."""
    accuracy_C = metrics.class_accuracy(predictions_N, labels_N, num_classes)
    return [float(value) for value in accuracy_C.nan_to_num(0.0)]


def _predictions(stored: StoredModel, split: Split) -> Tensor:
    """The class that the model gives each test image, computed on the best device."""
    device = best_device()
    mean_C, std_C = (
        torch.tensor(row, device=device) for row in (stored.info.mean, stored.info.std)
    )
    batches = (
        normalise(images_NHWC.to(device), mean_C, std_C)
        for images_NHWC, _ in split.eval_batches(BATCH, Share())
    )
    return metrics.predict(stored.module.to(device), batches).argmax(1).cpu()


def _codes_right(judged: StoredModel, owner: StoredModel) -> Tensor:
    """1.0 for each of the owner's codes that the judged model classifies right, else 0.0."""
    with torch.no_grad():
        predictions_K = judged.module(owner.codes.images_KCHW).argmax(1)
    return torch.eq(predictions_K, owner.codes.classes_K).double()


def _check_fit(info: DatasetInfo, stored: StoredModel) -> None:
    if info.input_shape != stored.info.input_shape:
        raise UserError(
            f"images of {info.source} are {info.input_shape} (C, H, W) and the model takes "
            f"{stored.info.input_shape}; use the data that it was trained on"
        )
    if len(info.class_names) != len(stored.info.class_names):
        raise UserError(
            f"{info.source} has {len(info.class_names)} classes and the model "
            f"{len(stored.info.class_names)}; use the data that it was trained on"
        )


def _changed_splits(info: DatasetInfo, stored: StoredModel) -> list[str]:
    """The splits that are not what the model was trained with, as far as it says."""
    known = stored.info.data_digests
    return [
        name for name, part in info.splits.items() if known.get(name, part.digest) != part.digest
    ]


def _need_samples(source: str, samples: Sequence[int], classes: Sequence[int]) -> None:
    empty = [i for i in classes if not samples[i]]
    if empty:
        raise UserError(f"{source} has no test image of classes {empty}; nothing can be measured")
