"""The settings of a cluster: one YAML file that the user edits.

`docker/cluster.yaml` has every key with its meaning and its default. A key that is left out or has
no value keeps its default, and so an empty file is all defaults.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from expunge.training.trainjob import MOUNT, Cluster
from expunge_pipelines.kubeflow import settings_checks as checks
from expunge_pipelines.kubeflow.task_defaults import DAY, RESOURCES, Resources, Toleration
from expunge_pipelines.kubeflow.yaml_reader import Section, read_file

PULL_POLICIES = ("Always", "IfNotPresent", "Never")
OPERATORS = ("Equal", "Exists")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
CHECKPOINT_FOLDER = "/checkpoints"  # where the claim of the checkpoints is mounted
# What a pod has already: our volumes and image, the system, and KFP's volumes.
TAKEN = (
    *(CHECKPOINT_FOLDER, MOUNT, "/opt/expunge", "/home/expunge"),
    *("/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr"),
    *("/tmp", "/var", "/kfp", "/kfp-launcher", "/gcs", "/s3", "/minio", "/oci"),  # noqa: S108
    *("/.cache", "/.config", "/.local"),
)
LONGEST_PAUSE = DAY  # a pause that doubles, or a factor of 10, grows beyond any use


@dataclass(frozen=True)
class Gpu:
    """The resource that a task with GPUs asks for, and the nodes that have it."""

    type: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()


@dataclass(frozen=True)
class Secrets:
    """Kubernetes secrets by name. Their keys are the environment variables that they become."""

    s3: str = "expunge-s3"
    mlflow: str = "expunge-mlflow"
    database: str = "expunge-database"


@dataclass(frozen=True)
class RunAs:
    """Who a task's process is: the user of the image, who is not root, and the group of its home.

    Group 0 gives no rights; it is the one that a cluster with user numbers of its own keeps.
    """

    user: int = 10001
    group: int = 0


@dataclass(frozen=True)
class Ttl:
    """Seconds for which the workflow of a run that ended is kept, with its pods and their logs."""

    finished: int = 7 * DAY
    success: int | None = None
    failure: int | None = None


@dataclass(frozen=True)
class Retries:
    """Pauses before each retry, in seconds: `backoff`, then `factor` times the one before.

    A retry follows a pod that failed or was evicted. It follows none that was deleted with its
    node: KFP 2.17 compiles to Argo's policy OnFailure, for which that is an error and no failure.

    `within` seconds of its first start a task is over, whichever attempt it is at; None is what
    all of its attempts may take together.
    """

    backoff: int = 30
    factor: int = 2
    within: int | None = None

    def pause(self, number: int) -> int:
        """The seconds before a retry, the first being number 0."""
        return int(self.backoff * self.factor**number)

    def longest(self, task: Resources) -> int:
        """The seconds that all attempts of a task may take, with the pauses between them."""
        pauses = sum(self.pause(number) for number in range(task.retries))
        return (task.retries + 1) * task.timeout_seconds + pauses


@dataclass(frozen=True)
class DataSettings:
    """A volume with data and weights, for the steps that read files, and where they find it."""

    claim: str = ""
    path: str = "/data"


@dataclass(frozen=True)
class TrainingSettings:
    """With a claim, Kubeflow Trainer runs each training, over as many nodes as it is to have."""

    claim: str = ""  # of a volume that several nodes can write at once
    runtime: str = Cluster.runtime


@dataclass(frozen=True)
class ClusterSettings:
    """What a site has. An empty text or None leaves the choice to the cluster."""

    image: str = ""  # that of the components, `expunge.ops.IMAGE`
    image_pull_policy: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str = ""  # of a run; it is no part of a compiled pipeline
    secrets: Secrets = field(default_factory=Secrets)
    run_as: RunAs | None = field(default_factory=RunAs)
    gpu: Gpu | None = field(default_factory=Gpu)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    ttl: Ttl = field(default_factory=Ttl)
    deadline: int | None = None
    retries: Retries = field(default_factory=Retries)
    checkpoints_claim: str = ""
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    tasks: Mapping[str, Resources] = field(default_factory=lambda: RESOURCES)


def read_settings(path: str) -> ClusterSettings:
    """The settings in a file; no file gives the defaults.

    Raises:
        UserError: the file cannot be read or has a mistake, and the message names its line.
    """
    if not path:
        return ClusterSettings()
    top = read_file(path)
    claim = top.section("checkpoints")
    training, data = top.section("training"), top.section("data")
    retries, count = _retries(top.section("retries"))
    gpu = None if top.is_off("gpu") else _gpu(top.section("gpu"))
    settings = ClusterSettings(
        image=top.take("image", checks.image, ""),
        image_pull_policy=top.take("image_pull_policy", checks.one_of(*PULL_POLICIES), ""),
        image_pull_secrets=top.items("image_pull_secrets", checks.name),
        service_account=top.take("service_account", checks.name, ""),
        secrets=_secrets(top.section("secrets")),
        run_as=None if top.is_off("run_as") else _run_as(top.section("run_as")),
        gpu=gpu,
        node_selector=top.labels("node_selector", checks.label_key, checks.label_value),
        tolerations=_tolerations(top),
        ttl=_ttl(top.section("ttl")),
        deadline=top.take("deadline", checks.duration, None),
        retries=retries,
        checkpoints_claim=claim.take("claim", checks.name, ""),
        data=_data(data),
        training=_training(training),
        tasks=_tasks(top, gpu, retries, count),
    )
    claim.close()
    top.close()
    if settings.data.claim in {settings.checkpoints_claim, settings.training.claim} - {""}:
        data.refuse(
            "claim",
            f"is {settings.data.claim!r}, which checkpoints or training has too, and KFP mounts a "
            "claim into a pod once; name another",
        )
    return settings


def _secrets(section: Section) -> Secrets:
    names = {
        key: section.take(key, checks.name, getattr(Secrets(), key))
        for key in Secrets.__dataclass_fields__
    }
    section.close()
    return Secrets(**names)


def _run_as(section: Section) -> RunAs:
    user = section.take("user", checks.whole(1, checks.LONGEST_SECONDS), RunAs.user)
    group = section.take("group", checks.whole(0, checks.LONGEST_SECONDS), RunAs.group)
    section.close()
    return RunAs(user, group)


def _gpu(section: Section) -> Gpu:
    gpu = Gpu(
        type=section.take("type", checks.gpu_type, Gpu.type),
        node_selector=section.labels("node_selector", checks.label_key, checks.label_value),
        tolerations=_tolerations(section),
    )
    section.close()
    return gpu


def _ttl(section: Section) -> Ttl:
    ttl = Ttl(
        finished=section.take("finished", checks.duration, Ttl.finished),
        success=section.take("success", checks.duration, None),
        failure=section.take("failure", checks.duration, None),
    )
    section.close()
    return ttl


def _retries(section: Section) -> tuple[Retries, int | None]:
    """The pauses, and the number of retries of every task; None leaves each its own."""
    count = section.take("count", checks.whole(0, 100), None)
    retries = Retries(
        backoff=section.take("backoff", checks.duration, Retries.backoff),
        factor=section.take("factor", checks.whole(1, 10), Retries.factor),
        within=section.take("within", checks.duration, None),
    )
    section.close()
    return retries, count


def _data(section: Section) -> DataSettings:
    data = DataSettings(
        claim=section.take("claim", checks.name, ""),
        path=section.take("path", checks.folder_beside(*TAKEN), DataSettings.path),
    )
    section.close()
    if data.path != DataSettings.path and not data.claim:
        section.refuse("path", "is set without claim; name the volume that has the data")
    return data


def _training(section: Section) -> TrainingSettings:
    training = TrainingSettings(
        claim=section.take("claim", checks.name, ""),
        runtime=section.take("runtime", checks.name, TrainingSettings.runtime),
    )
    section.close()
    if training.runtime != TrainingSettings.runtime and not training.claim:
        section.refuse("runtime", "is set without claim; name the volume that the nodes share")
    return training


def _tasks(
    top: Section, gpu: Gpu | None, retries: Retries, count: int | None
) -> dict[str, Resources]:
    section = top.section("tasks")
    found = {}
    for name, usual in RESOURCES.items():
        base = usual if count is None else dataclasses.replace(usual, retries=count)
        base = base if gpu else dataclasses.replace(base, gpus=0)
        found[name] = task = _task(section.section(name), base, gpu)
        _check_attempts(top, section.section(name), task, retries)
    section.close()
    return found


def _task(section: Section, base: Resources, gpu: Gpu | None) -> Resources:
    task = dataclasses.replace(
        base,
        cpu=section.take("cpu", checks.cpu, base.cpu),
        memory=section.take("memory", checks.size, base.memory),
        gpus=section.take("gpus", checks.whole(0, 64), base.gpus),
        shared_memory=section.take("shared_memory", checks.optional_size, base.shared_memory),
        timeout_seconds=section.take("timeout", checks.duration, base.timeout_seconds),
        retries=section.take("retries", checks.whole(0, 100), base.retries),
        node_selector=section.labels("node_selector", checks.label_key, checks.label_value),
        tolerations=_tolerations(section),
    )
    section.close()
    if task.gpus and not gpu:
        section.refuse("gpus", f"is {task.gpus}, and gpu is off; say which GPUs there are")
    shared = task.shared_memory
    if shared and checks.size_bytes(shared) > checks.size_bytes(task.memory):
        key = "shared_memory" if section.has("shared_memory") else "memory"
        section.refuse(
            key,
            f"does not fit: the shared memory of {shared} counts as part of the memory of "
            f"{task.memory}; raise memory or lower shared_memory",
        )
    return task


def _check_attempts(top: Section, section: Section, task: Resources, retries: Retries) -> None:
    def refuse(key: str, message: str) -> NoReturn:
        own = section.has(key)
        (section if own else top).refuse(key if own else "retries", f"does not fit: {message}")

    pause = retries.pause(task.retries - 1) if task.retries else 0
    if pause > LONGEST_PAUSE:
        refuse(
            "retries",
            f"before retry {task.retries} of {section.name} there would be a pause of {pause} s, "
            "and a day is the most; lower the number of retries, the backoff or the factor",
        )
    if retries.within and retries.within < task.timeout_seconds:
        refuse(
            "timeout",
            f"{section.name} may take {task.timeout_seconds} s, and retries.within ends it "
            f"{retries.within} s after its first start; raise that or lower the timeout",
        )
    if retries.longest(task) > checks.LONGEST_SECONDS:
        refuse(
            "timeout",
            f"all attempts of {section.name} come to {retries.longest(task)} s, and "
            f"{checks.LONGEST_SECONDS} is the most; lower its timeout or its retries",
        )


def _tolerations(section: Section) -> tuple[Toleration, ...]:
    return tuple(_toleration(entry) for entry in section.sections("tolerations"))


def _toleration(section: Section) -> Toleration:
    taint = Toleration(
        key=section.take("key", checks.label_key, ""),
        operator=section.take("operator", checks.one_of(*OPERATORS), "Equal"),
        value=section.take("value", checks.label_value, ""),
        effect=section.take("effect", checks.one_of(*EFFECTS), ""),
        toleration_seconds=section.take(
            "toleration_seconds", checks.whole(0, checks.LONGEST_SECONDS), None
        ),
    )
    section.close()
    if taint.operator == "Exists" and taint.value:
        section.refuse("value", "is set, and operator Exists takes none; leave it out")
    if taint.operator == "Equal" and not taint.key:
        section.refuse("key", "is missing; set it, or operator: Exists for every taint")
    if taint.toleration_seconds is not None and taint.effect != "NoExecute":
        section.refuse("toleration_seconds", "counts only with effect: NoExecute; set both")
    return taint
