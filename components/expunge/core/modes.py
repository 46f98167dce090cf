"""Training and evaluation mode of a model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode inside (BatchNorm uses its running statistics), and restore it.

    Each module's own mode is restored: a caller may have frozen some layers and not others.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # one by one, because `model.train(mode)` would give every module the same mode
        for module, training in modes:
            module.training = training
