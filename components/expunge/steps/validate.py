"""The gate's step: measure a model on test data and on its codes, attack it, and decide."""

from collections.abc import Sequence
from pathlib import Path

from expunge.config import GateConfig
from expunge.validation.attack import attack, load_oracles
from expunge.validation.measure import measure, open_subject
from expunge.validation.verdict import check, decide
from expunge.validation_report import ValidationReport


def validate(
    config: GateConfig,
    dataset: Path,
    model: Path,
    onnx: Path,
    *,
    base: Path | None = None,
    oracles: Path | None = None,
    classes: Sequence[int] = (),
) -> ValidationReport:
    """Check a trained model, or with `base` and `classes` an unlearned one against its base.

    A forget passes when no check of `config.block` fails, its grade is `config.grade` or better,
    and the controls got the grades that they must. It is graded "failed" where a check of the
    outputs or one that blocks fails, and else as `core.grading.grades` says.

    Args:
        config: the thresholds, and what rejects.
        dataset: a data set folder; with oracles it has the training split too.
        model: the folder of the model that is judged.
        onnx: the exported file of that model, which is what will serve.
        base: the folder of the model that it was made from, of a forget.
        oracles: a folder of model folders, models retrained without the classes.
        classes: the class indices that were to be forgotten.

    Raises:
        UserError: the data set does not fit the model, or lacks images of a class that it needs.
    """
    subject = open_subject(dataset, model, base, classes)
    measured = measure(subject, onnx)
    checks = check(config, subject, measured)
    findings = None
    if subject.original is not None:
        retrained = load_oracles(subject, oracles)
        findings = attack(subject, retrained, forget_error=config.forget_error)
    return decide(config, subject, measured, checks, findings=findings)
