"""Blocks of a body: which are found, and what is recorded of them."""

import pytest
import torch
from torch import nn

from expunge.core.blocks import MOST, find_blocks, pool
from expunge.core.heads import find_head_name, observe
from expunge.models import build_model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", ("hidden",)),
        ("resnet18-cifar", ("layer1", "layer2", "layer3", "layer4")),
        ("resnet20", tuple(f"blocks.{i}" for i in (0, 2, 3, 5, 6, 8))),
        ("vgg11", tuple(f"features.{i}" for i in (0, 3, 8, 11, 16, 18))),
        ("vit_b_32", tuple(f"encoder.layers.encoder_layer_{i}" for i in (0, 2, 4, 7, 9, 11))),
    ],
)
def test_the_stages_of_the_module_tree_are_the_blocks(name: str, expected: tuple[str, ...]) -> None:
    model = build_model(name, (3, 32, 32), 4)
    assert find_blocks(model, find_head_name(model, 4)) == expected
    assert len(expected) <= MOST


def test_a_map_is_pooled_over_places_and_a_sequence_over_tokens() -> None:
    maps_NCHW = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    expected_NC = maps_NCHW.mean(dim=(2, 3))
    torch.testing.assert_close(pool(maps_NCHW), expected_NC)
    torch.testing.assert_close(pool(maps_NCHW.permute(0, 2, 3, 1)), expected_NC)  # Swin
    torch.testing.assert_close(pool(maps_NCHW.flatten(2).transpose(1, 2)), expected_NC)
    torch.testing.assert_close(pool(expected_NC), expected_NC)


class Odd(nn.Module):
    """A body with a layer that inference leaves out, and one that it uses twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.idle = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, rows_ND: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.twice(self.twice(self.first(rows_ND))))
        return logits


def test_blocks_are_recorded_in_the_pass_that_gives_the_features() -> None:
    model = Odd()
    names = find_blocks(model, "head")
    assert names == ("first", "twice", "idle")
    rows_ND, labels_N = torch.rand(5, 3), torch.tensor([0, 1, 0, 1, 1])
    batches = [(rows_ND[:2], labels_N[:2]), (rows_ND[2:], labels_N[2:])]
    seen = observe(model, batches, 2, blocks=names)
    assert set(seen.blocks) == {"first"}
    torch.testing.assert_close(seen.blocks["first"], model.first(rows_ND))
    assert seen.of(1).blocks["first"].shape == (3, 3)
    assert not model.first._forward_hooks
    assert observe(model, batches, 2).blocks == {}
