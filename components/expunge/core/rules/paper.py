"""The two rules that turn Fisher information into a change of the weights.

Weights, Fishers and changes are dictionaries keyed as `named_parameters()`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.core.fisher import Fisher

Change = dict[str, Tensor]


@dataclass(frozen=True)
class Ratio:
    """r = F_f / F_r, elementwise, float64, and the largest r of each tensor.

    `unbounded` counts the elements with F_r = 0 < F_f.
    """

    values: Fisher
    largest: dict[str, float]
    unbounded: int


def importance_ratio(forget: Fisher, retain: Fisher) -> Ratio:
    """r = F_f / F_r, where 0 / 0 is 0 and F_r = 0 < F_f takes the tensor's largest finite ratio.

    Such an element matters to the forgotten classes alone, so it is treated as the most selective
    that the tensor has, without letting an infinity stop the whole tensor (lambda2 / max(r) = 0).
    """
    values: Fisher = {}
    largest: dict[str, float] = {}
    unbounded = 0
    for name, forget_W in forget.items():
        ratio_W = (forget_W / retain[name]).nan_to_num_(nan=0.0, posinf=math.inf)
        top = float(ratio_W.max())
        if math.isinf(top):
            infinite_W = torch.isinf(ratio_W)
            unbounded += int(infinite_W.sum())
            top = float(ratio_W.masked_fill(infinite_W, 0).max())
            ratio_W.masked_fill_(infinite_W, top)
        values[name], largest[name] = ratio_W, top
    return Ratio(values, largest, unbounded)


def paper_shape(weights: dict[str, Tensor], ratio: Ratio) -> Change:
    """r_W / max(r_W) * W, the change of each tensor at a scale of 1; zero where r is zero."""
    return {
        name: (ratio.values[name] / (ratio.largest[name] or 1.0)).to(weight_W.dtype) * weight_W
        for name, weight_W in weights.items()
    }


def paper_change(shape: Change, ratio: Ratio, sign: int, lambda1: float, lambda2: float) -> Change:
    """d_W = sign * min(lambda1, lambda2 / max(r_W)) * r_W * W for each parameter tensor W.

    `shape` is `paper_shape(weights, ratio)`, computed once for many strengths. Zero lambdas change
    nothing. Source: Yamashita et al. (ACML 2024), equations 5 and 6.
    """
    return {
        name: sign * min(lambda1 * ratio.largest[name], lambda2) * shape_W
        for name, shape_W in shape.items()
    }


def natural_direction(gradient: dict[str, Tensor], retain: Fisher) -> Change:
    """A natural-gradient ascent direction on the forgotten codes, of norm 1 over all parameters.

    d_W = g_f / (F_r + mean(F_r over W)), then d / |d|: ascend the mean loss of the forgotten codes
    (`gradient`), held back where the retained codes' Fisher is large. The mean is the damping: it
    keeps elements that no retained code touches from taking the whole step.

    Raises:
        ValueError: the direction is zero or not finite, as for codes without any gradient.
    """
    direction = {}
    for name, gradient_W in gradient.items():
        damped_W = retain[name] + retain[name].mean()
        direction[name] = torch.where(damped_W > 0, gradient_W / damped_W, 0.0)
    norm = torch.sqrt(sum((d.square().sum() for d in direction.values()), torch.zeros(())))
    if not torch.isfinite(norm) or norm == 0:
        raise ValueError(f"the natural-gradient direction has norm {float(norm)}")
    return {name: d / norm for name, d in direction.items()}
