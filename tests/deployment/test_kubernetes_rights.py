"""What the Kubernetes manifests allow: to pods, to the service account, on the network."""

from ipaddress import ip_address, ip_network

import pytest
from manifests import OBJECTS, Document, named, pods

from expunge_pipelines.kubeflow.settings import ClusterSettings

STEPS = {"key": "workflows.argoproj.io/workflow", "operator": "Exists"}


@pytest.mark.parametrize("name", pods())
def test_a_pod_meets_the_restricted_standard_and_is_bounded(name: str) -> None:
    pod = pods()[name]
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    allowed = {"persistentVolumeClaim", "emptyDir", "configMap"}
    assert all(set(volume) <= {"name", *allowed} for volume in pod["volumes"])
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        amounts = container["resources"]
        assert {"cpu", "memory"} <= set(amounts["requests"])
        assert {"cpu", "memory"} <= set(amounts["limits"])
    if name.startswith("Job/"):
        assert pod["restartPolicy"] == "Never"


def test_the_namespace_enforces_the_restricted_standard() -> None:
    labels = named("Namespace")[0]["metadata"]["labels"]
    for mode in ("enforce", "audit", "warn"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"
    user = ClusterSettings().run_as  # or no step would start there
    assert user is not None
    assert user.user == 10001


def rules(name: str) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    (role,) = named("Role", name)
    return [
        (group, resource, tuple(rule.get("resourceNames", ())), tuple(rule["verbs"]))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    ]


def test_the_pipelines_have_the_least_rights() -> None:
    assert rules("expunge-pipeline") == [
        ("argoproj.io", "workflowtaskresults", (), ("create", "patch")),
        ("", "configmaps", ("kfp-launcher",), ("get",)),
        ("", "secrets", ("mlpipeline-minio-artifact",), ("get",)),
        ("", "pods", (), ("get",)),
    ]
    assert rules("expunge-trainjobs") == [
        ("trainer.kubeflow.org", "trainjobs", (), ("create", "get", "delete")),
        ("", "pods", (), ("list",)),
    ]
    assert {found["kind"] for found in OBJECTS if "Role" in found["kind"]} == {
        "Role",
        "RoleBinding",
    }


def test_each_role_is_bound_to_the_account_of_the_pipelines_alone() -> None:
    for binding in named("RoleBinding"):
        name = binding["roleRef"]["name"]
        assert binding["metadata"]["name"] == name
        assert named("Role", name)
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "expunge-pipeline"}]
    tokens = {
        found["metadata"]["name"]: found["automountServiceAccountToken"]
        for found in named("ServiceAccount")
    }
    assert tokens == {"expunge-pipeline": True, "expunge-mlflow": False, "default": False}


def policy(name: str) -> Document:
    (found,) = named("NetworkPolicy", name)
    return dict(found["spec"])


def ports(rule: Document) -> set[int]:
    return {found["port"] for found in rule["ports"]}


def test_the_network_is_closed_but_for_what_is_said() -> None:
    assert policy("deny-all") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    opened = {found["metadata"]["name"] for found in named("NetworkPolicy")} - {"deny-all"}
    assert opened == {"dns", "mlflow", "pipelines", "trainers", "artifacts"}
    for name in opened:
        spec = policy(name)
        directions = {key.capitalize() for key in ("ingress", "egress") if key in spec}
        assert set(spec["policyTypes"]) == directions  # a type without rules would be one more no
        for rule in [*spec.get("ingress", ()), *spec.get("egress", ())]:
            assert rule.get("from") or rule.get("to"), f"{name} opens to everybody"


def test_mlflow_is_reached_by_the_pods_of_runs_alone() -> None:
    (rule,) = policy("mlflow")["ingress"]
    assert ports(rule) == {5000}
    for peer in rule["from"]:
        assert peer["podSelector"] == {"matchExpressions": [STEPS]}
    assert policy("mlflow")["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "mlflow"}


def test_the_steps_reach_what_a_run_needs_but_not_the_credentials_of_a_node() -> None:
    spec = policy("pipelines")
    assert spec["podSelector"] == {"matchExpressions": [STEPS]}
    server, kubeflow, outside = spec["egress"]
    assert server["to"] == [{"podSelector": policy("mlflow")["podSelector"]}]
    assert ports(server) == {5000}
    (namespace,) = kubeflow["to"]
    assert namespace["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "kubeflow"
    }
    assert {8887, 8888, 8333, 9000} <= ports(kubeflow)
    assert {443, 6443, 5432} <= ports(outside)
    blocks = [peer["ipBlock"] for peer in outside["to"] if "ipBlock" in peer]
    metadata = ip_address("169.254.169.254")
    assert [block["cidr"] for block in blocks] == ["0.0.0.0/0", "::/0"]
    for block in blocks:
        excepted = [ip_network(cidr) for cidr in block["except"]]
        assert all(cidr.version == ip_network(block["cidr"]).version for cidr in excepted)
    assert any(metadata in ip_network(cidr) for cidr in blocks[0]["except"])


def test_the_nodes_of_a_training_reach_each_other_alone() -> None:
    spec = policy("trainers")
    among = {"podSelector": spec["podSelector"]}
    assert spec["ingress"] == [{"from": [among]}]
    assert spec["egress"] == [{"to": [among]}]
