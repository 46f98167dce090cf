"""Parameters of the pipelines, for a run here and for one on a cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from expunge.config import (
    BASE_CHECKS,
    FORGET_GATE,
    NEEDED_GRADES,
    ORACLE_RECIPE,
    TRAIN_GATE,
    GateConfig,
    TrainConfig,
    check_ladder,
)
from expunge.core.grading.grades import at_least
from expunge.knobs import check_choice
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
    rule: str,
    policy: Policy,
    *,
    lambdas: Sequence[float] = (),
    forget_data: str = "",
    until: str = "",
) -> dict[str, Any]:
    """Return what the forget pipeline takes of a rule, its settings and a policy.

    With a grade in `until`, it climbs the ladder up to that grade, or to the policy's if that is
    higher.

    Raises:
        UserError: a rule is named beside a ladder.
    """
    gate = raise_grade(policy, until).gate
    if until:
        check_ladder(rule)
    if set(gate.block) == set(BASE_CHECKS):
        # In the default's order, for a schedule to find that it is the default.
        gate = replace(gate, block=BASE_CHECKS)
    return {
        "approval": policy.approval,
        "rule": rule,
        "ladder": bool(until),
        "lambdas": list(lambdas),
        "forget_data": forget_data,
        "gate": gate.to_json(FORGET_GATE),
    }


def raise_grade(policy: Policy, until: str) -> Policy:
    """Return the policy that asks for a grade of `until` at least; an empty text changes nothing.

    Raises:
        UserError: it is no grade that a policy could ask for.
    """
    if not until:
        return policy
    check_choice("until", until, NEEDED_GRADES)
    higher = until if at_least(until, policy.gate.grade) else policy.gate.grade
    return replace(policy, gate=replace(policy.gate, grade=higher))


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
