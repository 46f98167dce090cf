"""A new head with little penalty, trained on a frozen body.

Shapes: N images, D features, C classes. Source of the idea: linear probing (Alain and Bengio,
2017); on unlearned models, Jeon et al., "An information theoretic evaluation metric for strong
unlearning" (IDI).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expunge.core.attacks.case import Body, Case
from expunge.core.attacks.head_recovery import standardise
from expunge.core.heads import Observed

# C of scikit-learn's logistic regression, its usual choice: the loss is summed over the samples, so
# that it outweighs the penalty. Such a head sees what a strongly penalised ridge overlooks.
STRENGTH = 1.0
# The accuracy no longer moves by then. A sample that the features separate would go on for longer.
ITERATIONS = 100


def measure(case: Case, seen: Body) -> list[float]:
    """Return the new head's accuracy on each forgotten class's test samples."""
    return recover_with_logistic_head(seen.head_train, seen.forget_test, case.forget)


def recover_with_logistic_head(
    sample: Observed, test: Observed, forget: Sequence[int]
) -> list[float]:
    """Return the accuracy on each forgotten class of a new head, trained on a frozen body.

    `sample` is a small labelled sample of all classes. The head is a multinomial logistic
    regression on features that are standardised by the sample.
    """
    # only the classes that were sampled can be named: a model may know others, erased before
    classes_C, labels_N = torch.unique(sample.labels_N, return_inverse=True)
    features_ND = standardise(sample, sample)
    weight_CD, bias_C = fit_logistic_head(features_ND, labels_N, len(classes_C))
    found = []
    for index in forget:
        logits_NC = standardise(test.of(index), sample) @ weight_CD.T + bias_C
        found.append(float((classes_C[logits_NC.argmax(dim=1)] == index).double().mean()))
    return found


def fit_logistic_head(
    features_ND: Tensor, labels_N: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return weight_CD and bias_C of a multinomial logistic regression.

    They minimise the cross-entropy, a mean over the N samples, plus |W|^2 / (2 `STRENGTH` N). The
    bias is not penalised. By L-BFGS from zero, where the features are, in their precision.
    """
    samples, width = features_ND.shape
    weight_CD = features_ND.new_zeros(num_classes, width, requires_grad=True)
    bias_C = features_ND.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_CD, bias_C],
        max_iter=ITERATIONS,
        history_size=10,
        tolerance_grad=1e-5,
        line_search_fn="strong_wolfe",
    )

    def compute_loss() -> Tensor:
        optimizer.zero_grad()
        logits_NC = features_ND @ weight_CD.T + bias_C
        penalty = weight_CD.square().sum() / (2 * STRENGTH * samples)
        loss = nn.functional.cross_entropy(logits_NC, labels_N) + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(compute_loss)  # type: ignore[no-untyped-call]
    return weight_CD.detach(), bias_C.detach()
