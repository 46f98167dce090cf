"""The table of rules, and what a new rule needs."""

import math
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from expunge.config import PerturbConfig
from expunge.core.fisher import forget_terms
from expunge.core.rules import RULES, Rule, RuleInputs, list_rule_choices, load_rule
from expunge.core.rules.calibrate import calibrate
from expunge.core.rules.paths import Change, WeightPath


class Rows(nn.Module):
    """A linear classifier of pictures of two pixels a side."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_CD = nn.Parameter(8 * torch.eye(4))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.flatten(1) @ self.weight_CD.T


def make_toy_paths(inputs: RuleInputs) -> list[WeightPath]:
    """Shrink every weight that a forgotten code looks at, to nothing at strength 1."""

    def change(strength: float) -> Change:
        return {
            name: -min(strength, 1.0) * weight_W * (inputs.terms.forget[name] > 1e-6)
            for name, weight_W in inputs.weights.items()
        }

    return [WeightPath("toy", 1, lowest=1e-2, highest=1.0, change=change)]


@pytest.fixture
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a rule by a file of its own and one line in the table."""
    module = ModuleType("toy_rule")
    module.RULE = Rule(sufficient=0.5, make_paths=make_toy_paths)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_rule", module)
    monkeypatch.setitem(RULES, "toy", "toy_rule:RULE")


@pytest.mark.usefixtures("_toy")
@pytest.mark.parametrize("rule", ["toy", "auto"])
def test_a_rule_is_a_file_and_a_line(rule: str) -> None:
    model, codes_KCHW, classes_K = Rows(), torch.eye(4).reshape(4, 1, 2, 2), torch.arange(4)
    forget_K = classes_K == 1
    terms = forget_terms(model, codes_KCHW, classes_K, forget_K)
    choice = calibrate(model, codes_KCHW, classes_K, forget_K, terms=terms, rule=rule)
    assert "toy" in {trial.rule for trial in choice.trials}
    assert "toy" in list_rule_choices()
    assert PerturbConfig((1,), rule=rule).rule == rule
    if rule == "toy":
        assert choice.sufficient
        assert choice.trial.forget_loss >= math.log(2)


def test_every_rule_loads_and_leaves_little_of_a_code() -> None:
    for name in RULES:
        assert 0 < load_rule(name).sufficient < 0.1
    assert list_rule_choices() == ["auto", "codes", "replay", "align", *RULES]


def test_an_unknown_rule_is_a_callers_bug() -> None:
    with pytest.raises(KeyError, match="best"):
        load_rule("best")


def test_the_names_need_no_torch() -> None:
    code = "import sys, expunge.core.rules, expunge.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
