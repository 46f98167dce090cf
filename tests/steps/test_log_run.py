import json
from pathlib import Path

import pytest
from forget_reports import with_oracles, work
from mlflow_store import write_validation

from expunge import registry
from expunge.registry import store as connection
from expunge.steps.log_run import log_run

pytest_plugins = ["mlflow_store"]


@pytest.mark.parametrize("passed", [True, False])
def test_the_gate_becomes_metrics_and_tags(store: Path, tmp_path: Path, passed: bool) -> None:
    validation = write_validation(tmp_path / "report", passed)
    (tmp_path / "perturb").write_text(
        '{"rule": "paper", "strength": 2, "empty": null, "sub": {"dry": true, "names": ["a"]}}'
    )
    reports = {"validation": validation, "perturb": tmp_path / "perturb"}
    report = log_run("forget", "shapes", reports, {"classes": [3]})
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
    report = log_run("train", "shapes", {"train": tmp_path / "train"}, {})
    assert report["gate"] is None
    assert "gate" not in connection.connect().get_run(report["run_id"]).data.tags


def test_a_comparison_with_oracles_becomes_some_metrics_and_keeps_the_page(
    store: Path, tmp_path: Path
) -> None:
    """The curves, the layers and the sentences stay in the artifacts."""
    validation = with_oracles() | {"reasons": ["It differs."], "trustworthy": False}
    (tmp_path / "validation").write_text(json.dumps(validation | {"passed": False}))
    (tmp_path / "work").write_text(json.dumps(work()))
    (tmp_path / "page").write_text("<p>all of it</p>")
    reports = {name: tmp_path / name for name in ("validation", "work")}
    report = log_run("forget", "shapes", reports, {}, tmp_path / "page")
    run = connection.connect().get_run(report["run_id"])
    metrics, tags = run.data.metrics, run.data.tags
    assert (tags["gate"], tags["gate.failed"]) == ("untrustworthy", "")
    assert tags["expunge.validation.controls.soft-mask"] == "hidden"
    attacks = validation["attacks"]
    for model in ("unlearned", "original", "mask", "soft-mask", "held-out"):
        found = metrics[f"validation/attacks/head_recovery/{model}"]
        assert found == attacks["head_recovery"][model]
    assert metrics["validation/attacks/tow/oracles/2"] == attacks["tow"]["oracles"][2]
    assert metrics["validation/depth/head_alone"] == validation["depth"]["head_alone"]
    assert "validation/attacks/membership/unlearned" not in metrics
    assert not any("curves" in key or "layers" in key or "trials" in key for key in metrics)
    assert not any("reasons" in key or "class_names" in key for key in (*metrics, *tags))
    assert len(metrics) < 200
    assert registry.read_artifact(report["run_id"], "report.html") == b"<p>all of it</p>"
