"""Every attack has one line in `ATTACKS`, and all that others know of it is there."""

import subprocess
import sys
from pathlib import Path

import pytest

from expunge.config import ORACLE_CHECKS, GateConfig
from expunge.core.attacks import ATTACKS
from expunge.core.grading.grades import BODY, TOLERANCES
from expunge.report.words import MEANINGS, name_metric

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_can_be_made_and_explained(name: str) -> None:
    attack = ATTACKS[name]
    assert attack.name == name
    assert callable(attack.measure)
    assert attack.needs == "model" or callable(attack.learn)
    assert MEANINGS[name] == attack.meaning
    assert GateConfig(block=(name,)).block == (name,)


def test_what_is_compared_is_what_has_a_tolerance() -> None:
    assert tuple(ATTACKS) == ORACLE_CHECKS
    assert set(ATTACKS) - set(TOLERANCES) == {"head_swap"}
    assert BODY == ("head_recovery", "head_recovery_logistic", "prototype_recovery")


def test_names_in_sentences() -> None:
    assert [name_metric(name) for name in ("cmia", "tow", "head_swap", "forget_error")] == [
        "class membership",
        "tug of war",
        "head swap",
        "forget error",
    ]


def test_every_file_of_the_folder_is_an_attack() -> None:
    folder = ROOT / "components" / "expunge" / "core" / "attacks"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "case"}
    assert files == {attack.module or attack.name for attack in ATTACKS.values()}


def test_the_documents_name_every_attack() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert not [name for name in ATTACKS if f"| `{name}` |" not in text]


def test_the_table_needs_no_torch() -> None:
    code = (
        "import sys, expunge.core.attacks;"
        "sys.exit(bool({'torch', 'numpy', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
