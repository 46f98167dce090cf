"""Oracles made by the command, on the local runner, and a forget that is compared with them."""

from pathlib import Path
from typing import Any

import pytest
from trained_store import EPOCHS, GONE, NAME, Store, command, document, state

from expunge import environment, registry
from expunge.formats.model import load_model_info
from expunge.oracles import compute_recipe_key, derive_oracle_seeds
from expunge_pipelines.oracles import build_oracles
from expunge_pipelines.placement import no_resources
from expunge_pipelines.runners.run_locally import run_locally

MODEL = f"{NAME}-oracles"


@pytest.fixture(scope="module")
def made(trained: Store) -> dict[str, Any]:
    """Return what `expunge oracles` prints of the first oracle without class 3."""
    with state(trained.home):
        return document("oracles", NAME, "--classes", str(GONE), "--seeds", "1")


def seed_of(made: dict[str, Any]) -> int:
    seed: int = made["oracles"][0]["seed"]
    return seed


def test_an_oracle_is_trained_and_registered(
    trained_store: Store, made: dict[str, Any], tmp_path: Path
) -> None:
    """The champion has forgotten the class already; version 1, which had not, has the same key."""
    assert (made["model"], made["base_version"], made["classes"]) == (MODEL, 2, [GONE])
    (row,) = made["oracles"]
    (seed,) = derive_oracle_seeds(made["key"], 1)
    assert (row["seed"], row["version"], row["reused"]) == (seed, 1, False)
    assert made["request"] == f"{NAME} --classes {GONE} --base-version 1"
    assert not made["serves"]
    assert row["test_accuracy"] > 0.9
    assert {"find_oracle", "train", "export_onnx", "keep_oracle"} <= made["seconds"].keys()
    (found,) = registry.list_oracles(NAME, made["key"])
    assert made["key"] == compute_recipe_key(
        registry.read_model_info(registry.resolve(NAME, 1)), [GONE]
    )
    registry.download(found, tmp_path / "oracle")
    info = load_model_info(tmp_path / "oracle")
    base = registry.read_model_info(registry.resolve(NAME, 1))
    assert (info.forgotten, info.class_names[GONE]) == ((GONE,), "forgotten-3")
    same = ("epochs", "batch_size", "learning_rate", "t_mix")
    assert [info.settings[key] for key in same] == [base.settings[key] for key in same]
    assert (info.settings["seed"], base.settings["seed"]) == (seed, 0)


def test_its_epochs_are_in_the_run_under_its_seed(
    trained_store: Store, made: dict[str, Any]
) -> None:
    import mlflow

    client = mlflow.MlflowClient(registry.prepare_uri())
    history = client.get_metric_history(made["run_id"], f"oracle-{seed_of(made)}/train_loss")
    assert [entry.step for entry in history] == list(range(1, EPOCHS + 1))
    run = client.get_run(made["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["expunge.pipeline"] == "oracles"
    assert (run.data.params["seeds"], run.data.params["without"]) == (f"[{seed_of(made)}]", "[3]")
    assert "train_loss" not in run.data.metrics


def test_what_is_there_is_not_trained_again(trained_store: Store, made: dict[str, Any]) -> None:
    again = document("oracles", NAME, "--classes", "3", "--seeds", "1", "--base-version", "1")
    assert (again["key"], again["run_id"], again["seconds"]) == (made["key"], None, {})
    assert again["oracles"] == [made["oracles"][0] | {"reused": True}]


@pytest.mark.parametrize("looped", [False, True])
def test_the_pipeline_passes_over_what_is_there(
    trained_store: Store, made: dict[str, Any], looped: bool
) -> None:
    """In both of its shapes: a task for each seed, and the loop of a cluster."""
    started: list[str] = []
    arguments = {"name": NAME, "version": 1, "source": "digits"}
    arguments["recipe"] = {"arch": "mlp", "without": [GONE]}
    seeds = [seed_of(made)]
    pipeline = build_oracles(no_resources, () if looped else seeds)
    run_locally(pipeline, arguments | {"seeds": seeds}, on_start=started.append)
    assert started == ["prepare_data", "find_oracle"]


def test_oracles_are_listed_only_when_they_are_named(
    trained_store: Store, made: dict[str, Any]
) -> None:
    assert {row["model"] for row in document("models")["models"]} == {NAME}
    (row,) = document("models", MODEL)["models"]
    assert (row["kind"], row["aliases"], row["forgotten"]) == ("oracle", [], [GONE])
    assert (row["seed"], row["test_accuracy"]) == (
        seed_of(made),
        made["oracles"][0]["test_accuracy"],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["oracles", NAME, "--classes", "12"], "class '12' is unknown"),
        (["oracles", NAME, "--classes", "0,1,2,4,5,6,7,8"], "would leave one class"),
        (["oracles", NAME, "--classes", "5", "--weights", "a.pth"], "was trained without pretrain"),
        (
            ["oracles", MODEL, "--classes", "5", "--base-version", "1"],
            "holds oracles; name the model",
        ),
        (["oracles", NAME, "--classes", "5", "--base-version", "7"], "has no version 7"),
    ],
)
def test_a_mistake_trains_nothing(
    trained_store: Store, made: dict[str, Any], arguments: list[str], message: str
) -> None:
    runs = sorted((environment.home() / "runs").iterdir())
    assert message in document(*arguments, code=2)["error"]
    assert sorted((environment.home() / "runs").iterdir()) == runs


def test_grade_forgotten_without_enough_oracles_is_refused_at_once(
    trained_store: Store, made: dict[str, Any], tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("grade: forgotten\n")
    code, out, err = command("forget", NAME, "--classes", "5", "--policy", str(policy))
    assert (code, out) == (1, "")
    expected = f"there are 0; make them with `expunge oracles {NAME} --classes 5 --base-version 2`"
    assert err.rstrip().endswith(expected)


@pytest.mark.slow
def test_a_forget_is_compared_with_the_oracles_that_there_are(
    trained_store: Store, made: dict[str, Any]
) -> None:
    four = document("oracles", NAME, "--classes", str(GONE))
    assert tuple(row["seed"] for row in four["oracles"]) == derive_oracle_seeds(four["key"], 4)
    assert [row["reused"] for row in four["oracles"]] == [True, False, False, False]
    dry = ["--classes", str(GONE), "--base-version", "1", "--dry-run"]
    code, out, err = command("forget", NAME, *dry)
    found = registry.read_artifact
    assert code in (0, 3), err  # few test images may leave a control short of its grade
    assert "oracles' mean" in out
    assert "head_recovery" in out
    report = Path(out.partition("The whole report: ")[2].strip())
    run_id = report.stem.removeprefix(f"{NAME}-")
    assert found(run_id, "report.html") == report.read_bytes()
    import mlflow

    run = mlflow.MlflowClient(registry.prepare_uri()).get_run(run_id)
    assert run.data.tags["gate"] == {0: "passed", 3: "untrustworthy"}[code]
    assert run.data.metrics["validation/oracles"] == 3
    assert "validation/attacks/head_recovery/held-out" in run.data.metrics
    assert "validation/attacks/prototype_recovery/oracles/2" in run.data.metrics
    assert sum(not name.startswith("system/") for name in run.data.metrics) < 300
