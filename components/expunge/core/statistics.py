"""Class statistics: for each class a Gaussian of the activations that enter the last stage.

With them a class can be forgotten where its features are made, and no image of it is needed: the
last stage is refitted on draws from the Gaussians (`rules.replay`). In continual learning this is
known as feature replay (Zhu et al., "Prototype augmentation and self-supervision", CVPR 2021).

They describe the classes, so they are as personal as the classes are.

Shapes: N images, E numbers that enter the stage (flat), K classes, R rank of a covariance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Images of each class that its Gaussian is made from. Of 500 a covariance has rank 499 at most.
IMAGES = 500
RANK = 64
# Below this rank the draws are too rough: on CIFAR-10 (ResNet-8) a retained class lost 9 points at
# 16 where it lost 2 at 64, and the variances alone did not work at all.
LEAST_RANK = 16
BYTES = 2  # a number is kept as bfloat16


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian of rank R and independent noise: h = mean + z @ factor + residual * e.

    z and e are standard normal. What is drawn is clipped to [low, high], the range of what was
    seen: activations behind a ReLU have no negative ones, and pixels a largest value.
    """

    mean_E: Tensor
    factor_RE: Tensor
    residual_E: Tensor
    low: float
    high: float

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` activations, N x E in float32."""
        # On the CPU, since a GPU's generator draws other numbers from the same seed.
        z_NR = torch.randn(count, len(self.factor_RE), generator=generator)
        e_NE = torch.randn(count, len(self.mean_E), generator=generator)
        device = self.mean_E.device
        drawn_NE = z_NR.to(device) @ self.factor_RE.float()
        drawn_NE += self.mean_E.float() + self.residual_E.float() * e_NE.to(device)
        return drawn_NE.clamp_(self.low, self.high)

    def count_bytes(self) -> int:
        """Return how many bytes its numbers take."""
        parts = (self.mean_E, self.factor_RE, self.residual_E)
        return sum(part.numel() * part.element_size() for part in parts)


@dataclass(frozen=True)
class ClassStatistics:
    """The Gaussians of a model's classes, and where they were taken.

    `cut` is the name of the stage's cut and `shape` that of what enters it for one image.
    `depths` is how far each class has to be moved to be forgotten (`rules.replay`), where that was
    measured.
    """

    cut: str
    shape: tuple[int, ...]
    gaussians: dict[int, Gaussian]
    depths: dict[int, float] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The highest rank of a covariance."""
        return max(len(gaussian.factor_RE) for gaussian in self.gaussians.values())

    def count_bytes(self) -> int:
        """Return how many bytes all their numbers take."""
        return sum(gaussian.count_bytes() for gaussian in self.gaussians.values())

    def draw(self, index: int, count: int, generator: torch.Generator) -> Tensor:
        """Draw activations of a class, in the shape that enters the stage."""
        return self.gaussians[index].draw(count, generator).view(count, *self.shape)

    def without(self, classes: Iterable[int]) -> "ClassStatistics":
        """Return the statistics of the other classes."""
        gone = set(classes)
        return ClassStatistics(
            self.cut,
            self.shape,
            {index: g for index, g in self.gaussians.items() if index not in gone},
            {index: depth for index, depth in self.depths.items() if index not in gone},
        )


def fit_gaussian(entering_NE: Tensor, rank: int) -> Gaussian:
    """Fit a Gaussian to the activations of one class.

    The `rank` leading principal directions are kept, times their standard deviations, and of the
    rest the standard deviation of each number alone. Moments are computed in float64 and kept in
    bfloat16.

    Args:
        entering_NE: what enters the stage for the images of the class; one at least.
        rank: how many principal directions; fewer where there are fewer images.
    """
    mean_E = entering_NE.mean(dim=0)
    centred_NE = entering_NE - mean_E
    count = len(entering_NE)
    # By the N x N products: E is often far larger than N.
    products_NN = (centred_NE @ centred_NE.T).double()
    values_N, vectors_NN = torch.linalg.eigh(products_NN)
    kept = min(rank, count - 1)
    values_R = values_N.flip(0)[:kept].clamp_min(1e-12)
    vectors_NR = vectors_NN.flip(1)[:, :kept]
    # A direction is centred' v / sqrt(value), its standard deviation sqrt(value / (N - 1)).
    factor_RE = (vectors_NR / max(count - 1, 1) ** 0.5).T.float() @ centred_NE
    del values_R
    variance_E = centred_NE.square().sum(dim=0) / max(count - 1, 1)
    residual_E = (variance_E - factor_RE.square().sum(dim=0)).clamp_min(0).sqrt()
    return Gaussian(
        mean_E=mean_E.bfloat16(),
        factor_RE=factor_RE.bfloat16(),
        residual_E=residual_E.bfloat16(),
        low=float(entering_NE.min()),
        high=float(entering_NE.max()),
    )


def choose_rank(size: int, classes: int, limit: int) -> int:
    """Return the rank at which the statistics take `limit` bytes at most.

    It is `RANK` at most, and 0 where not even `LEAST_RANK` fits.
    """
    # a mean and a residual beside the principal directions
    rank = min(RANK, limit // (BYTES * size * classes) - 2)
    return rank if rank >= LEAST_RANK else 0


def find_largest_size(classes: int, limit: int) -> int:
    """Return how many numbers may enter a stage for `LEAST_RANK` to fit into `limit` bytes."""
    return limit // (BYTES * classes * (LEAST_RANK + 2))


def measure_classes(entering: Sequence[tuple[int, Tensor]], rank: int) -> dict[int, Gaussian]:
    """Return the Gaussian of each (class, entering_NE)."""
    return {index: fit_gaussian(entering_NE, rank) for index, entering_NE in entering}
