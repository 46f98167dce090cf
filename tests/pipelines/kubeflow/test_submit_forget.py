"""`expunge submit forget --classes`: a request is filed where the cluster finds it, then run."""

from typing import Any

import pytest
from command import command, document
from kfp_server import KfpServer
from mlflow_store import Registrar

from expunge import ledger
from expunge.errors import OperationalError, RefusedError
from expunge.lifecycle import promotion
from expunge.policy import Policy
from expunge_pipelines.kubeflow import submit as submitting
from expunge_pipelines.kubeflow.settings import ClusterSettings

pytest_plugins = ["kfp_server", "mlflow_store"]

FORGET = ["submit", "forget", "shapes", "--by", "ada"]
SHARED = {
    "EXPUNGE_DATABASE_URL": "postgresql+psycopg://db/expunge",
    "MLFLOW_TRACKING_URI": "https://mlflow.example.com",
}


@pytest.fixture
def team(registrar: Registrar, kfp_server: KfpServer, monkeypatch: pytest.MonkeyPatch) -> KfpServer:
    """Make a champion in a ledger and a registry that stand in for those of a team."""
    registrar("shapes", 0)
    promotion.promote("shapes", 1, None)
    monkeypatch.setattr(submitting, "SHARED", {})
    return kfp_server


def sent(server: KfpServer) -> dict[str, Any]:
    parameters: dict[str, Any] = server.started[-1]["runtime_config"]["parameters"]
    return parameters


def test_a_request_is_filed_and_run_alone(team: KfpServer) -> None:
    other = document("request", "add", "shapes", "--classes", "0", "--reason", "x")["created"]
    arguments = ["--classes", "name-3", "--reason", "consent withdrawn"]
    made = document(*FORGET, *arguments)
    (filed,) = [entry for entry in ledger.list_requests("shapes") if entry.id != other["id"]]
    assert made["requests"] == sent(team)["requests"] == [filed.id]
    assert (filed.classes, filed.state) == ((3,), "pending")
    assert (filed.reason, filed.requester) == ("consent withdrawn", "ada")
    again = document(*FORGET, *arguments)
    assert again["requests"] == [filed.id]
    assert len(ledger.list_requests("shapes")) == 2
    assert len(team.runs) == 2


def test_without_classes_nothing_is_filed(team: KfpServer) -> None:
    assert document(*FORGET)["requests"] == []
    assert "requests" not in sent(team)
    assert ledger.list_requests("shapes") == []


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("9", "class '9' is unknown"),
        ("name-9", "class 'name-9' is unknown"),
        ("0,1,2", "would leave one class"),
    ],
)
def test_what_cannot_be_forgotten_is_not_filed(classes: str, said: str, team: KfpServer) -> None:
    code, _, err = command(*FORGET, "--classes", classes)
    assert (code, said in err) == (2, True)
    assert ledger.list_requests("shapes") == []
    assert not team.runs


def test_a_request_that_asks_for_more_is_not_cut(team: KfpServer) -> None:
    document("request", "add", "shapes", "--classes", "0,1", "--reason", "x")
    code, _, err = command(*FORGET, "--classes", "1")
    assert (code, "asks for class 0 too; run it whole with" in err) == (2, True)
    assert not team.runs


def test_a_request_that_waits_for_approval_starts_nothing(team: KfpServer) -> None:
    settings = ClusterSettings()
    with pytest.raises(RefusedError, match=r"waits for a second person: .*request approve 20"):
        submitting.submit_forget(
            "shapes", "auto", Policy(approval=True), settings, classes=["3"], by="ada"
        )
    (filed,) = ledger.list_requests("shapes")
    assert not team.runs
    ledger.approve_request(filed.id, "bob")
    policy = Policy(approval=True)
    made = submitting.submit_forget("shapes", "auto", policy, settings, classes=["3"], by="ada")
    assert made["requests"] == [filed.id]
    assert sent(team)["approval"] is True


def test_a_cluster_that_refuses_the_pipeline_leaves_no_request(team: KfpServer) -> None:
    team.fail("POST", "/pipelines/upload_version", status=403)
    assert command(*FORGET, "--classes", "3")[0] == 3
    assert ledger.list_requests("shapes") == []
    team.fail("POST", "/runs", status=403)
    with pytest.raises(OperationalError, match="could not start the run: HTTP 403") as raised:
        submitting.submit_forget("shapes", "auto", Policy(), ClusterSettings(), classes=["3"])
    (left,) = ledger.list_requests("shapes")
    assert f"filed all the same: {left.id}, for the same command" in str(raised.value)
    assert document(*FORGET, "--classes", "3")["requests"] == [left.id]


@pytest.mark.parametrize("variable", list(SHARED))
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "is not set; set it to what the cluster's steps use, such as"),
        ("sqlite:////home/ada/x.db", "is a file on this machine; set it to what"),
        ("./mlruns", "is a file on this machine; set it to what"),
    ],
)
def test_a_ledger_that_the_cluster_never_sees(
    variable: str,
    value: str,
    said: str,
    kfp_server: KfpServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, shared in SHARED.items():
        monkeypatch.setenv(name, shared)
    monkeypatch.setenv(variable, value)
    code, _, err = command(*FORGET, "--classes", "3")
    assert code == 2
    assert f"--classes files a request for the cluster to find, and {variable} {said}" in err
    assert kfp_server.requests == []
