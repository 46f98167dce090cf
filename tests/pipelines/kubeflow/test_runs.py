"""How a run stands, as read from what the server has of it."""

from typing import Any

import pytest
from kfp_runs import NEVER, Script, bare_run, stage
from kfp_server import KfpServer

from expunge.errors import OperationalError, UserError
from expunge_pipelines.kubeflow.runs import check_id
from expunge_pipelines.kubeflow.submit import run_status

pytest_plugins = ["kfp_server"]

RUN = "0b1c2d3e-run"
VALIDATED = {"plan-training": "SUCCEEDED", "train": "SUCCEEDED", "validate": "SUCCEEDED"}
TRAINED = {**VALIDATED, "log-run": "SUCCEEDED"}
CLAIMED = {"claim-requests": "SUCCEEDED", "close-requests": "SUCCEEDED"}


def read(server: KfpServer, *stages: dict[str, Any]) -> dict[str, Any]:
    """Read the status of a run that stands like this."""
    server.runs[RUN] = bare_run(RUN)
    server.script = Script(*stages)
    return run_status(RUN)


def states(found: dict[str, Any]) -> dict[str, str]:
    return {task["name"]: task["state"] for task in found["tasks"]}


@pytest.mark.parametrize(
    ("state", "tasks", "outcome"),
    [
        # of a ladder: what the last rung came to
        (
            "SUCCEEDED",
            {**CLAIMED, "log-run-2": "SUCCEEDED", "promote-2": "SUCCEEDED"},
            "promoted",
        ),
        ("SUCCEEDED", {**VALIDATED, "log-run": "SKIPPED", "log-run-3": "SUCCEEDED"}, "rejected"),
        ("PENDING", {}, None),
        ("RUNNING", {"train": "RUNNING"}, None),
        ("PAUSED", {"train": "RUNNING"}, None),
        ("CANCELING", {"train": "RUNNING"}, None),
        ("RUNTIME_STATE_UNSPECIFIED", {}, None),
        ("SUCCEEDED", {**TRAINED, "promote": "SUCCEEDED"}, "promoted"),
        ("SUCCEEDED", {**TRAINED, "condition-1": "SKIPPED"}, "rejected"),
        ("SUCCEEDED", {**TRAINED, "promote": "SKIPPED"}, "rejected"),
        ("SUCCEEDED", {**TRAINED, "promote": None}, "rejected"),
        # of a schedule that is pinned to a pipeline of before
        ("SUCCEEDED", {**VALIDATED, "record": "SUCCEEDED"}, "rejected"),
        ("SUCCEEDED", {**CLAIMED, "condition-2": "SKIPPED"}, "nothing to do"),
        ("SUCCEEDED", {**CLAIMED, "validate": "SKIPPED"}, "nothing to do"),
        ("SUCCEEDED", {"prepare-data": "SUCCEEDED", "keep-oracle": "SUCCEEDED"}, "done"),
        ("SUCCEEDED", {}, "unknown"),
        ("SUCCEEDED", {**TRAINED, "log-run": "RUNNING"}, "unknown"),
        ("SUCCEEDED", VALIDATED, "unknown"),
        ("SUCCEEDED", {**VALIDATED, "log-run": "SKIPPED"}, "unknown"),
        ("SUCCEEDED", {**TRAINED, "register": "SUCCEEDED"}, "unknown"),
        ("SUCCEEDED", {**CLAIMED, "validate": "PENDING"}, "unknown"),
        ("FAILED", {**TRAINED, "promote": "FAILED"}, "failed"),
        ("FAILED", {}, "failed"),
        ("CANCELED", {"train": "CANCELED"}, "cancelled"),
    ],
)
def test_an_outcome(
    state: str, tasks: dict[str, str | None], outcome: str | None, kfp_server: KfpServer
) -> None:
    assert read(kfp_server, stage(state, tasks))["outcome"] == outcome


def test_what_was_terminated_is_cancelled_though_it_ends_as_failed(kfp_server: KfpServer) -> None:
    history = [{"state": "RUNNING"}, {"state": "CANCELING"}, {"state": "FAILED"}]
    assert read(kfp_server, stage("FAILED", state_history=history))["outcome"] == "cancelled"


def test_the_tasks_are_those_of_the_pipeline(kfp_server: KfpServer) -> None:
    nodes = {**TRAINED, "exit-handler-1": "RUNNING", "exit-handler-1.onExit": "RUNNING"}
    nodes |= {"condition-2": "SKIPPED", "iteration-iterations": "RUNNING", "executor(0)": "FAILED"}
    assert states(read(kfp_server, stage("RUNNING", nodes))) == TRAINED


def test_the_state_of_a_task(kfp_server: KfpServer) -> None:
    nodes = {"train": "RUNNING", "render-report": None, "export-onnx-driver": "RUNNING"}
    nodes |= {"perturb": "PENDING", "compute-fim": "SKIPPED"}
    assert states(read(kfp_server, stage("RUNNING", nodes))) == {
        "train": "RUNNING",
        "render-report": "SKIPPED",  # omitted, since one before it failed
        "export-onnx": "PENDING",
        "perturb": "PENDING",
        "compute-fim": "SKIPPED",
    }


@pytest.mark.parametrize("node", ["SKIPPED", None])
def test_a_driver_that_fails_fails_its_task(node: str | None, kfp_server: KfpServer) -> None:
    nodes = {"train-driver": "FAILED", "condition-1-driver": "FAILED"}
    nodes |= {"train": node} if node is None else {}
    assert states(read(kfp_server, stage("FAILED", nodes))) == {
        "train": "FAILED",
        "condition-1-driver": "FAILED",
    }


def test_the_worst_of_a_loop(kfp_server: KfpServer) -> None:
    now = stage("FAILED", {"train": "SUCCEEDED"})
    details = now["run_details"]["task_details"]
    (node,) = [node for node in details if node["display_name"] == "train"]
    details += [{**node, "state": state} for state in ("FAILED", "SUCCEEDED")]
    assert states(read(kfp_server, now)) == {"train": "FAILED"}


def test_times(kfp_server: KfpServer) -> None:
    found = read(kfp_server, stage("RUNNING", {"train": "RUNNING", "validate": "SUCCEEDED"}))
    assert (found["created_at"], found["finished_at"]) == ("2030-01-01T00:00:00+00:00", None)
    times = {task["name"]: (task["started_at"], task["seconds"]) for task in found["tasks"]}
    begun = "2030-01-01T00:01:00+00:00"
    assert times == {"train": (begun, None), "validate": (begun, 60.0)}
    now = stage("FAILED", {"train": "SUCCEEDED", "validate": "FAILED"})
    for node in now["run_details"]["task_details"]:
        if node["display_name"].startswith("train"):
            node["start_time"] = "2030-01-01T00:01:30Z"
        if node["display_name"] == "validate-driver":
            node["start_time"] = NEVER
    found = read(kfp_server, now)
    assert found["finished_at"] == "2030-01-01T00:02:00+00:00"
    assert [(task["name"], task["seconds"]) for task in found["tasks"]] == [
        ("validate", 60.0),
        ("train", 30.0),
    ]


def test_errors_and_pods_where_a_server_has_some(kfp_server: KfpServer) -> None:
    now = stage(
        "FAILED",
        {"train": "FAILED", "validate-driver": "FAILED"},
        errors={"train": "out of\n  memory", "validate-driver": "no such input"},
        pods={"train": "expunge-train-x7k2p-2"},
        error={"code": 13, "message": "two tasks\nfailed"},
    )
    found = read(kfp_server, now)
    assert found["error"] == "two tasks failed"
    told = {task["name"]: (task["error"], task["pod"]) for task in found["tasks"]}
    assert told == {
        "train": ("out of memory", "expunge-train-x7k2p-2"),
        "validate": ("no such input", None),
    }
    history = [{"state": "PENDING"}, {"state": "FAILED", "error": {"message": "no quota"}}]
    assert read(kfp_server, stage("FAILED", state_history=history))["error"] == "no quota"


def test_a_run_that_is_not_there(kfp_server: KfpServer) -> None:
    said = rf"there is no run 'gone' at {kfp_server.address}; expected an id that"
    with pytest.raises(UserError, match=said):
        run_status("gone")
    kfp_server.refused.clear()
    kfp_server.fail("GET", "/runs", status=404, body=b"404 page not found")
    with pytest.raises(OperationalError, match="404 page not found; check EXPUNGE_KFP_HOST"):
        run_status("gone")


def test_a_run_by_its_link(kfp_server: KfpServer) -> None:
    found = read(kfp_server, stage("RUNNING"))
    assert found["link"] == f"{kfp_server.address}/#/runs/details/{RUN}"
    assert run_status(found["link"]) == run_status(f" {RUN}\n") == found
    assert check_id("https://host/pipeline/#/runs/details/1a-2b") == "1a-2b"


@pytest.mark.parametrize("text", ["", "https://host/", "a b", "..", "a?b"])
def test_what_is_no_run(text: str) -> None:
    with pytest.raises(UserError, match="is neither an id nor a link; give what `expunge submit`"):
        check_id(text)
