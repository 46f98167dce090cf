"""torchvision's ResNet-18 for small images: a 3x3 stem and no max pooling."""

from collections.abc import Sequence

from torch import nn


def build_resnet18_cifar(input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """Build the model for images of `input_shape` (C, H, W)."""
    from torchvision.models import resnet18

    model: nn.Module = resnet18(num_classes=num_classes)
    # The usual stem would leave an image of 32 px with 8 px a side before the first block.
    model.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
    # as torchvision initialises its own convolutions, which this one replaces
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model
