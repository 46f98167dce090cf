"""Settings of each step: one frozen dataclass a step, checked once, when it is built.

A wrong value raises `UserError` with the field's name, the value, what was expected and the remedy.
No torch here: the command reads these before it knows what it has to load.

To add a training knob, give `TrainConfig` a field and use it. The command's option, the ports, the
form in Kubeflow's UI and the MLflow project all follow from the field and its `Knob`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from expunge.core.attacks import ATTACKS
from expunge.core.grading.grades import GRADES
from expunge.core.rules import ALIGN, AUTO, LADDER, REPLAY, list_rule_choices
from expunge.errors import UserError
from expunge.knobs import JsonSettings, check_choice, check_range, describe, list_fields, restore

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SCHEDULES = ("cosine", "none")
DEPTHS = ("auto", "always", "never")
AUGMENTATIONS = ("auto", "none", "flip", "crop-flip")
# The grades that a promotion may ask for, the lesser first: no policy lets a failed forget pass.
NEEDED_GRADES = GRADES[1:]
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


# What the gate reads of a training, and of a forget: the rest of a `GateConfig` is not asked for.
TRAIN_GATE = ("chance_factor", "onnx_atol")
FORGET_GATE = ("forget_error", "budget", "worst_drop", "onnx_atol", "grade", "block")


def restore_classes(classes: Iterable[float], name: str = "classes") -> tuple[int, ...]:
    """Return class indices as whole numbers: kfp hands lists on as JSON, where all are floats.

    Raises:
        UserError: one of them is no whole number.
    """
    return tuple(restore(name, int, index) for index in classes)


def _check_classes(name: str, classes: Sequence[int]) -> None:
    if any(index < 0 for index in classes) or len(set(classes)) != len(classes):
        raise UserError(f"{name} is {list(classes)}; expected distinct class indices from 0 up")


@dataclass(frozen=True)
class PrepareDataConfig:
    """Where the images come from and how large they become."""

    source: (
        str  # digits, mnist, fashion-mnist, cifar10, cifar100, folder:PATH or s3://bucket/prefix
    )
    data_root: Path  # torchvision's files and downloads
    image_size: int = 0  # pixels of each side; 0 keeps the images' own size
    splits: tuple[str, ...] = ("train", "test")  # a forget without oracles needs only "test"
    optional_splits: tuple[str, ...] = ()  # taken along where the source has them

    def __post_init__(self) -> None:
        check_range("image_size", self.image_size, 0, 4096)
        if not self.splits or not set(self.splits) <= {"train", "test"}:
            raise UserError(f"splits is {list(self.splits)}; expected train, test or both")
        if not set(self.optional_splits) <= {"train", "test"}:
            raise UserError(
                f"optional_splits is {list(self.optional_splits)}; expected train, test or none"
            )


@dataclass(frozen=True)
class TrainConfig(JsonSettings):
    """The recipe. Defaults are the paper's where it gives one for all data sets."""

    title: ClassVar[str] = "recipe"

    arch: str = field(metadata=describe("mlp, resnet20, resnet18-cifar, or a torchvision name."))
    epochs: int = field(
        default=20, metadata=describe("Passes over the training images.", low=1, high=100_000)
    )
    batch_size: int = field(
        default=128,
        metadata=describe("Images in a step, over all processes together.", low=1, high=1_000_000),
    )
    learning_rate: float = field(
        default=0.01, metadata=describe("Learning rate at the start.", option="lr")
    )
    momentum: float = field(
        # At 1 no old gradient ever fades.
        default=0.9,
        metadata=describe("Momentum of SGD.", low=0, high=0.9999),
    )
    weight_decay: float = field(default=5e-4, metadata=describe("Weight decay.", low=0, high=1))
    schedule: str = field(
        default="cosine", metadata=describe("How the learning rate falls.", choices=SCHEDULES)
    )
    t_mix: float = field(
        default=0.1,
        metadata=describe(
            "Probability that an image is replaced by its class's code.", low=0, high=1
        ),
    )
    seed: int = field(
        default=0,
        metadata=describe("Seed of the weights, the codes and the order.", low=0, high=2**63 - 1),
    )
    # Class indices that take no part: neither images nor code. The command takes names as well,
    # which only the model can tell, so that this field has no option of its own.
    without: tuple[int, ...] = ()
    weights: str = field(
        default="", metadata=describe("Pretrained: torchvision's name, or a file.")
    )
    init_from: str = field(
        default="", metadata=describe("An existing classifier: models:/NAME/1 or a file.")
    )
    precision: str = field(
        default="auto",
        metadata=describe("Floating-point format of the training.", choices=PRECISIONS),
    )
    augment: str = field(
        default="auto",
        metadata=describe("Random changes of the training images.", choices=AUGMENTATIONS),
    )
    # Above 1 they run under torchrun.
    processes: int = field(
        default=1, metadata=describe("Processes on a node, one GPU each.", low=1, high=1024)
    )
    # Above 1 they run as a TrainJob of Kubeflow Trainer.
    nodes: int = field(default=1, metadata=describe("Machines, on a cluster.", low=1, high=1024))
    statistics: float = field(
        default=0.5,
        metadata=describe(
            "Room for class statistics, in shares of the weights' bytes; 0 keeps none.",
            low=0,
            high=100,
        ),
    )
    stage: str = field(
        default="", metadata=describe("Module that the last stage begins with, found if empty.")
    )
    depths: str = field(
        default="auto",
        metadata=describe(
            "Whether to find each class's depth; auto does where it is cheap.", choices=DEPTHS
        ),
    )
    # For images that do not fit into memory.
    workers: int = field(
        default=2, metadata=describe("Processes that decode images.", low=0, high=1024)
    )

    def __post_init__(self) -> None:
        for name, setting in list_fields(type(self)).items():
            if "knob" in setting.metadata:
                setting.metadata["knob"].check(name, getattr(self, name))
        # Apart from the others, as its lower end is not in the range.
        if not 0 < self.learning_rate <= 1000:
            raise UserError(f"learning_rate is {self.learning_rate}; expected above 0, up to 1000")
        _check_classes("without", self.without)
        if self.weights and self.init_from:
            raise UserError("weights and init_from are both given; choose one of them")


# What comes after the last step of a training: no weight depends on it.
AFTERWARDS = ("statistics", "stage", "depths")
# What the oracles of a version take of its recipe: their seeds are their own, and each is trained
# from scratch.
ORACLE_RECIPE = tuple(key for key in list_fields(TrainConfig) if key not in ("seed", "init_from"))


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
        check_range("lease_seconds", self.lease_seconds, 1, 30 * 24 * 3600)
        _check_classes("classes", self.classes)
        if not self.run:
            raise UserError(
                "the pipeline run has no id; EXPUNGE_PIPELINE_RUN has to name it in each step"
            )
        if self.dry_run and not self.classes:
            raise UserError("classes is empty; a dry run needs at least one class to forget")


def check_ladder(rule: str) -> None:
    """Refuse a rule beside a ladder, which tries several.

    Raises:
        UserError: it is another than auto.
    """
    if rule != AUTO:
        raise UserError(
            f"rule is {rule!r}, and a ladder (--until) tries {', '.join(LADDER)} in turn; leave "
            "one of the two out"
        )


@dataclass(frozen=True)
class PerturbConfig:
    """What to forget, and how. `lambdas` is empty (chosen on the codes) or lambda1 and lambda2."""

    classes: tuple[int, ...]
    rule: str = "auto"
    lambdas: tuple[float, ...] = ()
    budget: float = 0.015  # retained accuracy that the calibration may spend, a fraction
    # Where images of the classes are that replay finds their depth by; "" for the version's own.
    forget_data: str = ""
    rung: int = 0  # of the ladder, from 1, which then gives the rule; 0 outside of a ladder

    def __post_init__(self) -> None:
        if self.rung:
            check_ladder(self.rule)
            check_range("rung", self.rung, 1, len(LADDER))
        if not self.classes:
            raise UserError("classes is empty; name at least one class to forget")
        _check_classes("classes", self.classes)
        check_choice("rule", self.rule, list_rule_choices())
        check_range("budget", self.budget, 0, 0.99)
        if len(self.lambdas) not in (0, 2):
            raise UserError(
                f"lambdas is {list(self.lambdas)}; expected lambda1 and lambda2, or neither"
            )
        if self.forget_data and self.rule not in (AUTO, REPLAY, ALIGN):
            raise UserError(
                f"forget_data is {self.forget_data!r}, and rule {self.rule!r} reads no images; "
                "leave it out, or take rule replay"
            )
        if self.lambdas and self.rule != "paper":
            raise UserError(f"lambda1 and lambda2 belong to rule paper; the rule is {self.rule!r}")
        for number, value in enumerate(self.lambdas, start=1):
            if not 0 <= value < float("inf"):
                raise UserError(f"lambda{number} is {value}; expected a finite value of 0 or more")


@dataclass(frozen=True)
class GateConfig(JsonSettings):
    """The gate's thresholds, as fractions.

    `core.grading.checks` never applies them finer than the number of images can tell. `grade` is
    the lowest that a promotion needs, `block` the checks whose failing rejects.
    """

    title: ClassVar[str] = "gate"

    forget_error: float = 0.95  # lowest E_F of a forgotten class
    budget: float = 0.015  # drop of A_R against the base version
    worst_drop: float = 0.06  # drop of the worst retained class
    chance_factor: float = 3.0  # a trained model's test accuracy, over chance
    onnx_atol: float = 1e-5
    grade: str = "suppressed"
    block: tuple[str, ...] = BASE_CHECKS

    def __post_init__(self) -> None:
        for threshold in ("forget_error", "budget", "worst_drop", "onnx_atol"):
            check_range(threshold, getattr(self, threshold), 0, 1)
        check_range("chance_factor", self.chance_factor, 1, 1e6)
        check_choice("grade", self.grade, NEEDED_GRADES)
        for check in self.block:
            check_choice("block", check, BASE_CHECKS + ORACLE_CHECKS)
        if not self.block:
            raise UserError("block is empty; name the checks whose failing is to reject a forget")
