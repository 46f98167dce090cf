"""Paths of weight changes, and the search for a strength along one.

A path gives a change of the weights for each strength s >= 0, zero at 0. Changes are dictionaries
keyed as `named_parameters()`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Change = dict[str, Tensor]

STEPS_A_DECADE = 2  # of the scan that brackets a point
BISECTIONS = 8  # 10 ** (1 / 2) to the power of 1 / 256: the strength to half a per cent


@dataclass(frozen=True)
class WeightPath:
    """One direction that a rule proposes, and the strengths that are worth a look."""

    rule: str
    sign: int
    lowest: float
    highest: float
    change: Callable[[float], Change]
    lambda2: float | None = None  # the bound of a rule that has one

    def list_lambdas(self, strength: float) -> tuple[float, ...]:
        """Return lambda1 and lambda2 of a rule that is bounded; nothing for another."""
        return () if self.lambda2 is None else (strength, self.lambda2)


@dataclass(frozen=True)
class Trial:
    """One point that was measured: a rule at one strength.

    Losses are per code, in nats; `damage` is NaN where it was not measured.
    """

    rule: str
    sign: int
    strength: float
    lambdas: tuple[float, ...]
    forget_loss: float  # the lowest of a forgotten code
    retain_loss: float  # mean over the retained codes
    forgotten: float  # share of the forgotten codes classified wrong
    retained: float  # share of the retained codes classified right
    damage: float = math.nan


def find_strength(
    path: WeightPath, holds: Callable[[float], bool], start: float | None = None
) -> float | None:
    """Return the lowest strength found at which `holds`, or None if there is none.

    The strengths are scanned upwards from `start`, or from the path's lowest, and the first step
    over the edge is bisected. `holds` is taken to stay true once it is true: a hole that is
    narrower than a step of the scan is not seen.
    """
    ratio = 10 ** (1 / STEPS_A_DECADE)
    low = path.lowest if start is None else start
    high = low * ratio
    while not holds(high):
        if high >= path.highest:
            return None
        low, high = high, min(high * ratio, path.highest)
    for _ in range(BISECTIONS):
        # the geometric mean, because strengths span several decades
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def deepen(
    path: WeightPath, start: Trial, limit: float, measure: Callable[[WeightPath, float], Trial]
) -> Trial:
    """Return the deepest trial from `start` on whose damage is within `limit`, in nats.

    It is `start` itself where no stronger one stays within the limit.
    """
    best = start
    if start.damage > limit:
        return best

    def leaves_limit(strength: float) -> bool:
        nonlocal best
        trial = measure(path, strength)
        within = trial.damage <= limit and trial.retained == 1 and trial.forgotten == 1
        # kept on the way: the bisection ends at the first strength beyond, which is too much
        if within and trial.forget_loss > best.forget_loss:
            best = trial
        return not within

    find_strength(path, leaves_limit, start=start.strength)
    return best
