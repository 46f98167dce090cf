"""One frozen dataclass of settings for each step, validated once, when it is built. No torch here.

A wrong value raises `UserError` with the field's name, the value, what was expected and the remedy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expunge.core.attacks import ATTACKS
from expunge.errors import UserError

# Our own; any other name is one of torchvision's, which only `expunge.models` can check.
ARCHITECTURES = ("mlp", "resnet20", "resnet18-cifar")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SCHEDULES = ("cosine", "none")
AUGMENTATIONS = ("auto", "none", "flip", "crop-flip")
RULES = ("auto", "paper", "natural")
# What a forget that passed is called, the lesser first; `core.grading.grades` says what each takes.
GRADES = ("suppressed", "forgotten")
# Every check of a forget. The first reject by default. The others compare with oracles: they decide
# whether a model is graded forgotten, and reject where a policy names them.
BASE_CHECKS = (
    "forget_error",
    "erased_stay_erased",
    "retain_accuracy_drop",
    "worst_class_drop",
    "codes_forgotten",
    "codes_retained",
    "onnx_max_difference",
    "onnx_equal_argmax",
)
ORACLE_CHECKS = tuple(ATTACKS)


def _one_of(field: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{field} is {value!r}; expected one of {', '.join(known)}")


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{field} is {value}; expected a value from {low:g} to {high:g}")


def _classes(field: str, classes: Sequence[int]) -> None:
    if any(index < 0 for index in classes) or len(set(classes)) != len(classes):
        raise UserError(f"{field} is {list(classes)}; expected distinct class indices from 0 up")


@dataclass(frozen=True)
class PrepareDataConfig:
    """Where the images come from and how large they become."""

    source: (
        str  # digits, mnist, fashion-mnist, cifar10, cifar100, folder:PATH or s3://bucket/prefix
    )
    data_root: Path  # torchvision's files and downloads
    image_size: int = 0  # pixels of each side; 0 keeps the images' own size
    splits: tuple[str, ...] = ("train", "test")  # a forget needs only "test"

    def __post_init__(self) -> None:
        _within("image_size", self.image_size, 0, 4096)
        if not self.splits or not set(self.splits) <= {"train", "test"}:
            raise UserError(f"splits is {list(self.splits)}; expected train, test or both")


@dataclass(frozen=True)
class TrainConfig:
    """The recipe. Defaults are the paper's where it gives one for all data sets."""

    arch: str
    epochs: int = 20
    batch_size: int = 128  # over all processes together
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    t_mix: float = 0.1
    seed: int = 0
    without: tuple[int, ...] = ()  # class indices that take no part: neither images nor code
    weights: str = ""  # pretrained weights: torchvision's name for them, or a file
    init_from: str = ""  # a registered version's URI or a file: an existing classifier gets codes
    precision: str = "auto"
    augment: str = "auto"
    processes: int = 1  # on each node, one GPU each; above 1 they run under torchrun
    nodes: int = 1  # machines; above 1 they run as a TrainJob of Kubeflow Trainer
    workers: int = 2  # decoding processes for images that do not fit into memory

    def __post_init__(self) -> None:
        _within("epochs", self.epochs, 1, 100_000)
        _within("batch_size", self.batch_size, 1, 1_000_000)
        _within("momentum", self.momentum, 0, 0.9999)
        _within("weight_decay", self.weight_decay, 0, 1)
        _within("t_mix", self.t_mix, 0, 1)
        _within("seed", self.seed, 0, 2**63 - 1)
        _within("processes", self.processes, 1, 1024)
        _within("nodes", self.nodes, 1, 1024)
        _within("workers", self.workers, 0, 1024)
        if not 0 < self.learning_rate <= 1000:
            raise UserError(f"learning_rate is {self.learning_rate}; expected above 0, up to 1000")
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("augment", self.augment, AUGMENTATIONS)
        _classes("without", self.without)
        if self.weights and self.init_from:
            raise UserError("weights and init_from are both given; choose one of them")


@dataclass(frozen=True)
class ClaimConfig:
    """What a forget run takes from the queue: every pending request of a model, or those named.

    A dry run takes nothing, and forgets `classes` of `version` (0: the champion).
    """

    name: str
    run: str  # the pipeline run's id, which `close_requests` finds the claim by
    requests: tuple[str, ...] = ()
    approval: bool = False  # whether each needs a second person's
    lease_seconds: float = 24 * 3600  # a run on a cluster may wait for a GPU, and renews nothing
    holder: str | None = None
    dry_run: bool = False
    classes: tuple[int, ...] = ()
    version: int = 0

    def __post_init__(self) -> None:
        _within("lease_seconds", self.lease_seconds, 1, 30 * 24 * 3600)
        _classes("classes", self.classes)
        if not self.run:
            raise UserError(
                "the pipeline run has no id; EXPUNGE_PIPELINE_RUN has to name it in each step"
            )
        if self.dry_run and not self.classes:
            raise UserError("classes is empty; a dry run needs at least one class to forget")


@dataclass(frozen=True)
class PerturbConfig:
    """What to forget, and how. `lambdas` is empty (chosen on the codes) or lambda1 and lambda2."""

    classes: tuple[int, ...]
    rule: str = "auto"
    lambdas: tuple[float, ...] = ()
    budget: float = 0.015  # retained accuracy that the calibration may spend, a fraction

    def __post_init__(self) -> None:
        if not self.classes:
            raise UserError("classes is empty; name at least one class to forget")
        _classes("classes", self.classes)
        _one_of("rule", self.rule, RULES)
        _within("budget", self.budget, 0, 0.99)
        if len(self.lambdas) not in (0, 2):
            raise UserError(
                f"lambdas is {list(self.lambdas)}; expected lambda1 and lambda2, or neither"
            )
        if self.lambdas and self.rule != "paper":
            raise UserError(f"lambda1 and lambda2 belong to rule paper; the rule is {self.rule!r}")
        for number, value in enumerate(self.lambdas, start=1):
            if not 0 <= value < float("inf"):
                raise UserError(f"lambda{number} is {value}; expected a finite value of 0 or more")


@dataclass(frozen=True)
class GateConfig:
    """The gate's thresholds, as fractions; no check applies them finer than n samples can tell.

    `grade` is the lowest that a promotion needs, `block` the checks whose failing rejects.
    """

    forget_error: float = 0.95  # lowest E_F of a forgotten class
    budget: float = 0.015  # drop of A_R against the base version
    worst_drop: float = 0.06  # drop of the worst retained class
    chance_factor: float = 3.0  # a trained model's test accuracy, over chance
    onnx_atol: float = 1e-5
    grade: str = "suppressed"
    block: tuple[str, ...] = BASE_CHECKS

    def __post_init__(self) -> None:
        for field in ("forget_error", "budget", "worst_drop", "onnx_atol"):
            _within(field, getattr(self, field), 0, 1)
        _within("chance_factor", self.chance_factor, 1, 1e6)
        _one_of("grade", self.grade, GRADES)
        for check in self.block:
            _one_of("block", check, BASE_CHECKS + ORACLE_CHECKS)
        if not self.block:
            raise UserError("block is empty; name the checks whose failing is to reject a forget")
