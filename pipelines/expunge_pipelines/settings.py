"""The settings of a cluster: one YAML file, `docker/cluster.yaml` to start from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from expunge_pipelines.tasks import DAY, RESOURCES, Resources, Toleration


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
    """Who a task's process is: by default the user of the image, who is not root."""

    user: int = 10001
    group: int = 10001


@dataclass(frozen=True)
class Ttl:
    """Seconds for which the workflow of a run that ended is kept."""

    finished: int = 7 * DAY
    success: int | None = None
    failure: int | None = None


@dataclass(frozen=True)
class Retries:
    """Pauses before each retry, in seconds: `backoff`, then `factor` times the one before.

    `max_seconds` after its first start a task is ended, whichever attempt it is; None is what all
    of its attempts may take together.
    """

    backoff: int = 30
    factor: int = 2
    max_seconds: int | None = None

    def pauses(self, count: int) -> int:
        """The seconds of `count` pauses together."""
        return sum(self.backoff * self.factor**number for number in range(count))

    def longest(self, task: Resources) -> int:
        """The seconds that all attempts of a task may take, with the pauses between them."""
        return (task.retries + 1) * task.timeout_seconds + self.pauses(task.retries)


@dataclass(frozen=True)
class TrainingSettings:
    """How a training is spread."""


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
    training: TrainingSettings = field(default_factory=TrainingSettings)
    tasks: Mapping[str, Resources] = field(default_factory=lambda: RESOURCES)


def read_settings(path: str) -> ClusterSettings:
    """The settings in a file; no file gives the defaults.

    Raises:
        UserError: the file cannot be read or has a mistake, and the message names its line.
    """
    if not path:
        return ClusterSettings()
    raise NotImplementedError
