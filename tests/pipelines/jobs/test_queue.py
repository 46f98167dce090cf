"""The queue on the local runner: what `expunge run-requests` makes of real requests."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import command, document
from trained_store import NAME as TRAINED
from trained_store import RECIPE, Store, state

from expunge import ledger, registry
from expunge.lifecycle import promotion, provenance

NAME = "queued"
EXPUNGE = Path(sys.executable).with_name("expunge")


@pytest.fixture(scope="module")
def home(trained: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 of a model of the digits serves; the tests of this file build on one another.

    It is what the session has trained already, registered in a store and a ledger of its own.
    """
    made, folder = tmp_path_factory.mktemp("queued"), tmp_path_factory.mktemp("version") / "model"
    with state(trained.home):
        registry.download(registry.resolve(TRAINED, 1), folder)
    with state(made):
        tags = {"expunge.gate": "passed", "expunge.grade": "trained"}
        run_id = registry.attach_run(NAME, "train")
        version = registry.register(run_id, NAME, folder, tags, "train")
        provenance.record_version(version, folder)
        promotion.promote(NAME, version.version, None)
    return made


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_HOME", str(home))


def ask(*classes: int) -> str:
    listed = ",".join(map(str, classes))
    made = document("request", "add", NAME, "--classes", listed, "--reason", "asked")["created"]
    return str(made["id"])


def kinds(request: str) -> list[str]:
    return [event.kind.removeprefix("request-") for event in ledger.list_events(request=request)]


def champion() -> int:
    """Return the version of the ledger's champion, which has to be MLflow's too."""
    row = ledger.find_champion(NAME)
    assert row is not None
    assert [v.version for v in registry.list_versions(NAME) if "champion" in v.aliases] == [
        row.version
    ]
    return row.version


def test_pending_requests_are_merged_into_one_run_and_fulfilled(home: Path) -> None:
    third, fifth = ask(3), ask(5)
    found = document("run-requests")
    (run,) = found["runs"]
    assert (run["classes"], run["base_version"], run["version"]) == ([3, 5], 1, 2)
    states = {entry["id"]: (entry["state"], entry["version"]) for entry in run["requests"]}
    assert states == {third: ("fulfilled", 2), fifth: ("fulfilled", 2)}
    assert kinds(third) == ["added", "claimed", "fulfilled", "class-erased"] or kinds(third) == [
        "added", "claimed", "class-erased", "fulfilled",
    ]  # fmt: skip
    assert champion() == 2
    assert set(registry.resolve(NAME).tags["expunge.requests"].split(",")) == {third, fifth}
    held = document("request", "show", third)["remembered_by"]
    assert [row["address"] for row in held] == [f"models:/{NAME}/1"]
    assert list((home / "runs").iterdir()) == []
    assert document("run-requests")["runs"] == []


def test_what_steps_handed_on_is_recorded_and_is_gone(home: Path) -> None:
    """Each artifact by its address, with the run that wrote it, until the run's folder goes."""
    from sqlalchemy import create_engine, text

    with create_engine(f"sqlite:///{home / 'ledger.db'}").connect() as connection:
        rows = connection.execute(text("SELECT * FROM written ORDER BY id")).mappings().all()
    inside = [row for row in rows if str(home / "runs") in row["address"]]
    assert {row["kind"] for row in inside} == {"dataset", "model", "fisher", "onnx"}
    assert all(row["removed_at"] and row["digest"].startswith("sha256:") for row in inside)
    unlearned = [row for row in inside if json.loads(row["classes"]) == [0, 1, 2, 4, 6, 7, 8, 9]]
    assert {row["kind"] for row in unlearned} == {"model", "onnx", "fisher"}
    assert all(row["run"].startswith("local-") for row in inside)
    left = [row["kind"] for row in rows if not row["removed_at"]]
    assert sorted(left) == [*["report"] * 3, "version", "version"]


def test_a_failure_puts_the_request_back_with_its_reason(home: Path) -> None:
    """The champion's weights are not those that were registered."""
    request = ask(7)
    source = registry.store.connect().get_model_version(NAME, "2").source.rpartition("/")[2]
    (weights,) = home.glob(f"mlartifacts/**/{source}/artifacts/weights.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        found = document("run-requests", NAME, code=3)
    finally:
        weights.write_bytes(whole)
    (run,) = found["runs"]
    assert "is not what was registered" in run["error"]
    (entry,) = run["requests"]
    assert (entry["id"], entry["state"], entry["attempts"]) == (request, "pending", 1)
    assert "is not what was registered" in entry["error"]
    assert kinds(request) == ["added", "claimed", "put-back"]
    assert champion() == 2


@pytest.mark.slow
def test_a_run_that_is_stopped_leaves_the_queue_as_it_was(home: Path) -> None:
    """SIGTERM in the middle: no attempt is counted, and nothing is left."""
    (request,) = [entry.id for entry in ledger.list_requests(NAME, ["pending"])]
    before = ledger.find_request(request).attempts
    environment = {**os.environ, "EXPUNGE_HOME": str(home)}
    with subprocess.Popen(
        [EXPUNGE, "run-requests"], env=environment, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if "export_onnx" in line:
                run.send_signal(signal.SIGTERM)
                break
        said = run.stderr.read()
    assert run.returncode == 143, said
    found = ledger.find_request(request)
    assert (found.state, found.attempts) == ("pending", before)
    assert ledger.list_lost_claims(NAME) == []
    assert not [path for path in (home / "runs").glob("*/*") if path.name != "log.txt"]
    assert champion() == 2


def test_retraining_without_the_class_fulfils_the_request(home: Path) -> None:
    (request,) = [entry.id for entry in ledger.list_requests(NAME, ["pending"])]
    found = document("train", NAME, *RECIPE, "--without", "7")
    assert (found["without"], found["erased"], found["asked"]) == ([3, 5, 7], [3, 5], {})
    assert found["fulfilled"] == [request]
    entry = ledger.find_request(request)
    assert (entry.state, entry.version, entry.grade) == ("fulfilled", 3, "trained")
    assert champion() == 3
    assert {index: str(erasure) for index, erasure in promotion.list_erased(NAME).items()}[7] == (
        f"erased by version 3 for request {request}"
    )
    said = document("request", "cancel", request, code=1)["error"]
    assert f"request {request} is fulfilled by version 3 of 'queued'" in said


@pytest.mark.slow
def test_a_merged_run_that_is_rejected_is_followed_by_each_alone(tmp_path: Path) -> None:
    """Under a gate that no forget passes, so that each of them is rejected by itself."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("block: [forget_error, head_recovery]\n")
    requests = [ask(2), ask(4)]  # each is forgotten by its outputs, alone too
    serving = champion()
    found = document("run-requests", NAME, "--policy", str(policy), code=1)
    assert [run["classes"] for run in found["runs"]] == [[2, 4], [2], [4]]
    assert {entry["state"] for entry in found["requests"]} == {"rejected"}
    assert found["requests"][0]["failed_checks"] == ["head_recovery"]
    for request in requests:
        assert kinds(request) == ["added", "claimed", "set-apart", "claimed", "rejected"]
    assert champion() == serving
    assert document("run-requests", NAME)["runs"] == [], "a rejected one waits for a person"
    lines = command("request", "list", NAME)[1]
    assert "head_recovery; retrain: expunge train queued --without 2" in lines
