"""Search for a depth of replay: how far a class has to be moved to be gone from the features.

Shapes: N images, D features, C classes.
"""

from dataclasses import dataclass

from torch import Tensor

from expunge.core.heads import Head
from expunge.core.rules.replay import Fit, Replay

DEPTH_IMAGES = 500  # of a class, to find its depth by
DEPTH_FITS = 4  # fits of a search, at most
DEPTH_RATIO = 1.35  # from one depth to the next, until the class is gone


@dataclass(frozen=True)
class DepthTrial:
    """A depth that was tried, and the share of the images that the original's head still named."""

    depth: float
    named: float


@dataclass(frozen=True)
class DepthSearch:
    """The depth of a class: the smallest that was found to be enough, or the largest tried.

    `fit` is the stage that was refitted to it.
    """

    depth: float
    sufficient: bool
    trials: tuple[DepthTrial, ...]
    fit: Fit


def measure_named(replay: Replay, fit: Fit, entering: Tensor, head: Head, index: int) -> float:
    """Return the share of images that a head names as a class on the refitted stage."""
    features_ND = replay.compute_features(fit.parameters, entering)
    return float((head.logits(features_ND).argmax(dim=1) == index).float().mean())


def is_gone(replay: Replay, fit: Fit, entering: Tensor, head: Head, index: int) -> bool:
    """Return whether the head no longer names a class: 1 / C of its images at most.

    Args:
        replay: of the class, alone or with others.
        fit: the stage that was refitted.
        entering: what enters the stage for images of the class.
        head: the original's.
        index: the class.
    """
    limit = 1 / len(head.bias_C)
    return measure_named(replay, fit, entering, head, index) <= limit


def find_depth(replay: Replay, entering: Tensor, head: Head) -> DepthSearch:
    """Find the smallest depth at which the head as it was no longer names the class.

    "No longer" is an even guess at most, 1 / C of the images. Depths are tried upwards or downwards
    from the usual one by a constant ratio, and then between the last two.

    Args:
        replay: of one class alone.
        entering: what enters the stage for images of the class.
        head: the original's.
    """
    (index,) = replay.task.forget
    limit = 1 / len(head.bias_C)
    trials: list[DepthTrial] = []
    fits: dict[float, Fit] = {}

    def is_enough(depth: float) -> bool:
        fits[depth] = replay.fit({index: depth})
        named = measure_named(replay, fits[depth], entering, head, index)
        trials.append(DepthTrial(depth, named))
        return named <= limit

    depth, ratio = replay.settings.depth, DEPTH_RATIO
    low, high = (None, depth) if is_enough(depth) else (depth, None)
    while len(trials) < DEPTH_FITS and (low is None or high is None):
        depth = depth / ratio if low is None else depth * ratio
        if is_enough(depth):
            high = depth
        else:
            low = depth
    while len(trials) < DEPTH_FITS and low is not None and high is not None:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    chosen = max(fits) if high is None else high
    return DepthSearch(chosen, high is not None, tuple(trials), fits[chosen])
