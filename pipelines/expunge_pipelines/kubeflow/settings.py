"""The settings of a cluster: one YAML file that the user edits.

`docker/cluster.yaml` has every key with its meaning and its default. A key that is left out or has
no value keeps its default, and so an empty file is all defaults. To add a key, add a field here
and a line there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, NoReturn

from expunge.training.trainjob import MOUNT, Cluster
from expunge.yaml_reader import MisfitError, Place, Section, Switch, YamlFile, choose
from expunge_pipelines.kubeflow.settings_checks import (
    LONGEST_SECONDS,
    Cpu,
    Folder,
    GpuType,
    Image,
    Labels,
    Name,
    Seconds,
    SharedMemory,
    Size,
    count_bytes,
    limit,
)
from expunge_pipelines.kubeflow.task_defaults import DAY, RESOURCES, Resources, Tolerations

CHECKPOINT_FOLDER = "/checkpoints"  # where the claim of the checkpoints is mounted
# What a pod has already: our volumes and image, the system, and KFP's volumes.
TAKEN = (
    *(CHECKPOINT_FOLDER, MOUNT, "/opt/expunge", "/home/expunge"),
    *("/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr"),
    *("/tmp", "/var", "/kfp", "/kfp-launcher", "/gcs", "/s3", "/minio", "/oci"),  # noqa: S108
    *("/.cache", "/.config", "/.local"),
)
LONGEST_PAUSE = DAY  # a pause that doubles, or a factor of 10, grows beyond any use
TaskName = Annotated[str, choose(*RESOURCES)]
RetryCount = Annotated[int, limit(0, 100)]


@dataclass(frozen=True)
class Gpu:
    """The resource that a task with GPUs asks for, and the nodes that have it."""

    type: GpuType = "nvidia.com/gpu"
    node_selector: Labels = field(default_factory=dict)
    tolerations: Tolerations = ()


@dataclass(frozen=True)
class Secrets:
    """Kubernetes secrets by name. Their keys are the environment variables that they become."""

    s3: Name = "expunge-s3"
    mlflow: Name = "expunge-mlflow"
    database: Name = "expunge-database"


@dataclass(frozen=True)
class RunAs:
    """Who a task's process is: the user of the image, who is not root, and the group of its home.

    Group 0 gives no rights; it is the one that a cluster with user numbers of its own keeps.
    """

    user: Annotated[int, limit(1, LONGEST_SECONDS)] = 10001
    group: Annotated[int, limit(0, LONGEST_SECONDS)] = 0


@dataclass(frozen=True)
class Ttl:
    """Seconds for which the workflow of a run that ended is kept, with its pods and their logs."""

    finished: Seconds = 7 * DAY
    success: Seconds | None = None
    failure: Seconds | None = None


@dataclass(frozen=True)
class Retries:
    """Retries of a task, and the pauses before each: `backoff` s, then `factor` times the last.

    A retry follows a pod that failed or was evicted. It follows none that was deleted with its
    node: KFP 2.17 compiles to Argo's policy OnFailure, for which that is an error and no failure.
    """

    count: RetryCount | None = None  # of every task; None leaves each its own
    backoff: Seconds = 30
    factor: Annotated[int, limit(1, 10)] = 2
    # Seconds after its first start when a task is over, whichever attempt it is at. None is what
    # all of its attempts may take together.
    within: Seconds | None = None

    def pause(self, number: int) -> int:
        """Return the seconds before a retry, the first being number 0."""
        return int(self.backoff * self.factor**number)

    def sum_attempts(self, task: Resources) -> int:
        """Return the seconds that all attempts of a task may take, with the pauses in between."""
        pauses = sum(self.pause(number) for number in range(task.retries))
        return (task.retries + 1) * task.timeout_seconds + pauses


@dataclass(frozen=True)
class CheckpointSettings:
    """A volume for what a training has reached."""

    claim: Name = ""


@dataclass(frozen=True)
class DataSettings:
    """A volume with data and weights, for the steps that read files, and where they find it."""

    claim: Name = ""
    path: Folder = "/data"

    def __post_init__(self) -> None:
        if self.path != DataSettings.path and not self.claim:
            raise MisfitError("is set without claim; name the volume that has the data", "path")
        for folder in TAKEN:
            if f"{self.path}/".startswith(f"{folder}/") or folder.startswith(f"{self.path}/"):
                raise MisfitError(
                    f"is {self.path!r}; expected another path, such as /data: a step has something "
                    f"else at {folder}",
                    "path",
                )


@dataclass(frozen=True)
class TrainingSettings:
    """With a claim, Kubeflow Trainer runs each training, over as many nodes as it is to have."""

    claim: Name = ""  # of a volume that several nodes can write at once
    runtime: Name = Cluster.runtime

    def __post_init__(self) -> None:
        if self.runtime != TrainingSettings.runtime and not self.claim:
            raise MisfitError(
                "is set without claim; name the volume that the nodes share", "runtime"
            )


@dataclass(frozen=True)
class TaskSettings:
    """What a file says of one task. None leaves what `RESOURCES` has."""

    cpu: Cpu | None = None
    memory: Size | None = None
    gpus: Annotated[int, limit(0, 64)] | None = None
    shared_memory: SharedMemory | None = None
    timeout: Seconds | None = None
    retries: RetryCount | None = None
    node_selector: Labels = field(default_factory=dict)
    tolerations: Tolerations = ()


@dataclass(frozen=True)
class ClusterSettings:
    """What a site has. An empty text or None leaves the choice to the cluster."""

    image: Image = ""  # that of the components, `expunge.ops.IMAGE`
    image_pull_policy: Annotated[str, choose("Always", "IfNotPresent", "Never")] = ""
    image_pull_secrets: tuple[Name, ...] = ()
    service_account: Name = ""  # of a run; it is no part of a compiled pipeline
    secrets: Section[Secrets] = field(default_factory=Secrets)
    run_as: Switch[RunAs] = field(default_factory=RunAs)
    gpu: Switch[Gpu] = field(default_factory=Gpu)
    node_selector: Labels = field(default_factory=dict)
    tolerations: Tolerations = ()
    ttl: Section[Ttl] = field(default_factory=Ttl)
    deadline: Seconds | None = None
    retries: Section[Retries] = field(default_factory=Retries)
    checkpoints: Section[CheckpointSettings] = field(default_factory=CheckpointSettings)
    data: Section[DataSettings] = field(default_factory=DataSettings)
    training: Section[TrainingSettings] = field(default_factory=TrainingSettings)
    tasks: Mapping[TaskName, Section[TaskSettings]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data.claim in {self.checkpoints.claim, self.training.claim} - {""}:
            message = (
                f"is {self.data.claim!r}, which checkpoints or training has too, and KFP mounts a "
                "claim into a pod once; name another"
            )
            raise MisfitError(message, "data", "claim")
        for name, task in self.resources.items():
            self._check_task(name, task)

    @cached_property
    def resources(self) -> Mapping[str, Resources]:
        """What each task asks for: the file's row of it first, then what all tasks have."""
        return {name: self._resolve(name, usual) for name, usual in RESOURCES.items()}

    def _resolve(self, name: str, usual: Resources) -> Resources:
        own = vars(self.tasks.get(name, TaskSettings()))
        given = {key: value for key, value in own.items() if value is not None}
        if self.retries.count is not None:
            given.setdefault("retries", self.retries.count)
        if not self.gpu:
            given.setdefault("gpus", 0)
        if given.get("shared_memory") == "0":
            given["shared_memory"] = ""
        given["timeout_seconds"] = given.pop("timeout", usual.timeout_seconds)
        return replace(usual, **given)

    def _check_task(self, name: str, task: Resources) -> None:
        def refuse(key: str, message: str, otherwise: Place) -> NoReturn:
            """Raise at the task's key, or at what has set it where the task does not."""
            own = vars(self.tasks.get(name, TaskSettings()))[key] is not None
            raise MisfitError(message, *(("tasks", name, key) if own else otherwise))

        if task.gpus and not self.gpu:
            refuse("gpus", f"is {task.gpus}, and gpu is off; say which GPUs there are", ("gpu",))
        shared = task.shared_memory
        if shared and count_bytes(shared) > count_bytes(task.memory):
            refuse(
                "shared_memory",
                f"does not fit: the shared memory of {shared} counts as part of the memory of "
                f"{task.memory}; raise memory or lower shared_memory",
                ("tasks", name, "memory"),
            )
        pause = self.retries.pause(task.retries - 1) if task.retries else 0
        if pause > LONGEST_PAUSE:
            refuse(
                "retries",
                f"does not fit: before retry {task.retries} of tasks.{name} there would be a pause "
                f"of {pause} s, and a day is the most; lower the number of retries, the backoff or "
                "the factor",
                ("retries",),
            )
        within, longest = self.retries.within, self.retries.sum_attempts(task)
        if within and within < task.timeout_seconds:
            refuse(
                "timeout",
                f"does not fit: tasks.{name} may take {task.timeout_seconds} s, and retries.within "
                f"ends it {within} s after its first start; raise that or lower the timeout",
                ("retries",),
            )
        if longest > LONGEST_SECONDS:
            refuse(
                "timeout",
                f"does not fit: all attempts of tasks.{name} come to {longest} s, and "
                f"{LONGEST_SECONDS} is the most; lower its timeout or its retries",
                ("retries",),
            )


def read_settings(path: str) -> ClusterSettings:
    """Return the settings in a file; no file gives the defaults.

    Raises:
        UserError: the file cannot be read or has a mistake, and the message names its line.
    """
    return (
        YamlFile("cluster settings", path).validate(ClusterSettings) if path else ClusterSettings()
    )
