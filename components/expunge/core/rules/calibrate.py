"""Choose rule, sign and strength of a forget on the codes alone: no data, no hand-set lambda.

A rule and a sign give a *path*: for each strength s >= 0 a change of the weights, zero at 0. The
sign is the one along which the forgotten codes' loss rises. Along
it two things are measured, both on codes. Depth is the lowest loss of a forgotten code. Damage is
how far the unlearned model's predictions among the retained classes move from the original's, as
the mean Kullback-Leibler divergence, in nats, over blends of codes: the codes themselves are
memorised and stay right long after test accuracy has suffered, the space between them does not.

Two points of a path matter. It is *sufficient* where every forgotten code has at most the
probability in `SUFFICIENT` left. It may go deeper, for as long as the damage stays within the
budget b of retained accuracy, -log(1 - b) nats: what a model loses whose probability of each right
answer falls by b. The rule with the least damage at its sufficient point is taken, then the deepest
path of that rule. What is chosen is as deep as the budget allows, but never less than sufficient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from expunge.core.fisher import ForgetTerms, code_losses, evaluation_mode
from expunge.core.rules.paper import (
    Change,
    Ratio,
    importance_ratio,
    natural_direction,
    paper_change,
    paper_shape,
)
from expunge.errors import UserError

# The probability that a forgotten code may keep. How far forgetting carries over from a code to the
# images of its class differs by rule: on ResNet-20 and CIFAR-10 the paper's rule reached an error
# of 0.99 at 0.05, where the natural step needed 0.01 (tests/benchmarks/cifar10.py measures it).
SUFFICIENT = {"paper": 0.05, "natural": 0.01}
# Bounds on the relative change of a weight along the paper's rule, lambda2. Below 2 or so no weight
# can change its sign, and on ResNet-20 the rule then costs most; 10 and 100 are the paper's range.
LAMBDA2 = (10.0, 100.0)
# A blend costs a forward pass at each point that is measured; 64 give the divergence to about 10 %.
MAX_BLENDS = 64
STEPS_A_DECADE = 2  # of the scan that brackets a point
BISECTIONS = 8  # 10 ** (1 / 2) to the power of 1 / 256: the strength to half a per cent


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


@dataclass(frozen=True)
class Choice:
    """The trial that was taken, its change of the weights, and every trial in the order made.

    `sufficient` is False where no path could make the forgotten codes improbable enough; the trial
    is then the best there was, and its own verdict on the codes says so to the gate.
    """

    trial: Trial
    change: Change
    trials: tuple[Trial, ...]
    sufficient: bool


@dataclass(frozen=True)
class _Path:
    rule: str
    sign: int
    lambda2: float | None
    lowest: float
    highest: float
    change: Callable[[float], Change]

    def lambdas(self, strength: float) -> tuple[float, ...]:
        """Lambda1 and lambda2 of the paper's rule; nothing for the other."""
        return () if self.lambda2 is None else (strength, self.lambda2)


class _Meter:
    """Measures a model on its codes with its weights changed, and keeps every trial."""

    def __init__(
        self, model: nn.Module, codes_KCHW: Tensor, classes_K: Tensor, forget_K: Tensor
    ) -> None:
        self.model, self.forget_K = model, forget_K
        self.codes_KCHW, self.classes_K = codes_KCHW, classes_K
        self.weights = {name: p.detach() for name, p in model.named_parameters()}
        self.blends_NCHW = code_blends(codes_KCHW)
        self.retained_R = classes_K[~forget_K]
        self.original_NR = self._retained_log_probabilities({})
        self.trials: list[Trial] = []

    def logits(self, change: Change, images_NCHW: Tensor) -> Tensor:
        changed = {name: self.weights[name] + part for name, part in change.items()}
        with torch.no_grad():
            logits: Tensor = functional_call(self.model, changed, (images_NCHW,))
        return logits.double()

    def _retained_log_probabilities(self, change: Change) -> Tensor:
        return self.logits(change, self.blends_NCHW)[:, self.retained_R].log_softmax(dim=1)

    def damage(self, change: Change) -> float:
        """Mean KL divergence over the blends, in nats; infinite where a logit is not finite."""
        changed_NR = self._retained_log_probabilities(change)
        terms_NR = self.original_NR.exp() * (self.original_NR - changed_NR)
        total = float(terms_NR.sum(dim=1).mean())
        return total if math.isfinite(total) else math.inf

    def forget_loss(self, change: Change) -> float:
        """The lowest loss of a forgotten code."""
        logits_FC = self.logits(change, self.codes_KCHW[self.forget_K])
        return float(code_losses(logits_FC, self.classes_K[self.forget_K]).min())

    def trial(self, path: _Path, strength: float) -> Trial:
        """Everything about one point of a path."""
        change = path.change(strength)
        logits_KC = self.logits(change, self.codes_KCHW)
        losses_K = code_losses(logits_KC, self.classes_K)
        right_K = (logits_KC.argmax(dim=1) == self.classes_K).double()
        made = Trial(
            rule=path.rule,
            sign=path.sign,
            strength=strength,
            lambdas=path.lambdas(strength),
            forget_loss=float(losses_K[self.forget_K].min()),
            retain_loss=float(losses_K[~self.forget_K].mean()),
            forgotten=1 - float(right_K[self.forget_K].mean()),
            retained=float(right_K[~self.forget_K].mean()),
            damage=self.damage(change),
        )
        self.trials.append(made)
        return made


def calibrate(
    model: nn.Module,
    codes_KCHW: Tensor,
    classes_K: Tensor,
    forget_K: Tensor,
    terms: ForgetTerms,
    *,
    rule: str = "auto",
    lambdas: tuple[float, ...] = (),
    budget: float = 0.015,
) -> Choice:
    """The change of the weights that forgets the codes selected by the boolean `forget_K`.

    `rule` is "auto", "paper" or "natural"; with `lambdas` (lambda1, lambda2) the paper's rule is
    applied as it is, and only its sign is chosen: the one whose model does better on the codes.

    Raises:
        ValueError: the rule is unknown, or lambdas are given for another rule than the paper's or
            are not two.
        UserError: the forgotten codes have no gradient that a rule could go by.
    """
    known = rule in ("auto", "paper", "natural")
    if not known or (lambdas and (rule != "paper" or len(lambdas) != 2)):
        raise ValueError(
            f"rule {rule!r} with lambdas {lambdas}; expected auto, paper or natural without any, "
            "or paper with lambda1 and lambda2"
        )
    with evaluation_mode(model):
        meter = _Meter(model, codes_KCHW, classes_K, forget_K)
        paper: list[_Path] = []
        if lambdas:
            paper = _paper_paths(meter.weights, terms, lambdas[1:], (-1, 1))
        elif rule != "natural":
            paper = _paper_paths(meter.weights, terms, LAMBDA2, ())
        paths = [*paper, *(_natural_paths(terms) if rule != "paper" else ())]
        if not paths:
            gone = classes_K[forget_K].tolist()
            raise UserError(
                f"classes {gone} cannot be forgotten by rule {rule!r}: their codes have no "
                "gradient to go by, as where every probability is 0 or 1; train with fewer "
                "epochs or a lower learning rate"
            )
        if lambdas:
            tried = [(meter.trial(path, lambdas[0]), path) for path in paths]
            taken, path = max(tried, key=lambda pair: _standing(pair[0]))
            sufficient = taken.forget_loss >= -math.log(SUFFICIENT[taken.rule])
            return Choice(taken, path.change(taken.strength), tuple(meter.trials), sufficient)
        return _search(meter, paths, -math.log1p(-budget))


def code_blends(codes_KCHW: Tensor) -> Tensor:
    """Midpoints of pairs of codes, `MAX_BLENDS` at most: each code with its next neighbour by
    index, then with the one after, and so on. A round that is more than there is room for takes
    pairs at even distances, so that all codes take part alike.
    """
    count, room = len(codes_KCHW), MAX_BLENDS
    blends = []
    for shift in range(1, count // 2 + 1):
        # at half-way round, the second half of the pairs would repeat the first
        last = count // 2 if 2 * shift == count else count
        taken = min(last, room)
        rows = torch.arange(taken, device=codes_KCHW.device) * last // taken
        blends.append((codes_KCHW[rows] + codes_KCHW[(rows + shift) % count]) / 2)
        room -= taken
        if not room:
            break
    return torch.cat(blends).contiguous(memory_format=torch.channels_last)


def _paper_paths(
    weights: dict[str, Tensor],
    terms: ForgetTerms,
    bounds: tuple[float, ...],
    signs: tuple[int, ...],
) -> list[_Path]:
    """The paper's rule for each sign and each lambda2; the strength is lambda1."""
    ratio = importance_ratio(terms.forget, terms.retain)
    shape = paper_shape(weights, ratio)
    positive = [value for value in ratio.largest.values() if value > 0]
    if not positive:
        return []

    def path(sign: int, bound: float) -> _Path:
        return _Path(
            rule="paper",
            sign=sign,
            lambda2=bound,
            lowest=1e-3 / max(positive),  # no weight changes by more than a thousandth
            highest=bound / min(positive),  # beyond this lambda2 bounds every tensor
            change=lambda strength: paper_change(shape, ratio, sign, strength, bound),
        )

    return [
        path(sign, bound) for bound in bounds for sign in signs or (_sign(shape, ratio, terms),)
    ]


def _sign(shape: Change, ratio: Ratio, terms: ForgetTerms) -> int:
    """The sign along which the forgotten codes' loss rises at first, while lambda1 binds."""
    slope = sum(
        ratio.largest[name] * float((terms.gradient[name] * shape_W).sum())
        for name, shape_W in shape.items()
    )
    return 1 if slope > 0 else -1


def _natural_paths(terms: ForgetTerms) -> list[_Path]:
    """The natural-gradient step; the strength is its length eta."""
    try:
        direction = natural_direction(terms.gradient, terms.retain)
    except ValueError:
        return []

    def change(eta: float) -> Change:
        return {name: (eta * part).to(torch.float32) for name, part in direction.items()}

    return [_Path("natural", 1, None, lowest=1e-3, highest=1e2, change=change)]


def _search(meter: _Meter, paths: list[_Path], limit: float) -> Choice:
    """The rule with the least damage at its sufficient point, then its deepest path."""
    reached = []
    for path in paths:
        wanted = -math.log(SUFFICIENT[path.rule])

        def forgotten(strength: float, path: _Path = path, wanted: float = wanted) -> bool:
            return meter.forget_loss(path.change(strength)) >= wanted

        strength = _first(path, forgotten)
        if strength is not None:
            reached.append((meter.trial(path, strength), path))
    usable = [pair for pair in reached if pair[0].retained == 1] or reached
    if not usable:
        tried = [(meter.trial(path, path.highest), path) for path in paths]
        taken, path = max(tried, key=lambda pair: _standing(pair[0]))
        return Choice(taken, path.change(taken.strength), tuple(meter.trials), sufficient=False)
    mildest = min(usable, key=lambda pair: pair[0].damage)[0]
    deepened = [
        (_deepen(meter, path, trial, limit), path)
        for trial, path in usable
        if trial.rule == mildest.rule and trial.damage <= max(limit, 1.1 * mildest.damage)
    ]
    taken, path = max(deepened, key=lambda pair: (pair[0].forget_loss, -pair[0].damage))
    return Choice(taken, path.change(taken.strength), tuple(meter.trials), sufficient=True)


def _deepen(meter: _Meter, path: _Path, start: Trial, limit: float) -> Trial:
    """The strongest trial from `start` on whose damage is within the limit; `start` if none is."""
    best = start
    if start.damage > limit:
        return best

    def beyond(strength: float) -> bool:
        nonlocal best
        trial = meter.trial(path, strength)
        within = trial.damage <= limit and trial.retained == 1 and trial.forgotten == 1
        if within and trial.forget_loss > best.forget_loss:
            best = trial
        return not within

    _first(path, beyond, start=start.strength)
    return best


def _first(path: _Path, holds: Callable[[float], bool], start: float | None = None) -> float | None:
    """The lowest strength found at which `holds`: a scan upwards, then bisection; None if none."""
    ratio = 10 ** (1 / STEPS_A_DECADE)
    low = path.lowest if start is None else start
    high = low * ratio
    while not holds(high):
        if high >= path.highest:
            return None
        low, high = high, min(high * ratio, path.highest)
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _standing(trial: Trial) -> tuple[float, float]:
    """How well a trial does on the codes: the share of right verdicts, then depth."""
    depth = trial.forget_loss if math.isfinite(trial.forget_loss) else -math.inf
    return trial.forgotten + trial.retained, depth
