"""Class statistics: for each class a Gaussian of the activations that enter the last stage.

With them a class can be forgotten where its features are made, and no image of it is needed: the
last stage is refitted on draws from the Gaussians (`rules.replay`). In continual learning this is
known as feature replay (Zhu et al., "Prototype augmentation and self-supervision", CVPR 2021).

They describe the classes, so they are as personal as the classes are.

Shapes: N images, G numbers that are kept of what enters the stage, R rank of a covariance.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor, nn

from expunge.core.blocks import is_channels_last
from expunge.core.eigen import decompose

# Images of each class that its Gaussian is made from. Of 500 a covariance has rank 499 at most.
IMAGES = 500
RANK = 64
# Below this rank the draws are too rough. The variances alone do not work at all.
LEAST_RANK = 16
BYTES = 2  # a number is kept as bfloat16


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian of rank R with independent noise: h = mean + z @ factor + residual * e.

    z and e are standard normal. What is drawn is clipped to [low, high], the range of what was
    seen: activations behind a ReLU have no negative ones, and pixels a largest value.
    """

    mean_G: Tensor
    factor_RG: Tensor
    residual_G: Tensor
    low: float
    high: float

    def count_bytes(self) -> int:
        """Return how many bytes its numbers take."""
        parts = (self.mean_G, self.factor_RG, self.residual_G)
        return sum(part.numel() * part.element_size() for part in parts)


@dataclass(frozen=True)
class ClassStatistics:
    """The Gaussians of a model's classes, and where they were taken.

    `cut` is the name of the stage's cut, `shape` that of what enters it for one image, and `grid`
    the shape that it is kept in: of feature maps with fewer positions, where there is little room.
    `depths` is how far each class has to be moved to be forgotten (`rules.replay`), where that was
    measured.
    """

    cut: str
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    gaussians: Mapping[int, Gaussian]
    depths: Mapping[int, float] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The highest rank of a covariance."""
        return max(len(gaussian.factor_RG) for gaussian in self.gaussians.values())

    def count_bytes(self) -> int:
        """Return how many bytes all their numbers take."""
        return sum(gaussian.count_bytes() for gaussian in self.gaussians.values())

    def draw(self, index: int, count: int, generator: torch.Generator) -> Tensor:
        """Draw activations of a class, N rows in the shape that enters the stage, float32.

        Args:
            index: the class.
            count: how many.
            generator: on the CPU, since a GPU's draws other numbers from the same seed.
        """
        own = self.gaussians[index]
        device = own.mean_G.device
        z_NR = torch.randn(count, len(own.factor_RG), generator=generator).to(device)
        noise = torch.randn(count, *self.shape, generator=generator).to(device)
        smooth_NG = own.mean_G.float() + z_NR @ own.factor_RG.float()
        drawn = noise.mul_(_refine(own.residual_G.float()[None], self.grid, self.shape))
        return drawn.add_(_refine(smooth_NG, self.grid, self.shape)).clamp_(own.low, own.high)

    def select(self, classes: Iterable[int]) -> "ClassStatistics":
        """Return the statistics of these classes alone."""
        kept = set(classes)
        return replace(
            self,
            gaussians={index: g for index, g in self.gaussians.items() if index in kept},
            depths={index: depth for index, depth in self.depths.items() if index in kept},
        )


def fit_gaussian(
    entering: Tensor, grid: Sequence[int], rank: int, *, dtype: torch.dtype = torch.bfloat16
) -> Gaussian:
    """Fit a Gaussian to the activations of one class.

    The `rank` leading principal directions are kept, times their standard deviations, and of the
    rest the standard deviation of each number alone. On a grid that is coarser than the
    activations, the directions are those of the cells' means, and the noise is what they leave.

    Args:
        entering: what enters the stage for the images of the class, one at least.
        grid: the shape to keep it in.
        rank: how many principal directions; fewer where there are fewer images.
        dtype: of the numbers that are kept.
    """
    count, shape = len(entering), entering.shape[1:]
    coarse_NG = _coarsen(entering, grid).flatten(1)
    mean_G = coarse_NG.mean(dim=0)
    centred_NG = coarse_NG - mean_G
    # By the N x N products, since a row is often far longer than there are rows. With the
    # eigenvectors v of these, v' centred / sqrt(N - 1) is a direction times its deviation.
    vectors_NN = decompose((centred_NG @ centred_NG.T).double())[1]
    leading_NR = vectors_NN.flip(1)[:, : min(rank, count - 1)]
    factor_RG = (leading_NR / max(count - 1, 1) ** 0.5).T.float() @ centred_NG
    explained = _refine(factor_RG, grid, shape).square().sum(dim=0)
    whole = (entering - _refine(mean_G[None], grid, shape)).square()
    left = (whole.mean(dim=0) - explained).clamp_min(0)
    return Gaussian(
        mean_G=mean_G.to(dtype),
        factor_RG=factor_RG.to(dtype),
        residual_G=_coarsen(left[None], grid).flatten().sqrt().to(dtype),
        low=float(entering.min()),
        high=float(entering.max()),
    )


def _coarsen(values: Tensor, grid: Sequence[int]) -> Tensor:
    if tuple(values.shape[1:]) == tuple(grid):
        return values
    return nn.functional.adaptive_avg_pool2d(values, (grid[1], grid[2]))


def _refine(values_NG: Tensor, grid: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return values on the grid in the shape that enters the stage."""
    values = values_NG.view(-1, *grid)
    if tuple(grid) == tuple(shape):
        return values
    return nn.functional.interpolate(values, tuple(shape[1:]), mode="bilinear")


@dataclass(frozen=True)
class Layout:
    """How class statistics are kept: the grid and the rank."""

    grid: tuple[int, ...]
    rank: int


def plan_layout(shape: Sequence[int], classes: int, limit: int) -> Layout | None:
    """Return how statistics of activations of this shape fit into `limit` bytes, if they do.

    The rank falls from `RANK` to `LEAST_RANK` first. Then feature maps, C x H x W, are kept at half
    of their resolution, since their leading directions are smooth.
    """
    for grid in _list_grids(tuple(shape)):
        # a mean and a residual beside the principal directions
        rank = min(RANK, limit // (BYTES * prod(grid) * classes) - 2)
        if rank >= LEAST_RANK:
            return Layout(grid, rank)
    return None


def _list_grids(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    if len(shape) != 3 or min(shape[1:]) < 2 or is_channels_last(shape):
        return [shape]
    return [shape, (shape[0], -(-shape[1] // 2), -(-shape[2] // 2))]
