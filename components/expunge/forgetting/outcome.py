"""Outcome of a rule: the change of the weights, and what the report says of how it was made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expunge.core.rules.paths import Change


@dataclass(frozen=True)
class Forgetting:
    """A change of the weights, and its part of the report of `perturb`, as JSON."""

    change: Change
    report: Mapping[str, Any]
