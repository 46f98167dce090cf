"""Following a run: its progress, its end and the exit code, and a server that goes away."""

import itertools
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from command import command, document
from kfp_runs import Script, bare_run, stage
from kfp_server import KfpServer

from expunge.errors import OperationalError
from expunge_pipelines.cli import run_progress
from expunge_pipelines.kubeflow import follow as following
from expunge_pipelines.kubeflow.connection import connect
from expunge_pipelines.kubeflow.follow import Unfollowed, follow

pytest_plugins = ["kfp_server"]

RUN = "0b1c2d3e-run"
FOLLOW = ["submit", "status", RUN, "--wait"]
TRAIN = ["submit", "train", "digits", "--data", "digits", "--arch", "mlp", "--wait"]
ASK = f"GET /runs/{RUN}"
TRAINED = {"train": "SUCCEEDED", "validate": "SUCCEEDED"}
REJECTED = {**TRAINED, "log-run": "SUCCEEDED"}
GOES_ON = f"the run goes on by itself: .*/#/runs/details/{RUN}, and `expunge submit status {RUN} --"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_SECONDS", "LONGEST_SECONDS", "LOST_SECONDS"):
        monkeypatch.setattr(following, name, 0.01)


@pytest.fixture
def server(kfp_server: KfpServer) -> Iterator[KfpServer]:
    kfp_server.runs[RUN] = bare_run(RUN)
    return kfp_server


def tell(server: KfpServer, *stages: dict[str, Any]) -> None:
    server.script = Script(*stages)


def test_a_training_from_its_start_to_its_end(kfp_server: KfpServer) -> None:
    tell(
        kfp_server,
        stage("PENDING"),
        stage("RUNNING", {"prepare-data": "PENDING"}),
        stage("RUNNING", {"prepare-data": "RUNNING"}),
        stage("RUNNING", {"prepare-data": "SUCCEEDED", "train": "RUNNING"}),
        stage("RUNNING", {"prepare-data": "SUCCEEDED", "train": "RUNNING"}),
        stage("SUCCEEDED", {**TRAINED, "prepare-data": "SUCCEEDED", "promote": "SUCCEEDED"}),
    )
    code, out, err = command(*TRAIN)
    (run,) = kfp_server.runs
    assert code == 0
    link = f"{kfp_server.address}/#/runs/details/{run}"
    first, *lines = err.splitlines()
    assert first == f"  run {run}: {link}"
    said = [re.fullmatch(r"  (\d:\d\d:\d\d)  (.*\S) +(\S+)", line) for line in lines]
    assert [match and (match[2].strip(), match[3]) for match in said] == [
        ("the run", "running"),
        ("prepare-data", "running"),
        ("prepare-data", "succeeded"),
        ("train", "running"),
        ("the run", "succeeded"),
        ("promote", "succeeded"),
        ("train", "succeeded"),
        ("validate", "succeeded"),
    ]
    assert lines[-1].startswith("  0:02:00  ")
    assert "The gate passed, and the new version is champion." in out
    assert kfp_server.requests.count(f"GET /runs/{run}") == 6


def test_the_document_of_a_run_that_was_waited_for(kfp_server: KfpServer) -> None:
    tell(kfp_server, stage("RUNNING"), stage("SUCCEEDED", {**TRAINED, "promote": "SUCCEEDED"}))
    value = document(*TRAIN)
    found = {key: value[key] for key in ("pipeline", "model", "state", "outcome")}
    wanted = {"pipeline": "train", "model": "digits", "state": "SUCCEEDED", "outcome": "promoted"}
    assert found == wanted
    assert [task["name"] for task in value["tasks"]] == ["promote", "train", "validate"]
    later = document("submit", "status", value["run"])
    assert {**value, **later} == value


@pytest.mark.parametrize(
    ("now", "code", "said"),
    [
        (stage("RUNNING", {"train": "RUNNING"}), 0, "digits-1a2b3c4d: running, http"),
        (stage("SUCCEEDED", {**TRAINED, "promote": "SUCCEEDED"}), 0, "new version is champion"),
        (stage("SUCCEEDED", {"claim-requests": "SUCCEEDED"}), 0, "No request was pending."),
        (stage("SUCCEEDED", {"keep-oracle": "SUCCEEDED"}), 0, "keep-oracle succeeded 60"),
        (stage("SUCCEEDED", REJECTED), 1, "Rejected by the gate: nothing is registered, and the"),
        (stage("FAILED", {"train": "FAILED"}), 3, "train failed 60"),
        (stage("CANCELED", {"train": "CANCELED"}), 3, "train canceled 60"),
        (stage("SUCCEEDED"), 3, "succeeded, http"),
    ],
)
def test_an_exit_code_and_what_it_says(
    now: dict[str, Any], code: int, said: str, server: KfpServer
) -> None:
    tell(server, now)
    found, out, _ = command(*FOLLOW[:3])
    assert found == code
    assert said in re.sub(" +", " ", out)
    assert document(*FOLLOW[:3], code=code)["state"] == now["state"]
    if now["state"] != "RUNNING":
        assert command(*FOLLOW)[0] == code


def test_what_failed_and_where_to_look(server: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(server, stage("FAILED", {"train": "FAILED", "validate": None}))
    code, _, err = command(*FOLLOW[:3])
    link = f"{server.address}/#/runs/details/{RUN}"
    logs = f"`kubectl logs --selector pipeline/runid={RUN} --tail=-1 --container main`"
    assert code == 3
    assert err.splitlines() == [
        f"expunge: run {RUN} failed",
        "expunge: task train failed: its log says why",
        f"expunge: logs: {link}, or {logs}",
    ]
    monkeypatch.setenv("EXPUNGE_KFP_NAMESPACE", "team")
    failed = stage(
        "FAILED",
        {"train": "FAILED", "render-report": "FAILED"},
        errors={"train": "exit code 137"},
        pods={"train": "pod-1", "render-report": "pod-2"},
        error={"message": "two failed"},
    )
    tell(server, failed)
    pods = [f"`kubectl logs --namespace team pod-{i} --container main`" for i in (2, 1)]
    assert command(*FOLLOW[:3])[2].splitlines() == [
        f"expunge: run {RUN} failed: two failed",
        "expunge: task render-report failed: its log says why",
        "expunge: task train failed: exit code 137",
        f"expunge: logs: {link}, or {', '.join(pods)}",
    ]


def test_what_was_cancelled_and_what_nobody_knows(server: KfpServer) -> None:
    tell(server, stage("CANCELED"))
    assert command(*FOLLOW)[2].endswith(f"expunge: run {RUN} was cancelled\n")
    tell(server, stage("SUCCEEDED"))
    assert "does not list what its tasks did; whether the gate passed is to" in command(*FOLLOW)[2]


def test_tasks_that_come_late_are_waited_for(server: KfpServer) -> None:
    late = stage("SUCCEEDED", {**TRAINED, "promote": "RUNNING"})
    tell(server, late, late, stage("SUCCEEDED", {**TRAINED, "promote": "SUCCEEDED"}))
    assert document(*FOLLOW)["outcome"] == "promoted"
    tell(server, late)
    server.requests.clear()
    assert document(*FOLLOW, code=3)["outcome"] == "unknown"
    assert server.requests.count(ASK) == following.LATE + 1


@pytest.mark.parametrize("how", [{"status": 503}, {"status": 0}, {"status": 429}])
def test_a_server_that_goes_away_and_comes_back(how: dict[str, Any], server: KfpServer) -> None:
    done = stage("SUCCEEDED", {**TRAINED, "promote": "SUCCEEDED"})
    tell(server, stage("RUNNING", {"train": "RUNNING"}), done)

    def away() -> None:
        while not server.script.looks:
            time.sleep(0.001)
        server.fail("GET", "/runs", times=following.LOST, **how)

    client, lost = connect(), []
    following.FIRST_SECONDS = 0.05  # undone by the fixture
    threading.Thread(target=away).start()
    found = follow(client, RUN, on_lost=lost.append)
    assert found["outcome"] == "promoted"
    assert len(lost) == following.LOST
    assert all(f"could not show run {RUN}: " in reason for reason in lost)


def test_what_is_said_of_a_lost_answer(server: KfpServer) -> None:
    tell(server, stage("SUCCEEDED", {**TRAINED, "promote": "SUCCEEDED"}))
    server.fail("GET", "/runs", status=502, body=b"<html>nginx</html>")
    code, _, err = command(*FOLLOW)
    assert code == 0
    assert err.startswith("  Kubeflow Pipelines at ")
    assert f"could not show run {RUN}: HTTP 502 Bad Gateway; asking again\n" in err


def test_a_server_that_stays_away(server: KfpServer) -> None:
    server.fail("GET", "/runs", times=1000)
    with pytest.raises(OperationalError, match=f"could not show run {RUN}: HTTP 500 .*; {GOES_ON}"):
        follow(connect(), RUN)
    assert server.requests.count(ASK) == following.LOST + 1


def test_lost_answers_count_only_in_a_row(server: KfpServer) -> None:
    ends = stage("SUCCEEDED", {**TRAINED, "promote": "SUCCEEDED"})
    tell(server, *[stage("RUNNING")] * 4, ends)
    failing = itertools.cycle([following.LOST, 0])

    def polled(_: Any) -> None:
        server.fail("GET", "/runs", times=next(failing))

    assert follow(connect(), RUN, on_poll=polled)["outcome"] == "promoted"
    assert server.requests.count(ASK) == 5 + 2 * following.LOST


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "HTTP 401 .*; check EXPUNGE_KFP_TOKEN"),
        (403, "HTTP 403 .*; check EXPUNGE_KFP_TOKEN and EXPUNGE_KFP_NAMESPACE"),
        (400, "HTTP 400 "),
        (200, "may be a login page: check EXPUNGE_KFP_TOKEN"),
    ],
)
def test_a_refusal_ends_the_following_at_once(status: int, said: str, server: KfpServer) -> None:
    server.fail("GET", "/runs", status=status, body=b"<html>no</html>")
    with pytest.raises(OperationalError, match=f"{said}.*; {GOES_ON}"):
        follow(connect(), RUN)
    assert server.requests.count(ASK) == 1


def test_a_run_that_is_not_there_is_not_waited_for(server: KfpServer) -> None:
    code, out, err = command("submit", "status", "gone", "--wait", "--json")
    assert (code, json.loads(out)["exit_code"]) == (2, 2)
    assert "there is no run 'gone'" in err
    server.refused.clear()


def test_a_timeout(server: KfpServer) -> None:
    tell(server, stage("RUNNING", {"train": "RUNNING"}))
    code, _, err = command(*FOLLOW, "--timeout", "0.2")
    assert code == 3
    assert re.search(f"run {RUN} has not ended after 0.2 s; {GOES_ON}", err)
    assert server.requests.count(ASK) > 2
    server.fail("GET", "/runs", times=1000)
    with pytest.raises(OperationalError, match="has not ended after"):
        follow(connect(), RUN, timeout=0.05)


def test_a_timeout_does_not_wait_for_the_next_question(
    server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "FIRST_SECONDS", 60.0)
    tell(server, stage("RUNNING"), stage("SUCCEEDED", {**TRAINED, "promote": "SUCCEEDED"}))
    assert follow(connect(), RUN, timeout=0.1)["outcome"] == "promoted"


def test_the_pauses_grow(server: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("EXPUNGE_KFP_HOST", server.address)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    tell(server, *[stage("RUNNING")] * 30, stage("CANCELED"))

    def polled(found: Any) -> None:
        if len(pauses) == 2:
            server.fail("GET", "/runs", times=7)

    follow(connect(), RUN, on_poll=polled)
    assert pauses[3:10] == [4, 8, 16, 32, 60, 60, 60]
    asked = pauses[:3] + pauses[10:]
    assert asked[0] == 2
    assert asked == sorted(asked)
    assert asked[-1] == 20


def test_an_interrupt_leaves_the_run_and_says_how_to_go_on(
    server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(server, stage("RUNNING", {"train": "RUNNING"}))
    sleep = time.sleep

    def interrupt(seconds: float) -> None:
        # Where it waits, and so where people interrupt it. No signal: another thread that sleeps
        # would send it as well, to whatever the tests are at, and Python drops it in a finalizer.
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", interrupt)
    code, out, err = command(*FOLLOW, "--json")
    assert code == 128 + signal.SIGINT
    assert re.search(f"expunge: interrupted; {GOES_ON}wait` follows it again", err)
    assert json.loads(out)["error"].startswith("interrupted; the run goes on by itself")
    assert not [line for line in server.requests if line.startswith(("POST", "DELETE"))]


def test_an_interrupt_keeps_the_number_of_its_signal(server: KfpServer) -> None:
    def stop(_: Any) -> None:
        raise KeyboardInterrupt(signal.SIGTERM)

    with pytest.raises(Unfollowed, match=str(int(signal.SIGTERM))) as stopped:
        follow(connect(), RUN, on_poll=stop)
    assert stopped.value.args == (signal.SIGTERM,)


def test_a_long_task_is_heard_of_in_a_plain_log(
    server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_progress, "QUIET_SECONDS", 0.0)
    busy = stage("RUNNING", {"train": "RUNNING", "render-report": "RUNNING"})
    tell(server, stage("PENDING"), busy, busy, stage("CANCELED"))
    err = command(*FOLLOW)[2]
    assert err.splitlines()[0] == "  0:00:00  pending"
    assert err.count("running: render-report, train") == 2


def test_a_terminal_has_a_line_that_moves(
    server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    tell(server, stage("RUNNING", {"train": "RUNNING"}), stage("CANCELED"))
    code, out, err = command(*FOLLOW, "--json")
    assert (code, json.loads(out)["outcome"]) == (3, "cancelled")
    assert "running: train" in err
    assert "\x1b[?25h" in err, "the cursor is shown again"
