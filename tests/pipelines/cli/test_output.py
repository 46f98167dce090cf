"""The tables for people, laid out from results as the jobs give them."""

import io
import json
from typing import Any

import forget_reports
import pytest
from rich.console import Console

from expunge_pipelines.cli.compile import print_files
from expunge_pipelines.cli.demo import print_demo
from expunge_pipelines.cli.forget import print_forgetting
from expunge_pipelines.cli.models import print_models, print_rollback
from expunge_pipelines.cli.oracles import print_oracles
from expunge_pipelines.cli.output import format_grade, print_result, print_step
from expunge_pipelines.cli.train import print_training


def printed(table: Any, value: dict[str, Any]) -> str:
    """Return what `table` lays out, in the lines of a file."""
    console = Console(file=io.StringIO(), highlight=False, soft_wrap=True, width=100)
    table(console, value)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def row(text: str, label: str) -> list[str]:
    """Return the words of the one line that begins with `label`, without it."""
    lines = [line for line in text.splitlines() if line.startswith(label)]
    assert len(lines) == 1, text
    return lines[0].removeprefix(label).split()


def check(name: str, value: float, threshold: float, *, samples: int | None) -> dict[str, Any]:
    passed = value >= threshold
    return {
        "name": name,
        "value": value,
        "compare": ">=",
        "threshold": threshold,
        "samples": samples,
        "passed": passed,
        "blocks": True,
        "counts": None,
    }


def forgotten(*, error: float = 1.0, **changed: Any) -> dict[str, Any]:
    """Return the result of a forget of class 1 of 3, which is rejected below an error of 0.95."""
    passed = error >= 0.95
    before = {"forget_error": 0.1, "retain_accuracy": 0.975, "per_class": [0.95, 0.9, 1.0]}
    after = {"forget_error": error, "retain_accuracy": 0.96, "per_class": [0.92, 1 - error, 1.0]}
    result = {
        "model": "shapes",
        "base_version": 4,
        "classes": [1],
        "request": "shapes --classes index:1 --base-version 4",
        "requests": [{"id": "20261124-ab", "state": "fulfilled" if passed else "rejected"}],
        "rule": "natural",
        "before": before,
        "after": after,
        "checks": [
            check("forget_error", error, 0.95, samples=40),
            check("onnx_equal_argmax", 1.0, 1.0, samples=None),
        ],
        "grade": "suppressed" if passed else "failed",
        "needed": "suppressed",
        "passed": passed,
        "trustworthy": True,
        "reasons": ["Nothing was compared with retrained models [yet]."],
        "oracles": 0,
        "attacks": {},
        "version": 5 if passed else None,
        "dry_run": False,
        "report": "/home/exports/shapes-[a].html",
        "seconds": {"claim_requests": 1.5, "perturb": 2.25},
        "total_seconds": 4.0,
    }
    return result | changed


def trained(*, passed: bool = True, **changed: Any) -> dict[str, Any]:
    result = {
        "model": "shapes",
        "version": 1 if passed else None,
        "erased": [],
        "asked": {},
        "fulfilled": [],
        "after": {"test_accuracy": 0.968, "per_class": [0.9, 1.0, 1.0]},
        "checks": [check("code_accuracy", 1.0 if passed else 0.5, 1.0, samples=None)],
        "grade": "trained" if passed else "failed",
        "passed": passed,
        "seconds": {"train": 11.5, "promote": 2.0},
        "total_seconds": 20.0,
    }
    return result | changed


def test_a_forget_that_passed() -> None:
    text = printed(print_forgetting, forgotten())
    assert "shapes version 4: forget 1 by rule natural" in text
    assert row(text, "1 (forgotten)") == ["90.0", "%", "0.0", "%", "-90.0"]
    assert row(text, "0 ") == ["95.0", "%", "92.0", "%", "-3.0"]
    assert row(text, "forget error E_F") == ["10.0", "%", "100.0", "%", "+90.0"]
    assert row(text, "retained A_R") == ["97.5", "%", "96.0", "%", "-1.5"]
    assert row(text, "forget_error") == ["1", ">=", "0.95", "40", "passed", "blocks"]
    assert row(text, "onnx_equal_argmax") == ["1", ">=", "1", "passed", "blocks"]
    assert "Passed: version 5 is champion, graded suppressed." in text
    assert "Nobody has shown that it is gone." in text
    assert "Nothing was compared with retrained models [yet]." in text
    request = "shapes --classes index:1 --base-version 4"
    assert f"expunge oracles {request}, then expunge forget {request} --dry-run" in text
    assert "The whole report: /home/exports/shapes-[a].html" in text
    assert "oracles' mean" not in text


def test_a_report_that_could_not_be_copied_is_not_named() -> None:
    text = printed(print_forgetting, forgotten(report=None))
    assert "Passed: version 5 is champion" in text
    assert "The whole report" not in text


def test_a_check_that_could_not_be_made_is_what_rejected() -> None:
    unmade = {"passed": False, "version": None, "unmade": ["head_recovery"]}
    text = printed(print_forgetting, forgotten(**unmade))
    assert "Rejected by the gate (head_recovery): nothing is registered" in text


def test_a_forget_that_was_rejected_names_the_failed_checks_alone() -> None:
    text = printed(print_forgetting, forgotten(error=0.5))
    assert row(text, "forget_error") == ["0.5", ">=", "0.95", "40", "FAILED", "blocks"]
    assert "Rejected by the gate (forget_error): nothing is registered" in text
    assert "Passed:" not in text
    assert "Suppressed" not in text
    assert "expunge oracles" not in text


def compared(**changed: Any) -> dict[str, Any]:
    """Return the result of a forget with three oracles to compare with."""
    report = forget_reports.with_oracles((1,), 3)
    keys = ("checks", "grade", "needed", "reasons", "oracles", "attacks")
    return forgotten(**{key: report[key] for key in keys}) | changed


def test_a_comparison_with_oracles() -> None:
    text = printed(print_forgetting, compared())
    columns = ["this", "model", "original", "mask", "soft-mask", "oracles'", "mean"]
    assert row(text, "attack ") == columns
    found = [line for line in text.splitlines() if line.startswith("head_recovery ")]
    in_checks, in_attacks = (line.split() for line in found)
    assert in_checks[-2:] == ["passed", "counts"]
    assert in_attacks == ["head_recovery", "0.952", "0.984", "0.984", "0.984", "0.951"]
    assert row(text, "anamnesis") == ["1.100", "0.000", "0.200", "1.000"]
    assert row(text, "membership") == ["0.410"]
    assert text.count("does not count") == 2
    assert "graded forgotten" in text
    assert (
        "Forgotten: by every check that counts, this model is like the 3 models that were" in text
    )
    assert "expunge oracles" not in text


def test_a_check_that_fails_without_blocking_rejects_nothing() -> None:
    differs = check("head_recovery", 0.2, 0.9, samples=9) | {"blocks": False, "counts": True}
    checks = [check("forget_error", 1.0, 0.95, samples=40), differs]
    text = printed(
        print_forgetting, compared(checks=checks, grade="suppressed", needed="suppressed")
    )
    told = next(line for line in text.splitlines() if line.startswith("head_recovery"))
    assert told.split()[1:] == ["0.2", ">=", "0.9", "9", "failed", "counts"]
    assert "FAILED" not in text
    assert "Passed: version 5 is champion" in text


def test_a_grade_that_the_policy_finds_too_low() -> None:
    low = {"passed": False, "grade": "suppressed", "version": None}
    text = printed(print_forgetting, compared(**low))
    assert "Rejected by the gate (grade suppressed): nothing is registered" in text
    assert "The policy asks for grade forgotten." in text


@pytest.mark.parametrize("needed", ["suppressed", "hidden"])
def test_what_is_hidden_is_said_first_whatever_the_policy_allows(needed: str) -> None:
    found = {"passed": needed == "hidden", "grade": "hidden", "needed": needed}
    text = printed(print_forgetting, compared(**found))
    assert "Hidden, not removed" in text
    assert "the layers before them still hold it" in text
    assert ("Rejected by the gate (grade hidden)" in text) == (needed == "suppressed")
    assert ("champion, graded hidden." in text) == (needed == "hidden")
    assert format_grade("hidden").style == "bold red"
    assert format_grade("trained").style == ""


def test_a_measurement_that_cannot_be_trusted() -> None:
    broken = {"trustworthy": False, "passed": False, "reasons": ["The mask was graded forgotten."]}
    text = printed(print_forgetting, compared(**broken))
    assert "Not to be trusted: a control got a grade that it must not get." in text
    assert "The mask was graded forgotten." in text
    assert "Rejected" not in text


def test_oracles() -> None:
    rows = [
        {"seed": 1001, "version": 2, "test_accuracy": 0.9625, "reused": True},
        {"seed": 1003, "version": 3, "test_accuracy": None, "reused": False},
    ]
    value = {"model": "shapes-oracles", "base_version": 4, "without": [1, 3], "oracles": rows}
    value |= {"request": "shapes --classes 1", "serves": True}
    text = printed(print_oracles, value)
    assert "shapes-oracles: retrained without 1, 3, as version 4 was trained" in text
    assert row(text, "1001") == ["2", "96.2", "%", "was", "there"]
    assert row(text, "1003") == ["3", "new"]
    assert "expunge forget finds them by itself: expunge forget shapes --classes 1\n" in text
    assert "compared with oracles if there are 4 or more; 2 more are needed." in text
    assert "more are" not in printed(print_oracles, value | {"oracles": rows * 2})
    older = {"request": "shapes --classes 1 --base-version 2", "serves": False}
    text = printed(print_oracles, value | older)
    assert "expunge forget shapes --classes 1 --base-version 2 --dry-run\n" in text
    assert "by itself" not in text
    assert "expunge forget" not in printed(print_oracles, value | older | {"request": None})


def test_a_dry_run_does_not_speak_of_a_champion() -> None:
    text = printed(print_forgetting, forgotten(version=None, dry_run=True))
    assert "The gate passed. A dry run registers nothing." in text
    assert "champion" not in text


def test_a_training() -> None:
    text = printed(print_training, trained())
    assert "shapes: trained, test accuracy 96.8 %, version 1" in text
    assert "Left out" not in text
    assert "Passed: version 1 is champion, graded trained." in text
    text = printed(print_training, trained(passed=False, erased=[2, 7]))
    assert "no version" in text
    assert "Left out, since this model has erased them: 2, 7" in text
    assert "Rejected by the gate (code_accuracy)" in text


def test_the_demo_says_where_the_time_went_and_what_to_look_at() -> None:
    jobs = {"train": trained(), "forget": forgotten()}
    value = {"model": "shapes", **jobs, "onnx": "/home/exports/shapes-5.onnx", "seconds": 24.0}
    text = printed(print_demo, value)
    assert row(text, "perturb") == ["2.2"]
    assert row(text, "all ") == ["20.0", "4.0"]
    assert "/home/exports/shapes-5.onnx" in text
    assert "mlflow models serve -m models:/shapes@champion" in text
    assert ".onnx" not in printed(print_demo, value | {"onnx": None})


def test_models() -> None:
    version = {"model": "shapes", "version": 2, "aliases": ["champion"], "kind": "forget"}
    version |= {
        "seed": None,
        "test_accuracy": None,
        "grade": "suppressed",
        "forgotten": [1, 3],
        "parent": "shapes/1",
        "created": "now",
    }
    text = printed(print_models, {"models": [version]})
    assert row(text, "shapes ") == [
        "2",
        "champion",
        "forget",
        "suppressed",
        "1,",
        "3",
        "shapes/1",
        "now",
    ]
    assert "seed" not in text
    oracle = version | {"model": "shapes-oracles", "seed": 77, "test_accuracy": 0.9625}
    text = printed(print_models, {"models": [oracle]})
    assert row(text, "shapes-oracles ")[-4:] == ["77", "96.2", "%", "now"]
    assert "test accuracy" in text
    assert printed(print_models, {"models": []}) == "No model yet: expunge demo makes one.\n"


def test_a_rollback_and_a_compilation() -> None:
    text = printed(print_rollback, {"model": "shapes", "version": 1, "replaced": 2})
    assert text == "shapes: version 1 is champion again, 2 is previous\n"
    files = ["made/train.yaml", "made/forget.yaml"]
    assert printed(print_files, {"files": files}).splitlines() == files


def test_a_result_is_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(forgotten(), True, print_forgetting)
    assert json.loads(capsys.readouterr().out) == forgotten()
    with pytest.raises(ValueError, match="JSON compliant"):
        print_result(forgotten(error=float("nan")), True, print_forgetting)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_step("perturb")
    assert capsys.readouterr() == ("", "  perturb ...\n")
