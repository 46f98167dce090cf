"""The battery as validation runs it: the unlearned model beside controls and oracles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core import metrics
from expunge.core.attacks import head_swap
from expunge.core.grading import grades
from expunge.core.grading.battery import Request
from expunge.core.grading.checks import Check
from expunge.core.grading.grades import Grade
from expunge.core.grading.judge import judge, outputs_forget
from expunge.core.heads import MASK, Head, Observed, mask_heads, read_head, with_head
from expunge.device import best_device, deterministic
from expunge.errors import UserError
from expunge.formats.dataset import DatasetInfo
from expunge.formats.model import ModelInfo, StoredModel
from expunge.oracles import NEEDED
from expunge.validation.findings import (
    HELD_OUT,
    ORIGINAL,
    UNLEARNED,
    Findings,
    anamnesis,
    came_back,
    problems_of,
    reasons_of,
    report_part,
    row_of,
    values_of,
)
from expunge.validation.samples import SEED, Bench, open_bench


@dataclass(frozen=True)
class _Case:
    """One request: the models on their device, and how low an error is still forgetting."""

    forget: tuple[int, ...]
    retain: tuple[int, ...]
    original: nn.Module
    unlearned: nn.Module
    retained_codes_KCHW: torch.Tensor
    num_classes: int
    forget_error: float

    def masks(self) -> dict[str, Head]:
        """The original's head, masked in both ways."""
        return mask_heads(self.original, self.retained_codes_KCHW, self.forget, self.num_classes)

    def graded(self, tests: Mapping[str, Observed]) -> dict[str, Grade]:
        """The grade of each model by its outputs alone, on the forgotten classes' test images."""
        return {
            name: grades.grade(outputs_forget(test, self.forget, self.forget_error), {}, {}, {})
            for name, test in tests.items()
        }


@deterministic()
def attack(
    dataset: Path,
    info: DatasetInfo,
    original: StoredModel,
    unlearned: StoredModel,
    oracles: Sequence[StoredModel],
    classes: Sequence[int],
    *,
    forget_error: float,
) -> Findings:
    """Compare the unlearned model with its original, the masks and the oracles.

    All oracles but the last are compared with; the last is held out, a control that has to be
    graded forgotten. Fewer than `NEEDED` are not used at all: then there is the head swap alone,
    which needs none.

    Raises:
        UserError: a class that takes part has no image in one of the splits, or an oracle was not
            trained without just the forgotten classes.
    """
    for oracle in oracles:
        _check_oracle(original.info, oracle.info, classes)
    device = best_device()
    gone = {*classes, *original.info.forgotten}
    kept_K = torch.tensor([int(c) not in gone for c in original.codes.classes_K])
    case = _Case(
        forget=tuple(sorted(classes)),
        retain=tuple(i for i in range(len(info.class_names)) if i not in gone),
        original=original.module.to(device),
        unlearned=unlearned.module.to(device),
        retained_codes_KCHW=original.codes.images_KCHW[kept_K].to(device),
        num_classes=len(info.class_names),
        forget_error=forget_error,
    )
    layers = metrics.relative_changes(
        dict(case.original.named_parameters()), dict(case.unlearned.named_parameters())
    )
    depth = {"layers": [{"name": n, "relative_change": v} for n, v in layers.items()]}
    scale = original.info.mean, original.info.std
    bench = open_bench(dataset, info, scale, case.forget, case.retain, device)
    try:
        read_head(case.original, case.num_classes)
    except ValueError as error:
        reason = f"No attack looked into the body: {error}."
        models = {ORIGINAL: case.original, UNLEARNED: case.unlearned}
        given = case.graded({n: bench.outputs(m, "forget_test") for n, m in models.items()})
        return Findings(given, (), report_part({}, depth=depth), (reason,), problems_of(given))
    if len(oracles) < NEEDED:
        return _without_oracles(case, bench, depth)
    return _with_oracles(case, bench, depth, [oracle.module.to(device) for oracle in oracles])


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


def _no_numbers(depth: Mapping[str, Any]) -> Findings:
    reason = "The unlearned model gives values that are no numbers; no attack was made."
    return Findings({UNLEARNED: "failed"}, (), report_part({}, depth=depth), (reason,), ())


def _depth(
    case: _Case, layers: Mapping[str, Any], original: Observed, unlearned: Observed
) -> dict[str, Any]:
    """Which part of the effect each half of the change has; all are the lowest forget error."""

    def error(test: Observed) -> float:
        return 1 - max(test.of(index).right for index in case.forget)

    heads = [read_head(model, case.num_classes) for model in (case.original, case.unlearned)]
    return {
        **layers,
        "head_alone": error(original.under(heads[1])),
        "body_alone": error(unlearned.under(heads[0])),
        "both": error(unlearned),
    }


def _without_oracles(case: _Case, bench: Bench, layers: Mapping[str, Any]) -> Findings:
    """The head swap, the depth, and the grades of the controls by their outputs."""
    tests = {
        ORIGINAL: bench.observe(case.original, "forget_test"),
        UNLEARNED: bench.observe(case.unlearned, "forget_test"),
    }
    if not tests[UNLEARNED].finite:
        return _no_numbers(layers)
    tests |= {name: tests[ORIGINAL].under(head) for name, head in case.masks().items()}
    given = case.graded(tests)
    head = read_head(case.original, case.num_classes)
    swapped = {name: head_swap(test, head, case.forget) for name, test in tests.items()}
    swap, at = _swap(case, swapped[UNLEARNED], tests[ORIGINAL])
    row = {name: own[at] for name, own in swapped.items()}
    depth = _depth(case, layers, tests[ORIGINAL], tests[UNLEARNED])
    reason = (
        f"Nothing was compared with retrained models: there are fewer than {NEEDED} "
        f"({NEEDED - 1} to compare with, one held out as a control)."
    )
    report = report_part({"head_swap": row | {"threshold": swap.threshold}}, depth=depth)
    reasons = (reason,) if swap.passed else (reason, came_back(swap))
    return Findings(given, (swap,), report, reasons, problems_of(given))


def _with_oracles(
    case: _Case, bench: Bench, layers: Mapping[str, Any], oracles: Sequence[nn.Module]
) -> Findings:
    """The whole battery."""
    original, unlearned = bench.see(case.original), bench.see(case.unlearned)
    if not unlearned.finite:
        return _no_numbers(layers)
    retrained = [bench.see(oracle) for oracle in oracles]
    if not all(one.finite for one in (original, *retrained)):
        raise UserError(
            "the original or an oracle gives values that are no numbers, so nothing can be "
            "compared with it; train it anew"
        )
    seen = {UNLEARNED: unlearned, ORIGINAL: original}
    for name, head in case.masks().items():
        seen[name] = original.under(head, bench.relearn(with_head(case.original, head)))
    *compared, seen[HELD_OUT] = retrained
    request = Request(case.forget, case.retain, original, SEED)
    found = judge(request, seen, compared, (ORIGINAL, MASK), case.forget_error)
    swap, at = _swap(case, found.alone[UNLEARNED].head_swap, original.forget_test)
    attacks = {
        name: row_of(name, found, at) for name in found.values[UNLEARNED] if name != "head_swap"
    }
    attacks["head_swap"] = values_of("head_swap", found, at) | {"threshold": swap.threshold}
    attacks["anamnesis"] = anamnesis(found)
    curves = {name: one.relearning for name, one in seen.items()}
    relearning = {
        "steps": list(original.relearning.steps),
        "curves": {
            **{name: curve.highest for name, curve in curves.items()},
            "oracles": [oracle.relearning.highest for oracle in compared],
        },
    }
    depth = _depth(case, layers, original.forget_test, seen[UNLEARNED].forget_test)
    report = report_part(attacks, depth=depth, oracles=len(compared), relearning=relearning)
    told = tuple(found.checks[UNLEARNED].values())
    reasons = reasons_of(case.forget, found)
    if not swap.passed and swap.value > max(attacks["head_swap"]["oracles"]):
        reasons.append(came_back(swap))
    return Findings(found.grades, (swap, *told), report, tuple(reasons), problems_of(found.grades))


def _swap(case: _Case, swapped: Sequence[float], original: Observed) -> tuple[Check, int]:
    """The head swap's check, and the position of the class that it shows."""
    own = [original.of(index) for index in case.forget]
    full, samples = [part.right for part in own], [len(part.labels_N) for part in own]
    return grades.swap_check(swapped, full, samples), grades.most_returned(swapped, full)
