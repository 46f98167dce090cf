"""Verdict of the gate, and the checks that decided it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PASSED, REJECTED, UNTRUSTWORTHY = "passed", "rejected", "untrustworthy"

# What stands above all else about a forget, and whether that is good or bad news, by its grade. The
# gate has no part in it: a policy may let a class pass that is only hidden, and hidden it stays.
HEADLINES = {
    "failed": "Not removed",
    "hidden": "Hidden, not removed",
    "suppressed": "Suppressed, not shown to be removed",
    "forgotten": "Forgotten, by every check that counts",
}
IN_DOUBT = "Not to be trusted"
TONES = {"failed": "bad", "hidden": "bad", "suppressed": "doubt", "forgotten": "good"}


@dataclass(frozen=True)
class Verdict:
    """What the gate said of a model.

    `needed` is the grade that the policy asks for; a training has none. `problems` say why the run
    cannot be trusted, `reasons` why the grade is not higher. `unmade` are the checks that the
    policy blocks on and that could not be made. `controls` are the grades of the controls, and
    `failed` the checks that block and failed.
    """

    passed: bool
    grade: str
    needed: str | None = None
    trustworthy: bool = True
    problems: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    unmade: tuple[str, ...] = ()
    controls: Mapping[str, str] = field(default_factory=dict)
    failed: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """What the gate said; untrustworthy where a control got a grade that it must not have."""
        if not self.trustworthy:
            return UNTRUSTWORTHY
        return PASSED if self.passed else REJECTED

    @property
    def headline(self) -> str:
        """What there is to say first, by the grade; of a training there is nothing."""
        return HEADLINES.get(self.grade, "") if self.trustworthy else IN_DOUBT

    @property
    def tone(self) -> str:
        """Whether that is "good" or "bad", or leaves a "doubt"."""
        return TONES.get(self.grade, "doubt") if self.trustworthy else "doubt"

    @property
    def rejections(self) -> list[str]:
        """The checks that block and failed, or could not be made, by name.

        The grade, such as "grade hidden", where nothing but it is lower than needed.
        """
        decisive = [*self.failed, *self.unmade]
        if decisive or self.passed or not self.trustworthy:
            return decisive
        return [f"grade {self.grade}"]

    def to_json(self) -> dict[str, Any]:
        """Return the keys that a forget's report has for it; its checks have rows of their own."""
        return {
            "passed": self.passed,
            "grade": self.grade,
            "needed": self.needed,
            "trustworthy": self.trustworthy,
            "problems": list(self.problems),
            "reasons": list(self.reasons),
            "unmade": list(self.unmade),
            "controls": dict(self.controls),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Verdict":
        """Read the verdict of a validation report, or of the result of a command that has its keys.

        The result of a training has fewer of them; it has no controls that could go wrong.
        """
        checks = document.get("checks", [])
        return cls(
            passed=document["passed"],
            grade=document.get("grade", ""),
            needed=document.get("needed"),
            trustworthy=document.get("trustworthy", True),
            problems=tuple(document.get("problems", [])),
            reasons=tuple(document.get("reasons") or []),
            unmade=tuple(document.get("unmade", [])),
            controls=dict(document.get("controls") or {}),
            failed=tuple(c["name"] for c in checks if c.get("blocks") and not c["passed"]),
        )


def read_verdict(document: Mapping[str, Any]) -> str:
    """Return what the gate said, by a validation report or the result of a command."""
    return Verdict.from_json(document).outcome
