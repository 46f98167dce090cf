"""The battery: every attack on one model, on the same few samples, and its metrics beside oracles'.

Shapes: N images, C classes, K forgotten classes; H height, W width. A metric has one value for each
forgotten class, `tow` one for all of them together. Its definition is in its attack's file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.core.attacks import ATTACKS
from expunge.core.attacks.case import Body, Case, Seen
from expunge.core.grading import body
from expunge.core.grading.body import Values

# How many images each part has, at most. More would make the figures finer than what retrained
# models differ by from seed to seed, and cost a forward pass through each model.
HEAD_SHARE, HEAD_LEAST = 0.02, 20  # of each class's training images
FORGET_TEST, FORGET_TRAIN = 1000, 500  # of each forgotten class
RETAIN = 2000  # of all retained classes together, of each split
RELEARN_FORGET, RELEARN_ALL = 50, 500
RELEARN_TEST = 200  # of each forgotten class: looked at eleven times


@dataclass(frozen=True)
class Rows:
    """Which rows of the two splits each part of the battery takes."""

    head_train: Tensor
    relearn_train: Tensor
    forget_train: Tensor
    retain_train: Tensor
    forget_test: Tensor
    retain_test: Tensor
    relearn_test: Tensor


def draw_rows(labels_N: Tensor, wanted: Mapping[int, int], generator: torch.Generator) -> Tensor:
    """Draw rows of each class in `wanted`, as many as it says or as there are, without repetition.

    Raises:
        ValueError: a class has no image.
    """
    parts = []
    for index, count in wanted.items():
        rows_N = (labels_N == index).nonzero().flatten()
        if not len(rows_N):
            raise ValueError(f"class {index} has no image to draw; one at least is needed")
        parts.append(rows_N[torch.randperm(len(rows_N), generator=generator)[:count]])
    return torch.cat(parts)


def choose_rows(
    train_labels_N: Tensor,
    test_labels_N: Tensor,
    *,
    forget: Sequence[int],
    retain: Sequence[int],
    generator: torch.Generator,
) -> Rows:
    """Draw the rows of every part, stratified by class.

    Args:
        train_labels_N: the training split's labels, on the CPU.
        test_labels_N: the test split's labels, on the CPU.
        forget: the forgotten classes' indices.
        retain: the retained classes' indices.
        generator: draws the rows, on the CPU.

    Raises:
        ValueError: a class has no image in one of the splits.
    """

    def draw(labels_N: Tensor, wanted: Mapping[int, int]) -> Tensor:
        return draw_rows(labels_N, wanted, generator)

    def ask_each(classes: Sequence[int], count: int) -> dict[int, int]:
        # of a thousand classes each would get less than one image, and needs one
        return dict.fromkeys(classes, max(1, count))

    counts_C = torch.bincount(train_labels_N, minlength=max(*forget, *retain) + 1)
    head = {index: _count_head(int(counts_C[index])) for index in (*forget, *retain)}
    relearn = ask_each(forget, RELEARN_FORGET // len(forget))
    relearn |= ask_each(retain, (RELEARN_ALL - RELEARN_FORGET) // len(retain))
    retain_each = ask_each(retain, RETAIN // len(retain))
    # The parts share one generator, so the order of the draws belongs to the instrument: another
    # order gives every part other images, and every figure another value.
    forget_test = draw(test_labels_N, ask_each(forget, FORGET_TEST))
    labels_F = test_labels_N[forget_test]
    relearn_test = [forget_test[labels_F == index][:RELEARN_TEST] for index in forget]
    return Rows(
        head_train=draw(train_labels_N, head),
        relearn_train=draw(train_labels_N, relearn),
        forget_train=draw(train_labels_N, ask_each(forget, FORGET_TRAIN)),
        retain_train=draw(train_labels_N, retain_each),
        forget_test=forget_test,
        retain_test=draw(test_labels_N, retain_each),
        relearn_test=torch.cat(relearn_test),
    )


def choose_half_rows(
    test_labels_N: Tensor,
    *,
    forget: Sequence[int],
    retain: Sequence[int],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw the two parts of the body checks from the test split alone.

    `head_train` is drawn from one half of each class, `forget_test` is the other half of each
    forgotten class.

    Args:
        test_labels_N: the test split's labels, on the CPU.
        forget: the forgotten classes' indices.
        retain: the retained classes' indices.
        generator: draws the rows, on the CPU.

    Raises:
        ValueError: a class has fewer than two images.
    """
    samples, measured = [], []
    for index in (*forget, *retain):
        count = int((test_labels_N == index).sum())
        if count < 2:
            raise ValueError(f"class {index} has {count} test images; two at least are needed")
        rows_N = draw_rows(test_labels_N, {index: count}, generator)
        # what measures must not have taught
        half = count // 2
        samples.append(rows_N[: min(half, _count_head(count))])
        if index in forget:
            measured.append(rows_N[half:][:FORGET_TEST])
    return {"head_train": torch.cat(samples), "forget_test": torch.cat(measured)}


def _count_head(count: int) -> int:
    """Return how many of a class's images a new head is trained on."""
    return max(HEAD_LEAST, round(HEAD_SHARE * count))


def count_samples(forget: Sequence[int], seen: Seen) -> dict[str, list[int]]:
    """Return how many images each metric is measured on, by forgotten class or of all together.

    Every model is shown the same, so that `seen` may be any.
    """
    test = seen.count_forget_test(forget)
    train = [len(seen.forget_train.of(index).labels_N) for index in forget]
    counts = {
        "forget_test": test,
        "forget_train": train,
        "relearn_test": [min(count, RELEARN_TEST) for count in test],
        "all_forget_test": [sum(test)],
    }
    return {attack.name: counts[attack.samples] for attack in ATTACKS.values()}


def measure_alone(case: Case, seen: Seen) -> dict[str, Sequence[float | None]]:
    """Return every metric that needs no oracle to compare with; None where it is unknown."""
    return {
        attack.name: attack.measure(case, seen)
        for attack in ATTACKS.values()
        if attack.needs == "model"
    }


def measure_body(case: Case, seen: Body) -> dict[str, Sequence[float | None]]:
    """Return the metrics of the body checks.

    It is the head swap alone where there is no sample to train a new head on.
    """
    names = (body.SWAP, *body.CHECKS) if len(seen.head_train.labels_N) else (body.SWAP,)
    return {name: ATTACKS[name].measure(case, seen) for name in names}


@dataclass(frozen=True)
class Reference:
    """Retrained models that others are compared with; `learnt` is what each attack read of them."""

    oracles: tuple[Seen, ...]
    learnt: Mapping[str, Any]


def build_references(case: Case, oracles: Sequence[Seen]) -> list[Reference]:
    """Return all the oracles but one, for each of them in turn.

    An oracle is compared with the reference that it is not in, any other model with all of them. So
    every distance is to equally many models.
    """
    references = []
    for left_out in range(len(oracles)):
        others = tuple(oracle for i, oracle in enumerate(oracles) if i != left_out)
        learnt = {
            attack.name: attack.learn(case, others)
            for attack in ATTACKS.values()
            if attack.needs == "oracles"
        }
        references.append(Reference(others, learnt))
    return references


def measure_against(case: Case, seen: Seen, reference: Reference) -> dict[str, list[float]]:
    """Return the metrics that are distances to retrained models; NaN where one is unknown."""
    return {
        name: [float("nan") if value is None else value for value in values]
        for name, learnt in reference.learnt.items()
        for values in [ATTACKS[name].measure(case, seen, learnt)]
    }


def average_distances(
    case: Case, seen: Seen, references: Sequence[Reference]
) -> dict[str, list[float]]:
    """Return the mean of `measure_against` over the references."""
    rows = [measure_against(case, seen, reference) for reference in references]
    return {
        name: [sum(values) / len(rows) for values in zip(*(row[name] for row in rows), strict=True)]
        for name in (rows[0] if rows else {})
    }


def measure_all(case: Case, seen: Seen, references: Sequence[Reference]) -> Values:
    """Return every metric of one model, in the order of `ATTACKS`."""
    found = measure_alone(case, seen)
    found |= average_distances(case, seen, references)
    return {name: found[name] for name in ATTACKS if name in found}
