"""Class membership inference (CMIA): whether outputs on the class are those of a retrained model.

Shapes: N images, R retained classes, O models. Source: Ebrahimpour-Boroojeny et al., "Unlearning
isn't forgetting".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expunge.core.attacks.case import Case, Seen
from expunge.core.heads import Observed

NEIGHBOURS = 3  # the classes that retrained models see most often in the forgotten one


@dataclass(frozen=True)
class Discriminators:
    """For one forgotten class, one discriminator a neighbour; see `fit_discriminators`."""

    forgotten: int
    retain: tuple[int, ...]
    fitted: tuple[object, ...]


def learn(case: Case, oracles: Sequence[Seen]) -> list[Discriminators]:
    """Fit the discriminators of each forgotten class to the oracles."""
    tests = [oracle.forget_test for oracle in oracles]
    retain_tests = [oracle.retain_test for oracle in oracles]
    return [fit_discriminators(tests, retain_tests, index, case.retain) for index in case.forget]


def measure(case: Case, seen: Seen, learnt: Sequence[Discriminators]) -> list[float]:
    """Return how well each class's discriminators recognise the model's outputs."""
    return [recognise_class(discriminators, seen.forget_test) for discriminators in learnt]


def fit_discriminators(
    forget_tests: Sequence[Observed],
    retain_tests: Sequence[Observed],
    forgotten: int,
    retain: Sequence[int],
) -> Discriminators:
    """Learn from O retrained models to tell the forgotten class from each of its neighbours.

    What is told apart are the models' outputs. The neighbours are the `NEIGHBOURS` retained classes
    that those models predict most often for the forgotten one. Features are log-probabilities among
    the retained classes: the forgotten class's own logit would give a mask away at once, and it is
    the easiest to forge.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    lost_NR = torch.cat([_read_retained(part.of(forgotten), retain) for part in forget_tests])
    counts_R = torch.bincount(lost_NR.argmax(dim=1), minlength=len(retain))
    chosen = counts_R.argsort(descending=True, stable=True)[:NEIGHBOURS].tolist()
    fitted = []
    for position in chosen:
        # a class that no model ever predicts is no neighbour; one without images has no outputs
        if not counts_R[position]:
            continue
        parts = [_read_retained(part.of(retain[position]), retain) for part in retain_tests]
        own_NR = torch.cat(parts)
        if not len(own_NR):
            continue
        features_NR = torch.cat([lost_NR, own_NR]).cpu().numpy()
        labels_N = np.concatenate([np.ones(len(lost_NR)), np.zeros(len(own_NR))])
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        fitted.append(model.fit(features_NR, labels_N))
    return Discriminators(forgotten, tuple(retain), tuple(fitted))


def recognise_class(discriminators: Discriminators, forget_test: Observed) -> float:
    """Return the discriminators' accuracy on a model's outputs for the forgotten class.

    It is the mean over the neighbours, on test samples; NaN without a neighbour. A model that never
    saw the class is recognised as the retrained ones are. One that still tells the class apart
    gives other outputs on it.
    """
    if not discriminators.fitted:
        return float("nan")
    own = forget_test.of(discriminators.forgotten)
    features_NR = _read_retained(own, discriminators.retain).cpu().numpy()
    shares = [float(model.predict(features_NR).mean()) for model in discriminators.fitted]  # type: ignore[attr-defined]
    return float(np.mean(shares))


def _read_retained(observed: Observed, retain: Sequence[int]) -> Tensor:
    """Return log-probabilities among the retained classes, shape N x R."""
    return observed.logits_NC[:, list(retain)].double().log_softmax(dim=1)
