import time
from pathlib import Path
from typing import Any

import pytest

from expunge import registry
from expunge.errors import UserError
from expunge.registry import store as connection

pytest_plugins = ["mlflow_store"]


def run_of(run_id: str) -> Any:
    return connection.connect().get_run(run_id)


def test_pipeline_run_is_recorded_and_finished(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with registry.open_run("train", "shapes", {"epochs": 3}) as run_id:
        assert run_of(run_id).info.status == "RUNNING"
        registry.log_epoch(run_id, 1, {"loss": 0.5})
        registry.log_epoch(run_id, 2, {"loss": 0.25})
        time.sleep(1.3)  # one system sample
    run = run_of(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["expunge.pipeline"] == "train"
    assert run.data.tags["expunge.model"] == "shapes"
    assert run.data.params == {"epochs": "3"}
    history = connection.connect().get_metric_history(run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.5), (2, 0.25)]
    assert any(key.startswith("system/") for key in run.data.metrics)
    assert run.info.artifact_uri.startswith((store / "mlartifacts" / "shapes").as_uri())
    out, err = capfd.readouterr()
    assert out == ""
    assert "INFO" not in err


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_pipeline_run_ends_as_what_happened(store: Path, error: BaseException, status: str) -> None:
    with (
        pytest.raises(type(error)),
        registry.open_run("train", "shapes", {}) as run_id,
    ):
        raise error
    assert run_of(run_id).info.status == status


def test_runs_attach_to_a_preset_run(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = registry.attach_run("shapes", "train")
    registry.log_report(run_id, {"t_mix": "0.10"}, {}, {}, {})
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert registry.attach_run("birds", "train") == run_id
    with registry.open_run("train", "shapes", {"t_mix": 0.1, "epochs": 2}) as attached:
        assert attached == run_id
    assert run_of(run_id).data.params == {"t_mix": "0.10", "epochs": "2"}
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(UserError, match=r"MLFLOW_RUN_ID is '0{32}', and there is no such run"):
        registry.attach_run("shapes", "train")


def test_steps_of_one_pipeline_share_a_run(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = registry.attach_run("shapes", "train")
    monkeypatch.setenv("EXPUNGE_PIPELINE_RUN", "workflow-7")
    first = registry.attach_run("shapes", "train")
    assert registry.attach_run("shapes", "train") == first != alone
    assert run_of(first).info.status == "RUNNING"
    monkeypatch.setenv("EXPUNGE_PIPELINE_RUN", "workflow-8")
    assert registry.attach_run("shapes", "train") != first
    monkeypatch.setenv("EXPUNGE_PIPELINE_RUN", "it's")
    with pytest.raises(UserError, match='EXPUNGE_PIPELINE_RUN is "it\'s"; expected a name'):
        registry.attach_run("shapes", "train")


def test_reports_and_artifacts(store: Path, tmp_path: Path) -> None:
    run_id = registry.attach_run("shapes", "train")
    (tmp_path / "a").write_text('{"x": 1}')
    metrics = {f"per_class/{index}": index / 250 for index in range(250)}
    files = {"validation.json": tmp_path / "a", "plots/one.json": tmp_path / "a"}
    registry.log_report(run_id, {"p": 1}, metrics, {"gate": "passed"}, files)
    run = run_of(run_id)
    assert len(run.data.metrics) == 250
    assert (run.data.params["p"], run.data.tags["gate"]) == ("1", "passed")
    assert registry.read_artifact(run_id, "validation.json") == b'{"x": 1}'
    assert registry.read_artifact(run_id, "plots/one.json") == b'{"x": 1}'
    with pytest.raises(UserError, match=r"has no artifact 'other\.json'; was it recorded\?"):
        registry.read_artifact(run_id, "other.json")


def test_oracles_of_one_run_have_metrics_of_their_own(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", registry.attach_run("shapes", "oracles"))
    for seed in (1001, 1002):
        registry.make_epoch_logger("shapes", "oracles", seed)(1, {"train_loss": seed / 1000})
    registry.make_epoch_logger("shapes", "train", 5)(1, {"train_loss": 0.5})
    metrics = run_of(registry.attach_run("shapes", "oracles")).data.metrics
    losses = {"oracle-1001/train_loss": 1.001, "oracle-1002/train_loss": 1.002, "train_loss": 0.5}
    assert metrics == losses
