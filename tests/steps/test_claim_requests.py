"""Claiming from the queue and settling it, on a real registry and a real ledger."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow_store import Registrar

from expunge import ledger, processes, registry
from expunge.config import ClaimConfig
from expunge.errors import OperationalError, RefusedError, UserError
from expunge.formats.model import load_model
from expunge.lifecycle import promotion
from expunge.lifecycle.settlement import settle_lost
from expunge.steps.claim_requests import NOTHING, claim_requests
from expunge.steps.close_requests import close_requests

pytest_plugins = ["mlflow_store"]


@pytest.fixture
def champion(registrar: Registrar) -> Registrar:
    """Version 1 of `shapes`, with four classes, serves."""
    registrar("shapes", 0)
    promotion.promote("shapes", 1, None)
    return registrar


def ask(*classes: int) -> str:
    names = {index: f"name-{index}" for index in classes}
    added = ledger.add_request("shapes", names, reason="asked", requester="ada")
    assert added.created is not None
    return added.created.id


def claim(folder: Path, run: str = "run", **settings: object):
    return claim_requests(ClaimConfig("shapes", run, **settings), folder / run)  # type: ignore[arg-type]


def state(request: str) -> str:
    return ledger.find_request(request).state


def unlearn(registrar: Registrar, token: int, *classes: int, seed: int = 9) -> int:
    """Another version that has forgotten the classes, promoted for the claim."""
    made = registrar("shapes", seed, forgotten=classes, parent="shapes/1")
    promotion.promote("shapes", made.version, 1, token)
    return made.version


def test_every_pending_request_is_claimed_and_the_champion_fetched(
    champion: Registrar, tmp_path: Path
) -> None:
    first, second = ask(3), ask(1)
    found = claim(tmp_path)
    assert found[:5] == (True, 1, [first, second], [1, 3], 1)
    assert found[5:] == ("shapes/1", "digits", 4)
    assert load_model(tmp_path / "run").info.forgotten == ()
    assert (state(first), state(second)) == ("claimed", "claimed")
    assert claim(tmp_path).token == 1, "a pod that is started again has the same claim"
    assert claim(tmp_path, "other") == NOTHING
    assert list((tmp_path / "other").iterdir()) == []


def test_only_the_requests_that_are_named(champion: Registrar, tmp_path: Path) -> None:
    first, second = ask(3), ask(1)
    assert claim(tmp_path, requests=(second,)).classes == [1]
    assert (state(first), state(second)) == ("pending", "claimed")
    with pytest.raises(RefusedError, match=f"request {second} is being worked on by run run; wait"):
        claim(tmp_path, "other", requests=(second,))


def test_a_dry_run_claims_nothing(champion: Registrar, tmp_path: Path) -> None:
    request = ask(3)
    found = claim(tmp_path, dry_run=True, classes=(3,))
    assert found[:5] == (True, 0, [], [3], 1)
    assert state(request) == "pending"
    assert close_requests("shapes", "run") is None
    with pytest.raises(UserError, match="classes is empty; a dry run needs at least one class"):
        ClaimConfig("shapes", "run", dry_run=True)
    with pytest.raises(UserError, match="EXPUNGE_PIPELINE_RUN has to name it in each step"):
        ClaimConfig("shapes", "")
    with pytest.raises(UserError, match="class 7 is unknown; the model has classes 0 to 3"):
        claim(tmp_path, dry_run=True, classes=(7,))
    with pytest.raises(UserError, match="has no version 4; use one of 1"):
        claim(tmp_path, "other", dry_run=True, classes=(3,), version=4)
    assert not (tmp_path / "other").exists()


def test_a_promoted_version_fulfils_what_was_claimed(champion: Registrar, tmp_path: Path) -> None:
    request = ask(3)
    token = claim(tmp_path).token
    version = unlearn(champion, token, 3)
    assert state(request) == "fulfilled"
    closed = close_requests("shapes", "run", state="SUCCEEDED")
    assert closed is not None
    assert closed.outcome == "fulfilled"
    found = ledger.find_request(request)
    assert (found.version, found.grade) == (version, "suppressed")
    assert close_requests("shapes", "run") is None


def test_a_rejection_keeps_the_checks_and_several_are_tried_alone(
    champion: Registrar, tmp_path: Path
) -> None:
    first, second = ask(3), ask(1)
    claim(tmp_path)
    ledger.note_verdict("run", "rejected", ["forget_error"], "mlflow")
    close_requests("shapes", "run", state="SUCCEEDED")
    assert (state(first), state(second)) == ("pending", "pending")
    assert claim(tmp_path, "alone").classes == [3]
    ledger.note_verdict("alone", "rejected", ["forget_error", "worst_class_drop"], "mlflow")
    close_requests("shapes", "alone", state="SUCCEEDED")
    found = ledger.find_request(first)
    assert (found.state, found.failed_checks) == ("rejected", ("forget_error", "worst_class_drop"))
    assert claim(tmp_path, "next").classes == [1]


def test_a_failure_puts_back_and_the_last_one_parks(champion: Registrar, tmp_path: Path) -> None:
    request = ask(3)
    for number in range(2):
        claim(tmp_path, f"run-{number}")
        close_requests("shapes", f"run-{number}", error="no GPU", attempts=2, state="FAILED")
    found = ledger.find_request(request)
    assert (found.state, found.error, found.attempts) == ("parked", "no GPU", 2)
    assert claim(tmp_path, "again") == NOTHING


def test_a_run_that_was_stopped_or_overtaken_has_not_failed(
    champion: Registrar, tmp_path: Path
) -> None:
    request = ask(3)
    claim(tmp_path)
    close_requests("shapes", "run", state="CANCELLED", attempts=1)
    assert (state(request), ledger.find_request(request).attempts) == ("pending", 0)
    token = claim(tmp_path, "slow").token
    champion("shapes", 5)
    promotion.promote("shapes", 2, 1)
    late = champion("shapes", 6, forgotten=(3,), parent="shapes/1")
    with pytest.raises(
        RefusedError, match="is version 2 by now and version 3 was compared with ve"
    ):
        promotion.promote("shapes", late.version, 1, token)
    closed = close_requests("shapes", "slow", state="FAILED", attempts=1)
    assert closed is not None
    assert closed.outcome == "overtaken"
    assert (state(request), ledger.find_request(request).attempts) == ("pending", 0)
    assert claim(tmp_path, "again").version == 2


def test_retraining_without_the_class_fulfils_a_rejected_request(
    champion: Registrar, tmp_path: Path
) -> None:
    request = ask(3)
    claim(tmp_path)
    ledger.note_verdict("run", "rejected", ["forget_error"], "mlflow")
    close_requests("shapes", "run")
    champion("shapes", 5, forgotten=(3,))
    fulfilled = promotion.promote("shapes", 2, 1)
    assert [entry.id for entry in fulfilled] == [request]
    assert state(request) == "fulfilled"


def test_a_lease_that_ran_out_is_taken_over_and_the_late_run_cannot_promote(
    champion: Registrar, tmp_path: Path
) -> None:
    request = ask(3)
    late = claim(tmp_path, "late", lease_seconds=1).token
    assert ledger.extend_claim("late", 0.0)
    token = claim(tmp_path, "next").token
    assert token > late
    made = champion("shapes", 5, forgotten=(3,), parent="shapes/1")
    with pytest.raises(RefusedError, match=rf"has lost its requests \(claim {late} is closed\)"):
        promotion.promote("shapes", made.version, 1, late)
    assert registry.resolve("shapes").version == 1
    promotion.promote("shapes", made.version, 1, token)
    assert state(request) == "fulfilled"


@pytest.fixture
def ended() -> str:
    """Return the name of a process of this machine that has ended."""
    code = "from expunge import processes; print(processes.name_this_process())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_what_a_dead_run_left_is_ended_and_removed(
    champion: Registrar, tmp_path: Path, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask(3)
    assert claim(tmp_path, "dead", holder=ended).claimed
    with monkeypatch.context() as patch:
        patch.setenv("EXPUNGE_PIPELINE_RUN", "dead")
        patch.setenv("EXPUNGE_HOLDER", ended)
        run_id = registry.attach_run("shapes", "forget")
        step = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    client = registry.store.connect()
    experiment = client.get_run(run_id).info.experiment_id
    half = client.create_logged_model(experiment, name="shapes", source_run_id=run_id)
    (lost,) = settle_lost("shapes")
    assert lost.run == "dead"
    assert not psutil.pid_exists(step.pid)
    assert client.get_run(run_id).info.status == "KILLED"
    left = client.search_logged_models([experiment])
    assert half.model_id not in {entry.model_id for entry in left}
    assert len(left) == 1, "the champion's files stay"
    found = ledger.find_request(request)
    assert (found.state, found.attempts) == ("pending", 1)
    assert claim(tmp_path, "next", holder=processes.name_this_process()).classes == [3]
    assert settle_lost("shapes") == []


@pytest.mark.parametrize(("state_", "status"), [("SUCCEEDED", "FINISHED"), ("FAILED", "FAILED")])
def test_on_a_cluster_the_exit_handler_ends_the_mlflow_run(
    champion: Registrar,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state_: str,
    status: str,
) -> None:
    """And deletes what a register pod that was lost had half registered."""
    ask(3)
    assert claim(tmp_path, "pods").claimed
    with monkeypatch.context() as patch:
        patch.setenv("EXPUNGE_PIPELINE_RUN", "pods")
        run_id = registry.attach_run("shapes", "forget")
    client = registry.store.connect()
    experiment = client.get_run(run_id).info.experiment_id
    client.create_logged_model(experiment, name="shapes", source_run_id=run_id)
    assert len(client.search_logged_models([experiment])) == 2
    close_requests("shapes", "pods", state=state_)
    assert client.get_run(run_id).info.status == status
    assert len(client.search_logged_models([experiment])) == 1


def test_a_registry_that_is_down_still_puts_the_requests_back(
    champion: Registrar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask(3)
    claim(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(OperationalError, match="cannot be reached"):
        close_requests("shapes", "run", state="FAILED", error="MLflow is down")
    found = ledger.find_request(request)
    assert (found.state, found.error) == ("pending", "MLflow is down")


def test_a_request_that_needs_approval_waits(champion: Registrar, tmp_path: Path) -> None:
    request = ask(3)
    assert claim(tmp_path, approval=True) == NOTHING
    assert state(request) == "unapproved"
    with pytest.raises(RefusedError, match=f"`expunge request approve {request}`"):
        claim(tmp_path, requests=(request,))
    ledger.approve_request(request, "bob")
    assert claim(tmp_path, approval=True).classes == [3]
