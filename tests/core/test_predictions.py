"""What a model predicts, and the accuracy of each class."""

import pytest
import torch
from torch import nn

from expunge.core.metrics import class_accuracy, class_counts, predict


def test_predictions_are_in_order_in_eval_mode_and_leave_the_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))
    images_NCHW = torch.rand(7, 1, 2, 2)
    logits_NC = predict(model, images_NCHW.split(3))
    assert torch.allclose(logits_NC, model[2](images_NCHW.flatten(1)))
    assert not logits_NC.requires_grad
    assert model.training
    assert model[1].training


def test_nothing_to_predict() -> None:
    with pytest.raises(ValueError, match="there is no batch to predict"):
        predict(nn.Identity(), [])


def test_accuracy_of_each_class() -> None:
    labels_N = torch.tensor([0, 0, 0, 1, 1, 3])
    predictions_N = torch.tensor([0, 0, 2, 1, 1, 0])
    assert class_counts(predictions_N, labels_N, 4).tolist() == [[2, 2, 0, 0], [3, 2, 0, 1]]
    accuracy_C = class_accuracy(predictions_N, labels_N, 4)
    assert accuracy_C[[0, 1, 3]].tolist() == pytest.approx([2 / 3, 1.0, 0.0])
    assert bool(accuracy_C[2].isnan())
