"""Forgetting by the codes: a rule's direction, with the strength that the codes say is enough."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from expunge.config import PerturbConfig
from expunge.core.rules import AUTO, CODES
from expunge.core.rules.calibrate import calibrate
from expunge.core.rules.paths import Trial
from expunge.device import best_device
from expunge.forgetting.outcome import Forgetting
from expunge.formats.files import replace_non_finite
from expunge.formats.fisher import load_forget_terms
from expunge.formats.model import StoredModel


def forget_by_codes(config: PerturbConfig, stored: StoredModel, fisher: Path) -> Forgetting:
    """Return the change that the Fisher terms in folder `fisher` lead to.

    Raises:
        UserError: the forgotten codes have no gradient that a rule could go by.
    """
    device = best_device()
    classes_K = stored.codes.classes_K.to(device)
    choice = calibrate(
        stored.module.to(device),
        stored.codes.images_KCHW.to(device),
        classes_K,
        torch.isin(classes_K, torch.tensor(config.classes, device=device)),
        terms=load_forget_terms(fisher, device),
        rule=AUTO if config.rule == CODES else config.rule,
        lambdas=config.lambdas,
        budget=config.budget,
    )

    def describe_trial(trial: Trial) -> dict[str, Any]:
        # JSON has no number for infinity, which a trial that broke the model has.
        values: dict[str, Any] = replace_non_finite(dataclasses.asdict(trial))
        return values

    return Forgetting(
        choice.change,
        {
            **describe_trial(choice.trial),
            "sufficient": choice.sufficient,
            "trials": [describe_trial(trial) for trial in choice.trials],
        },
    )
