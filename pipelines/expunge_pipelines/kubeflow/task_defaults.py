"""What each task asks of a cluster where the settings say nothing else.

Caching is on for the steps that are pure functions of their inputs; it is off where the input is
the world (a data source, the registry) or the step changes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from expunge.yaml_reader import MisfitError, Section, choose
from expunge_pipelines.kubeflow.settings_checks import (
    LONGEST_SECONDS,
    LabelKey,
    LabelValue,
    limit,
)

MINUTE, HOUR, DAY = 60, 3600, 24 * 3600


@dataclass(frozen=True)
class Toleration:
    """A taint of nodes that a task may run on all the same, in Kubernetes' terms."""

    key: LabelKey = ""
    operator: Annotated[str, choose("Equal", "Exists")] = "Equal"
    value: LabelValue = ""
    effect: Annotated[str, choose("NoSchedule", "PreferNoSchedule", "NoExecute")] = ""
    toleration_seconds: Annotated[int, limit(0, LONGEST_SECONDS)] | None = None

    def __post_init__(self) -> None:
        if self.operator == "Exists" and self.value:
            raise MisfitError("is set, and operator Exists takes none; leave it out", "value")
        if self.operator == "Equal" and not self.key:
            raise MisfitError("is missing; set it, or operator: Exists for every taint", "key")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise MisfitError("counts only with effect: NoExecute; set both", "toleration_seconds")


Tolerations = tuple[Section[Toleration], ...]


@dataclass(frozen=True)
class Resources:
    """What a task asks for, and what it needs to know.

    Requests equal limits for memory, so that a task is never evicted for growing.
    """

    cpu: str
    memory: str
    gpus: int = 0
    shared_memory: str = ""  # size of /dev/shm: decoding workers and NCCL pass tensors there
    cached: bool = False
    s3: bool = False
    mlflow: bool = False
    files: bool = False  # it reads what a user names by a path: data, or weights
    ledger: bool = True  # most steps record what they write
    retries: int = 2
    timeout_seconds: int = HOUR
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Tolerations = ()


RESOURCES: Mapping[str, Resources] = {
    "prepare-data": Resources("2", "8Gi", s3=True, files=True),
    "train": Resources(
        "4",
        "16Gi",
        gpus=1,
        shared_memory="8Gi",
        cached=True,
        s3=True,  # a model to start from may lie there
        files=True,
        mlflow=True,
        retries=5,  # with checkpoints on a volume it resumes from its last epoch
        timeout_seconds=7 * DAY,
    ),
    "plan-training": Resources("1", "2Gi", mlflow=True, s3=True, files=True),
    "claim-requests": Resources("1", "4Gi", mlflow=True, s3=True),
    "load-oracles": Resources("1", "4Gi", mlflow=True, s3=True),
    "find-oracle": Resources("1", "2Gi", mlflow=True, s3=True, files=True),
    "keep-oracle": Resources("1", "4Gi", mlflow=True, s3=True),
    "compute-fim": Resources("2", "8Gi", gpus=1, cached=True),
    "perturb": Resources("2", "8Gi", gpus=1, cached=True),
    "export-onnx": Resources("2", "8Gi", cached=True),
    "validate": Resources("2", "8Gi", gpus=1, shared_memory="2Gi", cached=True, ledger=False),
    # Not cached: it takes seconds, and what it reads holds times.
    "render-report": Resources("1", "2Gi", ledger=False),
    "log-run": Resources("1", "2Gi", mlflow=True, s3=True),
    "register": Resources("1", "4Gi", mlflow=True, s3=True),
    "promote": Resources("1", "2Gi", mlflow=True, s3=True),
    # More often than others: what it does not settle waits for the lease to run out. That happens
    # all the same where its pod is deleted with the node, which KFP 2.17 does not try again.
    "close-requests": Resources("1", "2Gi", mlflow=True, s3=True, retries=5),
    # The second and the third rung of a ladder, the first being `perturb`. Rule align, which either
    # may be, goes through some percent of the images that a training does.
    "perturb-2": Resources("4", "16Gi", gpus=1, cached=True, timeout_seconds=DAY),
    "perturb-3": Resources("4", "16Gi", gpus=1, cached=True, timeout_seconds=DAY),
}
