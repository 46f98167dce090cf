"""A new head, trained on a frozen body.

Shapes: N images, D features. Source of the idea: linear probing (Alain and Bengio, 2017).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.core.attacks.case import Body, Case
from expunge.core.heads import Observed

# Of the new head, for a mean squared loss: strong, so that the features decide and not the few
# samples. A weak one learns the class from the samples on any body.
PENALTY = 3.0


def measure(case: Case, seen: Body) -> list[float]:
    """Return the new head's accuracy on each forgotten class's test samples."""
    return recover_with_new_head(seen.head_train, seen.forget_test, case.forget)


def standardise(observed: Observed, sample: Observed) -> Tensor:
    """Return the features_ND, float64, in the sample's standard deviations around its mean."""
    # a feature that never changes would be divided by zero; it says nothing either way
    scale_D = sample.features_ND.std(dim=0).clamp_min(1e-6)
    return ((observed.features_ND - sample.features_ND.mean(dim=0)) / scale_D).double()


def recover_with_new_head(sample: Observed, test: Observed, forget: Sequence[int]) -> list[float]:
    """Return the accuracy on each forgotten class of a new head, trained on a frozen body.

    `sample` is a small labelled sample of all classes. The head is a ridge regression onto the
    classes, on standardised features, in closed form.
    """
    from sklearn.linear_model import RidgeClassifier

    # scikit-learn's loss is a sum over the samples, so the penalty grows with them
    probe = RidgeClassifier(alpha=PENALTY * len(sample.labels_N))
    probe.fit(standardise(sample, sample).cpu().numpy(), sample.labels_N.cpu().numpy())
    predictions_N = torch.from_numpy(probe.predict(standardise(test, sample).cpu().numpy()))
    labels_N = test.labels_N.cpu()
    return [float((predictions_N[labels_N == index] == index).double().mean()) for index in forget]
