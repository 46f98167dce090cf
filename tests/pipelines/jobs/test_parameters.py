"""A recipe and a gate on their way into a pipeline, and what a new training knob takes."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import click
import pytest

from expunge.config import BASE_CHECKS, GateConfig, TrainConfig
from expunge.errors import UserError
from expunge.knobs import describe
from expunge.policy import Policy
from expunge_pipelines.cli.main import cli
from expunge_pipelines.cli.options import make_recipe_options, recipe_options
from expunge_pipelines.jobs.parameters import (
    drop_defaults,
    flatten_parameters,
    forget_parameters,
    oracle_parameters,
    train_parameters,
)
from expunge_pipelines.kubeflow.compile import KINDS, compile_pipeline
from expunge_pipelines.kubeflow.settings import ClusterSettings


@dataclass(frozen=True)
class WiderConfig(TrainConfig):
    """A recipe with one knob more, as a maintainer would add it."""

    label_smoothing: float = field(
        default=0.1, metadata=describe("Share of the other classes.", low=0, high=0.5)
    )
    warmup: int = field(default=2, metadata=describe("Epochs.", option="warm-up", low=0, high=9))


def test_a_new_knob_touches_its_field_and_the_place_that_uses_it() -> None:
    """The command's option, what a form is filled with and what a step reads follow from it."""
    least = ["--data", "digits", "--arch", "mlp"]
    command = click.command()(recipe_options(lambda config, **_: config, WiderConfig))
    assert command.main(least, standalone_mode=False) == WiderConfig("mlp")
    more = ["--label-smoothing", "0.2", "--warm-up", "3", "--lr", "1"]
    given = command.main([*least, *more], standalone_mode=False)
    assert given == WiderConfig("mlp", learning_rate=1.0, label_smoothing=0.2, warmup=3)
    added = {"label_smoothing": 0.1, "warmup": 2}
    assert WiderConfig.list_defaults() == TrainConfig.list_defaults() | added
    assert train_parameters("digits", given)["recipe"] == given.to_json()
    assert WiderConfig.from_json(given.to_json() | {"warmup": 3.0}) == given
    with pytest.raises(UserError, match=r"label_smoothing is 0\.7; expected a value from 0 to 0.5"):
        WiderConfig("mlp", label_smoothing=0.7)
    with pytest.raises(UserError, match="no setting label_smoothing, warmup; expected"):
        TrainConfig.from_json(given.to_json() | {"label_smoothing": 0})


def test_the_command_has_an_option_for_each_field() -> None:
    made = make_recipe_options(TrainConfig)
    assert set(made) == {row.name for row in dataclasses.fields(TrainConfig)} - {"without"}
    options = {option.name: option for option in cli.commands["train"].params}
    for name in made:
        option = options[name]
        assert isinstance(option, click.Option)
        assert option.help
        default = TrainConfig.list_defaults()[name]
        assert option.required if name == "arch" else option.default == default


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the parameters of each pipeline as a cluster has them, with their defaults."""
    folder = tmp_path_factory.mktemp("compiled")
    return {kind: compile_pipeline(kind, folder / kind, ClusterSettings()) for kind in KINDS}


def test_the_forms_of_the_pipelines_are_filled_with_every_default(
    forms: dict[str, dict[str, Any]],
) -> None:
    recipe, gate = TrainConfig.list_defaults(), GateConfig.list_defaults()
    assert recipe["arch"] == "", "for a person to fill in"
    assert forms["train"]["recipe"] == recipe
    own = ("seed", "init_from")
    assert forms["oracles"]["recipe"] == {k: v for k, v in recipe.items() if k not in own}
    assert forms["train"]["gate"].keys() | forms["forget"]["gate"].keys() == gate.keys()
    for kind in ("train", "forget"):
        form = forms[kind]["gate"]
        assert form == {key: gate[key] for key in form}
        assert GateConfig.from_json(form) == GateConfig()


def test_a_job_and_a_pipeline_have_the_same_parameters(
    forms: dict[str, dict[str, Any]],
) -> None:
    config, policy = TrainConfig("mlp"), Policy()
    given = {
        "train": train_parameters("digits", config),
        "forget": forget_parameters("auto", policy),
        "oracles": oracle_parameters(1, "digits", config, image_size=8, seeds=[3]),
    }
    for kind, parameters in given.items():
        defaults = forms[kind]
        assert set(parameters) <= set(defaults)
        wanted = {"name", *(key for key, value in defaults.items() if value is None)}
        assert wanted <= {"name", *parameters}
        assert drop_defaults(parameters, defaults).get("gate") is None


def test_only_what_is_not_at_its_default_is_handed_on() -> None:
    defaults = forget_parameters("auto", Policy())
    gate = GateConfig(budget=0.02, block=tuple(reversed(BASE_CHECKS)))
    parameters = forget_parameters("natural", Policy(gate, approval=True), lambdas=())
    changed = drop_defaults(parameters, defaults)
    assert changed == {"rule": "natural", "approval": True, "gate": {"budget": 0.02}}
    assert flatten_parameters(changed) == {"rule": "natural", "approval": True, "budget": 0.02}
    assert GateConfig.from_json(changed["gate"]) == GateConfig(budget=0.02)
    assert drop_defaults(defaults, defaults) == {}
    assert drop_defaults({"name": "digits"}, defaults) == {"name": "digits"}


def test_the_parameters_of_a_run_are_flat() -> None:
    """No two have one name, or a value would be lost."""
    for parameters in (
        train_parameters("digits", TrainConfig("mlp")),
        forget_parameters("auto", Policy()),
        oracle_parameters(1, "digits", TrainConfig("mlp"), image_size=0, seeds=[1, 2]),
    ):
        dicts = [value for value in parameters.values() if isinstance(value, dict)]
        flat = flatten_parameters(parameters)
        assert len(flat) == len(parameters) - len(dicts) + sum(map(len, dicts))
        assert not [key for key, value in flat.items() if isinstance(value, dict)]


@pytest.mark.parametrize(
    ("until", "policy", "grade"),
    [
        ("", "hidden", "hidden"),
        ("suppressed", "hidden", "suppressed"),
        ("hidden", "suppressed", "suppressed"),
        ("forgotten", "suppressed", "forgotten"),
    ],
)
def test_a_ladder_asks_for_the_higher_of_two_grades(until: str, policy: str, grade: str) -> None:
    given = forget_parameters("auto", Policy(GateConfig(grade=policy)), until=until)
    assert (given["gate"]["grade"], given["ladder"]) == (grade, bool(until))


def test_a_ladder_takes_neither_a_rule_nor_a_grade_that_is_none() -> None:
    with pytest.raises(UserError, match=r"rule is 'natural', and a ladder \(--until\) tries codes"):
        forget_parameters("natural", Policy(), until="hidden")
    text = "until is 'failed'; expected one of hidden, suppressed, forgotten"
    with pytest.raises(UserError, match=text):
        forget_parameters("auto", Policy(), until="failed")
