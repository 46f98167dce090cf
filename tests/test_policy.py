from pathlib import Path

import pytest

from expunge.config import BASE_CHECKS, GateConfig
from expunge.errors import UserError
from expunge.policy import Policy, load_policy


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_left_out_keeps_its_default(tmp_path: Path) -> None:
    assert load_policy(written(tmp_path, "budget: 0.01")) == Policy(GateConfig(budget=0.01))
    assert load_policy(written(tmp_path, "{}")) == Policy(GateConfig(), approval=False)
    assert load_policy(written(tmp_path, "approval: true")) == Policy(approval=True)


def test_every_key_is_taken(tmp_path: Path) -> None:
    text = """
        grade: forgotten
        budget: 0
        forget_error: 1
        worst_drop: 0.05
        block: [forget_error, head_recovery]
    """
    assert load_policy(written(tmp_path, text)).gate == GateConfig(
        forget_error=1,
        budget=0,
        worst_drop=0.05,
        grade="forgotten",
        block=("forget_error", "head_recovery"),
    )


def test_an_option_goes_before_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "{budget: 0.01, worst_drop: 0.02}")
    policy = load_policy(path, budget=0.03, worst_drop=None).gate
    assert (policy.budget, policy.worst_drop) == (0.03, 0.02)


def test_a_wrong_option_is_not_the_files_fault(tmp_path: Path) -> None:
    path = written(tmp_path, "budget: 0.01")
    with pytest.raises(UserError, match=r"^budget is 2; expected a value from 0 to 1"):
        load_policy(path, budget=2)
    with pytest.raises(UserError, match=f"^policy {path}, line 1: budget is 3; expected a fra"):
        load_policy(written(tmp_path, "budget: 3"), budget=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("block: [forget_eror]", r"block\[0\] is 'forget_eror'; expected one of forget_error, "),
        ("block: []", "block is empty; name the checks"),
        ("block: forget_error", "block is 'forget_error'; expected a list"),
        ("block: [1]", r"block\[0\] is 1; expected one of forget_error, "),
        ("approval: 1", "approval is 1; expected true or false"),
        ("grade: failed", "grade is 'failed'; expected one of hidden, suppressed, forgotten"),
        ("grade: 1", "grade is 1; expected one of hidden, suppressed, forgotten"),
        ("budget: 1.5", "budget is 1.5; expected a fraction from 0 to 1"),
        ("budget: -0.1", "budget is -0.1; expected a fraction from 0 to 1"),
        ("forget_error: .nan", "forget_error is '.nan'; expected a fraction from 0 to 1$"),
        ("worst_drop: true", "worst_drop is true; expected a fraction"),
        ("worst_drop: '5 %'", "worst_drop is '5 %'; expected a fraction"),
        ("budget: 1e-2", "budget is '1e-2'; expected a fraction from 0 to 1; write 0.01"),
        ("budget: 1e-5", "budget is '1e-5'; expected a fraction from 0 to 1; write 0.00001"),
        ("budget: 'nan'", "budget is 'nan'; expected a fraction from 0 to 1$"),
        (
            "budget: 0.01\ngrade: forgotten\nbudget: 0.5",
            "budget is set more than once, in line 1 too; leave one",
        ),
        ("treshold: 1", "treshold is unknown; expected approval, block, budget"),
        ("block:", "block has no value; give it one, or leave the key out"),
        ("grade: null", "grade has no value; give it one"),
        ("", "the file holds nothing; expected keys such as grade: forgotten"),
        ("[1, 2]", r"the file holds \['...', '...'\]; expected keys and values"),
        ("a: [", r"this is no YAML \("),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=rf"policy {path}, line \d: {message}"):
        load_policy(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"policy .*absent\.yaml cannot be read .*No such file"):
        load_policy(tmp_path / "absent.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="binary, line 1: this is no UTF-8; save it as UTF-8"):
        load_policy(tmp_path / "binary")


def test_a_mistake_has_its_line(tmp_path: Path) -> None:
    for text, message in (
        ("grade: forgotten\n\nbudget: high\n", "line 3: budget is 'high'"),
        ("budget: 0.1\nblock:\n  - relearning\n  - worst\n", "line 4: block\\[1\\] is 'worst'"),
        ("budget: 0.1\nbudget: 0.1\n", "line 2: budget is set more than once, in line 1 too"),
    ):
        with pytest.raises(UserError, match=message):
            load_policy(written(tmp_path, text))


@pytest.mark.parametrize("number", [".5", "0.5", "+0.5", "5.0e-1", "0_0.5"])
def test_a_number_is_what_yaml_takes_for_one(tmp_path: Path, number: str) -> None:
    assert load_policy(written(tmp_path, f"budget: {number}")).gate.budget == 0.5


def test_a_credential_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: this looks like a credential; put it") as caught:
        load_policy(written(tmp_path, "token: hush"))
    assert "hush" not in str(caught.value)


def test_by_default_every_check_without_oracles_rejects() -> None:
    assert GateConfig().block == BASE_CHECKS
