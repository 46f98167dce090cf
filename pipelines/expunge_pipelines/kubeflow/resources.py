"""Resources of each task of a pipeline, as the settings of a cluster say."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineConfig, PipelineTask

from expunge.environment import PIPELINE_RUN
from expunge.training import trainjob
from expunge_pipelines.kubeflow.settings import CHECKPOINT_FOLDER, ClusterSettings, Retries
from expunge_pipelines.kubeflow.task_defaults import Resources, Toleration
from expunge_pipelines.placement import Place

# The keys of each secret, which are environment variables too. No value of a credential is ever
# part of a compiled pipeline. Those of S3 may all be missing (a node's own role can stand in), and
# those of MLflow but for its address (a server need not ask who calls).
S3_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
)
MLFLOW_KEYS = ("MLFLOW_TRACKING_URI",)
MLFLOW_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
DATABASE_KEYS = ("EXPUNGE_DATABASE_URL",)

CHECKPOINTS = "EXPUNGE_CHECKPOINTS"
DATA_ROOT = "EXPUNGE_DATA_ROOT"
TRAINING = "train"  # the one task with checkpoints
# What it asks for itself where Kubeflow Trainer trains, and it copies files and waits.
WAITING: dict[str, Any] = {
    "cpu": "1",
    "memory": "4Gi",
    "gpus": 0,
    "shared_memory": "",
    "node_selector": {},
    "tolerations": (),
}


def place_on_cluster(settings: ClusterSettings = ClusterSettings()) -> Place:  # noqa: B008 (it is frozen)
    """Return what gives a task all that the settings say of it, and returns it for chaining."""

    def place(task: PipelineTask) -> PipelineTask:
        name = task.component_spec.name
        # a step that stands several times in a pipeline may have rows of its own for some
        name = task.name if task.name in settings.resources else name
        wanted = settings.resources[name]
        trainer = name == TRAINING and bool(settings.training.claim)
        task.set_caching_options(wanted.cached)
        _set_image(task, settings)
        if trainer:
            _describe_nodes(task, wanted, settings)
            wanted = dataclasses.replace(wanted, **WAITING)
        _set_compute(task, wanted, settings)
        _choose_nodes(task, wanted, settings)
        _use_secrets(task, wanted, settings)
        _set_retries(task, wanted, settings.retries)
        if name == TRAINING and settings.checkpoints.claim and not trainer:
            kubernetes.mount_pvc(task, settings.checkpoints.claim, CHECKPOINT_FOLDER)
            task.set_env_variable(CHECKPOINTS, CHECKPOINT_FOLDER)
        if wanted.files and settings.data.claim:  # kfp 2.17 cannot mount it to be only read
            kubernetes.mount_pvc(task, settings.data.claim, settings.data.path)
            task.set_env_variable(DATA_ROOT, settings.data.path)
        return task

    return place


def build_pipeline_config(settings: ClusterSettings) -> PipelineConfig:
    """Return what a cluster does with a run as a whole: how long it may take and is kept."""
    return PipelineConfig(
        ttl_seconds_after_finished=settings.ttl.finished,
        ttl_seconds_after_success=settings.ttl.success,
        ttl_seconds_after_failure=settings.ttl.failure,
        active_deadline_seconds=settings.deadline,
    )


def _set_image(task: PipelineTask, settings: ClusterSettings) -> None:
    if settings.image:
        task.set_container_image(settings.image)
    if settings.image_pull_policy:
        kubernetes.set_image_pull_policy(task, settings.image_pull_policy)
    if settings.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.image_pull_secrets))
    if settings.run_as:
        kubernetes.set_security_context(
            task,
            run_as_user=settings.run_as.user,
            run_as_group=settings.run_as.group,
            run_as_non_root=True,
        )


def _set_compute(task: PipelineTask, wanted: Resources, settings: ClusterSettings) -> None:
    # No limit of CPUs: what is idle on a node may be used, and a limit would only slow a task down.
    task.set_cpu_request(wanted.cpu).set_memory_request(wanted.memory)
    task.set_memory_limit(wanted.memory)
    if wanted.gpus and settings.gpu:
        task.set_accelerator_type(settings.gpu.type).set_accelerator_limit(wanted.gpus)
    if wanted.shared_memory:  # a container has 64M by itself, in which loaders of images die
        kubernetes.empty_dir_mount(
            task,
            volume_name="dshm",
            mount_path="/dev/shm",  # noqa: S108 (a memory volume of the pod)
            medium="Memory",
            size_limit=wanted.shared_memory,
        )


def _choose_nodes(task: PipelineTask, wanted: Resources, settings: ClusterSettings) -> None:
    for key, value in _merge_labels(wanted, settings).items():
        kubernetes.add_node_selector(task, key, value)
    for taint in _merge_taints(wanted, settings):
        kubernetes.add_toleration(
            task,
            key=taint.key or None,
            operator=taint.operator,
            value=taint.value or None,
            effect=taint.effect or None,
            toleration_seconds=taint.toleration_seconds,
        )


def _merge_labels(wanted: Resources, settings: ClusterSettings) -> Mapping[str, str]:
    """Return the labels of a task's nodes. Of one label, the last of these counts."""
    own = settings.gpu.node_selector if wanted.gpus and settings.gpu else {}
    return {**settings.node_selector, **own, **wanted.node_selector}


def _merge_taints(wanted: Resources, settings: ClusterSettings) -> tuple[Toleration, ...]:
    own = settings.gpu.tolerations if wanted.gpus and settings.gpu else ()
    return (*settings.tolerations, *own, *wanted.tolerations)


def _describe_nodes(task: PipelineTask, wanted: Resources, settings: ClusterSettings) -> None:
    """Tell the task what each node of its TrainJob gets: what it would have had itself."""
    cluster = trainjob.Cluster(
        image=task.container_spec.image,
        claim=settings.training.claim,
        cpu=wanted.cpu,
        memory=wanted.memory,
        gpu=settings.gpu.type if wanted.gpus and settings.gpu else "",
        shared_memory=wanted.shared_memory,
        runtime=settings.training.runtime,
        user=settings.run_as.user if settings.run_as else None,
        group=settings.run_as.group if settings.run_as else None,
        node_selector=_merge_labels(wanted, settings),
        tolerations=[_convert_toleration(taint) for taint in _merge_taints(wanted, settings)],
        pull_secrets=settings.image_pull_secrets,
    )
    kubernetes.mount_pvc(task, cluster.claim, cluster.mount)
    task.set_env_variable(trainjob.VARIABLE, cluster.to_variable())


def _convert_toleration(taint: Toleration) -> dict[str, Any]:
    """Return a toleration as Kubernetes has it, without what is not set."""
    named = {
        "key": taint.key,
        "operator": taint.operator,
        "value": taint.value,
        "effect": taint.effect,
    }
    found: dict[str, Any] = {key: value for key, value in named.items() if value}
    if taint.toleration_seconds is not None:
        found["tolerationSeconds"] = taint.toleration_seconds
    return found


def _use_secrets(task: PipelineTask, wanted: Resources, settings: ClusterSettings) -> None:
    secrets = settings.secrets

    def use(secret: str, keys: tuple[str, ...], optional: bool = False) -> None:
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=optional)

    if wanted.s3:
        use(secrets.s3, S3_KEYS, optional=True)
    if wanted.mlflow:
        use(secrets.mlflow, MLFLOW_KEYS)
        use(secrets.mlflow, MLFLOW_LOGIN, optional=True)
    if wanted.ledger:
        use(secrets.database, DATABASE_KEYS)
    if wanted.mlflow or wanted.ledger:
        # The run id of the pipeline, from the pod: it ties the steps to one MLflow run and claim.
        kubernetes.use_field_path_as_env(task, PIPELINE_RUN, "metadata.labels['pipeline/runid']")


def _set_retries(task: PipelineTask, wanted: Resources, retries: Retries) -> None:
    """Give each attempt its whole time: kfp's own limit would end all of them after an hour."""
    longest = retries.within or retries.sum_attempts(wanted)
    task.set_retry(
        wanted.retries,
        backoff_duration=f"{retries.backoff}s",
        backoff_factor=retries.factor,
        backoff_max_duration=f"{longest}s",
    )
    kubernetes.set_timeout(task, wanted.timeout_seconds)
