import copy

import pytest
import torch
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from expunge.core.heads import (
    MASKED,
    SOFT,
    Head,
    Observed,
    find_head_name,
    mask_head,
    observe,
    read_head,
    soft_mask_head,
    with_head,
)
from expunge.models import build_model

CLASSES = 5


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet20", (3, 8, 8), CLASSES).eval()


@pytest.fixture
def images_NCHW() -> torch.Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("arch", "shape", "name"),
    [
        ("mlp", (1, 4, 4), "head"),
        ("resnet20", (3, 8, 8), "head"),
        ("resnet18-cifar", (3, 8, 8), "fc"),
        ("mobilenet_v2", (3, 32, 32), "classifier.1"),
        ("swin_t", (3, 32, 32), "head"),
        ("vit_b_32", (3, 32, 32), "heads.head"),
    ],
)
def test_the_head_is_the_last_linear_layer(
    arch: str, shape: tuple[int, int, int], name: str
) -> None:
    with torch.device("meta"):  # shapes only: drawing the weights would take seconds
        model = build_model(arch, shape, CLASSES)
        assert find_head_name(model, CLASSES) == name
        observed = observe(model, [(torch.rand(2, *shape), torch.zeros(2))], CLASSES)
    assert observed.features_ND.shape[1] == read_head(model, CLASSES).weight_CD.shape[1]


def build_small(kind: str) -> nn.Module:
    """Build a model of the kind that is small enough to compute with."""
    if kind == "swin":
        return SwinTransformer([4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=CLASSES)
    if kind == "vit":
        sizes = {"hidden_dim": 8, "mlp_dim": 8, "num_layers": 1, "num_heads": 2}
        model = VisionTransformer(image_size=32, patch_size=16, num_classes=CLASSES, **sizes)
        # torchvision starts the head at zero, and zeros would equal any features' logits
        nn.init.normal_(model.get_parameter("heads.head.weight"))
        return model
    return build_model(kind, (3, 32, 32), CLASSES)


@pytest.mark.parametrize("kind", ["mlp", "resnet20", "mobilenet_v2", "swin", "vit"])
def test_the_head_of_the_features_gives_the_logits(kind: str) -> None:
    """Dropout, pooling and norms all come before what the head is given."""
    torch.manual_seed(0)
    model = build_small(kind)
    observed = observe(model, [(torch.rand(2, 3, 32, 32), torch.zeros(2))], CLASSES)
    head = read_head(model, CLASSES)
    assert observed.logits_NC.abs().max() > 0
    torch.testing.assert_close(head.logits(observed.features_ND), observed.logits_NC)


def test_a_model_without_a_linear_head_is_refused() -> None:
    with torch.device("meta"):
        model = build_model("squeezenet1_0", (3, 64, 64), CLASSES)
    with pytest.raises(ValueError, match="no linear head of 5 classes; it has none"):
        find_head_name(model, CLASSES)
    with pytest.raises(ValueError, match="its last linear layer has 4 outputs"):
        find_head_name(nn.Sequential(nn.Linear(3, 4)), CLASSES)


def test_observing_gives_what_the_model_says_and_leaves_it_as_it_was(
    model: nn.Module, images_NCHW: torch.Tensor
) -> None:
    before = copy.deepcopy(model.state_dict())
    model.train()
    labels_N = torch.arange(6) % CLASSES
    batches = zip(images_NCHW.split(4), labels_N.split(4), strict=True)
    observed = observe(model, batches, CLASSES)
    assert model.training
    assert not [m for m in model.modules() if m._forward_pre_hooks]
    with torch.no_grad():
        torch.testing.assert_close(observed.logits_NC, model.eval()(images_NCHW))
    assert observed.features_ND.shape == (6, 64)
    assert observed.labels_N.tolist() == labels_N.tolist()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    with pytest.raises(ValueError, match="no batch to observe"):
        observe(model, [], CLASSES)


def test_another_head_goes_on_a_copy(model: nn.Module, images_NCHW: torch.Tensor) -> None:
    head = Head(torch.zeros(CLASSES, 64), torch.arange(CLASSES).float())
    with torch.no_grad():
        before_NC = model(images_NCHW)
        changed_NC = with_head(model, head)(images_NCHW)
        torch.testing.assert_close(model(images_NCHW), before_NC, rtol=0, atol=0)
    torch.testing.assert_close(changed_NC, head.bias_C.expand(6, CLASSES))


def test_a_layer_without_a_bias_has_one_of_zeros() -> None:
    head = read_head(nn.Linear(3, CLASSES, bias=False), CLASSES)
    assert head.bias_C.tolist() == [0.0] * CLASSES


def test_the_mask_hides_the_class_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(2)
    head = Head(torch.randn(CLASSES, 8, generator=generator), torch.ones(CLASSES))
    features_ND = torch.randn(7, 8, generator=generator)
    plain_NC, hidden_NC = head.logits(features_ND), mask_head(head, [1, 3]).logits(features_ND)
    assert (hidden_NC[:, [1, 3]] == MASKED).all()
    torch.testing.assert_close(hidden_NC[:, [0, 2, 4]], plain_NC[:, [0, 2, 4]])
    assert torch.isfinite(nn.functional.cross_entropy(hidden_NC, torch.ones(7, dtype=torch.long)))
    assert (head.bias_C == 1).all()


def test_the_soft_mask_gives_a_typical_image_what_a_retrained_model_gives() -> None:
    generator = torch.Generator().manual_seed(3)
    head = Head(torch.randn(CLASSES, 8, generator=generator), torch.ones(CLASSES))
    features_KD = torch.rand(4, 8, generator=generator)
    soft = soft_mask_head(head, features_KD, [2])
    logits_NC = soft.logits(features_KD.mean(dim=0, keepdim=True))
    assert logits_NC[0, 2].item() == pytest.approx(-SOFT, rel=1e-5)
    others = [0, 1, 3, 4]
    assert torch.equal(soft.weight_CD[others], head.weight_CD[others])
    assert (head.bias_C == 1).all()


def test_a_part_by_label() -> None:
    observed = Observed(torch.arange(3.0)[:, None], torch.eye(3), torch.tensor([0, 1, 0]))
    assert observed.of(0).features_ND.flatten().tolist() == [0, 2]
    assert observed.of(0).right == 0.5
    assert observed.right == pytest.approx(2 / 3)


def test_values_that_are_no_numbers_are_noticed() -> None:
    observed = Observed(torch.ones(2, 3), torch.ones(2, 2), torch.zeros(2))
    assert observed.finite
    observed.features_ND[0, 0] = torch.inf
    assert not observed.finite
