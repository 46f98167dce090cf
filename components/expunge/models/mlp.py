"""The paper's network for MNIST."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """The paper's network for MNIST: flatten, 1000 sigmoid units, a linear head."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, hidden: int = 1000) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.hidden = nn.Linear(channels * height * width, hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the logits_NC."""
        logits: Tensor = self.head(torch.sigmoid(self.hidden(images_NCHW.flatten(1))))
        return logits
