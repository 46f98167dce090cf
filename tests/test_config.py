from pathlib import Path

import pytest

from expunge.config import GateConfig, PerturbConfig, PrepareDataConfig, TrainConfig
from expunge.errors import UserError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected a value from 1 to"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"momentum": 1.0}, r"momentum is 1\.0"),
        ({"weight_decay": -1.0}, r"weight_decay is -1\.0"),
        ({"t_mix": 2.0}, r"t_mix is 2\.0"),
        ({"seed": -1}, "seed is -1"),
        ({"processes": 0}, "processes is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0; expected above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"schedule": "step"}, "schedule is 'step'; expected one of cosine, none"),
        ({"precision": "int8"}, "precision is 'int8'; expected one of auto"),
        ({"augment": "cutout"}, "augment is 'cutout'; expected one of auto"),
        ({"without": (1, 1)}, "distinct class indices"),
        ({"weights": "a", "init_from": "b"}, "choose one of them"),
    ],
)
def test_a_recipe_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(arch="mlp", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ()}, "classes is empty"),
        ({"classes": (1, 1)}, "distinct class indices"),
        ({"classes": (-1,)}, "distinct class indices"),
        ({"rule": "magic"}, "rule is 'magic'; expected one of auto, paper, natural"),
        ({"budget": 1.0}, r"budget is 1\.0"),
        ({"rule": "paper", "lambdas": (1.0,)}, "expected lambda1 and lambda2, or neither"),
        ({"lambdas": (1.0, 1.0)}, "lambda1 and lambda2 belong to rule paper; the rule is 'auto'"),
        ({"rule": "paper", "lambdas": (-1.0, 1.0)}, r"lambda1 is -1\.0; expected a finite value"),
        ({"rule": "paper", "lambdas": (1.0, float("inf"))}, "lambda2 is inf"),
    ],
)
def test_a_forget_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PerturbConfig(**({"classes": (1,)} | settings))  # type: ignore[arg-type]


def test_gate_and_data() -> None:
    with pytest.raises(UserError, match=r"forget_error is 1\.5"):
        GateConfig(forget_error=1.5)
    with pytest.raises(UserError, match=r"chance_factor is 0\.5"):
        GateConfig(chance_factor=0.5)
    with pytest.raises(UserError, match="image_size is -1"):
        PrepareDataConfig("digits", Path(), -1)
    with pytest.raises(
        UserError, match=r"splits is \['validation'\]; expected train, test or both"
    ):
        PrepareDataConfig("digits", Path(), splits=("validation",))
