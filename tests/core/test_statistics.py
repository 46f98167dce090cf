"""Class statistics: what is drawn is like what they were made from, and they are as small as said.

The reference is the sample itself, in float64.
"""

import dataclasses
from math import prod

import pytest
import torch
from torch import Tensor

from expunge.core.statistics import (
    BYTES,
    LEAST_RANK,
    RANK,
    ClassStatistics,
    Gaussian,
    Layout,
    fit_gaussian,
    plan_layout,
)

DRAWS = 20_000


def make_sample(count: int, shape: tuple[int, ...], rank: int, seed: int = 0) -> Tensor:
    """Return activations with `rank` strong directions, and a little noise of its own in each."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(rank, prod(shape), generator=generator)
    scales = torch.linspace(3, 1, rank)[:, None]
    noise = 0.1 + 0.4 * torch.rand(prod(shape), generator=generator)
    rows = torch.randn(count, rank, generator=generator) @ (scales * directions)
    rows += noise * torch.randn(count, prod(shape), generator=generator) + 5
    return rows.view(count, *shape)


def wrap(gaussian: Gaussian, shape: tuple[int, ...], grid: tuple[int, ...]) -> ClassStatistics:
    # nothing is clipped here: the ends of a range would bend the moments
    open_ended = dataclasses.replace(gaussian, low=-1e9, high=1e9)
    return ClassStatistics("cut", shape, grid, {7: open_ended})


def draw(statistics: ClassStatistics, count: int = DRAWS, seed: int = 1) -> Tensor:
    return statistics.draw(7, count, torch.Generator().manual_seed(seed))


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    flat_NG = rows.flatten(1).double()
    return flat_NG.mean(dim=0), flat_NG.T.cov()


@pytest.mark.parametrize("shape", [(12,), (3, 2, 2)])
def test_draws_have_the_mean_and_the_covariance_of_the_sample(shape: tuple[int, ...]) -> None:
    """Of a sample of full rank 4 and noise, whose leading directions are kept."""
    sample = make_sample(2000, shape, rank=4)
    fitted = fit_gaussian(sample, shape, rank=4, dtype=torch.float32)
    mean_G, covariance_GG = moments(sample)
    drawn_mean_G, drawn_covariance_GG = moments(draw(wrap(fitted, shape, shape)))
    scale = covariance_GG.diagonal().sqrt()
    # of a mean of 20 000 draws the error is 0.7 % of a deviation; five times that
    assert ((drawn_mean_G - mean_G) / scale).abs().max() < 0.035
    # Of a correlation it is at most 1 % at that count. The noise's own correlations are left out.
    gap_GG = (drawn_covariance_GG - covariance_GG) / torch.outer(scale, scale)
    assert gap_GG.abs().max() < 0.06
    # the variances are kept whole, whatever the rank
    rough = moments(draw(wrap(fit_gaussian(sample, shape, 1), shape, shape)))[1]
    torch.testing.assert_close(rough.diagonal(), covariance_GG.diagonal(), rtol=0.06, atol=0)


def test_the_factor_is_the_principal_directions_times_their_deviations() -> None:
    sample = make_sample(300, (10,), rank=3)
    fitted = fit_gaussian(sample, (10,), rank=3, dtype=torch.float32)
    covariance_GG = moments(sample)[1]
    values_G, vectors_GG = torch.linalg.eigh(covariance_GG)
    leading_GG = (vectors_GG[:, -3:] * values_G[-3:]) @ vectors_GG[:, -3:].T
    factor_RG = fitted.factor_RG.double()
    torch.testing.assert_close(factor_RG.T @ factor_RG, leading_GG, rtol=1e-4, atol=1e-4)
    left_G = covariance_GG.diagonal() * 299 / 300 - leading_GG.diagonal()
    torch.testing.assert_close(
        fitted.residual_G.double(), left_G.clamp_min(0).sqrt(), rtol=1e-3, atol=1e-2
    )


def test_draws_keep_to_the_range_that_was_seen() -> None:
    sample = make_sample(200, (6,), rank=2).relu()
    fitted = fit_gaussian(sample, (6,), rank=2)
    assert (fitted.low, fitted.high) == (float(sample.min()), float(sample.max()))
    assert fitted.low == 0
    drawn = draw(ClassStatistics("cut", (6,), (6,), {7: fitted}))
    assert float(drawn.min()) == 0
    assert float(drawn.max()) <= fitted.high


def test_few_images_give_a_lower_rank() -> None:
    for count, rank in ((1, 0), (2, 1), (5, 4), (50, 8)):
        fitted = fit_gaussian(make_sample(count, (9,), rank=8), (9,), rank=8)
        assert len(fitted.factor_RG) == rank
        assert all(
            bool(part.isfinite().all())
            for part in (fitted.mean_G, fitted.factor_RG, fitted.residual_G)
        )
    single = make_sample(1, (9,), rank=2)
    statistics = wrap(fit_gaussian(single, (9,), rank=4, dtype=torch.float32), (9,), (9,))
    torch.testing.assert_close(draw(statistics, 3), single.expand(3, 9))


def test_at_half_resolution_the_cells_have_their_mean_and_covariance() -> None:
    shape, grid = (2, 4, 4), (2, 2, 2)
    coarse = make_sample(1500, grid, rank=3)
    smooth = torch.nn.functional.interpolate(coarse, (4, 4), mode="bilinear")
    sample = smooth + 0.2 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(5))
    fitted = fit_gaussian(sample, grid, rank=3, dtype=torch.float32)
    assert fitted.mean_G.numel() == prod(grid)
    drawn = draw(wrap(fitted, shape, grid))
    assert drawn.shape[1:] == shape
    # A number keeps its mean; what a cell's four have in common keeps its variance, roughly, since
    # the finer structure becomes noise.
    expected_G, got_G = moments(sample)[0], moments(drawn)[0]
    spread = float(moments(sample)[1].diagonal().sqrt().mean())
    assert (got_G - expected_G).abs().max() < 0.25 * spread
    whole = (moments(sample)[1].diagonal().mean(), moments(drawn)[1].diagonal().mean())
    assert float(whole[1] / whole[0]) == pytest.approx(1, abs=0.1)


def test_the_same_seed_gives_the_same_draws() -> None:
    fitted = fit_gaussian(make_sample(50, (6,), rank=2), (6,), rank=2)
    statistics = wrap(fitted, (6,), (6,))
    assert torch.equal(draw(statistics, 10), draw(statistics, 10))
    assert not torch.equal(draw(statistics, 10), draw(statistics, 10, seed=2))
    assert draw(statistics, 10).dtype == torch.float32


def test_a_class_that_is_not_selected_leaves_nothing() -> None:
    gaussians = {
        index: fit_gaussian(make_sample(20, (4,), rank=2, seed=index), (4,), rank=2)
        for index in (0, 2, 5)
    }
    statistics = ClassStatistics("cut", (4,), (4,), gaussians, {0: 1.5, 2: 2.0})
    left = statistics.select([5, 0])
    assert left.gaussians == {0: gaussians[0], 5: gaussians[5]}
    assert left.depths == {0: 1.5}
    assert (left.cut, left.shape, left.grid) == ("cut", (4,), (4,))
    assert set(statistics.gaussians) == {0, 2, 5}


@pytest.mark.parametrize("rank", [1, 4])
def test_the_bytes_are_those_of_the_numbers(rank: int) -> None:
    shape = (3, 4, 4)
    statistics = ClassStatistics(
        "cut",
        shape,
        shape,
        {index: fit_gaussian(make_sample(20, shape, 4, index), shape, rank) for index in range(3)},
    )
    assert statistics.rank == rank
    # a mean and a residual beside the directions
    assert statistics.count_bytes() == 3 * prod(shape) * (rank + 2) * BYTES


@pytest.mark.parametrize("shape", [(16384,), (64, 8, 8), (8, 8, 96), (1, 768)])
@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("limit", [10**5, 10**6, 10**7, 10**9])
def test_a_layout_takes_the_room_that_there_is(
    shape: tuple[int, ...], classes: int, limit: int
) -> None:
    layout = plan_layout(shape, classes, limit)

    def count(grid: tuple[int, ...], rank: int) -> int:
        return BYTES * prod(grid) * (rank + 2) * classes

    if layout is None:
        coarse = (shape[0], 4, 4) if shape == (64, 8, 8) else shape
        assert count(coarse, LEAST_RANK) > limit
        return
    assert count(layout.grid, layout.rank) <= limit
    assert LEAST_RANK <= layout.rank <= RANK
    # no room is left for one more direction
    assert layout.rank == RANK or count(layout.grid, layout.rank + 1) > limit
    # and the resolution falls only where the lowest rank would not fit
    assert layout.grid == shape or count(shape, LEAST_RANK) > limit


def test_feature_maps_are_halved_and_nothing_else_is() -> None:
    tight = 2 * BYTES * 64 * 16 * (LEAST_RANK + 2)
    assert plan_layout((64, 8, 8), 2, tight) == Layout((64, 4, 4), LEAST_RANK)
    assert plan_layout((64, 8, 8), 2, tight - 1) is None
    # an odd side is rounded up
    halved = plan_layout((64, 7, 7), 2, tight)
    assert halved == Layout((64, 4, 4), LEAST_RANK)
    # channels last, and tokens
    for shape in ((8, 8, 64), (64, 64)):
        assert plan_layout(shape, 2, BYTES * prod(shape) * 2 * (LEAST_RANK + 2) - 1) is None
