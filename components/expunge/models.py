"""Architectures by name. Every model maps normalised images_NCHW to logits_NC.

`mlp` is the paper's (one hidden layer of 1000 sigmoid units); `resnet20` is the CIFAR network of
He et al. (2016), section 4.2, with option-A shortcuts; `resnet18-cifar` is torchvision's ResNet-18
with a 3x3 stem and no max pooling. Any other name is one of torchvision's classification models.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import UserError


class MLP(nn.Module):
    """The paper's network for MNIST: flatten, 1000 sigmoid units, a linear head."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, hidden: int = 1000) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.hidden = nn.Linear(channels * height * width, hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits_NC."""
        logits: Tensor = self.head(torch.sigmoid(self.hidden(images_NCHW.flatten(1))))
        return logits


class _Block(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and pads channels with zeros (option A)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - width_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.added:
            x = nn.functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added)
            )
        return torch.relu(x + y)


class ResNet20(nn.Module):
    """Three stages of three blocks with 16, 32 and 64 channels."""

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.blocks = nn.Sequential(
            *(
                _Block(before, after, 2 if after != before else 1)
                for before, after in pairwise(widths)
            )
        )
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits_NC."""
        features = self.blocks(torch.relu(self.bn(self.conv(images_NCHW))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def _resnet18_cifar(input_shape: Sequence[int], num_classes: int) -> nn.Module:
    from torchvision.models import resnet18

    model: nn.Module = resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(input_shape[0], 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


ARCHITECTURES: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "mlp": MLP,
    "resnet20": ResNet20,
    "resnet18-cifar": _resnet18_cifar,
}


def architecture_names() -> list[str]:
    """Every name that `build_model` takes: our own, then torchvision's classification models."""
    from torchvision import models

    return [*ARCHITECTURES, *models.list_models(module=models)]


def check_architecture(arch: str) -> None:
    """Refuse a name that `build_model` does not know.

    Raises:
        UserError: the message lists the known ones.
    """
    known = architecture_names()
    if arch not in known:
        raise UserError(f"architecture {arch!r} is unknown; expected one of {', '.join(known)}")


def build_model(arch: str, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """A freshly initialised model, in channels-last layout, for images of `input_shape` (C, H, W).

    It draws its weights from torch's default generator, as torchvision's constructors do; a caller
    who wants a seeded model forks and seeds that generator around the call.

    Raises:
        UserError: the name is unknown, or the architecture does not take such images.
    """
    build = ARCHITECTURES.get(arch, partial(_torchvision_model, arch))
    model: nn.Module = build(input_shape, num_classes)
    model.to(memory_format=torch.channels_last)
    return model


def _torchvision_model(arch: str, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    from torchvision import models

    check_architecture(arch)
    if input_shape[0] != 3:
        raise UserError(
            f"{arch} takes RGB images and the data has {input_shape[0]} channel(s); "
            "use mlp, resnet20 or resnet18-cifar"
        )
    options: dict[str, Any] = {}
    if arch.startswith("vit_"):
        options["image_size"] = input_shape[1]
    if arch in ("googlenet", "inception_v3"):
        options.update(aux_logits=False, init_weights=True)
    model: nn.Module = models.get_model(arch, weights=None, num_classes=num_classes, **options)
    return model
