"""A wrong setting is refused when it is given, by a text that says what was expected."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.config import GateConfig, PerturbConfig, PrepareDataConfig, TrainConfig
from expunge.errors import UserError

NAN = math.nan


def test_the_defaults_are_valid() -> None:
    assert PrepareDataConfig("digits", Path()).splits == ("train", "test")
    assert TrainConfig("mlp").t_mix == 0.1
    assert PerturbConfig((3,)).rule == "auto"
    assert GateConfig().budget == PerturbConfig((3,)).budget


def test_settings_do_not_change_after_their_check() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig("mlp").epochs = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"image_size": -1}, "image_size is -1; expected a value from 0 to 4096"),
        ({"image_size": 5000}, "image_size is 5000; expected a value from 0 to 4096"),
        ({"splits": ()}, "splits is []; expected train, test or both"),
        ({"splits": ("test", "val")}, "splits is ['test', 'val']; expected train, test or both"),
    ],
)
def test_data(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as raised:
        PrepareDataConfig("digits", Path(), **settings)
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epochs": 0}, "epochs is 0; expected a value from 1 to 100000"),
        ({"batch_size": 0}, "batch_size is 0; expected a value from 1 to 1e+06"),
        ({"momentum": 1.0}, "momentum is 1.0; expected a value from 0 to 0.9999"),
        ({"momentum": NAN}, "momentum is nan; expected a value from 0 to 0.9999"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; expected a value from 0 to 1"),
        ({"t_mix": 1.1}, "t_mix is 1.1; expected a value from 0 to 1"),
        ({"seed": -1}, "seed is -1; expected a value from 0 to 9.22337e+18"),
        ({"processes": 0}, "processes is 0; expected a value from 1 to 1024"),
        ({"nodes": 0}, "nodes is 0; expected a value from 1 to 1024"),
        ({"workers": -1}, "workers is -1; expected a value from 0 to 1024"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected above 0, up to 1000"),
        ({"learning_rate": NAN}, "learning_rate is nan; expected above 0, up to 1000"),
        ({"schedule": "step"}, "schedule is 'step'; expected one of cosine, none"),
        ({"precision": "int8"}, "precision is 'int8'; expected one of auto, fp32, bf16, fp16"),
        ({"augment": "mix"}, "augment is 'mix'; expected one of auto, none, flip, crop-flip"),
        ({"without": (1, 1)}, "without is [1, 1]; expected distinct class indices from 0 up"),
        (
            {"weights": "DEFAULT", "init_from": "models:/a/1"},
            "weights and init_from are both given; choose one of them",
        ),
    ],
)
def test_training(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as raised:
        TrainConfig("mlp", **settings)
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"classes": ()}, "classes is empty; name at least one class to forget"),
        ({"classes": (2, 2)}, "classes is [2, 2]; expected distinct class indices from 0 up"),
        ({"classes": (-1,)}, "classes is [-1]; expected distinct class indices from 0 up"),
        ({"rule": "best"}, "rule is 'best'; expected one of auto, paper, natural"),
        ({"budget": 1.0}, "budget is 1.0; expected a value from 0 to 0.99"),
        ({"budget": NAN}, "budget is nan; expected a value from 0 to 0.99"),
        (
            {"rule": "paper", "lambdas": (1.0,)},
            "lambdas is [1.0]; expected lambda1 and lambda2, or neither",
        ),
        (
            {"lambdas": (1.0, 10.0)},
            "lambda1 and lambda2 belong to rule paper; the rule is 'auto'",
        ),
        (
            {"rule": "paper", "lambdas": (-1.0, 10.0)},
            "lambda1 is -1.0; expected a finite value of 0 or more",
        ),
        (
            {"rule": "paper", "lambdas": (1.0, math.inf)},
            "lambda2 is inf; expected a finite value of 0 or more",
        ),
        (
            {"rule": "paper", "lambdas": (1.0, NAN)},
            "lambda2 is nan; expected a finite value of 0 or more",
        ),
    ],
)
def test_forgetting(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as raised:
        PerturbConfig(**{"classes": (3,), **settings})
    assert str(raised.value) == text


@pytest.mark.parametrize("field", ["forget_error", "budget", "worst_drop", "onnx_atol"])
@pytest.mark.parametrize("value", [-0.01, 1.01, NAN])
def test_thresholds_are_fractions(field: str, value: float) -> None:
    with pytest.raises(UserError) as raised:
        GateConfig(**{field: value})
    assert str(raised.value) == f"{field} is {value}; expected a value from 0 to 1"


def test_a_trained_model_beats_chance() -> None:
    with pytest.raises(
        UserError, match=r"chance_factor is 0\.5; expected a value from 1 to 1e\+06"
    ):
        GateConfig(chance_factor=0.5)


def test_settings_need_no_torch() -> None:
    code = "import sys, expunge.config, expunge.class_selection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
