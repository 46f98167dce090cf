"""A wrong setting is refused when it is given, by a text that says what was expected."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.config import (
    GateConfig,
    PerturbConfig,
    PrepareDataConfig,
    TrainConfig,
    restore_classes,
)
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
        ({"statistics": -0.1}, "statistics is -0.1; expected a value from 0 to 100"),
        ({"statistics": NAN}, "statistics is nan; expected a value from 0 to 100"),
        ({"depths": "some"}, "depths is 'some'; expected one of auto, always, never"),
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
        (
            {"rule": "best"},
            "rule is 'best'; expected one of auto, codes, replay, align, paper, natural",
        ),
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
            {"forget_data": "digits", "rule": "natural"},
            "forget_data is 'digits', and rule 'natural' reads no images; leave it out, or take "
            "rule replay",
        ),
        (
            {"rule": "replay", "rung": 1},
            "rule is 'replay', and a ladder (--until) tries codes, replay, align in turn; leave "
            "one of the two out",
        ),
        ({"rung": 4}, "rung is 4; expected a value from 1 to 3"),
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


def as_kfp_hands_it_on(value: Any) -> Any:
    """JSON with every number a float, as it comes out of kfp's local runner."""
    if isinstance(value, dict):
        return {key: as_kfp_hands_it_on(part) for key, part in value.items()}
    if isinstance(value, list):
        return [as_kfp_hands_it_on(part) for part in value]
    return float(value) if isinstance(value, int) else value


@pytest.mark.parametrize(
    "settings",
    [
        TrainConfig("mlp"),
        TrainConfig("resnet20", epochs=3, seed=2**31 - 1, without=(4, 1), t_mix=1.0, workers=0),
        GateConfig(),
        GateConfig(budget=0.0, chance_factor=2.0, grade="forgotten", block=("cmia",)),
    ],
)
def test_settings_come_back_as_they_were(settings: TrainConfig | GateConfig) -> None:
    """Also their types: 20.0 epochs are no range, and would change the digest of a recipe."""
    document = json.loads(json.dumps(settings.to_json()))
    for given in (document, as_kfp_hands_it_on(document)):
        found = type(settings).from_json(given)
        assert found == settings
        assert repr(found) == repr(settings)


def test_what_is_left_out_has_its_default() -> None:
    assert TrainConfig.from_json({"arch": "mlp"}) == TrainConfig("mlp")
    assert GateConfig.from_json({}) == GateConfig()
    assert GateConfig.from_json({"budget": 0}) == GateConfig(budget=0.0)
    assert GateConfig().to_json(("budget", "block")).keys() == {"budget", "block"}


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"epochs": 2.5}, "epochs is 2.5; expected a whole number"),
        ({"epochs": "3"}, "epochs is '3'; expected a whole number"),
        ({"epochs": True}, "epochs is True; expected a whole number"),
        ({"epochs": math.inf}, "epochs is inf; expected a whole number"),
        ({"epochs": 0.0}, "epochs is 0; expected a value from 1 to 100000"),
        ({"t_mix": "much"}, "t_mix is 'much'; expected a number"),
        ({"schedule": 1}, "schedule is 1; expected a text"),
        ({"without": "3,5"}, "without is '3,5'; expected a list"),
        ({"without": [3, 1.5]}, "without is 1.5; expected a whole number"),
        ({"epoch": 3, "lr": 1}, "the recipe has no setting epoch, lr; expected some of arch, epo"),
        ({"arch": ""}, "the recipe has no arch; give it a value"),
    ],
)
def test_json_that_is_no_recipe(document: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as raised:
        TrainConfig.from_json({"arch": "mlp", **document})
    assert str(raised.value).startswith(text)


def test_a_form_that_nobody_filled_in() -> None:
    with pytest.raises(UserError, match="the recipe has no arch; give it a value"):
        TrainConfig.from_json(TrainConfig.list_defaults())
    with pytest.raises(UserError, match="the gate has no setting budged; expected some of forget_"):
        GateConfig.from_json({"budged": 0.1})


def test_classes_are_whole_numbers_again() -> None:
    assert restore_classes([3.0, 5]) == (3, 5)
    assert repr(restore_classes([3.0])) == "(3,)"
    assert restore_classes([]) == ()
    with pytest.raises(UserError, match=r"^classes is 2\.5; expected a whole number$"):
        restore_classes([2.5])


def test_settings_need_no_torch() -> None:
    code = "import sys, expunge.config, expunge.class_selection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
