"""Checks of a validation, and its verdict."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from expunge.config import GateConfig
from expunge.core.grading.checks import Check, check_forget, check_parity, check_training
from expunge.core.grading.grades import at_least
from expunge.validation.findings import Findings
from expunge.validation.measure import Measurement, Subject, measure_retained, summarise
from expunge.validation_report import UNLEARNED, CheckRow, ValidationReport
from expunge.verdicts import Verdict

# No policy lets these pass: a class that the outputs still give, and a file that is not the model.
ALWAYS = ("forget_error", "erased_stay_erased", "onnx_equal_argmax")
# Of the classes erased before there may be none, or none with images, and then it is no check.
MAY_BE_MISSING = "erased_stay_erased"


def check(config: GateConfig, subject: Subject, measured: Measurement) -> list[Check]:
    """Check what was measured without oracles."""
    own = _check_forget if subject.original else _check_training
    file_checks = check_parity(
        measured.onnx_difference, measured.onnx_equal_argmax, config.onnx_atol
    )
    return [*own(config, subject, measured), *file_checks]


def _check_training(config: GateConfig, subject: Subject, measured: Measurement) -> list[Check]:
    trained = subject.classes_that_stay
    return check_training(
        code_accuracy=measured.codes_right_K.mean().item(),
        test_accuracy=measure_retained(subject, measured.after, measured.samples),
        test_samples=sum(measured.samples[i] for i in trained),
        num_classes=len(trained),
        chance_factor=config.chance_factor,
    )


def _check_forget(config: GateConfig, subject: Subject, measured: Measurement) -> list[Check]:
    owner = subject.owner
    chosen_K = torch.isin(owner.codes.classes_K, torch.tensor(subject.classes))
    return check_forget(
        before=measured.before or (),
        after=measured.after,
        samples=measured.samples,
        forget=subject.classes,
        erased=owner.info.forgotten,
        forget_error=config.forget_error,
        budget=config.budget,
        worst_drop=config.worst_drop,
        codes_forgotten=1 - measured.codes_right_K[chosen_K].mean().item(),
        codes_retained=measured.codes_right_K[~chosen_K].mean().item(),
    )


def decide(
    config: GateConfig,
    subject: Subject,
    measured: Measurement,
    checks: Sequence[Check],
    *,
    findings: Findings | None = None,
) -> ValidationReport:
    """Return the report of a training or, with the findings of its attacks, of a forget."""
    if findings is None:
        rejecting = {made.name for made in checks}  # every check of a training blocks
        rows = tuple(CheckRow.from_check(made, rejecting) for made in checks)
        verdict = _decide_training(rows)
    else:
        rejecting = {*config.block, *ALWAYS}
        rows = tuple(CheckRow.from_check(made, rejecting) for made in (*checks, *findings.checks))
        verdict = _decide_forget(config, subject, rows, findings)
    before = None
    if measured.before is not None:
        before = summarise(subject, measured.before, measured.samples)
    report = ValidationReport(
        classes=tuple(sorted(subject.classes)),
        class_names=subject.model.info.class_names,
        checks=rows,
        verdict=verdict,
        before=before,
        after=summarise(subject, measured.after, measured.samples),
        samples=measured.samples,
        data_digest=subject.info.splits["test"].digest,
    )
    if findings is None:
        return report
    return replace(
        report,
        oracles=findings.oracles,
        attacks=findings.attacks,
        relearning=findings.relearning,
        depth=findings.depth,
        # a policy's file may change: the report says what this run was judged by
        policy={
            "grade": config.grade,
            "budget": config.budget,
            "forget_error": config.forget_error,
            "worst_drop": config.worst_drop,
            "block": list(config.block),
        },
    )


def _decide_training(rows: Sequence[CheckRow]) -> Verdict:
    failed = _list_failed(rows)
    return Verdict(passed=not failed, grade="failed" if failed else "trained", failed=failed)


def _decide_forget(
    config: GateConfig, subject: Subject, rows: Sequence[CheckRow], findings: Findings
) -> Verdict:
    """Return the verdict on a forget.

    The grade is "failed" where a check that blocks fails, and else what the battery says. Without a
    grade of the battery the outputs forget, and that is all that is known.
    """
    failed, made = _list_failed(rows), {row.name for row in rows}
    unmade = tuple(n for n in config.block if n not in made and n != MAY_BE_MISSING)
    grade = "failed" if failed else findings.grades.get(UNLEARNED, "suppressed")
    enough = at_least(grade, config.grade)
    # the most important reason stands first: the page and the command show it first
    reasons = [*findings.problems, *findings.reasons]
    if subject.split_changes:
        changed = " and ".join(subject.split_changes)
        text = f"Measured on other images than the model's own: split {changed}."
        reasons.insert(len(findings.problems), text)
    if unmade:
        reasons.insert(0, f"The policy blocks on what could not be checked: {', '.join(unmade)}.")
    return Verdict(
        passed=enough and not unmade and not findings.problems,
        grade=grade,
        needed=config.grade,
        trustworthy=not findings.problems,
        problems=findings.problems,
        reasons=tuple(reasons),
        unmade=unmade,
        controls={name: own for name, own in findings.grades.items() if name != UNLEARNED},
        failed=failed,
    )


def _list_failed(rows: Sequence[CheckRow]) -> tuple[str, ...]:
    return tuple(row.name for row in rows if row.blocks and not row.passed)
