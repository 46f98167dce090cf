"""Accuracy by class, and differences between two classifiers.

Shapes: N samples, C classes, H height, W width (in images_NCHW, C is the number of channels).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from expunge.core.modes import evaluation_mode


def predict(model: nn.Module, batches_NCHW: Iterable[Tensor]) -> Tensor:
    """Return the logits_NC, float32, of every image in the order of the batches, in eval mode.

    Raises:
        ValueError: there is no batch.
    """
    with evaluation_mode(model), torch.no_grad():
        logits = [model(images_NCHW).float() for images_NCHW in batches_NCHW]
    if not logits:
        raise ValueError("there is no batch to predict; at least one was expected")
    return torch.cat(logits)


def class_counts(predictions_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Count for each class the samples predicted right and the samples: int64, shape 2 x C.

    Counts of disjoint parts of a data set add up; their ratio is the accuracy.
    """
    right_N = labels_N[predictions_N == labels_N]
    return torch.stack(
        [torch.bincount(part, minlength=num_classes) for part in (right_N, labels_N)]
    )


def class_accuracy(predictions_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Return the share of each class's samples that is predicted right: float64, shape C.

    A class without samples has NaN: nothing is known of it.
    """
    right_C, samples_C = class_counts(predictions_N, labels_N, num_classes).double()
    # 0 / 0 gives the NaN of an empty class
    accuracy_C: Tensor = right_C / samples_C
    return accuracy_C


def prediction_shares(logits_NC: Tensor, retain: Sequence[int]) -> Tensor:
    """How often each retained class is the likeliest of them, float64, shape R, sum 1."""
    likeliest_N = logits_NC[:, list(retain)].argmax(dim=1)
    return torch.bincount(likeliest_N, minlength=len(retain)).double() / len(logits_NC)


def total_variation(shares_R: Tensor, other_R: Tensor) -> float:
    """Half the L1 distance of two distributions: 0 for equal ones, 1 for disjoint ones."""
    return float((shares_R - other_R).abs().sum() / 2)


def activation_distance(logits_NC: Tensor, other_NC: Tensor) -> float:
    """Mean over the samples of the L2 distance of the two softmax outputs, from 0 to sqrt(2).

    Source: Chundawat et al., "Zero-shot machine unlearning" (2023); also Golatkar et al. (2020).
    """
    difference_NC = logits_NC.double().softmax(dim=1) - other_NC.double().softmax(dim=1)
    return float(difference_NC.norm(dim=1).mean())


def tug_of_war(forget_gap: float, retain_gap: float, test_gap: float) -> float:
    """(1 - |gap in forget accuracy|) (1 - |gap in retained train accuracy|) (1 - |gap in test
    accuracy|), gaps to the mean of retrained models; 1 is best.

    Source: Zhao et al., "What makes unlearning hard and what to do about it" (2024).
    """
    return (1 - abs(forget_gap)) * (1 - abs(retain_gap)) * (1 - abs(test_gap))


def relative_changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Return |W' - W| / |W| of each tensor; |W' - W| itself where W is zero. Frobenius norms."""
    found = {}
    for name, tensor_W in before.items():
        old_W, new_W = tensor_W.detach().double(), after[name].detach().double()
        norm = float(old_W.norm())
        found[name] = float((new_W - old_W).norm()) / (norm or 1.0)
    return found


def anamnesis_index(steps: int, oracle_steps: Sequence[int], cap: int) -> float | None:
    """Steps to relearn, over the retrained models' mean; None where both are at the cap.

    1 is what a retrained model has; near 0, the class is back at once. Where only one side is at
    the cap the index is a bound: from above if the retrained models are, from below if the judged
    one is. Source: Chundawat, Tarun et al., "Zero-shot machine unlearning" (2023).
    """
    mean = sum(oracle_steps) / len(oracle_steps)
    if steps >= cap and mean >= cap:
        return None
    # at step 0 already nothing had to be relearned, in either
    return 1.0 if steps == mean else steps / max(mean, 1.0)
