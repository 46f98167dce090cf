"""Train and forget on the local runner, each step a process, and what is left afterwards."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from trained_store import EPOCHS, GONE, NAME, Store, command, document

from expunge import ledger, registry
from expunge.core.fisher import code_gradients
from expunge.data.digits import load_digit_splits
from expunge.formats.fisher import load_fisher
from expunge.formats.model import load_model

FIELDS = {
    "model", "base_version", "classes", "rule", "sign", "strength", "before", "after", "checks",
    "grade", "passed", "version", "seconds", "needed", "trustworthy", "reasons", "controls",
    "attacks", "oracles", "depth", "report", "problems",
    "unmade", "request",
}  # fmt: skip


def champion() -> int:
    return registry.resolve(NAME).version


def test_training_is_promoted_and_timed(trained_store: Store) -> None:
    assert trained_store.train["passed"]
    assert trained_store.train["version"] == 1
    assert trained_store.train["after"]["test_accuracy"] > 0.9
    assert {"prepare_data", "train", "validate", "promote"} <= trained_store.train["seconds"].keys()


def test_forgetting_gives_what_the_design_promises(trained_store: Store) -> None:
    found = trained_store.forget
    assert found.keys() >= FIELDS
    assert (found["model"], found["base_version"], found["version"]) == (NAME, 1, 2)
    assert (found["classes"], found["grade"], found["passed"]) == ([GONE], "suppressed", True)
    for part in ("before", "after"):
        assert found[part].keys() >= {"forget_error", "retain_accuracy", "per_class"}
        assert len(found[part]["per_class"]) == 10
    assert found["before"]["forget_error"] < 0.2
    assert found["after"]["forget_error"] > 0.95
    assert found["after"]["retain_accuracy"] > found["before"]["retain_accuracy"] - 0.02
    assert all(row.keys() >= {"name", "value", "threshold", "passed"} for row in found["checks"])


def test_without_oracles_it_says_what_was_not_compared(trained_store: Store) -> None:
    found = trained_store.forget
    assert (found["oracles"], found["needed"], found["trustworthy"]) == (0, "suppressed", True)
    assert found["controls"]["original"] == "failed"
    assert "Nothing was compared with retrained models" in " ".join(found["reasons"])
    assert {row["name"] for row in found["checks"] if not row["blocks"]} == {"head_swap"}


def test_the_report_is_a_page_to_open_and_lies_in_the_run_too(trained_store: Store) -> None:
    page = Path(trained_store.forget["report"])
    assert page == trained_store.home / "exports" / f"{NAME}-{trained_store.forget['run_id']}.html"
    assert page.read_bytes() == registry.read_artifact(
        trained_store.forget["run_id"], "report.html"
    )
    assert page.read_text().startswith("<!")


def test_the_champion_forgot_and_previous_is_what_it_replaced(trained_store: Store) -> None:
    versions = {version.version: version for version in registry.list_versions(NAME)}
    assert "champion" in versions[2].aliases
    assert "previous" in versions[1].aliases
    assert versions[2].forgotten == (GONE,)
    assert versions[2].parent == f"{NAME}/1"


def test_nothing_of_the_class_is_left_in_the_version(trained_store: Store, tmp_path) -> None:
    registry.download(registry.resolve(NAME), tmp_path / "model")
    stored = load_model(tmp_path / "model")
    assert stored.codes.classes_K.tolist() == [i for i in range(10) if i != GONE]
    assert stored.info.class_names[GONE] == "forgotten-3"
    total, _ = load_fisher(tmp_path / "model")
    codes = stored.codes
    expected = code_gradients(stored.module, codes.images_KCHW, codes.classes_K).squares
    for name, value in expected.items():
        torch.testing.assert_close(total[name], value, rtol=1e-6, atol=0)


def test_what_a_training_wrote_is_recorded(trained_store: Store) -> None:
    """Each artifact by its address; what remembers the class is what is left of the training."""
    from sqlalchemy import create_engine, text

    engine = create_engine(f"sqlite:///{trained_store.home / 'ledger.db'}")
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM written ORDER BY id")).mappings().all()
    training = [row for row in rows if row["run"] == rows[0]["run"]]
    gone = [row for row in training if row["removed_at"]]
    assert sorted(row["kind"] for row in gone) == [
        "checkpoints", "dataset", "fisher", "model", "onnx",
    ]  # fmt: skip
    assert all(row["run"].startswith("local-") for row in gone)
    left = [row["kind"] for row in training if not row["removed_at"]]
    assert sorted(left) == ["report", "version"]
    held = [entry.address for entry in ledger.list_remembering(NAME, (GONE,))]
    assert held[:2] == [
        f"runs:/{trained_store.train['run_id']}/validation.json",  # it has the class's name
        f"models:/{NAME}/1",
    ]
    others = ("models:/", trained_store.forget["run_id"])
    assert not [address for address in held[2:] if any(part in address for part in others)]


def test_any_mlflow_client_loads_and_runs_it(trained_store: Store) -> None:
    import mlflow
    import onnxruntime

    mlflow.set_tracking_uri(registry.prepare_uri())
    model = mlflow.onnx.load_model(f"models:/{NAME}@champion")
    names = {prop.key: prop.value for prop in model.metadata_props}
    assert "forgotten-3" in json.dumps(names)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images, labels = load_digit_splits()["test"]
    (probabilities,) = session.run(["probabilities"], {"images": images})
    kept = labels != GONE
    accuracy = float((probabilities.argmax(1)[kept] == labels[kept]).mean())
    assert accuracy == pytest.approx(trained_store.forget["after"]["retain_accuracy"], abs=1e-9)
    assert not np.any(probabilities.argmax(1)[~kept] == GONE)


def test_mlflow_has_the_whole_run(trained_store: Store) -> None:
    import mlflow

    mlflow.set_tracking_uri(registry.prepare_uri())
    client = mlflow.MlflowClient()
    trained = client.get_run(trained_store.train["run_id"])
    assert trained.info.status == "FINISHED"
    assert trained.data.params["arch"] == "mlp"
    assert len(client.get_metric_history(trained_store.train["run_id"], "train_loss")) == EPOCHS
    assert any(name.startswith("system/") for name in trained.data.metrics)
    forgot = client.get_run(trained_store.forget["run_id"])
    assert {"check/forget_error", "threshold/forget_error"} <= forgot.data.metrics.keys()
    assert forgot.data.tags["gate"] == "passed"
    assert "validation/attacks/head_swap/unlearned" in forgot.data.metrics
    assert sum(not name.startswith("system/") for name in forgot.data.metrics) < 200
    assert forgot.data.tags["expunge.validation.data_digest"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("3", "class 3 is already forgotten"),
        ("12", "class '12' is unknown"),
        ("cat", "class 'cat' is unknown"),
        ("0,1,2,4,5,6,7,8,9", "are all that the model has left"),
        ("1,1", "named more than once"),
    ],
)
def test_a_request_that_cannot_be_fulfilled_changes_nothing(
    trained_store: Store, wanted: str, message: str
) -> None:
    runs = len(registry.list_versions(NAME)), champion()
    found = document("forget", NAME, "--classes", wanted, code=2)
    assert message in found["error"]
    assert (len(registry.list_versions(NAME)), champion()) == runs


def test_an_older_base_needs_a_dry_run(trained_store: Store) -> None:
    found = document("forget", NAME, "--classes", "5", "--base-version", "1", code=2)
    assert "is not the champion, 2 is" in found["error"]


def test_a_gate_that_rejects_registers_nothing(trained_store: Store, tmp_path: Path) -> None:
    """The paper's rule at zero strength changes nothing, so the class is still known.

    A check that could not be made rejects too, by its name; and a report that cannot be copied is
    one line beside that.
    """
    policy = tmp_path / "policy.yaml"
    policy.write_text("block: [forget_error, head_recovery]\n")
    options = ["--rule", "paper", "--lambda1", "0", "--lambda2", "0", "--policy", str(policy)]
    exports = trained_store.home / "exports"
    exports.rename(trained_store.home / "aside")
    exports.write_text("in the way")
    try:
        code, out, err = command("forget", NAME, "--classes", "5", *options, "--json")
    finally:
        exports.unlink()
        (trained_store.home / "aside").rename(exports)
    assert code == 1, err
    found = json.loads(out)
    assert (found["passed"], found["grade"], found["version"]) == (False, "failed", None)
    assert (found["report"], found["unmade"]) == (None, ["head_recovery"])
    failed = next(row for row in found["checks"] if row["name"] == "forget_error")
    assert not failed["passed"]
    assert failed["value"] < failed["threshold"]
    assert champion() == 2
    assert len(registry.list_versions(NAME)) == 2
    warning = err.splitlines()[-1]
    assert "warning: the report could not be copied" in warning
    assert warning.endswith(found["run_id"])
    import mlflow

    run = mlflow.MlflowClient(registry.prepare_uri()).get_run(found["run_id"])
    assert run.data.tags["gate"] == "rejected"
    assert set(run.data.tags["gate.failed"].split(",")) >= {"forget_error", "head_recovery"}
    assert run.data.metrics["check/forget_error"] == pytest.approx(failed["value"])
    assert registry.read_artifact(found["run_id"], "report.html").startswith(b"<!")


@pytest.mark.slow
def test_a_dry_run_on_top_of_a_forget_keeps_it_forgotten(trained_store: Store) -> None:
    found = document("forget", NAME, "--classes", "5", "--dry-run")
    assert found["passed"]
    assert found["version"] is None
    assert "erased_stay_erased" in {row["name"] for row in found["checks"]}
    assert len(registry.list_versions(NAME)) == 2


def test_there_is_no_way_back(trained_store: Store) -> None:
    found = document("rollback", NAME, code=1)
    assert "3" in found["error"]
    assert champion() == 2


def test_models_lists_both_versions(trained_store: Store) -> None:
    rows = document("models", NAME)["models"]
    assert [(row["version"], row["grade"]) for row in rows] == [(2, "suppressed"), (1, "trained")]


@pytest.mark.slow
def test_training_again_leaves_the_erased_class_out(trained_store: Store) -> None:
    """Changes the store: last in this file. Two epochs do not pass the gate, which is fine here."""
    recipe = ["--data", "digits", "--arch", "mlp", "--epochs", "1", "--lr", "0.0001"]
    found = document("train", NAME, *recipe, code=1)
    assert found["without"] == found["erased"] == [GONE]
    assert found["after"]["per_class"][GONE] == 0
    assert champion() == 2
