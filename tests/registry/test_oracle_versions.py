"""Oracles in the registry: found by key and seed, apart from the models, and never promoted."""

import signal
from pathlib import Path

import pytest
from mlflow_store import Registrar, tiny_model

from expunge import registry
from expunge.errors import OperationalError, RefusedError, UserError
from expunge.lifecycle import promotion
from expunge.oracles import compute_recipe_key
from expunge.registry import registration
from expunge.registry import store as connection

pytest_plugins = ["mlflow_store"]

KEY = compute_recipe_key(tiny_model(settings={"epochs": 2, "seed": 0}).info, [3])


def test_oracles_are_found_by_their_key_in_the_order_of_their_seeds(registrar: Registrar) -> None:
    made = [registrar.oracle("shapes", seed) for seed in (1003, 1001)]
    registrar.oracle("shapes", 1001, left_out=(2,))
    registrar.oracle("birds", 1002)
    found = registry.list_oracles("shapes", KEY)
    assert found == [made[1], made[0]]
    assert [(o.seed, o.version, o.test_accuracy) for o in found] == [
        (1001, 2, 0.75),
        (1003, 1, 0.75),
    ]
    assert {(o.name, o.kind, o.forgotten) for o in found} == {("shapes-oracles", "oracle", (3,))}
    assert registry.list_oracles("shapes", "another") == registry.list_oracles("fish", KEY) == []


def test_an_oracle_is_registered_once(registrar: Registrar) -> None:
    """Another run's, with other weights: it is the key and the seed that count."""
    first = registrar.oracle("shapes", 1001)
    assert registrar.oracle("shapes", 1001) == first
    assert len(registry.list_versions("shapes-oracles")) == 1


def test_oracles_are_no_models(registrar: Registrar) -> None:
    registrar("shapes")
    registrar.oracle("shapes", 1001)
    assert [entry.name for entry in registry.list_models()] == ["shapes"]
    with pytest.raises(UserError, match=r"no model 'fish' \(known: shapes\)"):
        registry.resolve("fish")
    assert [entry.kind for entry in registry.list_versions("shapes-oracles")] == ["oracle"]


def test_the_longest_name_of_a_model_has_oracles(registrar: Registrar) -> None:
    name = "n" * 100
    registrar(name)
    made = registrar.oracle(name, 5)
    assert registry.list_oracles(name, KEY) == [made]
    for longer in (name + "n", f"{name}n-oracles", "-oracles"):
        with pytest.raises(UserError, match=r"is not usable; expected up to 100 letters"):
            registry.list_versions(longer)


def test_a_name_of_oracles_is_said_to_be_one(registrar: Registrar) -> None:
    registrar.oracle("shapes", 5)
    with pytest.raises(UserError, match="'shapes-oracles' holds oracles; name the model that"):
        registry.resolve("shapes-oracles")
    with pytest.raises(UserError, match=r"no model 'fish-oracles', .*are for, 'fish'"):
        registry.resolve("fish-oracles")


def test_an_oracle_is_never_promoted(registrar: Registrar) -> None:
    registrar.oracle("shapes", 1001)
    with pytest.raises(RefusedError, match=r"is an oracle, .* it never becomes champion"):
        promotion.promote("shapes-oracles", 1, None)
    client = connection.connect()
    client.set_model_version_tag("shapes-oracles", "1", "expunge.gate", "passed")
    with pytest.raises(RefusedError, match="it never becomes champion"):
        promotion.promote("shapes-oracles", 1, None)
    assert registry.list_versions("shapes-oracles")[0].aliases == ()


def test_names_keep_oracles_and_models_apart(registrar: Registrar) -> None:
    folder = registrar.folder_of(tiny_model(settings={"seed": 1}))
    run_id = registry.attach_run("shapes", "train")
    with pytest.raises(UserError, match="kind 'oracle' cannot be one of 'shapes'"):
        registry.register(run_id, "shapes", folder, {}, "oracle")
    with pytest.raises(UserError, match="kind 'train' cannot be one of 'shapes-oracles'"):
        registry.register(run_id, "shapes-oracles", folder, {}, "train")
    unseeded = registrar.folder_of(tiny_model())
    with pytest.raises(UserError, match="does not say its seed"):
        registry.register(run_id, "shapes-oracles", unseeded, {}, "oracle")
    assert registry.list_models() == []


def test_an_oracle_comes_back_without_a_fisher_total(registrar: Registrar, tmp_path: Path) -> None:
    made = registrar.oracle("shapes", 1001)
    assert made.digests.keys() == {"info", "weights", "codes", "onnx"}
    registry.download(made, tmp_path / "oracle")
    original = registrar.folder / "model-1"
    files = sorted(path.name for path in original.iterdir())
    assert sorted(path.name for path in (tmp_path / "oracle").iterdir()) == files
    assert "fim_total.safetensors" not in files
    for file in files:
        assert (tmp_path / "oracle" / file).read_bytes() == (original / file).read_bytes()


def test_an_interrupt_leaves_nothing_half_registered(
    registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that comes again while the first is cleaned up after, as on Ctrl-C."""
    from mlflow import MlflowClient

    delete = MlflowClient.delete_logged_model

    def again(client: MlflowClient, model_id: str) -> None:
        signal.raise_signal(signal.SIGINT)
        delete(client, model_id)

    def interrupt(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MlflowClient, "delete_logged_model", again)
    monkeypatch.setattr(registration, "_save_flavour", interrupt)
    with pytest.raises(KeyboardInterrupt):
        registrar.oracle("shapes", 5)
    client = connection.connect()
    experiments = [entry.experiment_id for entry in client.search_experiments()]
    assert list(client.search_logged_models(experiments)) == []
    assert registry.list_versions("shapes-oracles") == []
    with pytest.raises(KeyboardInterrupt):  # and it can be interrupted again
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("kind", ["train", "oracle"])
def test_a_missing_tag_or_file_is_still_an_error(
    registrar: Registrar, store: Path, tmp_path: Path, kind: str
) -> None:
    """For an oracle every file but the Fisher total, which it never had."""
    oracle = kind == "oracle"
    made = registrar.oracle("shapes", 1001) if oracle else registrar("shapes")
    file, tag = ("codes", "codes") if oracle else ("fim_total", "fim_total")
    connection.connect().delete_model_version_tag(made.name, "1", f"expunge.sha256.{tag}")
    (found,) = registry.list_versions(made.name)
    with pytest.raises(OperationalError, match=rf"{file}\.safetensors .* tag says nothing"):
        registry.download(found, tmp_path / "copy")
    (path,) = store.glob(f"mlartifacts/shapes/**/{file}.safetensors")
    path.unlink()
    with pytest.raises(OperationalError, match=rf"{file}\.safetensors .* its SHA-256 is missing"):
        registry.download(made, tmp_path / "copy")
