"""Choice of rule, sign and strength on the codes alone: no data, no hand-set lambda.

A rule gives one path or several: for each strength s >= 0 a change of the weights, zero at 0. Along
a path two things are measured, both on codes: depth and damage (see `expunge.core.rules.meter`).

Two points of a path matter. It is *sufficient* where every forgotten code has at most the
probability left that the rule's `sufficient` allows. It may go deeper, for as long as the damage
stays within the budget b of retained accuracy, -log(1 - b) nats: what a model loses whose
probability of each right answer falls by b. The rule with the least damage at its sufficient point
is taken, then the deepest path of that rule. What is chosen is as deep as the budget allows, but
never less than sufficient.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from expunge.core.fisher import ForgetTerms
from expunge.core.modes import evaluation_mode
from expunge.core.rules import AUTO, RULES, RuleInputs, load_rule
from expunge.core.rules.meter import Meter
from expunge.core.rules.paths import Change, Trial, WeightPath, deepen, find_strength
from expunge.errors import UserError

# Paths of the chosen rule within a tenth of the least damage count as equally mild, even beyond the
# budget: depth then decides between them.
NEARLY_MILDEST = 1.1


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


def calibrate(
    model: nn.Module,
    codes_KCHW: Tensor,
    classes_K: Tensor,
    forget_K: Tensor,
    *,
    terms: ForgetTerms,
    rule: str = AUTO,
    lambdas: tuple[float, ...] = (),
    budget: float = 0.015,
) -> Choice:
    """Find the change of the weights that forgets the selected codes.

    Args:
        model: the classifier; it is measured in eval mode, and left as it was.
        codes_KCHW: the codes of all classes that the model still has.
        classes_K: the class index of each code.
        forget_K: which codes to forget, bool.
        terms: the Fisher terms of these codes, as `forget_terms` gives them.
        rule: the name of a rule, or "auto" for the mildest of all.
        lambdas: strengths set by hand, for a rule that takes them. The rule is then applied as it
            is, and only its sign is chosen: the one whose model does better on the codes.
        budget: the retained accuracy that may be spent on going deeper, a fraction.

    Returns:
        The change, and what was measured on the way to it.

    Raises:
        ValueError: the rule is unknown, or takes another number of lambdas.
        UserError: the forgotten codes have no gradient that a rule could go by.
    """
    names = _select_rules(rule, lambdas)
    with evaluation_mode(model):
        meter = Meter(model, codes_KCHW, classes_K, forget_K)
        inputs = RuleInputs(meter.weights, terms, lambdas)
        paths = [path for name in names for path in load_rule(name).make_paths(inputs)]
        if not paths:
            gone = classes_K[forget_K].tolist()
            raise UserError(
                f"classes {gone} cannot be forgotten by rule {rule!r}: their codes have no "
                "gradient to go by, as where every probability is 0 or 1; train with fewer "
                "epochs or a lower learning rate"
            )
        if lambdas:
            # the first is the strength; the others have shaped the paths already
            return _choose_best(meter, [(path, lambdas[0]) for path in paths])
        # log1p keeps the digits of a small budget
        return _search(meter, paths, -math.log1p(-budget))


def _select_rules(rule: str, lambdas: tuple[float, ...]) -> list[str]:
    """Return the names of the rules to try.

    Raises:
        ValueError: the rule is unknown, or takes another number of lambdas.
    """
    if rule == AUTO and not lambdas:
        return list(RULES)
    if rule in RULES and len(lambdas) in {0, load_rule(rule).lambdas}:
        return [rule]
    takers = [f"{name} with {load_rule(name).lambdas}" for name in RULES if load_rule(name).lambdas]
    raise ValueError(
        f"rule {rule!r} with lambdas {lambdas}; expected {', '.join([AUTO, *RULES])} without any, "
        f"or {', '.join(takers)} lambdas"
    )


def _find_wanted_loss(rule: str) -> float:
    """Return the loss of a code, in nats, at which it has the probability left that may remain."""
    return -math.log(load_rule(rule).sufficient)


def _search(meter: Meter, paths: Sequence[WeightPath], limit: float) -> Choice:
    """Take the rule with the least damage at its sufficient point, then its deepest path."""
    reached = []
    for path in paths:
        wanted = _find_wanted_loss(path.rule)

        # Bound as defaults: a closure would read the loop's last path.
        def is_forgotten(strength: float, path: WeightPath = path, wanted: float = wanted) -> bool:
            return meter.measure_depth(path.change(strength)) >= wanted

        # The depth alone costs one small forward pass; damage is measured at the end of the search.
        strength = find_strength(path, is_forgotten)
        if strength is not None:
            reached.append((meter.measure(path, strength), path))
    # A rule that breaks a retained code is a last resort, but better than to forget nothing.
    usable = [pair for pair in reached if pair[0].retained == 1] or reached
    if not usable:
        return _choose_best(meter, [(path, path.highest) for path in paths])
    mildest = min(usable, key=lambda pair: pair[0].damage)[0]
    deepened = [
        (deepen(path, trial, limit, meter.measure), path)
        for trial, path in usable
        if trial.rule == mildest.rule
        and trial.damage <= max(limit, NEARLY_MILDEST * mildest.damage)
    ]
    # of two that are equally deep, the milder one
    trial, path = max(deepened, key=lambda pair: (pair[0].forget_loss, -pair[0].damage))
    return Choice(trial, path.change(trial.strength), tuple(meter.trials), sufficient=True)


def _choose_best(meter: Meter, points: Sequence[tuple[WeightPath, float]]) -> Choice:
    """Measure each point and take the one that does best on the codes."""
    tried = [(meter.measure(path, strength), path) for path, strength in points]
    trial, path = max(tried, key=lambda pair: _rank(pair[0]))
    sufficient = trial.forget_loss >= _find_wanted_loss(trial.rule)
    return Choice(trial, path.change(trial.strength), tuple(meter.trials), sufficient)


def _rank(trial: Trial) -> tuple[float, float]:
    """Return how well a trial does on the codes: the share of right verdicts, then depth."""
    # An infinite loss comes from broken weights, and must not win as the deepest.
    depth = trial.forget_loss if math.isfinite(trial.forget_loss) else -math.inf
    return trial.forgotten + trial.retained, depth
