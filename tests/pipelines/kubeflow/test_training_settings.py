"""What a volume under `training` makes of the compiled pipelines: Kubeflow Trainer trains."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import command
from compiled import executors

from expunge.config import TrainConfig
from expunge.errors import UserError
from expunge.ops import IMAGE
from expunge.training.trainjob import MOUNT, VARIABLE, Cluster, build_train_job
from expunge_pipelines.kubeflow.compile import compile_pipeline
from expunge_pipelines.kubeflow.settings import (
    CheckpointSettings,
    ClusterSettings,
    TrainingSettings,
    read_settings,
)

Json = dict[str, Any]
SETTINGS = """
image: site/expunge:2
image_pull_secrets: [registry]
node_selector: {zone: a}
gpu:
  node_selector: {pool: a100}
  tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoExecute, toleration_seconds: 60}]
training:
  claim: expunge-training
  runtime: our-torch
tasks:
  train: {cpu: 32, memory: 200Gi, shared_memory: 16Gi, node_selector: {rack: r1}}
"""


def compiled(folder: Path, kind: str, settings: ClusterSettings) -> dict[str, tuple[Json, Json]]:
    """Each step's container and what Kubernetes is told of it."""
    compile_pipeline(kind, folder / f"{kind}.yaml", settings)
    return {step: rest for step, *rest in executors(folder / f"{kind}.yaml")}


@pytest.fixture
def settings(tmp_path: Path) -> ClusterSettings:
    (tmp_path / "cluster.yaml").write_text(SETTINGS)
    return read_settings(str(tmp_path / "cluster.yaml"))


@pytest.mark.parametrize("kind", ["train", "oracles"])
def test_a_training_waits_for_its_job(kind: str, tmp_path: Path, settings: ClusterSettings) -> None:
    container, kubernetes = compiled(tmp_path, kind, settings)["train"]
    (variable,) = container["env"]
    assert variable["name"] == VARIABLE
    cluster = Cluster(**json.loads(variable["value"]))
    assert cluster == Cluster(
        image="site/expunge:2",
        claim="expunge-training",
        cpu="32",
        memory="200Gi",
        shared_memory="16Gi",
        runtime="our-torch",
        user=10001,
        group=0,
        node_selector={"zone": "a", "pool": "a100", "rack": "r1"},
        tolerations=[
            {
                "key": "nvidia.com/gpu",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": 60,
            }
        ],
        pull_secrets=["registry"],
    )
    build_train_job("expunge-1", TrainConfig("mlp"), cluster, Path("/run"), {})
    (mount,) = kubernetes["pvcMount"]
    assert (mount["constant"], mount["mountPath"]) == ("expunge-training", MOUNT)
    assert container["resources"]["cpuRequest"] == 1.0
    assert "accelerator" not in container["resources"]
    assert "emptyDirMounts" not in kubernetes
    assert kubernetes["nodeSelector"]["labels"] == {"zone": "a"}
    assert "tolerations" not in kubernetes


def test_no_other_task_waits(tmp_path: Path, settings: ClusterSettings) -> None:
    steps = compiled(tmp_path, "train", settings)
    assert [step for step, (box, _) in steps.items() if VARIABLE in str(box)] == ["train"]
    assert [step for step, (_, told) in steps.items() if "pvcMount" in told] == ["train"]


def test_without_a_volume_the_task_trains(tmp_path: Path) -> None:
    container, kubernetes = compiled(tmp_path, "train", ClusterSettings())["train"]
    assert container["resources"]["accelerator"]["resourceCount"] == "1"
    assert VARIABLE not in str(container)
    assert "pvcMount" not in kubernetes


def test_checkpoints_lie_on_the_volume_that_trains(tmp_path: Path) -> None:
    both = ClusterSettings(
        checkpoints=CheckpointSettings("checkpoints"),
        training=TrainingSettings("shared"),
        gpu=None,
        run_as=None,
    )
    container, kubernetes = compiled(tmp_path, "train", both)["train"]
    cluster = Cluster(**json.loads(container["env"][0]["value"]))
    assert [mount["constant"] for mount in kubernetes["pvcMount"]] == ["shared"]
    assert (cluster.image, cluster.gpu, cluster.user) == (IMAGE, "", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {runtime: a}", "line 1: training.runtime is set without claim; name the vol"),
        ("training: {claim: A B}", "training.claim is 'A B'; expected the name of a Kubernetes"),
        ("training:\n  claims: a", "line 2: training.claims is unknown; expected claim, runtime"),
    ],
)
def test_mistakes(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(UserError, match=expected):
        read_settings(str(tmp_path / "cluster.yaml"))


def test_several_nodes_are_refused_on_one_machine_before_anything_runs() -> None:
    code, _, said = command("train", "shapes", "--data", "digits", "--arch", "mlp", "--nodes", "2")
    assert code == 2
    assert "nodes is 2 and this is one machine" in said
