"""Relearning: how fast a copy of a model learns a forgotten class again.

Shapes: N images, S steps looked at, K forgotten classes; H height, W width (in images_NCHW, C is
the number of channels). Source: Golatkar et al. (2020) and Tarun et al. (FastMU, 2023), as relearn
time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core import metrics
from expunge.core.attacks.case import Case, Seen

STEPS = 50
# Images a step and steps between two looks. 50 at 0.01 bring the class back in an original model
# within a few steps, on the paper's MLP and on ResNet-20.
BATCH, RATE, LOOK = 50, 0.01, 5
RELEARNED = 0.95  # of the original's accuracy
TEST_BATCH = 256


def measure(case: Case, seen: Seen) -> list[float]:
    """Return the area under each forgotten class's curve."""
    return seen.relearning.areas


@dataclass(frozen=True)
class Relearning:
    """The forgotten classes' test accuracy at each step looked at.

    `accuracy_SK` has a row for each step and a column for each class.
    """

    steps: tuple[int, ...]
    accuracy_SK: tuple[tuple[float, ...], ...]

    @property
    def areas(self) -> list[float]:
        """The area under each class's curve over the steps, as a fraction (trapezoids)."""
        steps = np.asarray(self.steps, dtype=np.float64)
        areas = np.trapezoid(np.asarray(self.accuracy_SK), steps, axis=0) / (steps[-1] - steps[0])
        return [float(area) for area in areas]

    @property
    def highest(self) -> list[float]:
        """By step, the accuracy on the class that came back furthest."""
        return [max(row) for row in self.accuracy_SK]

    def find_step(self, wanted: Sequence[float]) -> int:
        """Return the first step looked at, at which some class has its wanted accuracy.

        It is the last step where none ever has.
        """
        for step, row in zip(self.steps, self.accuracy_SK, strict=True):
            if any(got >= least for got, least in zip(row, wanted, strict=True)):
                return step
        return self.steps[-1]


def count_steps(case: Case, seen: Seen) -> int:
    """Return the steps until some class has nearly the accuracy that it has in the original."""
    full = case.original.measure_forget_accuracy(case.forget)
    return seen.relearning.find_step([RELEARNED * value for value in full])


def compute_anamnesis_index(steps: int, oracle_steps: Sequence[int], cap: int) -> float | None:
    """Return the steps to relearn over the retrained models' mean; None where both are at the cap.

    1 is what a retrained model has; near 0, the class is back at once. Where only one side is at
    the cap, the index is a bound: from above if the retrained models are, from below if the judged
    one is. Source: Chundawat, Tarun et al., "Zero-shot machine unlearning" (2023).
    """
    mean = sum(oracle_steps) / len(oracle_steps)
    if steps >= cap and mean >= cap:
        return None
    # at step 0 already nothing had to be relearned, in either
    return 1.0 if steps == mean else steps / max(mean, 1.0)


def measure_relearning(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    forget: Sequence[int],
    *,
    seed: int,
) -> Relearning:
    """Return how a copy of the model relearns.

    Args:
        model: the model; it stays as it is.
        train: images_NCHW and labels_N that the copy is fine-tuned on.
        test: images_NCHW and labels_N of the forgotten classes that it is looked at on.
        forget: the forgotten classes' indices.
        seed: of the order of the images, the same for every model.
    """

    def measure_accuracy(learner: nn.Module) -> list[float]:
        images_NCHW, labels_N = test
        logits_NC = metrics.predict(learner, torch.split(images_NCHW, TEST_BATCH))
        if not logits_NC.isfinite().all():  # it diverged: what it knows is unknown
            return [float("nan")] * len(forget)
        predictions_N = logits_NC.argmax(dim=1)
        own = [labels_N == index for index in forget]
        return [float((predictions_N[o] == labels_N[o]).double().mean()) for o in own]

    return relearn(model, *train, measure_accuracy, generator=torch.Generator().manual_seed(seed))


def relearn(
    model: nn.Module,
    images_NCHW: Tensor,
    labels_N: Tensor,
    accuracy: Callable[[nn.Module], Sequence[float]],
    *,
    generator: torch.Generator,
) -> Relearning:
    """Fine-tune a copy on a few labelled samples, and look at the forgotten classes as it learns.

    SGD with momentum 0.9 on batches of `BATCH`, in passes over the samples (what is left of a pass
    is not used), the model in training mode.

    Args:
        model: the model; it stays as it is.
        images_NCHW: normalised images, on the model's device.
        labels_N: their labels, on the same device.
        accuracy: gives the accuracy on each forgotten class.
        generator: draws the order of the images, on the CPU.
    """
    device = labels_N.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # for dropout and its kin, which draw from the default generator
        torch.manual_seed(generator.initial_seed())
        learner = copy.deepcopy(model)
        optimizer = torch.optim.SGD(learner.parameters(), lr=RATE, momentum=0.9)
        steps, rows = [0], [tuple(accuracy(learner))]
        order_N = labels_N[:0]
        for step in range(1, STEPS + 1):
            if len(order_N) < BATCH:
                order_N = torch.randperm(len(labels_N), generator=generator).to(device)
            batch_N, order_N = order_N[:BATCH], order_N[BATCH:]
            learner.train()  # each look leaves it in eval mode
            loss = nn.functional.cross_entropy(learner(images_NCHW[batch_N]), labels_N[batch_N])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % LOOK == 0:
                steps.append(step)
                rows.append(tuple(accuracy(learner)))
    return Relearning(tuple(steps), tuple(rows))
