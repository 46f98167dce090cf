"""Attacks that look for a forgotten class in a model. They work on features, logits and copies.

Shapes: N images, D features, C classes, R retained classes, O models. `forget` and `retain` are
class indices. Everything random comes from a `torch.Generator` that the caller seeds alike for all
models, so that two models differ by themselves alone.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.heads import Head, Observed

# Samples whose mean feature is the prototype, from one to ten; more would be a head's training.
SHOTS = (1, 3, 10)
DRAWS = 8  # of each number of shots: one draw alone moves the result by several points
# Below this area under its own ROC curve, an attacker tells members from others hardly better than
# a coin, and what it says of the forgotten samples is noise.
LEAST_AUC = 0.55
# Of the new head, for a mean squared loss: strong, so that the features decide and not the few
# samples. A weak one learns the class from the samples on any body.
PENALTY = 3.0
NEIGHBOURS = 3  # the classes that retrained models see most often in the forgotten one
RELEARN_STEPS = 50
# Images a step and steps between two looks while relearning. 50 at 0.01 bring the class back in an
# original model within a few steps, on the paper's MLP and on ResNet-20.
RELEARN_BATCH, RELEARN_RATE, RELEARN_LOOK = 50, 0.01, 5
RELEARNED = 0.95  # of the original's accuracy


def head_swap(test: Observed, original: Head, forget: Sequence[int]) -> list[float]:
    """The accuracy on each forgotten class under the original's head, on this model's body.

    When it comes back, the body still holds the class. When it does not, nothing is shown: a
    rotation of the features defeats it.
    """
    swapped = test.under(original)
    return [swapped.of(index).right for index in forget]


def head_recovery(sample: Observed, test: Observed, forget: Sequence[int]) -> list[float]:
    """The accuracy on each forgotten class of a new head, trained on a frozen body.

    `sample` is a small labelled sample of all classes. Ridge regression onto the classes, on
    standardised features, in closed form. Source of the idea: linear probing (Alain and Bengio,
    2017).
    """
    from sklearn.linear_model import RidgeClassifier

    mean_D = sample.features_ND.mean(dim=0)
    # a feature that never changes would be divided by zero; it says nothing either way
    scale_D = sample.features_ND.std(dim=0).clamp_min(1e-6)

    def standardised(observed: Observed) -> np.ndarray:
        features: np.ndarray = ((observed.features_ND - mean_D) / scale_D).double().cpu().numpy()
        return features

    probe = RidgeClassifier(alpha=PENALTY * len(sample.labels_N))
    probe.fit(standardised(sample), sample.labels_N.cpu().numpy())
    predictions_N = torch.from_numpy(probe.predict(standardised(test)))
    labels_N = test.labels_N.cpu()
    return [float((predictions_N[labels_N == index] == index).double().mean()) for index in forget]


def prototype_recovery(
    sample: Observed,
    test: Observed,
    head: Head,
    forget: Sequence[int],
    retain: Sequence[int],
    generator: torch.Generator,
) -> list[float]:
    """The accuracy on each forgotten class when its row of the head is a prototype.

    The row points from the centre m of the retained classes' mean features to the mean mu of a few
    features of the class: w = t (mu - m), with t and the bias such that at mu the logit is what a
    retained class has on its own samples on average, and at m what it has on all of them. The
    accuracy is the mean over `SHOTS` and `DRAWS`. Source of the idea: prototypical networks (Snell
    et al., 2017), and weight imprinting (Qi et al., 2018).
    """
    kept = [sample.of(index) for index in retain]
    center_D = torch.stack([part.features_ND.mean(dim=0) for part in kept]).mean(dim=0)
    own = torch.stack(
        [part.logits_NC[:, index].mean() for part, index in zip(kept, retain, strict=True)]
    ).mean()
    average = torch.cat([part.logits_NC[:, list(retain)] for part in kept]).mean()
    found = []
    for index in forget:
        pool_ND, target = sample.of(index).features_ND, test.of(index)
        others_N = _without(target.logits_NC, forget).amax(dim=1)
        shares = []
        for shots in SHOTS:
            for _ in range(DRAWS):
                rows = torch.randperm(len(pool_ND), generator=generator)[:shots]
                direction_D = pool_ND[rows.to(pool_ND.device)].mean(dim=0) - center_D
                row_D = direction_D * (own - average) / direction_D.square().sum()
                logits_N = (target.features_ND - center_D) @ row_D + average
                shares.append((logits_N > others_N).double().mean())
        found.append(float(torch.stack(shares).mean()))
    return found


def _without(logits_NC: Tensor, forget: Sequence[int]) -> Tensor:
    """Logits with those of the forgotten classes at minus infinity."""
    others_NC = logits_NC.clone()
    others_NC[:, list(forget)] = -torch.inf
    return others_NC


@dataclass(frozen=True)
class Relearning:
    """The forgotten classes' test accuracy at each step looked at; one row a step, one column a
    class."""

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

    def steps_to(self, wanted: Sequence[float]) -> int:
        """The first step looked at, at which some class has its wanted accuracy; else the last."""
        for step, row in zip(self.steps, self.accuracy_SK, strict=True):
            if any(got >= least for got, least in zip(row, wanted, strict=True)):
                return step
        return self.steps[-1]


def relearn(
    model: nn.Module,
    images_NCHW: Tensor,
    labels_N: Tensor,
    accuracy: Callable[[nn.Module], Sequence[float]],
    generator: torch.Generator,
) -> Relearning:
    """Fine-tune a copy on a few labelled samples, and look at the forgotten classes as it learns.

    SGD with momentum 0.9 on batches of `RELEARN_BATCH`, in passes over the samples (what is left of
    a pass is not used), the model in training mode. `accuracy` gives the accuracy on each forgotten
    class. Source: Golatkar et al. (2020) and Tarun et al. (FastMU, 2023), as relearn time.
    """
    device = labels_N.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # for dropout and its kin, which draw from the default generator
        torch.manual_seed(generator.initial_seed())
        return _relearn(copy.deepcopy(model), images_NCHW, labels_N, accuracy, generator)


def _relearn(
    learner: nn.Module,
    images_NCHW: Tensor,
    labels_N: Tensor,
    accuracy: Callable[[nn.Module], Sequence[float]],
    generator: torch.Generator,
) -> Relearning:
    optimizer = torch.optim.SGD(learner.parameters(), lr=RELEARN_RATE, momentum=0.9)
    steps, rows = [0], [tuple(accuracy(learner))]
    order_N = labels_N[:0]
    for step in range(1, RELEARN_STEPS + 1):
        if len(order_N) < RELEARN_BATCH:
            order_N = torch.randperm(len(labels_N), generator=generator).to(labels_N.device)
        batch_N, order_N = order_N[:RELEARN_BATCH], order_N[RELEARN_BATCH:]
        learner.train()
        loss = nn.functional.cross_entropy(learner(images_NCHW[batch_N]), labels_N[batch_N])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % RELEARN_LOOK == 0:
            steps.append(step)
            rows.append(tuple(accuracy(learner)))
    return Relearning(tuple(steps), tuple(rows))


@dataclass(frozen=True)
class Membership:
    """`members` is the share of each forgotten class's training samples called members; `auc` the
    attacker's own on retained data."""

    auc: float
    members: list[float]


def membership(
    retain_train: Observed, retain_test: Observed, forget_train: Observed, forget: Sequence[int]
) -> Membership:
    """Logistic regression on the entropy of the softmax, retained training samples against test
    samples, balanced; then applied to the forgotten training samples.

    Source: the attack of Chundawat et al. (2023) and Foster et al. (SSD, 2024).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    inside, outside = (_entropy(part.logits_NC) for part in (retain_train, retain_test))
    features_N1 = np.concatenate([inside, outside])[:, None]
    labels_N = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    attacker = LogisticRegression(class_weight="balanced").fit(features_N1, labels_N)
    auc = roc_auc_score(labels_N, attacker.decision_function(features_N1))
    return Membership(
        float(auc),
        [
            float(attacker.predict(_entropy(forget_train.of(index).logits_NC)[:, None]).mean())
            for index in forget
        ],
    )


def _entropy(logits_NC: Tensor) -> np.ndarray:
    """Entropy of the softmax in nats, shape N."""
    entropy: np.ndarray = torch.special.entr(logits_NC.softmax(dim=1)).sum(dim=1).cpu().numpy()
    return entropy


@dataclass(frozen=True)
class Discriminators:
    """For one forgotten class, one discriminator a neighbour; see `class_membership`."""

    forgotten: int
    retain: tuple[int, ...]
    fitted: tuple[object, ...]


def fit_discriminators(
    forget_tests: Sequence[Observed],
    retain_tests: Sequence[Observed],
    forgotten: int,
    retain: Sequence[int],
) -> Discriminators:
    """Learn from O retrained models to tell their outputs on the forgotten class from those on each
    of its neighbours.

    The neighbours are the `NEIGHBOURS` retained classes that those models predict most often for
    the forgotten one. Features are log-probabilities among the retained classes: the forgotten
    class's own logit would give a mask away at once, and it is the easiest to forge.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    lost_NR = torch.cat([_retained(part.of(forgotten), retain) for part in forget_tests])
    counts_R = torch.bincount(lost_NR.argmax(dim=1), minlength=len(retain))
    chosen = counts_R.argsort(descending=True, stable=True)[:NEIGHBOURS].tolist()
    fitted = []
    for position in chosen:
        if not counts_R[position]:
            continue
        own_NR = torch.cat([_retained(part.of(retain[position]), retain) for part in retain_tests])
        if not len(own_NR):
            continue
        features_NR = torch.cat([lost_NR, own_NR]).cpu().numpy()
        labels_N = np.concatenate([np.ones(len(lost_NR)), np.zeros(len(own_NR))])
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        fitted.append(model.fit(features_NR, labels_N))
    return Discriminators(forgotten, tuple(retain), tuple(fitted))


def class_membership(found: Discriminators, forget_test: Observed) -> float:
    """CMIA: the discriminators' accuracy on a model's outputs for the forgotten class's test
    samples, the mean over the neighbours; NaN without a neighbour.

    A model that never saw the class is recognised as the retrained ones are; one that still tells
    the class apart gives other outputs on it. Source: Ebrahimpour-Boroojeny et al., "Unlearning
    isn't forgetting".
    """
    if not found.fitted:
        return float("nan")
    features_NR = _retained(forget_test.of(found.forgotten), found.retain).cpu().numpy()
    shares = [float(model.predict(features_NR).mean()) for model in found.fitted]  # type: ignore[attr-defined]
    return float(np.mean(shares))


def _retained(observed: Observed, retain: Sequence[int]) -> Tensor:
    """Log-probabilities among the retained classes, shape N x R."""
    return observed.logits_NC[:, list(retain)].double().log_softmax(dim=1)
