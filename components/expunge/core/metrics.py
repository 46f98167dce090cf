"""Accuracy by class, and differences between two classifiers.

Shapes: N samples, C classes, H height, W width (in images_NCHW, C is the number of channels).
"""

from collections.abc import Iterable

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


def relative_changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Return |W' - W| / |W| of each tensor; |W' - W| itself where W is zero. Frobenius norms."""
    found = {}
    for name, tensor_W in before.items():
        old_W, new_W = tensor_W.detach().double(), after[name].detach().double()
        norm = float(old_W.norm())
        found[name] = float((new_W - old_W).norm()) / (norm or 1.0)
    return found
