"""Diagonal empirical Fisher information of a classifier on its mnemonic codes.

Shapes: K codes, C channels, H height, W width; a Fisher is a `dict[str, Tensor]` keyed as
`named_parameters()`, in float64. Source: Yamashita et al. (ACML 2024), equation 3:

    g_c = gradient over theta of -log p(c | k_c),  F = mean over codes of g_c ** 2

It is a mean of squares of per-code gradients, never the square of a mean. Everything here returns
*sums*, because sums of disjoint groups add up; divide by the number of codes for the mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from expunge.core.modes import evaluation_mode

Fisher = dict[str, Tensor]

# Below this share of the total, `total - part` has lost the digits that the rules select on: the
# gradients are float32, so their squares repeat to about 1e-7 between two ways of batching.
CANCELLATION = 1e-6


@dataclass(frozen=True)
class CodeGradients:
    """What one pass over a group of codes gives: both sums are over the group's codes, float64."""

    squares: Fisher  # sum of g_c ** 2
    gradient: dict[str, Tensor]  # sum of g_c; empty where it was not asked for


def code_losses(logits_KC: Tensor, classes_K: Tensor) -> Tensor:
    """Compute -log p(c | k_c) for each code, shape K; its gradient survives saturation.

    -log softmax(z)_c = softplus(logsumexp(z without c) - z_c). Codes are memorised, so p is close
    to 1; the usual form takes p - 1 and is exactly 0 once p rounds to 1, this one keeps full
    relative precision there.
    """
    indices_C = torch.arange(logits_KC.shape[-1], device=logits_KC.device)
    own_KC = classes_K.unsqueeze(-1) == indices_C  # not one_hot: vmap cannot trace it
    # minus infinity takes the own logit out of the sum
    others_K = logits_KC.masked_fill(own_KC, -torch.inf).logsumexp(dim=-1)
    own_K = logits_KC.gather(-1, classes_K.unsqueeze(-1)).squeeze(-1)
    return nn.functional.softplus(others_K - own_K)


def code_gradients(
    model: nn.Module,
    codes_KCHW: Tensor,
    classes_K: Tensor,
    *,
    chunk: int = 1,
    signed: bool = True,
) -> CodeGradients:
    """Sum the squares of the codes' gradients, and with `signed` the gradients themselves.

    Args:
        model: the classifier; eval mode inside, and left as it was.
        codes_KCHW: the codes.
        classes_K: the class index of each code.
        chunk: how many per-code gradients are held at once. 1 runs one backward pass a code, more
            than 1 takes them together by `vmap(grad)`. On a CPU 1 is the fastest.
        signed: whether the sum of the gradients is wanted; it costs as much memory as the squares.

    Returns:
        Sums over the codes, float64, keyed as `named_parameters()`.

    Raises:
        ValueError: there is no code, or a gradient is not finite.
    """
    if len(codes_KCHW) == 0 or len(codes_KCHW) != len(classes_K):
        raise ValueError(f"{len(codes_KCHW)} codes for {len(classes_K)} classes; one code each")
    parameters = dict(model.named_parameters())
    squares = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    total = {name: torch.zeros_like(square) for name, square in squares.items()} if signed else {}
    # one buffer for all codes: fresh memory of this size costs more than the arithmetic on it
    wide = {name: torch.empty_like(square) for name, square in squares.items()}
    with evaluation_mode(model):
        for start in range(0, len(codes_KCHW), chunk):
            part = slice(start, start + chunk)
            for gradients in _compute_each(model, parameters, codes_KCHW[part], classes_K[part]):
                for name, gradient in gradients.items():
                    # squared in float64: the float32 square of a small gradient underflows
                    wide[name].copy_(gradient)
                    squares[name].addcmul_(wide[name], wide[name])
                    if signed:
                        total[name] += wide[name]
    for name, square in squares.items():
        # a sum of squares is finite exactly where each of its terms is
        if not torch.isfinite(square.sum()):
            raise ValueError(f"the Fisher information of {name} is not finite; is the model?")
    return CodeGradients(squares, total)


def _compute_each(
    model: nn.Module, parameters: dict[str, nn.Parameter], codes_KCHW: Tensor, classes_K: Tensor
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of each code's loss; a parameter without one is left out."""
    if len(codes_KCHW) == 1:
        with torch.enable_grad():
            loss = code_losses(model(codes_KCHW), classes_K).sum()
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        yield {
            name: gradient
            for name, gradient in zip(parameters, gradients, strict=True)
            if gradient is not None
        }
        return

    def compute_loss(values: dict[str, Tensor], code_CHW: Tensor, label: Tensor) -> Tensor:
        logits_1C = functional_call(model, values, (code_CHW.unsqueeze(0),))
        return code_losses(logits_1C, label.unsqueeze(0)).sum()

    # detached, since `grad` differentiates by these values and not by the parameters
    values = {name: p.detach() for name, p in parameters.items()}
    stacked = vmap(grad(compute_loss), in_dims=(None, 0, 0))(values, codes_KCHW, classes_K)
    for row in range(len(codes_KCHW)):
        yield {name: gradients[row] for name, gradients in stacked.items()}


@dataclass(frozen=True)
class ForgetTerms:
    """What both rules need: means over codes, float64, keyed as `named_parameters()`.

    `lost` counts the elements at which `total - part` had no digits left; where there is one, or
    where no total was given, `retain` was computed from the retained codes (`direct`).
    """

    forget: Fisher  # F_f: mean of g_c ** 2 over the codes to forget
    retain: Fisher  # F_r: mean of g_c ** 2 over the retained codes
    gradient: dict[str, Tensor]  # mean of g_c over the codes to forget
    direct: bool
    lost: int


def forget_terms(
    model: nn.Module,
    codes_KCHW: Tensor,
    classes_K: Tensor,
    forget_K: Tensor,
    *,
    total: Fisher | None = None,
    chunk: int = 1,
) -> ForgetTerms:
    """Compute F_f, F_r and the mean gradient for the codes that `forget_K` selects.

    Args:
        model: the classifier.
        codes_KCHW: the codes of all classes that the model still has.
        classes_K: the class index of each code.
        forget_K: which codes to forget, bool.
        total: the sum of g_c ** 2 over all codes as an earlier call gave it, on the same device, in
            the same precision and with the same `chunk`. The request then costs one gradient for
            each class to forget instead of one for each class. Where `total` less the forgotten
            part has lost its digits, F_r is computed directly (see `CANCELLATION`).
        chunk: how many per-code gradients are held at once.

    Raises:
        ValueError: `forget_K` selects none or all of the codes.
    """
    count = int(forget_K.sum())
    if not 0 < count < len(classes_K):
        raise ValueError(f"{count} of {len(classes_K)} codes to forget; some must remain, some go")
    chosen = code_gradients(model, codes_KCHW[forget_K], classes_K[forget_K], chunk=chunk)
    rest, lost = subtract(total, chosen.squares) if total is not None else ({}, 0)
    direct = total is None or lost > 0
    if direct:
        kept = ~forget_K
        rest = code_gradients(
            model, codes_KCHW[kept], classes_K[kept], chunk=chunk, signed=False
        ).squares
    # in place: these dictionaries are as large as the model, in float64
    for value in (*chosen.squares.values(), *chosen.gradient.values()):
        value.div_(count)
    for value in rest.values():
        value.div_(len(classes_K) - count)
    return ForgetTerms(chosen.squares, rest, chosen.gradient, direct=direct, lost=lost)


def subtract(total: Fisher, part: Fisher) -> tuple[Fisher, int]:
    """Return `total - part` and the number of elements where it cannot be trusted.

    An element is counted where the difference is under 1e-6 of a positive total (`CANCELLATION`).
    """
    rest = {name: total[name] - part[name] for name in total}
    lost = sum(int((rest[name] < CANCELLATION * total[name]).sum()) for name in total)
    return rest, lost
