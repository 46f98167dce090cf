"""Every architecture takes its images and gives a logit for each class."""

import math
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from expunge.errors import UserError
from expunge.models import ARCHITECTURES, build_model, check_architecture, list_architectures


@pytest.mark.parametrize(
    ("arch", "shape"),
    [
        ("mlp", (1, 8, 8)),
        ("resnet20", (3, 8, 8)),
        ("resnet20", (1, 8, 8)),
        ("resnet18-cifar", (3, 8, 8)),
        ("squeezenet1_1", (3, 32, 32)),
    ],
)
def test_logits_for_each_class(arch: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = build_model(arch, shape, 7).eval()
    with torch.no_grad():
        assert model(torch.rand(2, *shape)).shape == (2, 7)


def test_a_vision_transformer_takes_the_images_own_size() -> None:
    """On a device that holds shapes only: its 88 million weights take a second to draw."""
    with torch.device("meta"):
        model = build_model("vit_b_32", (3, 64, 64), 7).eval()
        assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)


def test_an_architecture_is_a_file_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("toy_model")
    module.build = lambda shape, classes: nn.Sequential(  # type: ignore[attr-defined]
        nn.Flatten(), nn.Linear(math.prod(shape), classes)
    )
    monkeypatch.setitem(sys.modules, "toy_model", module)
    monkeypatch.setitem(ARCHITECTURES, "toy", "toy_model:build")
    check_architecture("toy")
    assert "toy" in list_architectures()
    assert build_model("toy", (1, 4, 4), 3)(torch.rand(2, 1, 4, 4)).shape == (2, 3)


def test_our_own_names_are_checked_without_torchvision() -> None:
    code = (
        "import sys; from expunge.models import ARCHITECTURES, check_architecture;"
        "[check_architecture(name) for name in ARCHITECTURES];"
        "sys.exit(any(name in sys.modules for name in ('torch', 'torchvision')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_convolutions_are_channels_last() -> None:
    model = build_model("resnet20", (3, 8, 8), 10)
    assert model.blocks[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr,index]


def test_the_paper_network_has_its_size() -> None:
    model = build_model("mlp", (1, 28, 28), 10)
    assert sum(p.numel() for p in model.parameters()) == 784 * 1000 + 1000 + 1000 * 10 + 10


def test_resnet20_has_the_size_of_its_source() -> None:
    # He et al. (2016), table 6: 0.27 million
    model = build_model("resnet20", (3, 32, 32), 10)
    assert sum(p.numel() for p in model.parameters()) == 269_722


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"architecture 'resnet21' is unknown; .*mlp.*resnet18"):
        build_model("resnet21", (3, 32, 32), 10)
    assert {"mlp", "resnet20", "resnet18-cifar", "resnext50_32x4d", "swin_t"} <= set(
        list_architectures()
    )


def test_torchvision_models_take_colour_only() -> None:
    with pytest.raises(UserError, match=r"resnet18 takes RGB images and the data has 1 channel"):
        build_model("resnet18", (1, 32, 32), 10)
