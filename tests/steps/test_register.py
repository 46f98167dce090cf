from pathlib import Path

import pytest
from mlflow_store import save_tiny, save_tiny_fisher, tiny_model, write_validation

from expunge import ledger, registry
from expunge.errors import RefusedError, UserError
from expunge.formats.files import digest_file
from expunge.steps.register import register

pytest_plugins = ["mlflow_store"]


def test_register_gathers_the_steps_files(
    store: Path, tmp_path: Path, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = registry.attach_run("shapes", "forget")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    model = save_tiny(tmp_path / "model", tiny_model(forgotten=(3,)))
    fisher = save_tiny_fisher(tmp_path / "fisher")
    validation = write_validation(tmp_path / "validation", passed=True)
    report = register("shapes", "forget", model, fisher, tiny_onnx, validation)
    assert report == {
        "model": "shapes",
        "version": 1,
        "uri": "models:/shapes/1",
        "run_id": run_id,
        "forgotten": [3],
        "grade": "suppressed",
    }
    digests = registry.resolve("shapes", 1).digests
    assert digests["fim_total"] == digest_file(fisher / "fim_total.safetensors")
    assert digests["onnx"] == digest_file(tiny_onnx)
    assert register("shapes", "forget", model, fisher, tiny_onnx, validation) == report


def test_a_run_that_lost_its_requests_registers_nothing(
    store: Path, tmp_path: Path, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ledger.add_request("shapes", {3: "x"}, reason="asked", requester="ada").created
    assert asked is not None
    held = {"base_version": 1, "classes": 4, "forgotten": (), "lease_seconds": 60}
    ledger.claim_requests("shapes", "late", **held)  # type: ignore[arg-type]
    monkeypatch.setenv("EXPUNGE_PIPELINE_RUN", "late")
    model = save_tiny(tmp_path / "model", tiny_model(forgotten=(3,)))
    fisher = save_tiny_fisher(tmp_path / "fisher")
    validation = write_validation(tmp_path / "validation", passed=True)
    parts = ("shapes", "forget", model, fisher, tiny_onnx, validation, [asked.id])
    register(*parts)
    assert registry.resolve("shapes", 1).tags["expunge.requests"] == asked.id
    ledger.close_claim("late", ledger.FAILED)
    with pytest.raises(RefusedError, match="run late has lost the requests for 'shapes' that it"):
        register(*parts)
    assert len(registry.list_versions("shapes")) == 1


def test_register_refuses_what_the_gate_rejected(
    store: Path, tmp_path: Path, tiny_onnx: Path
) -> None:
    model = save_tiny(tmp_path / "model", tiny_model(forgotten=(3,)))
    fisher = save_tiny_fisher(tmp_path / "fisher")
    rejected = write_validation(tmp_path / "rejected", passed=False)
    with pytest.raises(RefusedError, match=r"model of 'shapes' is rejected \(forget_error\)"):
        register("shapes", "forget", model, fisher, tiny_onnx, rejected)
    passed = write_validation(tmp_path / "passed", passed=True)
    with pytest.raises(UserError, match=r"holds no fim_total\.safetensors, model\.onnx"):
        register("shapes", "forget", model, tmp_path, tmp_path / "absent", passed)
    assert registry.list_models() == []
