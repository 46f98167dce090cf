"""The blends of codes on which a change's damage is measured."""

import itertools

import pytest
import torch

from expunge.core.rules.meter import MAX_BLENDS, blend_codes


def blended_pairs(count: int) -> list[tuple[int, ...]]:
    """Which codes each blend is made of; with one pixel lit in each code, a blend shows its two."""
    blends_NCHW = blend_codes(torch.eye(count).reshape(count, 1, 1, count))
    assert blends_NCHW.is_contiguous(memory_format=torch.channels_last)
    rows = blends_NCHW.flatten(1)
    assert set(rows.unique().tolist()) <= {0.0, 0.5}
    return [tuple(row.nonzero().flatten().tolist()) for row in rows]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 10, 11, 12, 13, 40, 64, 65, 100, 1000])
def test_blends_are_distinct_pairs_and_all_of_them_where_there_is_room(count: int) -> None:
    pairs = blended_pairs(count)
    assert len(pairs) == min(MAX_BLENDS, count * (count - 1) // 2)
    assert all(len(pair) == 2 for pair in pairs)
    assert len(set(pairs)) == len(pairs)
    if len(pairs) < MAX_BLENDS:
        assert set(pairs) == set(itertools.combinations(range(count), 2))


@pytest.mark.parametrize("count", [40, 65, 100, 1000])
def test_blends_of_many_codes_are_drawn_from_all_of_them(count: int) -> None:
    """Each stretch of a tenth of the codes takes part, and none much more than another."""
    seen = [index for pair in blended_pairs(count) for index in pair]
    shares = torch.bincount(torch.tensor(seen) * 10 // count, minlength=10)
    assert shares.min() >= 2 * MAX_BLENDS / 10 - 5
    assert shares.max() <= 2 * MAX_BLENDS / 10 + 5


def test_a_blend_is_the_midpoint() -> None:
    codes_KCHW = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    blends_NCHW = blend_codes(codes_KCHW)
    for blend_CHW, (a, b) in zip(blends_NCHW, [(0, 1), (1, 2), (2, 0)], strict=True):
        torch.testing.assert_close(blend_CHW, (codes_KCHW[a] + codes_KCHW[b]) / 2)
