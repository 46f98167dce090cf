"""What each task asks of a cluster: CPU, memory, GPU, shared memory, secrets, retries, caching.

A local run asks for nothing (`anywhere`): it would sit through the pauses between retries.
Caching is on for the steps that are pure functions of their inputs; it is off where the input is
the world (a data source, the registry) or the step changes it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kfp import kubernetes
from kfp.dsl import PipelineTask

from expunge.environment import PIPELINE_RUN

Place = Callable[[PipelineTask], PipelineTask]
GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Resources:
    """Requests equal limits for memory, so that a task is never evicted for growing."""

    cpu: str
    memory: str
    gpus: int = 0
    shared_memory: str = ""  # size of /dev/shm: decoding workers and NCCL pass tensors there
    cached: bool = False
    s3: bool = False
    mlflow: bool = False
    ledger: bool = True  # most steps record what they write
    retries: int = 2
    timeout_seconds: int = 3600


RESOURCES = {
    "prepare-data": Resources("2", "8Gi", s3=True),
    "train": Resources(
        "4",
        "16Gi",
        gpus=1,
        shared_memory="8Gi",
        cached=True,
        mlflow=True,
        retries=5,  # it resumes from its last epoch
        timeout_seconds=7 * 24 * 3600,
    ),
    "claim-requests": Resources("1", "4Gi", mlflow=True, s3=True),
    "load-oracles": Resources("1", "4Gi", mlflow=True, s3=True),
    "find-oracle": Resources("1", "2Gi", mlflow=True, s3=True),
    "keep-oracle": Resources("1", "4Gi", mlflow=True, s3=True),
    "compute-fim": Resources("2", "8Gi", gpus=1, cached=True),
    "perturb": Resources("2", "8Gi", gpus=1, cached=True),
    "export-onnx": Resources("2", "8Gi", cached=True),
    "validate": Resources("2", "8Gi", gpus=1, shared_memory="2Gi", cached=True, ledger=False),
    "report": Resources("1", "2Gi", cached=True, ledger=False),
    "record": Resources("1", "2Gi", mlflow=True, s3=True),
    "register": Resources("1", "4Gi", mlflow=True, s3=True),
    "promote": Resources("1", "2Gi", mlflow=True, s3=True),
    # As often as a pod can be lost: what it does not settle waits for the lease to run out.
    "close-requests": Resources("1", "2Gi", mlflow=True, s3=True, retries=5),
}

# Kubernetes secrets by name, with the environment variable that each key becomes. No value of a
# credential is ever part of a compiled pipeline.
S3_SECRET = "expunge-s3"  # noqa: S105 (the secret's name)
S3_KEYS = {key: key for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")}
MLFLOW_SECRET = "expunge-mlflow"  # noqa: S105
MLFLOW_KEYS = {
    key: key
    for key in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
}
DATABASE_SECRET = "expunge-database"  # noqa: S105
DATABASE_KEYS = {"EXPUNGE_DATABASE_URL": "EXPUNGE_DATABASE_URL"}


def anywhere(task: PipelineTask) -> PipelineTask:
    """The task as it is, for a run on this machine."""
    return task


def on_cluster(task: PipelineTask) -> PipelineTask:
    """Give a task what `RESOURCES` has for its component; the task is returned for chaining."""
    wanted = RESOURCES[task.component_spec.name]
    task.set_cpu_request(wanted.cpu).set_memory_request(wanted.memory)
    task.set_memory_limit(wanted.memory)
    task.set_caching_options(wanted.cached)
    task.set_retry(wanted.retries, backoff_duration="30s", backoff_factor=2)
    if wanted.gpus:
        task.set_accelerator_type(GPU).set_accelerator_limit(wanted.gpus)
    if wanted.shared_memory:
        kubernetes.empty_dir_mount(
            task,
            volume_name="dshm",
            mount_path="/dev/shm",  # noqa: S108 (a memory volume of the pod)
            medium="Memory",
            size_limit=wanted.shared_memory,
        )
    if wanted.s3:
        kubernetes.use_secret_as_env(task, S3_SECRET, S3_KEYS, optional=True)
    if wanted.mlflow:
        kubernetes.use_secret_as_env(task, MLFLOW_SECRET, MLFLOW_KEYS)
    if wanted.ledger:
        kubernetes.use_secret_as_env(task, DATABASE_SECRET, DATABASE_KEYS)
    if wanted.mlflow or wanted.ledger:
        # The run id of the pipeline, from the pod: it ties the steps to one MLflow run and claim.
        kubernetes.use_field_path_as_env(task, PIPELINE_RUN, "metadata.labels['pipeline/runid']")
    kubernetes.set_timeout(task, wanted.timeout_seconds)
    return task
