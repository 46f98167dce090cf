"""A policy: a small YAML file that says what a forget needs before it is promoted.

    grade: forgotten        # or suppressed, the default
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
from typing import Any

from expunge.config import GateConfig
from expunge.errors import UserError

NUMBERS = ("forget_error", "budget", "worst_drop")
KEYS = ("grade", *NUMBERS, "block", "approval")


@dataclass(frozen=True)
class Policy:
    """What the gate asks for, and whether a request needs a second person's approval."""

    gate: GateConfig = field(default_factory=GateConfig)
    approval: bool = False


def load_policy(path: Path, **overrides: float | None) -> Policy:
    """What the file sets, with those of `overrides` that are not None in its place.

    Raises:
        UserError: the file cannot be read, or it has an unknown key or check, one key twice, a
            value of the wrong kind or one out of range, and the message names the file; or an
            override is out of range.
    """
    try:
        raw = _read(path)
        approval = raw.pop("approval", False)
        gate = GateConfig(**raw)
    except UserError as error:
        raise UserError(f"policy {path}: {error}") from error
    given: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    return Policy(dataclasses.replace(gate, **given), approval)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        raw, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"it cannot be read as YAML ({error})") from error
    if not isinstance(raw, dict):
        raise UserError(f"it holds {raw!r}; expected keys such as grade: forgotten")
    keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    repeated = [key for key in raw if keys.count(key) > 1]
    if repeated:
        raise UserError(f"{repeated[0]} is set more than once; leave one line of it")
    for key, value in raw.items():
        if key not in KEYS:
            raise UserError(f"{key!r} is unknown; expected {', '.join(KEYS)}")
        _check_kind(key, value)
    block = raw.get("block")
    return raw | ({} if block is None else {"block": tuple(block)})


def _check_kind(key: str, value: Any) -> None:
    if key == "block":
        right, expected = _is_texts(value), "a list of checks"
    elif key == "approval":
        right, expected = isinstance(value, bool), "true or false"
    elif key == "grade":
        right, expected = isinstance(value, str), "suppressed or forgotten"
    else:
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        expected = "a fraction from 0 to 1" + _spelled(value)
    if not right:
        raise UserError(f"{key} is {value!r}; expected {expected}")


def _spelled(value: Any) -> str:
    """How to write a number that YAML reads as a text, such as 1e-2 or "0.01"; else nothing."""
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        return ""
    return f"; write {Decimal(repr(number)):f}" if math.isfinite(number) else ""


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
