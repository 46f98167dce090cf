"""The battery: every attack on one model, on the same few samples, and its metrics beside oracles'.

Shapes: N images, C classes, K forgotten classes; H height, W width. A metric has one value for each
forgotten class, `tow` one for all of them together. Its definition is in the function that computes
it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.core import attacks, metrics
from expunge.core.attacks import Discriminators, Membership, Relearning
from expunge.core.grading.grades import Values
from expunge.core.heads import Head, Observed

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
    """Rows of each class in `wanted`, as many as it says or as there are, without repetition.

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
    forget: Sequence[int],
    retain: Sequence[int],
    generator: torch.Generator,
) -> Rows:
    """Draw the rows, stratified by class, from the splits' labels (on the CPU).

    Raises:
        ValueError: a class has no image in one of the splits.
    """

    def draw(labels_N: Tensor, wanted: Mapping[int, int]) -> Tensor:
        return draw_rows(labels_N, wanted, generator)

    def each(classes: Sequence[int], count: int) -> dict[int, int]:
        return dict.fromkeys(classes, max(1, count))

    counts_C = torch.bincount(train_labels_N, minlength=max(*forget, *retain) + 1)
    head = {
        index: max(HEAD_LEAST, round(HEAD_SHARE * int(counts_C[index])))
        for index in (*forget, *retain)
    }
    relearned = each(forget, RELEARN_FORGET // len(forget))
    relearned |= each(retain, (RELEARN_ALL - RELEARN_FORGET) // len(retain))
    kept = each(retain, RETAIN // len(retain))
    forget_test = draw(test_labels_N, each(forget, FORGET_TEST))
    labels_F = test_labels_N[forget_test]
    looked_at = [forget_test[labels_F == index][:RELEARN_TEST] for index in forget]
    return Rows(
        head_train=draw(train_labels_N, head),
        relearn_train=draw(train_labels_N, relearned),
        forget_train=draw(train_labels_N, each(forget, FORGET_TRAIN)),
        retain_train=draw(train_labels_N, kept),
        forget_test=forget_test,
        retain_test=draw(test_labels_N, kept),
        relearn_test=torch.cat(looked_at),
    )


@dataclass(frozen=True)
class Seen:
    """What a model says of each part, and how it relearned; all that the metrics need of it."""

    head: Head
    head_train: Observed
    forget_train: Observed
    retain_train: Observed
    forget_test: Observed
    retain_test: Observed
    relearning: Relearning

    def under(self, head: Head, relearning: Relearning) -> "Seen":
        """The same body under another head, with its own relearning: a mask costs no forward."""
        parts = ("head_train", "forget_train", "retain_train", "forget_test", "retain_test")
        observed = {part: getattr(self, part).under(head) for part in parts}
        return Seen(head=head, relearning=relearning, **observed)

    @property
    def finite(self) -> bool:
        """Whether every feature and logit is a number, as the attacks need."""
        parts = (self.head_train, self.forget_train, self.retain_train, self.forget_test)
        return all(part.finite for part in (*parts, self.retain_test))

    def forget_accuracy(self, forget: Sequence[int]) -> list[float]:
        """The accuracy on each forgotten class's test samples."""
        return [self.forget_test.of(index).right for index in forget]


@dataclass(frozen=True)
class Request:
    """What is forgotten, what stays, and the original model that the attacks compare with."""

    forget: tuple[int, ...]
    retain: tuple[int, ...]
    original: Seen
    seed: int = 0  # of the prototypes' draws, the same for every model


def sample_counts(request: Request) -> dict[str, list[int]]:
    """How many images of each forgotten class every metric is measured on; of all for `tow`."""
    seen = request.original
    test = [len(seen.forget_test.of(index).labels_N) for index in request.forget]
    train = [len(seen.forget_train.of(index).labels_N) for index in request.forget]
    on_test = ("head_recovery", "prototype_recovery", "output_distance", "cmia")
    return {
        **dict.fromkeys(on_test, test),
        "relearning": [min(count, RELEARN_TEST) for count in test],
        "membership": train,
        "activation_distance": train,
        "tow": [sum(test)],
    }


@dataclass(frozen=True)
class Measured:
    """The values of each metric by forgotten class; None where unknown."""

    values: Values
    head_swap: list[float]
    membership: Membership
    steps_to_relearn: int


def measure_alone(request: Request, seen: Seen) -> Measured:
    """Every metric that needs no oracle to compare with."""
    forget, retain = request.forget, request.retain
    original = request.original
    members = attacks.membership(seen.retain_train, seen.retain_test, seen.forget_train, forget)
    prototypes = attacks.prototype_recovery(
        seen.head_train,
        seen.forget_test,
        seen.head,
        forget,
        retain,
        torch.Generator().manual_seed(request.seed),
    )
    usable = members.auc >= attacks.LEAST_AUC
    wanted = [attacks.RELEARNED * value for value in original.forget_accuracy(forget)]
    swapped = attacks.head_swap(seen.forget_test, original.head, forget)
    return Measured(
        {
            "head_swap": swapped,
            "head_recovery": attacks.head_recovery(seen.head_train, seen.forget_test, forget),
            "prototype_recovery": prototypes,
            "relearning": seen.relearning.areas,
            "membership": members.members if usable else [None] * len(forget),
        },
        swapped,
        members,
        seen.relearning.steps_to(wanted),
    )


@dataclass(frozen=True)
class Reference:
    """Retrained models that others are compared with, and what is learnt from them once."""

    oracles: tuple[Seen, ...]
    shares_KR: Tensor  # mean prediction shares by forgotten class
    discriminators: tuple[Discriminators, ...]  # by forgotten class


def references(request: Request, oracles: Sequence[Seen]) -> list[Reference]:
    """All the oracles but one, for each of them in turn.

    An oracle is compared with the reference that it is not in, any other model with all of them: so
    every distance is to equally many models.
    """
    found = []
    for left_out in range(len(oracles)):
        others = [oracle for i, oracle in enumerate(oracles) if i != left_out]
        tests = [oracle.forget_test for oracle in others]
        retain_tests = [oracle.retain_test for oracle in others]
        shares = [
            torch.stack([_shares(test, index, request.retain) for test in tests]).mean(dim=0)
            for index in request.forget
        ]
        fitted = [
            attacks.fit_discriminators(tests, retain_tests, index, request.retain)
            for index in request.forget
        ]
        found.append(Reference(tuple(others), torch.stack(shares), tuple(fitted)))
    return found


def _shares(test: Observed, index: int, retain: Sequence[int]) -> Tensor:
    return metrics.prediction_shares(test.of(index).logits_NC, retain)


def measure_against(request: Request, seen: Seen, reference: Reference) -> dict[str, list[float]]:
    """The metrics that are distances to retrained models: output distance, CMIA, activation
    distance and the tug of war.
    """
    output, activation, cmia = [], [], []
    for position, index in enumerate(request.forget):
        shares_R = _shares(seen.forget_test, index, request.retain)
        output.append(metrics.total_variation(shares_R, reference.shares_KR[position]))
        trained_NC = seen.forget_train.of(index).logits_NC
        distances = [
            metrics.activation_distance(trained_NC, oracle.forget_train.of(index).logits_NC)
            for oracle in reference.oracles
        ]
        activation.append(sum(distances) / len(distances))
        found = reference.discriminators[position]
        cmia.append(attacks.class_membership(found, seen.forget_test))
    return {
        "output_distance": output,
        "cmia": cmia,
        "activation_distance": activation,
        "tow": [_tug_of_war(seen, reference.oracles)],
    }


def mean_distances(
    request: Request, seen: Seen, found: Sequence[Reference]
) -> dict[str, list[float]]:
    """`measure_against` each reference, and the mean."""
    rows = [measure_against(request, seen, reference) for reference in found]
    return {
        name: [sum(values) / len(rows) for values in zip(*(row[name] for row in rows), strict=True)]
        for name in (rows[0] if rows else {})
    }


def _tug_of_war(seen: Seen, others: Sequence[Seen]) -> float:
    """Forget accuracy is that on the forgotten classes' test images, test accuracy that on a sample
    of the retained classes', drawn alike from each.
    """

    def gap(part: str) -> float:
        values = [getattr(other, part).right for other in others]
        gap: float = getattr(seen, part).right - sum(values) / len(values)
        return gap

    return metrics.tug_of_war(gap("forget_test"), gap("retain_train"), gap("retain_test"))


def relearning_of(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    forget: Sequence[int],
    seed: int,
) -> Relearning:
    """How the model relearns on `train`, looked at on `test`: both are images_NCHW and labels_N."""

    def accuracy(learner: nn.Module) -> list[float]:
        images_NCHW, labels_N = test
        logits_NC = metrics.predict(learner, torch.split(images_NCHW, 256))
        if not logits_NC.isfinite().all():  # it diverged: what it knows is unknown
            return [float("nan")] * len(forget)
        predictions_N = logits_NC.argmax(dim=1)
        own = [labels_N == index for index in forget]
        return [float((predictions_N[o] == labels_N[o]).double().mean()) for o in own]

    return attacks.relearn(model, *train, accuracy, torch.Generator().manual_seed(seed))
