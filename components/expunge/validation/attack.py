"""The battery as validation runs it: the unlearned model beside controls and oracles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from expunge.core import metrics
from expunge.core.attacks.case import Body, Case
from expunge.core.grading import body, grades
from expunge.core.grading.checks import Check
from expunge.core.grading.grades import Grade
from expunge.core.grading.judge import Judgement, check_outputs, judge, judge_alone
from expunge.core.heads import Head, Observed, mask_heads, read_head, with_head
from expunge.device import best_device, deterministic
from expunge.errors import UserError
from expunge.formats.files import replace_non_finite
from expunge.formats.model import ModelInfo, StoredModel, load_model
from expunge.oracles import NEEDED
from expunge.validation.findings import (
    Findings,
    build_anamnesis_row,
    build_block_rows,
    build_class_row,
    build_curves,
    build_metric_row,
    explain_body,
    explain_grade,
    explain_return,
    find_problems,
)
from expunge.validation.measure import Subject
from expunge.validation.samples import SEED, Bench, open_bench
from expunge.validation_report import HELD_OUT, MASK, ORIGINAL, UNLEARNED, Depth, LayerChange


@dataclass(frozen=True)
class _Models:
    """The models of one forget on their device, and how low an error is still forgetting."""

    forget: tuple[int, ...]
    retain: tuple[int, ...]
    names: tuple[str, ...]  # of the forgotten classes
    original: nn.Module
    unlearned: nn.Module
    retained_codes_KCHW: torch.Tensor
    num_classes: int
    forget_error: float

    def build_masks(self) -> dict[str, Head]:
        """Return the original's head, masked in both ways."""
        return mask_heads(self.original, self.retained_codes_KCHW, self.forget, self.num_classes)

    def grade_outputs(self, tests: Mapping[str, Observed]) -> dict[str, Grade]:
        """Return the grade of each model by its outputs alone, on the forgotten classes' images."""
        return {
            name: grades.grade(check_outputs(test, self.forget, self.forget_error), {}, {}, {})
            for name, test in tests.items()
        }


def load_oracles(subject: Subject, folder: Path | None) -> list[StoredModel]:
    """Load the model folders within a folder, by name.

    Raises:
        UserError: there are oracles, but the images are not those that they were trained on.
    """
    # by name, since the last one is held out: two validations have to hold out the same
    paths = sorted(path for path in folder.iterdir() if path.is_dir()) if folder else []
    if paths and subject.split_changes:
        raise UserError(
            f"the images of split {' and '.join(subject.split_changes)} of {subject.info.source} "
            "are not those that the model and its oracles were trained on, so nothing can be "
            "compared; put them back"
        )
    return [load_model(path) for path in paths]


@deterministic()
def attack(subject: Subject, oracles: Sequence[StoredModel], *, forget_error: float) -> Findings:
    """Compare the unlearned model with its original, the masks and the oracles.

    All oracles but the last are compared with. The last is held out: it is a control that has to be
    graded forgotten. Fewer than `NEEDED` are not used at all. Then there are the body checks alone,
    which need none.

    Raises:
        UserError: a class that takes part has no image in one of the splits, or an oracle was not
            trained without just the forgotten classes.
    """
    info, original, device = subject.info, subject.owner, best_device()
    for oracle in oracles:
        _check_oracle(original.info, oracle.info, subject.classes)
    gone = {*subject.classes, *original.info.forgotten}
    retained_K = torch.tensor([int(c) not in gone for c in original.codes.classes_K])
    models = _Models(
        forget=tuple(sorted(subject.classes)),
        retain=tuple(i for i in range(len(info.class_names)) if i not in gone),
        names=tuple(original.info.class_names[index] for index in sorted(subject.classes)),
        original=original.module.to(device),
        unlearned=subject.model.module.to(device),
        retained_codes_KCHW=original.codes.images_KCHW[retained_K].to(device),
        num_classes=len(info.class_names),
        forget_error=forget_error,
    )
    scale = original.info.mean, original.info.std
    # with fewer there is no spread to go by, or no control that can fail
    enough = len(oracles) >= NEEDED
    bench = open_bench(
        subject.dataset, info, scale, forget=models.forget, retain=models.retain, whole=enough
    )
    # some architectures end in a convolution, and then no head reads the body's features
    try:
        read_head(models.original, models.num_classes)
    except ValueError as error:
        return _grade_without_head(models, bench, f"No attack looked into the body: {error}.")
    if not enough:
        return _attack_without_oracles(models, bench)
    return _attack_beside_oracles(models, bench, [oracle.module.to(device) for oracle in oracles])


def _check_oracle(original: ModelInfo, oracle: ModelInfo, classes: Sequence[int]) -> None:
    expected = sorted({*original.forgotten, *classes})
    shapes = (oracle.input_shape, len(oracle.class_names))
    if sorted(oracle.forgotten) != expected:
        raise UserError(
            f"an oracle was trained without classes {sorted(oracle.forgotten)}; expected {expected}"
        )
    if shapes != (original.input_shape, len(original.class_names)):
        raise UserError(
            f"an oracle takes images of {shapes[0]} and has {shapes[1]} classes; expected "
            f"{original.input_shape} and {len(original.class_names)}"
        )


def _measure_layers(models: _Models) -> Depth:
    """Return how much each layer changed."""
    changes = metrics.relative_changes(
        dict(models.original.named_parameters()), dict(models.unlearned.named_parameters())
    )
    rows = replace_non_finite(changes)
    return Depth(tuple(LayerChange(name, change) for name, change in rows.items()))


def _measure_depth(models: _Models, original: Observed, unlearned: Observed) -> Depth:
    """Return which part of the effect each half of the change has alone."""

    def measure_error(test: Observed) -> float:
        return 1 - max(test.of(index).right for index in models.forget)

    heads = [read_head(model, models.num_classes) for model in (models.original, models.unlearned)]
    return replace(
        _measure_layers(models),
        head_alone=measure_error(original.under(heads[1])),
        body_alone=measure_error(unlearned.under(heads[0])),
        both=measure_error(unlearned),
    )


def _grade_without_head(models: _Models, bench: Bench, reason: str) -> Findings:
    """Grade the original and the unlearned model by their outputs; no mask can be made."""
    pair = {ORIGINAL: models.original, UNLEARNED: models.unlearned}
    tests = {name: bench.observe_outputs(model, "forget_test") for name, model in pair.items()}
    given = models.grade_outputs(tests)
    return Findings(
        given, _measure_layers(models), reasons=(reason,), problems=find_problems(given)
    )


def _fail_without_numbers(models: _Models) -> Findings:
    reason = "The unlearned model gives values that are no numbers; no attack was made."
    return Findings({UNLEARNED: "failed"}, _measure_layers(models), reasons=(reason,))


def _attack_without_oracles(models: _Models, bench: Bench) -> Findings:
    """Make the body checks on the original, on its masks and on the unlearned model."""
    unlearned = bench.see_body(models.unlearned)
    if not unlearned.finite:
        return _fail_without_numbers(models)
    original = bench.see_body(models.original)
    _check_numbers(original)
    seen = {UNLEARNED: unlearned, ORIGINAL: original}
    seen |= {name: original.put_under(head) for name, head in models.build_masks().items()}
    case = Case(models.forget, models.retain, original, SEED)
    found = judge_alone(case, seen, forget_error=models.forget_error)
    swap, position = _check_swap(case, found)
    mine = found.values[UNLEARNED]
    attacks = {name: build_metric_row(name, found, position) for name in mine}
    attacks[swap.name] = build_class_row(swap.name, found, position, swap.threshold)
    reason = (
        f"Nothing was compared with retrained models: there are fewer than {NEEDED} "
        f"({NEEDED - 1} to compare with, one held out as a control)."
    )
    shown = explain_body(models.names, found)
    if not swap.passed and found.fits[UNLEARNED]:
        full = original.measure_forget_accuracy(models.forget)[position]
        shown.insert(0, explain_return(swap, full))
    return Findings(
        found.grades,
        _measure_depth(models, original.forget_test, unlearned.forget_test),
        checks=(swap,),
        reasons=(*shown, *bench.remarks, reason),
        problems=find_problems(found.grades),
        attacks=attacks,
    )


def _check_numbers(*models: Body) -> None:
    if not all(one.finite for one in models):
        raise UserError(
            "the original or an oracle gives values that are no numbers, so nothing can be "
            "compared with it; train it anew"
        )


def _attack_beside_oracles(models: _Models, bench: Bench, oracles: Sequence[nn.Module]) -> Findings:
    """Run the whole battery."""
    original, unlearned = bench.see(models.original), bench.see(models.unlearned)
    # before the oracles are seen, which takes most of the time
    if not unlearned.finite:
        return _fail_without_numbers(models)
    retrained = [bench.see(oracle) for oracle in oracles]
    _check_numbers(original, *retrained)
    seen = {UNLEARNED: unlearned, ORIGINAL: original}
    for name, head in models.build_masks().items():
        relearning = bench.relearn(with_head(models.original, head))
        seen[name] = original.swap_head(head, relearning)
    # held out before anything is fitted: it must not be compared with itself
    *compared, seen[HELD_OUT] = retrained
    case = Case(models.forget, models.retain, original, SEED)
    # The soft mask is no control of what counts: a retrained model's outputs are what it imitates.
    found = judge(case, seen, compared, (ORIGINAL, MASK), forget_error=models.forget_error)
    mine = found.values[UNLEARNED]
    swap, position = _check_swap(case, found)
    attacks = {name: build_metric_row(name, found, position) for name in mine}
    attacks[swap.name] = build_class_row(swap.name, found, position, swap.threshold)
    attacks["anamnesis"] = build_anamnesis_row(case, seen, compared)
    reasons = explain_grade(case.forget, found)
    if found.grades[UNLEARNED] != "forgotten":
        shown = explain_body(models.names, found)
        full = original.measure_forget_accuracy(models.forget)[position]
        # a retrained body can bring the class back by chance, so it takes more than any of them
        highest = max(values[swap.name][position] or 0.0 for values in found.oracles)
        if not swap.passed and found.fits[UNLEARNED] and swap.value > highest:
            shown.insert(0, explain_return(swap, full))
        # the most important stands first
        reasons = shown + reasons if any(found.held[UNLEARNED]) else reasons + shown
    depth = _measure_depth(models, original.forget_test, unlearned.forget_test)
    return Findings(
        found.grades,
        replace(depth, blocks=build_block_rows(case, seen, compared, position)),
        checks=(swap, *found.checks[UNLEARNED].values()),
        reasons=tuple(reasons),
        problems=find_problems(found.grades),
        oracles=len(compared),
        attacks=attacks,
        relearning=build_curves(seen, compared),
    )


def _check_swap(case: Case, found: Judgement) -> tuple[Check, int]:
    """Return the head swap's check, and the position of the class that it shows."""
    swapped = [value or 0.0 for value in found.values[UNLEARNED][body.SWAP]]
    full = case.original.measure_forget_accuracy(case.forget)
    samples = case.original.count_forget_test(case.forget)
    position = body.find_most_returned(swapped, full, samples)
    return body.check_swap(swapped, full, samples), position
