"""Parameters of the pipelines, for a run here and for one on a cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from expunge.config import (
    BASE_CHECKS,
    FORGET_GATE,
    ORACLE_RECIPE,
    TRAIN_GATE,
    GateConfig,
    TrainConfig,
)
from expunge.policy import Policy
from expunge.steps.plan_training import SERVING


def train_parameters(
    source: str,
    config: TrainConfig,
    *,
    image_size: int = 0,
    gate: GateConfig | None = None,
    expected: int = SERVING,
) -> dict[str, Any]:
    """Return what the train pipeline takes beside the model's name.

    `expected` is the champion that the new version may replace, 0 for none; by default whoever
    serves when the run starts.
    """
    return {
        "source": source,
        "image_size": image_size,
        "recipe": config.to_json(),
        "gate": (gate or GateConfig()).to_json(TRAIN_GATE),
        "expected": expected,
    }


def forget_parameters(
    rule: str, policy: Policy, *, lambdas: Sequence[float] = (), forget_data: str = ""
) -> dict[str, Any]:
    """Return what the forget pipeline takes of a rule, its settings and a policy."""
    gate = policy.gate
    if set(gate.block) == set(BASE_CHECKS):
        # In the default's order, for a schedule to find that it is the default.
        gate = replace(gate, block=BASE_CHECKS)
    return {
        "approval": policy.approval,
        "rule": rule,
        "lambdas": list(lambdas),
        "forget_data": forget_data,
        "gate": gate.to_json(FORGET_GATE),
    }


def oracle_parameters(
    version: int, source: str, config: TrainConfig, *, image_size: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """Return what the oracles pipeline takes beside the model's name; `version` is the base's."""
    return {
        "version": version,
        "source": source,
        "image_size": image_size,
        "recipe": config.to_json(ORACLE_RECIPE),
        "seeds": list(seeds),
    }


def drop_defaults(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that are not at their defaults; of a recipe or a gate, its fields.

    The pipeline fills in what is left out of those.
    """
    found: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            if fields := drop_defaults(value, defaults[key]):
                found[key] = fields
        elif key not in defaults or value != defaults[key]:
            found[key] = value
    return found


def flatten_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with the fields of a recipe and a gate beside the others.

    No two have one name. MLflow shows and filters what is flat, and so does a table.
    """
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        flat |= value if isinstance(value, Mapping) else {key: value}
    return flat
