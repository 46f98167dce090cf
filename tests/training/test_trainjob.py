"""The TrainJob as Kubeflow Trainer defines it, and the Kubernetes API as it answers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from k8s_server import NAMESPACE, Cluster
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob as TrainJob

from expunge.config import TrainConfig
from expunge.errors import OperationalError, UserError
from expunge.training import trainjob, trainjob_api
from expunge.training.trainjob_api import Jobs

pytest_plugins = ["k8s_server"]

CONFIG = TrainConfig("resnet20", nodes=3, processes=8)
PLAIN = trainjob.Cluster("site/expunge:1", "shared", "16", "64Gi")
FULL = dataclasses.replace(
    PLAIN,
    runtime="our-torch",
    user=10001,
    group=0,
    node_selector={"pool": "a100"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    pull_secrets=["registry"],
)


def job(on: trainjob.Cluster = PLAIN, owner: dict[str, str] | None = None) -> dict[str, Any]:
    return trainjob.build_train_job("expunge-1", CONFIG, on, Path("/mnt/expunge/run"), owner or {})


def pods(job: dict[str, Any]) -> dict[str, Any]:
    (patch,) = job["spec"]["runtimePatches"]
    (nodes,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert nodes["name"] == "node"  # of Kubeflow Trainer's runtimes for PyTorch
    return dict(nodes["template"]["spec"]["template"])


@pytest.mark.parametrize("on", [PLAIN, FULL], ids=["plain", "full"])
def test_it_is_what_kubeflow_trainer_defines(on: trainjob.Cluster) -> None:
    made = job(on, {"name": "pod", "uid": "1"})
    read = TrainJob.from_dict(json.loads(json.dumps(made)))  # drops what it does not know
    assert read is not None
    assert read.to_dict() == made


def test_the_nodes_get_the_image_and_a_gpu_for_each_process() -> None:
    spec = job(FULL)["spec"]
    trainer = spec["trainer"]
    assert spec["runtimeRef"]["name"] == "our-torch"
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (FULL.image, 3, 8)
    assert trainer["command"] + trainer["args"] == [
        "python",
        "-m",
        "expunge.training.node",
        "/mnt/expunge/run",
    ]
    assert trainer["resourcesPerNode"] == {
        "requests": {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "8"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": "8"},
    }


def test_its_pods_have_the_volume_and_no_rights() -> None:
    made = pods(job(FULL))
    spec = made["spec"]
    (node,) = spec["containers"]
    assert made["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
    assert [volume["name"] for volume in spec["volumes"]] == ["expunge-shared", "dshm"]
    assert spec["volumes"][0]["persistentVolumeClaim"] == {"claimName": "shared"}
    assert [mount["mountPath"] for mount in node["volumeMounts"]] == ["/mnt/expunge", "/dev/shm"]
    assert node["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["nodeSelector"] == {"pool": "a100"}
    assert spec["tolerations"] == FULL.tolerations
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert "secret" not in json.dumps(job(FULL)).lower().replace("imagepullsecrets", "")


def test_nodes_without_gpus_and_shared_memory() -> None:
    made = job(dataclasses.replace(PLAIN, gpu="", shared_memory=""))
    assert "gpu" not in json.dumps(made)
    assert [volume["name"] for volume in pods(made)["spec"]["volumes"]] == ["expunge-shared"]
    assert "runAsUser" not in json.dumps(made)


def test_the_variable_carries_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trainjob.VARIABLE, FULL.to_variable())
    read = trainjob.read_cluster()
    assert read is not None
    assert job(read) == job(FULL)
    assert "{{" not in FULL.to_variable()  # which Argo would take for its own


@pytest.mark.parametrize("text", ["{", "[]", '{"image": "x"}', '{"unknown": 1}'])
def test_a_variable_of_another_version(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trainjob.VARIABLE, text)
    with pytest.raises(UserError, match=r"EXPUNGE_TRAINJOB cannot be used .*compile the"):
        trainjob.read_cluster()


def test_several_nodes_need_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(trainjob.VARIABLE, raising=False)
    trainjob.check_nodes(1)
    with pytest.raises(
        UserError, match=r"nodes is 2 and this is one machine .* --processes .*`tra"
    ):
        trainjob.check_nodes(2)
    monkeypatch.setenv(trainjob.VARIABLE, PLAIN.to_variable())
    trainjob.check_nodes(2)


def test_a_job_comes_and_goes(cluster: Cluster) -> None:
    cluster.runs = False
    jobs = Jobs()
    assert jobs.namespace == NAMESPACE
    assert jobs.get("expunge-1") is None
    jobs.remove("expunge-1")  # which is not there
    jobs.create(job())
    found = jobs.get("expunge-1")
    assert found is not None
    assert found["spec"] == job()["spec"]
    jobs.remove("expunge-1")
    assert jobs.get("expunge-1") is None


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (404, "404 page not found", "HTTP 404: 404 page not found.*Trainer 2.2 or later has to be"),
        (400, 'strict decoding error: unknown field "spec.runtimePatches"', "Trainer 2.2 or later"),
        (403, "trainjobs is forbidden", "trainjobs is forbidden.; give the pipeline's service acc"),
        (403, "admission webhook denied the request: no such runtime", r"no such runtime\)$"),
        (401, "Unauthorized", "HTTP 401: Unauthorized.; check the pipeline's service account"),
        (422, "spec.trainer.env: must not have", r"must not have\)$"),
    ],
)
def test_an_api_that_refuses(cluster: Cluster, status: int, said: str, expected: str) -> None:
    cluster.failures.append(("POST", status, said))
    with pytest.raises(OperationalError, match=f"could not create the TrainJob .*{expected}"):
        Jobs().create(job())


def test_errors_of_the_other_calls(cluster: Cluster) -> None:
    cluster.failures += [("GET", 500, "no"), ("DELETE", 500, "no"), ("GET", 403, "no pods")]
    jobs = Jobs()
    with pytest.raises(OperationalError, match="could not look at the TrainJob expunge-1"):
        jobs.get("expunge-1")
    with pytest.raises(OperationalError, match="could not delete the TrainJob expunge-1"):
        jobs.remove("expunge-1")
    assert jobs.explain_waiting("expunge-1") == ""


def test_a_field_that_the_cluster_does_not_know_is_refused(cluster: Cluster) -> None:
    older = job()
    older["spec"]["podTemplateOverrides"] = []
    with pytest.raises(OperationalError, match="strict decoding error"):
        Jobs().create(older)


def test_a_job_that_does_not_go(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainjob_api, "GONE", 0.1)
    monkeypatch.setattr(trainjob_api, "LOOK", 0.02)
    monkeypatch.setattr(cluster, "forget", lambda name: None)
    cluster.runs = False
    Jobs().create(job())
    expected = "deleted 0.1 s ago and is still there; .*-n team -l jobset.*name=expunge-1$"
    with pytest.raises(OperationalError, match=expected):
        Jobs().remove("expunge-1")


def test_what_keeps_pods_from_running(cluster: Cluster) -> None:
    waiting = {"reason": "ErrImagePull", "message": "not found"}
    container = {"name": "node", "image": "", "imageID": "", "ready": False, "restartCount": 0}
    cluster.pods = [
        {"metadata": {"name": "a"}, "status": {"containerStatuses": [{**container, "state": {}}]}},
        {
            "metadata": {"name": "b"},
            "status": {"containerStatuses": [{**container, "state": {"waiting": waiting}}]},
        },
        {"metadata": {"name": "c"}, "status": {}},
    ]
    assert Jobs().explain_waiting("expunge-1") == "b: ErrImagePull, not found"


def test_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "there is no Kubernetes API to ask for a TrainJob"
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(OperationalError, match=expected):
        Jobs()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(OperationalError, match=f"{expected}.*let KUBECONFIG name the cluster"):
        Jobs()
