"""Rules of forgetting: how the weights change.

`replay` refits the last stage on draws from class statistics (`rules.replay`), and `align` repairs
it on retained images afterwards (`rules.align`). The others go by the codes: each proposes changes
of the weights, and the calibration picks one (`rules.calibrate`).

To add a rule of the second kind, write one file in this folder and one line in `RULES`. The file
defines a `Rule`: how little probability a forgotten code may keep, and a function from `RuleInputs`
to the paths that the rule proposes (`paths.WeightPath`: for each strength a change of the weights).
Search, measurement, the command's `--rule` and the settings' check read `RULES`. `codes` tries
every rule in `RULES`; `auto` is replay where a model has statistics of the classes, and else
`codes`. A rule that reads more than weights and Fisher terms adds an optional field to
`RuleInputs`.

This module imports no torch: the command offers the names before torch is needed.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.core.fisher import ForgetTerms
    from expunge.core.rules.paths import WeightPath

# Name: where its `Rule` is, as "module:attribute". Text and no import, since a rule needs torch.
# The order matters: where two rules do equally little damage, the earlier one is taken.
RULES = {
    "paper": "expunge.core.rules.paper:RULE",
    "natural": "expunge.core.rules.natural:RULE",
}
AUTO = "auto"
CODES = "codes"
REPLAY = "replay"
ALIGN = "align"
# In the order of their cost: what a ladder tries, rung by rung.
LADDER = (CODES, REPLAY, ALIGN)


@dataclass(frozen=True)
class RuleInputs:
    """What a rule may read. A rule that needs more gets an optional field here.

    `lambdas` are the strengths that a user has set by hand; empty where the search chooses them.
    """

    weights: Mapping[str, Tensor]
    terms: ForgetTerms
    lambdas: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A way to forget.

    `sufficient` is the probability that a forgotten code may keep. How far forgetting carries over
    from a code to the images of its class differs by rule, so each rule has its own.
    """

    sufficient: float
    make_paths: Callable[[RuleInputs], list[WeightPath]]  # none where the rule cannot go anywhere
    lambdas: int = 0  # how many strengths a user may set by hand; the first is the path's strength


def list_rule_choices() -> list[str]:
    """Return what a user may name as the rule: `auto`, the ladder's, and the rules by the codes."""
    return [AUTO, *LADDER, *RULES]


def load_rule(name: str) -> Rule:
    """Import and return the rule of this name.

    Raises:
        KeyError: there is no such rule.
    """
    rule: Rule = pkgutil.resolve_name(RULES[name])
    return rule
