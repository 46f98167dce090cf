"""Validation report: what a run of the gate measured and what it decided, as a typed document.

`validate` writes it, and the registry's step, the ledger's, the page and the command read it. It is
stored as JSON, with a schema that changes when a key changes its meaning. Values are fractions in
[0, 1] unless a field says otherwise; None stands where there is no number.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from expunge.core.grading.checks import Check
from expunge.errors import UserError
from expunge.verdicts import PASSED, REJECTED, Verdict

SCHEMA = "expunge.validation/1"
# How the models are named. The held-out oracle is a control: it has to be forgotten.
UNLEARNED, ORIGINAL, MASK, SOFT_MASK, HELD_OUT = MODELS = (
    "unlearned",
    "original",
    "mask",
    "soft-mask",
    "held-out",
)
CLIMB = "climb"  # what a report decides beside "passed" and "rejected"
ORACLES = "oracles"  # beside them, wherever there is a value for each oracle
_REQUIRED = ("checks", "grade", "passed")


@dataclass(frozen=True)
class CheckRow:
    """One check of the gate.

    `samples` is how many images it was measured on. `about` says what it looks at. `blocks` says
    whether its failing rejects the model, `counts` whether a comparison with oracles can tell.
    """

    name: str
    value: float | None
    compare: str
    threshold: float | None
    passed: bool
    samples: int | None = None
    about: str = "outputs"
    blocks: bool = False
    counts: bool | None = None

    @classmethod
    def from_check(cls, check: Check, rejecting: Collection[str]) -> "CheckRow":
        """Return the row of a check; `rejecting` names those whose failing rejects."""
        return cls(
            name=check.name,
            value=check.value,
            compare=check.compare,
            threshold=check.threshold,
            passed=check.passed,
            samples=check.samples,
            about=check.about,
            blocks=check.name in rejecting,
            counts=check.counts,
        )

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "CheckRow":
        """Read a row."""
        return cls(**{key: row[key] for key in cls.__dataclass_fields__ if key in row})

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Accuracies:
    """Test accuracies of one model: by class, and what a training or a forget is judged by."""

    per_class: tuple[float | None, ...] = ()
    test_accuracy: float | None = None  # of a trained model, over all classes that took part
    forget_error: float | None = None  # E_F, the lowest of the forgotten classes'
    retain_accuracy: float | None = None  # A_R, over all samples of the retained classes

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Accuracies":
        """Read the accuracies."""
        return cls(
            per_class=tuple(row.get("per_class", [])),
            test_accuracy=row.get("test_accuracy"),
            forget_error=row.get("forget_error"),
            retain_accuracy=row.get("retain_accuracy"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return those that were measured as plain values."""
        found = {key: value for key, value in asdict(self).items() if value is not None}
        return found | {"per_class": list(self.per_class)}


@dataclass(frozen=True)
class AttackRow:
    """One metric: `values` by model, the oracles' in order, and the gap that passes.

    `oracles` is None where there were none. `cap` and `oracle_steps` belong to the anamnesis index,
    which is a ratio of steps: the most that were made, and how many each oracle took.
    """

    values: Mapping[str, float | None]
    oracles: tuple[float | None, ...] | None = None
    threshold: float | None = None
    cap: int | None = None
    oracle_steps: tuple[int, ...] | None = None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "AttackRow":
        """Read a row, in which the models stand beside the other keys."""
        others = (ORACLES, "threshold", "cap", "oracle_steps")
        oracles, steps = row.get(ORACLES), row.get("oracle_steps")
        return cls(
            values={key: value for key, value in row.items() if key not in others},
            oracles=None if oracles is None else tuple(oracles),
            threshold=row.get("threshold"),
            cap=row.get("cap"),
            oracle_steps=None if steps is None else tuple(steps),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values."""
        row: dict[str, Any] = {**self.values, "threshold": self.threshold}
        if self.oracles is not None:
            row[ORACLES] = list(self.oracles)
        if self.cap is not None:
            row["cap"] = self.cap
        if self.oracle_steps is not None:
            row["oracle_steps"] = list(self.oracle_steps)
        return row


@dataclass(frozen=True)
class RelearningCurves:
    """Accuracy on the class that is back furthest, by step of fine-tuning: a curve a model."""

    steps: tuple[int, ...]
    curves: Mapping[str, tuple[float | None, ...]]
    oracles: tuple[tuple[float | None, ...], ...] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "RelearningCurves":
        """Read the curves, in which the oracles' stand beside the models'."""
        curves = {name: curve for name, curve in document["curves"].items() if name != ORACLES}
        return cls(
            steps=tuple(document["steps"]),
            curves={name: tuple(curve) for name, curve in curves.items()},
            oracles=tuple(tuple(curve) for curve in document["curves"].get(ORACLES, [])),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the curves as plain values."""
        curves: dict[str, Any] = {name: list(curve) for name, curve in self.curves.items()}
        oracles = [list(curve) for curve in self.oracles]
        return {"steps": list(self.steps), "curves": curves | {ORACLES: oracles}}


@dataclass(frozen=True)
class LayerChange:
    """A tensor of weights: the norm of what was added, over the norm of what was there."""

    name: str
    relative_change: float | None


@dataclass(frozen=True)
class Depth:
    """How deep the change goes: by layer, and the lowest forget error of each half of it alone.

    `blocks` has for each block of the body how much of the class a new head finds on its output.
    """

    layers: tuple[LayerChange, ...] = ()
    head_alone: float | None = None
    body_alone: float | None = None
    both: float | None = None
    blocks: Mapping[str, AttackRow] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Depth":
        """Read the layers and, where they were measured, the halves and the blocks."""
        blocks = document.get("blocks") or {}
        return cls(
            layers=tuple(LayerChange(**row) for row in document.get("layers") or []),
            head_alone=document.get("head_alone"),
            body_alone=document.get("body_alone"),
            both=document.get("both"),
            blocks={name: AttackRow.from_json(row) for name, row in blocks.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """Return what was measured as plain values."""
        halves = {"head_alone": self.head_alone, "body_alone": self.body_alone, "both": self.both}
        found: dict[str, Any] = {key: value for key, value in halves.items() if value is not None}
        if self.blocks:
            found["blocks"] = {name: row.to_json() for name, row in self.blocks.items()}
        return {"layers": [asdict(layer) for layer in self.layers]} | found


@dataclass(frozen=True)
class Rung:
    """A rule that a ladder tried: what came of it, and how long it took.

    `rejections` are what kept it from passing, as `Verdict.rejections`. `seconds` is the time of
    the forget, and `judging_seconds` that of its validation.
    """

    rule: str
    grade: str
    passed: bool
    rejections: tuple[str, ...]
    seconds: float
    judging_seconds: float

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Rung":
        """Read a rung."""
        return cls(**{**row, "rejections": tuple(row["rejections"])})

    def to_json(self) -> dict[str, Any]:
        """Return the rung as plain values."""
        return {**asdict(self), "rejections": list(self.rejections)}


@dataclass(frozen=True)
class ValidationReport:
    """The report of a training or, where `before` is given, of a forget.

    `classes` are those to forget, `class_names` and `samples` (test images) are by class index, and
    `data_digest` is the SHA-256 of the test split. `oracles` counts those compared with. `attacks`
    are by metric. `policy` is what the gate was asked for. `rungs` are what a ladder has tried,
    this model's last, and `next_rule` is what it tries now; "" where it ends.
    """

    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    checks: tuple[CheckRow, ...]
    verdict: Verdict
    after: Accuracies
    before: Accuracies | None = None
    samples: tuple[int, ...] = ()
    data_digest: str = ""
    oracles: int = 0
    attacks: Mapping[str, AttackRow] = field(default_factory=dict)
    relearning: RelearningCurves | None = None
    depth: Depth = field(default_factory=Depth)
    policy: Mapping[str, Any] = field(default_factory=dict)
    rungs: tuple[Rung, ...] = ()
    next_rule: str = ""

    @property
    def decision(self) -> str:
        """What a pipeline does next: it goes on to the next rung, promotes, or rejects."""
        return CLIMB if self.next_rule else PASSED if self.passed else REJECTED

    @property
    def passed(self) -> bool:
        """Whether the gate lets the model pass."""
        return self.verdict.passed

    @property
    def grade(self) -> str:
        """What the model is graded."""
        return self.verdict.grade

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ValidationReport":
        """Read a report, also one from before reports had a schema; what it lacks is empty.

        Raises:
            UserError: it has another schema, or lacks what every report has.
        """
        schema = document.get("schema", SCHEMA)
        if schema != SCHEMA:
            raise UserError(
                f"the validation report has the schema {schema!r}; expected {SCHEMA!r}. Read it "
                "with the version of expunge that wrote it"
            )
        absent = [key for key in _REQUIRED if key not in document]
        if absent:
            raise UserError(
                f"the validation report lacks {', '.join(absent)}; expected one that `validate` "
                "wrote"
            )
        before, relearning = document.get("before"), document.get("relearning")
        attacks = document.get("attacks") or {}
        return cls(
            classes=tuple(document.get("classes", [])),
            class_names=tuple(document.get("class_names", [])),
            checks=tuple(CheckRow.from_json(row) for row in document["checks"]),
            verdict=Verdict.from_json(document),
            after=Accuracies.from_json(document.get("after", {})),
            before=None if before is None else Accuracies.from_json(before),
            samples=tuple(document.get("samples") or []),
            data_digest=document.get("data_digest", ""),
            oracles=document.get("oracles") or 0,
            attacks={name: AttackRow.from_json(row) for name, row in attacks.items()},
            relearning=None if relearning is None else RelearningCurves.from_json(relearning),
            depth=Depth.from_json(document.get("depth") or {}),
            policy=dict(document.get("policy") or {}),
            rungs=tuple(Rung.from_json(row) for row in document.get("rungs") or []),
            next_rule=document.get("next_rule", ""),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values; a training has fewer keys than a forget."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "classes": list(self.classes),
            "class_names": list(self.class_names),
            "data_digest": self.data_digest,
            "samples": list(self.samples),
            "after": self.after.to_json(),
            "checks": [row.to_json() for row in self.checks],
        }
        if self.before is None:
            return document | {"passed": self.passed, "grade": self.grade}
        if self.rungs:  # what forgets without a ladder has no such keys
            document["rungs"] = [rung.to_json() for rung in self.rungs]
            document["next_rule"] = self.next_rule
        return document | {
            "before": self.before.to_json(),
            "oracles": self.oracles,
            "attacks": {name: row.to_json() for name, row in self.attacks.items()},
            "relearning": None if self.relearning is None else self.relearning.to_json(),
            "depth": self.depth.to_json(),
            "policy": dict(self.policy),
            **self.verdict.to_json(),
        }
