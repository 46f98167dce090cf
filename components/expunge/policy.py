"""A policy: a small YAML file that says what a forget needs before it is promoted.

    grade: forgotten        # or hidden, or suppressed, the default
    budget: 0.01            # retained accuracy that a forget may cost; rule auto goes as deep as it
    forget_error: 0.99      # lowest error on a forgotten class
    worst_drop: 0.05        # largest drop of a retained class
    block: [forget_error, erased_stay_erased, retain_accuracy_drop, head_recovery]
    approval: true          # a second person approves each request; false by default

Each key but the last is a field of `GateConfig`; one that is left out keeps its default.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from expunge.config import BASE_CHECKS, NEEDED_GRADES, ORACLE_CHECKS, GateConfig
from expunge.yaml_reader import Check, MisfitError, YamlFile, choose


@dataclass(frozen=True)
class Policy:
    """What the gate asks for, and whether a request needs a second person's approval."""

    gate: GateConfig = field(default_factory=GateConfig)
    approval: bool = False


def load_policy(path: Path, **overrides: float | None) -> Policy:
    """Return what the file sets, with those of `overrides` that are not None in its place.

    Raises:
        UserError: the file cannot be read, or it has an unknown key or check, one key twice, a
            value of the wrong kind or one out of range, and the message names the file and its
            line; or an override is out of range.
    """
    file = YamlFile("policy", path)
    if file.data is None:
        file.refuse((), "the file holds nothing; expected keys such as grade: forgotten")
    for key, value in file.data.items():
        if value is None:  # a gate that somebody began to set is not the usual one
            file.refuse((key,), "has no value; give it one, or leave the key out")
    values = dict(vars(file.validate(_PolicyFile)))
    approval = values.pop("approval")
    given: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    return Policy(dataclasses.replace(GateConfig(**values), **given), approval)


def _check_fraction(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return value
    hint = ""
    try:
        # A number that YAML takes for a text, such as 1e-2 or "0.01".
        number = float(value) if isinstance(value, str) else math.nan
        hint = f"; write {Decimal(repr(number)):f}" if math.isfinite(number) else ""
    except ValueError:
        pass
    raise ValueError(f"a fraction from 0 to 1{hint}")


def _check_switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


_Fraction = Annotated[float, Check(_check_fraction)]
_CheckName = Annotated[str, choose(*BASE_CHECKS, *ORACLE_CHECKS)]


@dataclass(frozen=True)
class _PolicyFile:
    grade: Annotated[str, choose(*NEEDED_GRADES)] = GateConfig.grade
    forget_error: _Fraction = GateConfig.forget_error
    budget: _Fraction = GateConfig.budget
    worst_drop: _Fraction = GateConfig.worst_drop
    block: tuple[_CheckName, ...] = GateConfig.block
    approval: Annotated[bool, Check(_check_switch)] = Policy.approval

    def __post_init__(self) -> None:
        if not self.block:
            raise MisfitError("is empty; name the checks whose failing is to reject", "block")
