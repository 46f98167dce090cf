"""What a training leaves out and may replace, on a real store and ledger."""

from pathlib import Path

import pytest
from mlflow_store import Registrar, save_tiny, tiny_model

from expunge import ledger, registry
from expunge.config import TrainConfig
from expunge.errors import UserError
from expunge.lifecycle import promotion
from expunge.lifecycle.plan import TrainingPlan, digest_weights, plan_new_version
from expunge.steps.plan_training import plan_training

pytest_plugins = ["mlflow_store"]


def config(*without: int, weights: str = "", init_from: str = "") -> TrainConfig:
    return TrainConfig("mlp", without=without, weights=weights, init_from=init_from)


def test_a_new_model_replaces_nobody(store: Path) -> None:
    assert plan_training(config(2, 1), "shapes") == TrainingPlan(config(1, 2), 0)


def test_what_was_erased_stays_out_and_the_champion_is_the_one_of_now(
    registrar: Registrar,
) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1, forgotten=(3,))
    promotion.promote("shapes", 1, None)
    assert plan_training(config(), "shapes") == TrainingPlan(config(), 1)
    promotion.promote("shapes", 2, 1)
    assert plan_training(config(), "shapes") == TrainingPlan(config(3), 2, erased=(3,))
    assert plan_training(config(3, 0), "shapes") == TrainingPlan(config(0, 3), 2, erased=(3,))


def test_the_command_leaves_out_by_name_what_the_champion_knows(registrar: Registrar) -> None:
    """Here as on a cluster; only here the registry is at hand for the names."""
    with pytest.raises(UserError, match="--without is name-1; a model that has no champion yet"):
        plan_new_version(config(), "shapes", ["name-1"])
    assert plan_new_version(config(), "shapes", ["1", "0"]).config == config(0, 1)
    registrar("shapes", 0)
    registrar("shapes", 1, forgotten=(3,))
    promotion.promote("shapes", 1, None)
    promotion.promote("shapes", 2, 1)
    found = plan_new_version(config(), "shapes", ["name-1"])
    assert found == TrainingPlan(config(1, 3), 2, erased=(3,))
    with pytest.raises(UserError, match="class '9' is unknown"):
        plan_new_version(config(), "shapes", ["9"])


def test_an_alias_that_somebody_moved_is_put_right_first(registrar: Registrar) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1)
    promotion.promote("shapes", 1, None)
    registry.set_alias("shapes", "champion", 2)
    assert plan_training(config(), "shapes").expected == 1
    assert registry.read_aliases("shapes") == {"champion": 1}


def test_a_plan_that_was_made_stands_as_it_is(
    registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither MLflow nor the ledger is asked: a local run would pay for it twice."""
    registrar("shapes", 0, forgotten=(3,))
    promotion.promote("shapes", 1, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(ledger, "list_erasures", None)
    assert plan_training(config(2), "shapes", 0) == TrainingPlan(config(2), 0)
    assert plan_training(config(), "shapes", 7) == TrainingPlan(config(), 7)
    plans = [plan_training(config(weights="DEFAULT"), "shapes", 7) for _ in range(2)]
    assert plans[0].start != plans[1].start, "what was not looked up is in nobody's key"


@pytest.mark.parametrize("expected", [-1, 0, 5])
def test_a_name_of_oracles_is_refused(store: Path, expected: int) -> None:
    with pytest.raises(UserError, match=r"'shapes-oracles' holds oracles; .* choose one that"):
        plan_training(config(), "shapes-oracles", expected)


def test_what_does_not_exist_is_refused(registrar: Registrar) -> None:
    registrar("shapes", 0)
    promotion.promote("shapes", 1, None)
    with pytest.raises(UserError, match="without names class 9; 'shapes' has the classes 0 to 3"):
        plan_training(config(1, 9), "shapes")
    with pytest.raises(UserError, match="'resnet9'"):
        plan_training(TrainConfig("resnet9"), "shapes")
    with pytest.raises(UserError, match="'shapes' has no version 4"):
        plan_training(config(init_from="models:/shapes/4"), "other")
    with pytest.raises(UserError, match="the model name 'a b' is not usable"):
        plan_training(config(), "a b")


def test_a_version_to_begin_with_is_the_one_of_now(registrar: Registrar) -> None:
    """By its number and its digest, so that neither alias nor name decides what is cached."""
    registrar("shapes", 0)
    registrar("shapes", 1)
    promotion.promote("shapes", 1, None)
    uri = "models:/shapes@champion"
    first = plan_training(config(init_from=uri), "other")
    assert first.config.init_from == "models:/shapes/1"
    assert plan_training(config(init_from="models:/shapes/1"), "other") == first
    promotion.promote("shapes", 2, 1)
    second = plan_training(config(init_from=uri), "other")
    assert second.config.init_from == "models:/shapes/2"
    assert registry.resolve("shapes", 2).digests["weights"] in second.start
    assert second.start != first.start


def test_weights_are_known_by_what_they_hold(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", tiny_model())
    file = folder / "weights.safetensors"
    whole, part = digest_weights(str(folder)), digest_weights(str(file))
    assert whole != part
    assert digest_weights(str(file)) == part
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert digest_weights(str(file)) != part
    assert digest_weights(str(folder)) != whole
    assert digest_weights("") == digest_weights("IMAGENET1K_V1") == ""


def test_weights_that_are_not_here_are_like_no_others(store: Path) -> None:
    """A volume that only the training has: the cache has no answer for what nobody can compare."""
    starts = {digest_weights("/volume/weights.pth") for _ in range(2)}
    starts |= {plan_training(config(init_from="/volume/model"), "shapes").start for _ in range(2)}
    assert len(starts) == 4
