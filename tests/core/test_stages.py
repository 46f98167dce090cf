"""Where a classifier's last stage begins, and that both halves are the model."""

from functools import partial
from math import prod

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

from expunge.core.heads import observe
from expunge.core.stages import (
    Stage,
    UntraceableError,
    find_stage,
    iterate_layers,
    list_cuts,
    measure_resolution,
    name_family,
    open_stage,
)
from expunge.models import build_model

CLASSES = 5
MAPS, TOKENS, VECTORS = "maps", "tokens", "vectors"


def build_vit() -> nn.Module:
    sizes = {"hidden_dim": 8, "mlp_dim": 16, "num_layers": 2, "num_heads": 2}
    return VisionTransformer(image_size=32, patch_size=16, num_classes=CLASSES, **sizes)


def build(arch: str, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """Return a model in eval mode, its weights drawn, and three images."""
    torch.manual_seed(0)
    model = build_vit() if arch == "small vit" else build_model(arch, shape, CLASSES)
    images_NCHW = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    return model.eval(), images_NCHW


def run(stage: Stage, images_NCHW: Tensor) -> Tensor:
    with torch.no_grad():
        features_ND: Tensor = stage.upper(stage.enter(images_NCHW))
    return features_ND


@pytest.mark.parametrize(
    ("arch", "shape", "entering", "family", "layers"),
    [
        # the images themselves, before the one hidden layer
        ("mlp", (1, 8, 8), (1, 8, 8), VECTORS, 1),
        # the input of the last group of blocks
        ("resnet20", (3, 32, 32), (32, 16, 16), MAPS, 6),
        ("resnet18-cifar", (3, 32, 32), (256, 8, 8), MAPS, 5),
        ("resnet18", (3, 64, 64), (256, 4, 4), MAPS, 5),
        # between the last transition's convolution and its pooling
        ("densenet121", (3, 64, 64), (512, 4, 4), MAPS, 32),
        # before the last block that halves the resolution
        ("efficientnet_b0", (3, 64, 64), (112, 4, 4), MAPS, 26),
        # its head has a hidden layer behind the pooling, where the resolution falls last
        ("mobilenet_v3_small", (3, 64, 64), (96, 2, 2), MAPS, 2),
        ("convnext_tiny", (3, 64, 64), (384, 4, 4), MAPS, 10),
        # channels last
        ("swin_t", (3, 64, 64), (4, 4, 384), TOKENS, 5),
        # the class token before the last block's MLP
        ("small vit", (3, 32, 32), (1, 8), TOKENS, 2),
        ("vit_b_16", (3, 32, 32), (1, 768), TOKENS, 2),
    ],
)
def test_both_halves_are_the_model(
    arch: str, shape: tuple[int, ...], entering: tuple[int, ...], family: str, layers: int
) -> None:
    model, images_NCHW = build(arch, shape)
    stage = find_stage(model, images_NCHW, CLASSES)
    expected = observe(model, [(images_NCHW, torch.zeros(3))], CLASSES).features_ND
    torch.testing.assert_close(run(stage, images_NCHW), expected)
    assert stage.shape == tuple(stage.enter(images_NCHW).shape[1:]) == entering
    assert (name_family(stage), stage.cut.layers) == (family, layers)
    # none is on both sides: what changes above does not change what enters
    below, above = (dict(part.named_parameters()) for part in (stage.lower, stage.upper))
    assert above
    assert not {id(p) for p in below.values()} & {id(p) for p in above.values()}
    # the names are the model's, so that a change of the stage is one of the model
    whole = dict(model.named_parameters())
    assert all(whole[name] is parameter for name, parameter in above.items())


def test_a_stage_is_opened_by_the_name_of_its_cut() -> None:
    model, images_NCHW = build("resnet20", (3, 16, 16))
    found = find_stage(model, images_NCHW, CLASSES)
    opened = open_stage(model, found.cut.name, CLASSES, images_NCHW)
    assert opened.cut == found.cut
    assert torch.equal(run(opened, images_NCHW), run(found, images_NCHW))
    with pytest.raises(UntraceableError, match="it has no cut 'nowhere'"):
        open_stage(model, "nowhere", CLASSES, images_NCHW)


def test_every_cut_splits_the_model() -> None:
    model, images_NCHW = build("resnet20", (3, 8, 8))
    expected = observe(model, [(images_NCHW, torch.zeros(3))], CLASSES).features_ND
    cuts = list_cuts(model, images_NCHW, CLASSES)
    assert cuts[0].shape == (3, 8, 8)
    layers = [cut.layers for cut in cuts]
    assert layers == sorted(layers, reverse=True)
    for cut in cuts:
        stage = open_stage(model, cut.name, CLASSES, images_NCHW)
        torch.testing.assert_close(run(stage, images_NCHW), expected)


def test_a_value_beside_a_shortcut_is_no_cut() -> None:
    """Of a residual block, what is inside needs the shortcut as well."""
    model, images_NCHW = build("resnet18-cifar", (3, 8, 8))
    modules = {cut.module for cut in list_cuts(model, images_NCHW, CLASSES)}
    assert "layer3.1.relu" in modules
    assert not {"layer4.0.conv1", "layer4.0.bn1", "layer4.1.conv2"} & modules


def test_a_named_stage_begins_at_the_input_of_its_module() -> None:
    model, images_NCHW = build("resnet18-cifar", (3, 16, 16))
    stage = find_stage(model, images_NCHW, CLASSES, name="layer3")
    assert stage.shape == (128, 8, 8)
    assert all(name.startswith(("layer3", "layer4")) for name, _ in stage.upper.named_parameters())
    expected = observe(model, [(images_NCHW, torch.zeros(3))], CLASSES).features_ND
    torch.testing.assert_close(run(stage, images_NCHW), expected)
    for name in ("layer9", "layer4.1.conv2", "fc"):
        with pytest.raises(UntraceableError, match=f"no stage begins with '{name}'; expected a"):
            find_stage(model, images_NCHW, CLASSES, name=name)


def test_less_room_gives_a_later_cut() -> None:
    model, images_NCHW = build("resnet18-cifar", (3, 16, 16))
    asked: list[tuple[int, ...]] = []

    def fits(shape: tuple[int, ...], limit: int) -> bool:
        asked.append(shape)
        return prod(shape) <= limit

    usual = find_stage(model, images_NCHW, CLASSES)
    assert usual.cut.size == 256 * 4 * 4
    later = find_stage(model, images_NCHW, CLASSES, fits=partial(fits, limit=usual.cut.size - 1))
    assert later.shape == (512, 2, 2)
    assert 0 < later.cut.layers < usual.cut.layers
    assert asked[0] == usual.shape
    with pytest.raises(UntraceableError, match="256 x 4 x 4 numbers an image and more"):
        find_stage(model, images_NCHW, CLASSES, fits=partial(fits, limit=10))
    # what a user has named is not moved
    with pytest.raises(UntraceableError, match="more than there is room for"):
        find_stage(
            model, images_NCHW, CLASSES, name="layer4", fits=partial(fits, limit=512 * 2 * 2)
        )


def test_of_a_vit_the_class_token_alone_enters() -> None:
    model, images_NCHW = build("small vit", (3, 32, 32))
    stage = find_stage(model, images_NCHW, CLASSES)
    assert stage.first_token_only
    assert stage.cut.shape == (5, 8)
    with torch.no_grad():
        whole = stage.lower(images_NCHW)
        assert torch.equal(stage.enter(images_NCHW), whole[:, :1])
        # the features do not depend on the other tokens
        whole[:, 1:] = torch.rand_like(whole[:, 1:])
        torch.testing.assert_close(stage.upper(whole), run(stage, images_NCHW))
    # before the attention they would
    earlier = find_stage(model, images_NCHW, CLASSES, name="encoder.layers.encoder_layer_1")
    assert not earlier.first_token_only
    assert earlier.shape == (5, 8)


def test_of_a_swin_all_tokens_enter() -> None:
    """Its features are a mean over them."""
    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=CLASSES).eval()
    images_NCHW = torch.rand(2, 3, 32, 32)
    stage = find_stage(model, images_NCHW, CLASSES)
    assert not stage.first_token_only
    assert stage.shape == (8, 8, 12)


class Branching(nn.Module):
    """A model whose forward function depends on a value that only images have."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, CLASSES)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        features_ND = self.body(images_NCHW.flatten(1))
        if features_ND.sum() > 0:
            features_ND = -features_ND
        logits_NC: Tensor = self.head(features_ND)
        return logits_NC


class Twice(Branching):
    """A model that uses its head twice."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        features_ND = self.body(images_NCHW.flatten(1))
        logits_NC: Tensor = self.head(features_ND) + self.head(-features_ND)
        return logits_NC


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Sequential(nn.Flatten(), nn.Conv1d(1, CLASSES, 1)), "no linear head of 5 classes"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "no linear head of 5 classes"),
        (Branching(), "torch.fx cannot trace it: "),
        (Twice(), "its head 'head' is called 2 times; once was expected"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES)), "no layer of weights lies between"),
    ],
)
def test_a_model_without_a_last_stage(model: nn.Module, text: str) -> None:
    with pytest.raises(UntraceableError, match=text):
        find_stage(model, torch.rand(2, 1, 2, 2), CLASSES)


def test_a_model_in_training_stays_so() -> None:
    model, images_NCHW = build("resnet20", (3, 8, 8))
    model.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    find_stage(model, images_NCHW, CLASSES)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())


@pytest.mark.parametrize(
    ("shape", "positions"), [((64,), 1), ((5, 8), 1), ((32, 4, 4), 16), ((4, 4, 384), 16)]
)
def test_the_resolution_is_the_number_of_positions(shape: tuple[int, ...], positions: int) -> None:
    assert measure_resolution(shape) == positions


def test_the_open_layers_are_linear_ones_and_whole_convolutions() -> None:
    """Depthwise convolutions, and modules that are called twice, are left as they are."""
    model, images_NCHW = build("mobilenet_v3_small", (3, 32, 32))
    stage = find_stage(model, images_NCHW, CLASSES, name="features.11")
    layers = dict(iterate_layers(stage))
    grouped = [
        name
        for name, module in stage.upper.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1
    ]
    assert grouped
    assert not set(grouped) & set(layers)
    assert "classifier.0" in layers
    assert all(isinstance(module, nn.Linear | nn.Conv2d) for module in layers.values())
