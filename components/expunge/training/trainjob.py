"""The `TrainJob` that trains over several nodes: what Kubeflow Trainer is asked for.

A pipeline's pod reads the cluster's particulars from `EXPUNGE_TRAINJOB`, which the compiled
pipeline has from the section `training:` of the cluster's settings.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from expunge.config import TrainConfig
from expunge.errors import UserError

VARIABLE = "EXPUNGE_TRAINJOB"
GROUP, VERSION, KIND, PLURAL = "trainer.kubeflow.org", "v1alpha1", "TrainJob", "trainjobs"
NODE = "node"  # the replicated job of a Torch runtime, and its container
MOUNT = "/mnt/expunge"
VOLUME, SHARED_MEMORY = "expunge-shared", "dshm"


@dataclass(frozen=True)
class Cluster:
    """Where a TrainJob runs. CPU and memory are each node's; GPUs it gets one for each process."""

    image: str
    claim: str  # of a volume that all pods can write at once: ReadWriteMany
    cpu: str
    memory: str
    gpu: str = "nvidia.com/gpu"  # the resource's name; empty for nodes without GPUs
    shared_memory: str = "8Gi"  # the size of /dev/shm; empty leaves the runtime's own
    runtime: str = "torch-distributed"  # a ClusterTrainingRuntime
    mount: str = MOUNT  # where the volume is, in the pipeline's pod as in the job's
    user: int | None = None  # who the processes are, as in the pipeline's pod; None: as the image
    group: int | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    pull_secrets: Sequence[str] = ()

    def to_variable(self) -> str:
        """Return what `EXPUNGE_TRAINJOB` holds."""
        # Sorted, so that the same settings compile to the same bytes.
        return json.dumps(asdict(self), sort_keys=True)


def read_cluster() -> Cluster | None:
    """Return what `EXPUNGE_TRAINJOB` says, or None where it is not set.

    Raises:
        UserError: it says something else.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    try:
        return Cluster(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{VARIABLE} cannot be used ({error}); compile the pipelines again with the version "
            "of expunge that is in their image"
        ) from error


def check_nodes(nodes: int) -> None:
    """Refuse several nodes where nothing says how to get them.

    Raises:
        UserError: with the setting.
    """
    if nodes > 1 and read_cluster() is None:
        raise UserError(
            f"nodes is {nodes} and this is one machine ({VARIABLE} is not set); choose --processes "
            "for its GPUs, or compile the pipelines with a section `training:` in the cluster's "
            "settings"
        )


def build_train_job(
    name: str, config: TrainConfig, on: Cluster, folder: Path, owner: Mapping[str, str]
) -> dict[str, Any]:
    """Return the job as Kubernetes takes it: `expunge.training.node` on each node, with `folder`.

    Its pods get no credentials. `owner` is the `name` and `uid` of the pod that waits for it, or
    empty: with that pod Kubernetes removes the job.
    """
    requests: dict[str, Any] = {"cpu": on.cpu, "memory": on.memory}
    # None for the CPU: it would slow a node down that has free cores.
    limits: dict[str, Any] = {"memory": on.memory}
    if on.gpu:
        requests[on.gpu] = limits[on.gpu] = str(config.processes)
    metadata: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/part-of": "expunge"}}
    if owner:
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", **owner}]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": on.runtime},
            "trainer": {
                "image": on.image,
                "command": ["python", "-m", "expunge.training.node"],
                "args": [str(folder)],
                "env": [{"name": "TORCH_HOME", "value": str(folder / "torch")}],
                "numNodes": config.nodes,
                "numProcPerNode": config.processes,
                "resourcesPerNode": {"requests": requests, "limits": limits},
            },
            "runtimePatches": [
                {
                    "manager": "expunge.io/train-step",
                    "trainingRuntimeSpec": {
                        "template": {"spec": {"replicatedJobs": [_patch_pods(on)]}}
                    },
                }
            ],
        },
    }


def _patch_pods(on: Cluster) -> dict[str, Any]:
    """Return what the runtime's pods get besides: volumes, nodes that they may run on, few rights.

    Nothing more is left to them than Kubernetes' restricted profile allows.
    """
    spec: dict[str, Any] = {
        "volumes": [
            {"name": VOLUME, "persistentVolumeClaim": {"claimName": on.claim}},
        ],
        "containers": [
            {
                "name": NODE,
                "volumeMounts": [{"name": VOLUME, "mountPath": on.mount}],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
    }
    # A container has 64 MB of it, and NCCL and the decoding processes pass their data through it.
    if on.shared_memory:
        memory = {"medium": "Memory", "sizeLimit": on.shared_memory}
        spec["volumes"].append({"name": SHARED_MEMORY, "emptyDir": memory})
        mounted = {"name": SHARED_MEMORY, "mountPath": "/dev/shm"}  # noqa: S108
        spec["containers"][0]["volumeMounts"].append(mounted)
    if on.user is not None:
        user = {"runAsUser": on.user, "runAsGroup": on.group, "runAsNonRoot": True}
        spec["securityContext"].update(user)
    if on.node_selector:
        spec["nodeSelector"] = dict(on.node_selector)
    if on.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in on.tolerations]
    if on.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in on.pull_secrets]
    # A sidecar of Istio would come between the nodes, and outlive the training.
    labels = {"app.kubernetes.io/part-of": "expunge", "sidecar.istio.io/inject": "false"}
    pods = {"metadata": {"labels": labels}, "spec": spec}
    return {"name": NODE, "template": {"spec": {"template": pods}}}
