"""The gate's step: measure a model on test data and on its codes, attack it, and decide."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expunge.config import GateConfig
from expunge.forgetting.ladder import list_rungs
from expunge.formats.files import read_json
from expunge.validation.attack import attack, load_oracles
from expunge.validation.measure import measure, open_subject
from expunge.validation.verdict import check, decide
from expunge.validation_report import Rung, ValidationReport


@dataclass(frozen=True)
class Climb:
    """Where on the ladder a forget is: its rung, from 1, and the reports that belong to it.

    `work` is that of `perturb`, and `before` that of the rung before, which the first has not.
    """

    rung: int
    work: Path
    before: Path | None = None


def validate(
    config: GateConfig,
    dataset: Path,
    model: Path,
    onnx: Path,
    *,
    base: Path | None = None,
    oracles: Path | None = None,
    classes: Sequence[int] = (),
    climb: Climb | None = None,
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
        climb: where on the ladder the forget is. What has come of each rung is then in the report,
            and the rule to try next where this one did not do and there is another.

    Raises:
        UserError: the data set does not fit the model, or lacks images of a class that it needs.
    """
    since = time.perf_counter()
    subject = open_subject(dataset, model, base, classes)
    measured = measure(subject, onnx)
    checks = check(config, subject, measured)
    findings = None
    if subject.original is not None:
        retrained = load_oracles(subject, oracles)
        findings = attack(subject, retrained, forget_error=config.forget_error)
    report = decide(config, subject, measured, checks, findings=findings)
    if climb is None or base is None:
        return report
    rungs = list_rungs(base, dataset, classes)
    return _add_rung(report, climb, rungs[climb.rung :], time.perf_counter() - since)


def _add_rung(
    report: ValidationReport, climb: Climb, left: Sequence[str], seconds: float
) -> ValidationReport:
    """Return the report with the rungs up to this one; `left` are the rules that are left."""
    work, verdict = read_json(climb.work), report.verdict
    own = Rung(
        rule=work["rule"],
        grade=report.grade,
        passed=report.passed,
        rejections=tuple(verdict.rejections),
        seconds=work["calibration_seconds"] + work["perturbation_seconds"],
        judging_seconds=seconds,
    )
    before = ValidationReport.from_json(read_json(climb.before)).rungs if climb.before else ()
    # controls that went wrong would do so beside every rule
    goes_on = left and not report.passed and verdict.trustworthy
    return dataclasses.replace(report, rungs=(*before, own), next_rule=left[0] if goes_on else "")
