import json
from pathlib import Path

import pytest
from mlflow_store import write_validation

from expunge import registry
from expunge.registry import store as connection
from expunge.steps.record import record

pytest_plugins = ["mlflow_store"]


@pytest.mark.parametrize("passed", [True, False])
def test_the_gate_becomes_metrics_and_tags(store: Path, tmp_path: Path, passed: bool) -> None:
    validation = write_validation(tmp_path / "report", passed)
    (tmp_path / "perturb").write_text(
        '{"rule": "paper", "strength": 2, "empty": null, "sub": {"dry": true, "names": ["a"]}}'
    )
    reports = {"validation": validation, "perturb": tmp_path / "perturb"}
    report = record("forget", "shapes", reports, {"classes": [3]})
    run = connection.connect().get_run(report["run_id"])
    metrics, tags = run.data.metrics, run.data.tags
    assert metrics["check/forget_error"] == (0.99 if passed else 0.5)
    assert metrics["threshold/forget_error"] == 0.95
    assert metrics["check/budget"] == 0.01
    assert metrics["validation/after/retain_accuracy"] == 0.96
    assert metrics["validation/after/per_class/1"] == 0.25
    assert metrics["perturb/strength"] == 2
    assert report["metrics"] == len(metrics)
    assert run.data.params == {"classes": "[3]"}
    assert tags["gate"] == report["gate"] == ("passed" if passed else "rejected")
    assert tags["gate.failed"] == ("" if passed else "forget_error")
    assert tags["expunge.grade"] == ("suppressed" if passed else "failed")
    assert (tags["expunge.perturb.rule"], tags["expunge.perturb.sub.dry"]) == ("paper", "True")
    assert not any("names" in key or "empty" in key for key in (*tags, *metrics))
    kept = json.loads(registry.read_artifact(report["run_id"], "validation.json"))
    assert kept == json.loads(validation.read_text())
    assert run.info.status == "RUNNING"


def test_a_run_without_a_gate(store: Path, tmp_path: Path) -> None:
    (tmp_path / "train").write_text('{"epochs": 2}')
    report = record("train", "shapes", {"train": tmp_path / "train"}, {})
    assert report["gate"] is None
    assert "gate" not in connection.connect().get_run(report["run_id"]).data.tags
