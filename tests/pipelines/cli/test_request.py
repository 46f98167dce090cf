"""`expunge request`, and what becomes of requests, at the command. No pipeline has to run."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from command import command, document
from disks import fill, mounted
from mlflow_store import Registrar

from expunge import ledger, registry
from expunge.errors import RefusedError, UserError
from expunge.lifecycle import promotion
from expunge.policy import Policy
from expunge_pipelines.jobs.forget import forget
from expunge_pipelines.jobs.forget_run import ForgetRun
from expunge_pipelines.runners.lease import hold_lease

pytest_plugins = ["mlflow_store"]

ADD = ["request", "add", "shapes", "--reason", "consent withdrawn", "--by", "ada"]


@pytest.fixture
def champion(registrar: Registrar) -> Registrar:
    registrar("shapes", 0)
    promotion.promote("shapes", 1, None)
    return registrar


def added(*arguments: str) -> dict:
    return document(*ADD, *arguments)["created"]


def test_a_request_is_filed_listed_and_shown(champion: Registrar) -> None:
    made = added("--classes", "name-3")
    assert (made["classes"], made["names"], made["state"]) == ([3], {"3": "name-3"}, "pending")
    assert (made["requester"], made["reason"]) == ("ada", "consent withdrawn")
    due = datetime.fromisoformat(made["due_at"]) - datetime.fromisoformat(made["created_at"])
    assert due == timedelta(days=30)
    (listed,) = document("request", "list", "shapes")["requests"]
    assert listed == made
    shown = document("request", "show", made["id"][-4:])
    assert [event["kind"] for event in shown["events"]] == ["request-added"]
    text = command("request", "show", made["id"])[1]
    assert f"Request {made['id']} is pending: forget 3 (name-3) of shapes" in text
    assert "consent withdrawn" in text
    assert made["id"] in command("request", "list")[1]


def test_the_same_class_twice_gives_the_request_that_exists(champion: Registrar) -> None:
    first = added("--classes", "3")
    again = document(*ADD, "--classes", "3")
    assert (again["created"], again["existing"]) == (None, [first])
    both = document(*ADD, "--classes", "1,3")
    assert both["created"]["classes"] == [1]
    assert both["existing"] == [first]
    assert (
        f"Request {first['id']} stands for 3 (name-3) of shapes already; it is pending"
        in (command(*ADD, "--classes", "3")[1])
    )
    assert len(document("request", "list")["requests"]) == 2


def test_overdue_requests_are_marked(champion: Registrar, monkeypatch: pytest.MonkeyPatch) -> None:
    made = added("--classes", "3", "--due", f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%d}")
    added("--classes", "1")
    assert document("request", "list", "--overdue")["requests"] == []
    later = datetime.now(UTC) + timedelta(days=4)
    monkeypatch.setattr("expunge.ledger.requests.now", lambda connection: later)
    (overdue,) = document("request", "list", "--overdue")["requests"]
    assert (overdue["id"], overdue["overdue"]) == (made["id"], True)
    line = next(row for row in command("request", "list")[1].splitlines() if made["id"] in row)
    assert "OVERDUE" in line
    assert document("request", "list", "--state", "fulfilled")["requests"] == []


def test_a_request_is_cancelled_and_can_be_filed_again(champion: Registrar) -> None:
    made = added("--classes", "3")
    assert document("request", "cancel", made["id"])["state"] == "cancelled"
    assert "is cancelled already" in document("request", "cancel", made["id"], code=2)["error"]
    assert added("--classes", "3")["id"] != made["id"]


def test_a_second_person_approves_where_the_policy_says_so(
    champion: Registrar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("approval: true\n")
    monkeypatch.setenv("EXPUNGE_POLICY", str(policy))
    made = added("--classes", "3")
    assert made["state"] == "unapproved"
    assert document("run-requests")["runs"] == []
    refused = document("forget", "shapes", "--classes", "3", code=1)["error"]
    assert f"waits for a second person: `expunge request approve {made['id']}`" in refused
    refused = document("request", "approve", made["id"], "--by", "Ada", code=1)["error"]
    assert "was filed by 'Ada'; a second person has to approve it" in refused
    monkeypatch.delenv("EXPUNGE_POLICY")
    other = added("--classes", "1")
    monkeypatch.setenv("EXPUNGE_POLICY", str(policy))
    found = document("run-requests", code=1)
    assert [(row["id"], row["state"]) for row in found["requests"]] == [(other["id"], "unapproved")]
    assert {"reason", "requester", "names"}.isdisjoint(found["requests"][0])
    approved = document("request", "approve", made["id"], "--by", "bob")
    assert (approved["state"], approved["approver"]) == ("pending", "bob")
    assert "waits for no approval" in document("request", "approve", made["id"], code=2)["error"]


def test_personal_texts_are_erased_and_the_chain_still_checks(champion: Registrar) -> None:
    made = added("--classes", "3")
    found = document("request", "redact", made["id"])
    assert (found["erased"], found["requester"], found["reason"]) == (3, None, None)
    assert found["names"] == {"3": None}
    assert len(ledger.verify_events()) == len(ledger.list_events())
    home = Path(os.environ["EXPUNGE_HOME"])
    assert b"consent withdrawn" not in (home / "ledger.db").read_bytes()
    assert "reason       erased" in command("request", "show", made["id"])[1]


def test_the_log_is_verified_and_a_kept_hash_is_looked_for(champion: Registrar) -> None:
    kept = document("request", "verify")
    assert kept["events"] == len(ledger.list_events())
    added("--classes", "3")
    found = document("request", "verify", "--kept", kept["head"])
    assert found["events"] == kept["events"] + 1
    assert found["head"] in command("request", "verify")[1]
    said = document("request", "verify", "--kept", "0" * 64, code=3)["error"]
    assert f"no event of the ledger has the hash {'0' * 64}" in said
    path = Path(os.environ["EXPUNGE_HOME"]) / "ledger.db"
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER events_no_UPDATE")
        connection.execute("UPDATE events SET model = 'other' WHERE seq = 2")
    said = document("request", "verify", code=3)["error"]
    assert "event 2 of the ledger was changed; somebody wrote into its database by hand" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*ADD, "--classes", "9"], "class '9' is unknown; the model has 0 (name-0), 1 (name-1)"),
        ([*ADD, "--classes", "cat"], "class 'cat' is unknown"),
        ([*ADD, "--classes", "0,1,2"], "would leave one class"),
        ([*ADD, "--classes", "3", "--due", "soon"], "the due date is 'soon'; expected a day such"),
        ([*ADD, "--classes", "3", "--due", "2020-01-31"], "due date 2020-01-31 is past"),
        ([*ADD, "--classes", "3", "--reason", " "], "the reason is empty; say why"),
        (["request", "add", "absent", "--classes", "3", "--reason", "x"], "no model 'absent'"),
        (["request", "list", "absent"], "there is no model 'absent' (known: shapes)"),
        (["request", "show", "nothing"], "request 'nothing' is not known; `expunge request list`"),
        (["request", "cancel", "nothing"], "request 'nothing' is not known"),
        (["request", "retry", "nothing"], "request 'nothing' is not known"),
        (["request", "redact", "nothing"], "request 'nothing' is not known"),
        (["request", "list", "--state", "lost"], "'lost' is not one of"),
        (["run-requests", "absent"], "there is no model 'absent'"),
        (["run-requests", "shapes-oracles"], "'shapes-oracles' holds oracles"),
        (["run-requests", "--attempts", "0"], "0 is not in the range"),
        (["reconcile", "absent"], "there is no model 'absent'"),
        (["schedule", "shapes", "--cron", "0 2 * * *"], "has five fields, and Kubeflow"),
        (["schedule"], "EXPUNGE_KFP_HOST"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2_and_files_nothing(
    champion: Registrar, arguments: list[str], message: str
) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert ledger.list_requests() == []


def test_a_request_that_stands_for_more_is_run_whole(champion: Registrar) -> None:
    made = added("--classes", "1,3")
    said = document("forget", "shapes", "--classes", "3", code=2)["error"]
    assert f"request {made['id']} asks for class 1 too" in said
    assert "`expunge forget shapes --classes 1,3`" in said
    (only,) = ledger.list_requests()
    assert only.state == "pending"


def test_what_failed_is_no_markup(champion: Registrar) -> None:
    made = added("--classes", "3")
    ledger.claim_requests(
        "shapes", "run", base_version=1, classes=4, forgotten=(), lease_seconds=60
    )
    ledger.close_claim("run", ledger.FAILED, error="cannot read [/data/eve] of [all]")
    line = next(row for row in command("request", "list")[1].splitlines() if made["id"] in row)
    assert "cannot read [/data/eve] of [all]" in line


@pytest.mark.parametrize("problem", [KeyboardInterrupt(15), UserError("no such data")])
def test_a_forget_that_was_a_mistake_leaves_no_request(
    champion: Registrar, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    """Or the next scheduled run would do what somebody has just stopped."""

    def stop(run: ForgetRun) -> None:
        with hold_lease(run.name, run.id):
            ledger.claim_requests(
                run.name, run.id, base_version=1, classes=4, forgotten=(), lease_seconds=60
            )
            raise problem

    monkeypatch.setattr(ForgetRun, "_run_pipeline", stop)
    kept = added("--classes", "1")
    with pytest.raises(type(problem)):
        forget("shapes", ["3"], by="ada")
    assert {entry.classes: entry.state for entry in ledger.list_requests()} == {
        (1,): "pending",
        (3,): "cancelled",
    }
    with pytest.raises(type(problem)):
        forget("shapes", ["1"], by="ada")
    assert ledger.find_request(kept["id"]).state == "pending", "somebody else asked for it"


def test_an_empty_queue_is_nothing_to_do(champion: Registrar) -> None:
    assert document("run-requests") == {"models": ["shapes"], "runs": [], "requests": []}
    assert command("run-requests", "shapes")[1] == "No request is pending.\n"
    assert registry.store.connect().search_runs(["0"]) == []


def test_an_alias_moved_by_hand_is_put_right_by_the_command(champion: Registrar) -> None:
    champion("shapes", 1)
    registry.set_alias("shapes", "champion", 2)
    found = document("reconcile", "shapes")
    assert found["restored"] == [{"alias": "champion", "found": 2, "restored": 1}]
    assert document("models", "shapes")["models"][1]["aliases"] == ["champion"]
    registry.set_alias("shapes", "champion", 2)
    assert "Alias champion stood on version 2 and is back on 1" in command("reconcile", "shapes")[1]
    registry.store.connect().delete_model_version("shapes", "1")
    said = document("reconcile", "shapes", code=3)["error"]
    assert "version 1, the champion of 'shapes', was deleted from the registry" in said


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("postgresql+psycopg://ada:secret@127.0.0.1:9/ledger", "start the database"),
        ("mysql://ada:secret@127.0.0.1/ledger", "names a database of kind 'mysql'; expected"),
        ("ledger.db", "is no address of a database"),
    ],
)
def test_a_database_that_is_down_is_one_line(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", address)
    code, out, err = command("request", "list")
    assert (code, out) == (3 if "9" in address else 2, "")
    assert message in err
    assert "secret" not in err
    assert err.count("\n") == 1


def test_a_database_that_is_locked_is_one_line(
    champion: Registrar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added("--classes", "3")
    path = Path(os.environ["EXPUNGE_HOME"]) / "ledger.db"
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", f"sqlite:///{path}?timeout=0.2")
    code = (
        f"import sqlite3; c = sqlite3.connect({str(path)!r}, isolation_level=None);"
        "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == "held\n"
        for arguments in ([*ADD, "--classes", "1"], ["request", "list"], ["run-requests"]):
            found, out, err = command(*arguments)
            assert (found, out) == (3, "")
            assert "database is locked; another process holds it; try again" in err
            assert err.count("\n") == 1
        holder.communicate("\n")
    (only,) = ledger.list_requests()
    assert (only.classes, only.state) == ((3,), "pending")


@pytest.fixture
def small_home(tmp_path: Path) -> Iterator[Path]:
    """Mount the home on a disk of its own, which the model takes a part of."""
    with mounted(tmp_path / "home", megabytes=12) as folder:
        yield folder


def test_a_full_disk_is_one_line_and_the_queue_is_intact(
    small_home: Path, champion: Registrar
) -> None:
    made = added("--classes", "3")
    filler = fill(small_home)
    for arguments in ([*ADD, "--classes", "1"], ["run-requests"], ["run-requests", "shapes"]):
        code, _, err = command(*arguments)
        assert code == 3, err
        said = err.splitlines()[-1]
        assert said.startswith("expunge: ")
        assert re.search("disk is full|No space left|no space left|disk I/O error", said)
        assert "free some" in said or "check" in said
        assert "Traceback" not in err
    filler.unlink()
    (only,) = ledger.list_requests()
    assert (only.id, only.state, only.attempts) == (made["id"], "pending", 0)
    assert len(ledger.verify_events()) == len(ledger.list_events())
    assert registry.read_aliases("shapes") == {"champion": 1}
    assert added("--classes", "1")["state"] == "pending"


def test_a_run_that_lost_every_race_says_so(
    champion: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run finds at its end that another champion serves."""
    rounds = []

    def overtake(run: ForgetRun) -> tuple[str, object]:
        rounds.append(run.id)
        ledger.claim_requests(
            run.name, run.id, base_version=1, classes=4, forgotten=(), lease_seconds=60
        )
        with monkeypatch.context() as patch:
            patch.setattr(ledger, "find_champion", lambda name: None)
            from expunge.lifecycle.settlement import settle_run

            settle_run(run.name, run.id)
        raise RefusedError("the champion is version 2 by now")

    monkeypatch.setattr(ForgetRun, "_run_pipeline", overtake)
    with pytest.raises(RefusedError, match="changed 10 times while this ran; the reque"):
        forget("shapes", ["3"], policy=Policy())
    assert len(set(rounds)) == 10
    (request,) = ledger.list_requests()
    assert (request.state, request.attempts) == ("pending", 0)
    assert json.dumps(document("request", "show", request.id))
