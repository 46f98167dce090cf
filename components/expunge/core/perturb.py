"""The two rules that turn Fisher information into a change of the weights.

Weights, Fishers and changes are dictionaries keyed as `named_parameters()`.
"""

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
    values, unbounded = {}, 0
    for name, forget_W in forget.items():
        retain_W = retain[name]
        ratio_W = torch.where(forget_W > 0, forget_W / retain_W, torch.zeros_like(forget_W))
        infinite_W = torch.isinf(ratio_W)
        count = int(infinite_W.sum())
        if count:
            unbounded += count
            finite = float(ratio_W.masked_fill(infinite_W, 0).max())
            ratio_W = ratio_W.masked_fill(infinite_W, finite)
        values[name] = ratio_W
    largest = {name: float(ratio_W.max()) for name, ratio_W in values.items()}
    return Ratio(values, largest, unbounded)


def paper_change(
    weights: dict[str, Tensor], ratio: Ratio, sign: int, lambda1: float, lambda2: float
) -> Change:
    """d_W = sign * min(lambda1, lambda2 / max(r_W)) * r_W * W for each parameter tensor W.

    Source: Yamashita et al. (ACML 2024), equations 5 and 6. Zero lambdas change nothing.
    """
    change = {}
    for name, weight_W in weights.items():
        ratio_W = ratio.values[name]
        largest = ratio.largest[name]
        scale = min(lambda1, lambda2 / largest) if largest > 0 else 0.0
        change[name] = (sign * scale * ratio_W).to(weight_W.dtype) * weight_W
    return change


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
