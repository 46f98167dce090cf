"""The paper's rule: weights that matter to the forgotten codes alone are scaled.

Weights, Fishers and changes are dictionaries keyed as `named_parameters()`. Source: Yamashita,
Yamada and Shibata, "One-Shot Machine Unlearning with Mnemonic Code", ACML 2024, section 3.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.core.fisher import Fisher
from expunge.core.rules import Rule, RuleInputs
from expunge.core.rules.paths import Change, WeightPath

NAME = "paper"
# Bounds on the relative change of a weight, lambda2. Below 2 or so no weight can change its sign,
# and on ResNet-20 the rule then costs most; 10 and 100 are the paper's range.
LAMBDA2 = (10.0, 100.0)


@dataclass(frozen=True)
class Ratio:
    """r = F_f / F_r, elementwise, float64, and the largest r of each tensor.

    `unbounded` counts the elements with F_r = 0 < F_f.
    """

    values: Fisher
    largest: dict[str, float]
    unbounded: int


def compute_ratio(forget: Fisher, retain: Fisher) -> Ratio:
    """Compute r = F_f / F_r; 0 / 0 is 0, and F_r = 0 < F_f takes the largest finite ratio.

    The largest is taken in each tensor. An element with F_r = 0 < F_f matters to the forgotten
    classes alone, so it is treated as the most selective that the tensor has. An infinity would
    stop the whole tensor instead, as lambda2 / max(r) would be 0.
    """
    values: Fisher = {}
    largest: dict[str, float] = {}
    unbounded = 0
    for name, forget_W in forget.items():
        # in place: each of these is as large as the model, in float64
        ratio_W = (forget_W / retain[name]).nan_to_num_(nan=0.0, posinf=math.inf)
        top = float(ratio_W.max())
        if math.isinf(top):
            infinite_W = torch.isinf(ratio_W)
            unbounded += int(infinite_W.sum())
            top = float(ratio_W.masked_fill(infinite_W, 0).max())
            ratio_W.masked_fill_(infinite_W, top)
        values[name], largest[name] = ratio_W, top
    return Ratio(values, largest, unbounded)


def compute_shape(weights: Mapping[str, Tensor], ratio: Ratio) -> Change:
    """Compute r_W / max(r_W) * W, each tensor's change at a scale of 1; zero where r is zero."""
    return {
        name: (ratio.values[name] / (ratio.largest[name] or 1.0)).to(weight_W.dtype) * weight_W
        for name, weight_W in weights.items()
    }


def compute_change(shape: Change, ratio: Ratio, sign: int, lambdas: tuple[float, float]) -> Change:
    """Compute d_W = sign * min(lambda1, lambda2 / max(r_W)) * r_W * W for each tensor W.

    `shape` is what `compute_shape` gives, once for many strengths. Zero lambdas change nothing.
    Source: Yamashita et al. (ACML 2024), equations 5 and 6.
    """
    lambda1, lambda2 = lambdas
    # The minimum is taken after multiplying by max(r_W), which may be 0 and cannot divide.
    return {
        name: sign * min(lambda1 * ratio.largest[name], lambda2) * shape_W
        for name, shape_W in shape.items()
    }


def make_paper_paths(inputs: RuleInputs) -> list[WeightPath]:
    """Return a path for each lambda2 and each sign worth trying; its strength is lambda1.

    There is none where no weight matters to the forgotten codes. Where a user has set the lambdas,
    both signs are tried at that lambda2.
    """
    ratio = compute_ratio(inputs.terms.forget, inputs.terms.retain)
    shape = compute_shape(inputs.weights, ratio)
    positive = [value for value in ratio.largest.values() if value > 0]
    if not positive:
        return []

    def make_path(sign: int, bound: float) -> WeightPath:
        return WeightPath(
            rule=NAME,
            sign=sign,
            lambda2=bound,
            lowest=1e-3 / max(positive),  # no weight changes by more than a thousandth
            highest=bound / min(positive),  # beyond this lambda2 bounds every tensor
            change=lambda strength: compute_change(shape, ratio, sign, (strength, bound)),
        )

    bounds = inputs.lambdas[1:] or LAMBDA2
    # The slope says which sign is better for small steps only, and a strength that a user has set
    # may be a large one.
    signs = (-1, 1) if inputs.lambdas else (_find_sign(shape, ratio, inputs.terms.gradient),)
    return [make_path(sign, bound) for bound in bounds for sign in signs]


def _find_sign(shape: Change, ratio: Ratio, gradient: Mapping[str, Tensor]) -> int:
    """Return the sign along which the forgotten codes' loss rises at first, while lambda1 binds."""
    slope = sum(
        ratio.largest[name] * float((gradient[name] * shape_W).sum())
        for name, shape_W in shape.items()
    )
    return 1 if slope > 0 else -1


# On ResNet-20 and CIFAR-10 the error on images of the class is 0.99 there already
# (tests/benchmarks/cifar10.py measures it).
RULE = Rule(sufficient=0.05, make_paths=make_paper_paths, lambdas=2)
