"""Architectures by name. Every model maps normalised images_NCHW to logits_NC.

`mlp` is the paper's (one hidden layer of 1000 sigmoid units); `resnet20` is the CIFAR network of
He et al. (2016), section 4.2, with option-A shortcuts; `resnet18-cifar` is torchvision's ResNet-18
with a 3x3 stem and no max pooling. Any other name is one of torchvision's classification models.

To add an architecture, write one file in this folder and one line in `ARCHITECTURES`. The file
defines a class or a function from an input shape (C, H, W) and a number of classes to an
`nn.Module`. A forget's attacks need a linear layer with an output for each class as the last one;
ONNX export, Fisher information and registry take any module. The command and its checks read
`ARCHITECTURES`.

This module imports no torch: the command checks names before torch is needed.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from expunge.errors import UserError

if TYPE_CHECKING:
    from torch import nn

# Name: what builds it, as "module:attribute". Text and no import, since a builder needs torch.
ARCHITECTURES = {
    "mlp": "expunge.models.mlp:MLP",
    "resnet20": "expunge.models.resnet20:ResNet20",
    "resnet18-cifar": "expunge.models.resnet18_cifar:build_resnet18_cifar",
}


def list_architectures() -> list[str]:
    """Return every name that `build_model` takes: our own, then torchvision's."""
    from torchvision import models

    return [*ARCHITECTURES, *models.list_models(module=models)]


def check_architecture(arch: str) -> None:
    """Refuse a name that `build_model` does not know.

    Raises:
        UserError: the message lists the known ones.
    """
    # torchvision takes seconds to import, so it is asked about the names of others only
    if arch in ARCHITECTURES:
        return
    known = list_architectures()
    if arch not in known:
        raise UserError(f"architecture {arch!r} is unknown; expected one of {', '.join(known)}")


def build_model(arch: str, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """Build a model with new weights, in channels-last layout, for images of `input_shape`.

    The shape is (C, H, W). The weights are drawn from torch's default generator, as torchvision's
    constructors do; a caller who wants a seeded model forks and seeds that generator around the
    call.

    Raises:
        UserError: the name is unknown, or the architecture does not take such images.
    """
    import torch

    build = _find_builder(arch)
    model = build(input_shape, num_classes)
    # convolutions are faster in this layout
    model.to(memory_format=torch.channels_last)
    return model


def _find_builder(arch: str) -> Callable[[Sequence[int], int], nn.Module]:
    if arch in ARCHITECTURES:
        builder: Callable[[Sequence[int], int], nn.Module] = pkgutil.resolve_name(
            ARCHITECTURES[arch]
        )
        return builder
    return partial(_build_torchvision_model, arch)


def _build_torchvision_model(arch: str, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    from torchvision import models

    check_architecture(arch)
    if input_shape[0] != 3:
        raise UserError(
            f"{arch} takes RGB images and the data has {input_shape[0]} channel(s); "
            f"use one of {', '.join(ARCHITECTURES)}"
        )
    options: dict[str, Any] = {}
    # a vision transformer's position embedding has the size of its images
    if arch.startswith("vit_"):
        options["image_size"] = input_shape[1]
    # side classifiers would give a second output, and without init_weights torchvision warns
    if arch in ("googlenet", "inception_v3"):
        options.update(aux_logits=False, init_weights=True)
    model: nn.Module = models.get_model(arch, weights=None, num_classes=num_classes, **options)
    return model
