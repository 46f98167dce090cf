"""What a user gets wrong, and how the command says so. No pipeline has to run for these."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from trained_store import command

from expunge import __version__
from expunge.config import GateConfig
from expunge.errors import RefusedError
from expunge.policy import Policy
from expunge_pipelines.cli import COMMANDS
from expunge_pipelines.cli.main import cli, main
from expunge_pipelines.jobs import forget as forget_job
from expunge_pipelines.jobs import models as models_job

TRAIN = ["train", "shapes", "--data", "digits", "--arch", "mlp"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["forget", "absent", "--classes", "1"], "there is no model 'absent' (known: none yet)"),
        (["models", "absent"], "there is no model 'absent'"),
        (["rollback", "absent"], "there is no model 'absent'"),
        (["forget", "shapes"], "Missing option '--classes'"),
        (["train", "shapes", "--arch", "mlp"], "Missing option '--data'"),
        (["forget", "a b", "--classes", "1"], "the model name 'a b' is not usable"),
        ([*TRAIN, "--epochs", "0"], "epochs is 0; expected a value from 1 to"),
        ([*TRAIN, "--epochs", "many"], "'many' is not a valid integer"),
        ([*TRAIN, "--t-mix", "1.5"], "t_mix is 1.5; expected a value from 0 to 1"),
        ([*TRAIN, "--lr", "0"], "learning_rate is 0.0; expected above 0"),
        ([*TRAIN, "--precision", "int8"], "'int8' is not one of"),
        ([*TRAIN, "--without", "cat"], "a model that has no champion yet takes indices"),
        ([*TRAIN, "--weights", "a", "--init-from", "b"], "choose one of them"),
        (["forget", "shapes", "--classes", "1", "--budget", "2"], "budget is 2.0; expected"),
        (["forget", "shapes", "--classes", "1", "--rule", "magic"], "'magic' is not one of"),
        (["forget", "shapes", "--classes", "1", "--budget", "much"], "'much' is not a valid float"),
        (
            ["forget", "shapes", "--classes", "1", "--policy", "absent"],
            "policy absent cannot be read",
        ),
        (["oracles", "absent", "--classes", "1"], "there is no model 'absent'"),
        (["oracles", "shapes"], "Missing option '--classes'"),
        (["oracles", "shapes", "--classes", "1", "--seeds", "0"], "0 is not in the range"),
        (["train", "a-oracles", *TRAIN[2:]], "or choose one that does not end with -oracles"),
        (["forget", "a-oracles", "--classes", "1"], "'a-oracles' holds oracles; name the model"),
        (["oracles", "a-oracles", "--classes", "1"], "'a-oracles' holds oracles; name the model"),
        (["rollback", "a-oracles"], "'a-oracles' holds oracles; name the model that they are for"),
        (["models", "a-oracles"], "there is no model 'a-oracles', a name that holds oracles"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    code, out, err = command(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert out == ""


def test_a_mistake_with_json_is_one_document() -> None:
    code, out, _ = command("forget", "absent", "--classes", "1", "--json")
    assert code == 2
    assert json.loads(out)["exit_code"] == 2


def test_an_empty_registry_lists_no_model() -> None:
    code, out, _ = command("models")
    assert (code, out.strip()) == (0, "No model yet: expunge demo makes one.")


def test_an_unknown_architecture_and_source_end_their_step_with_exit_2() -> None:
    code, _, err = command("train", "shapes", "--data", "letters", "--arch", "mlp")
    assert code == 2
    assert "letters" in err.splitlines()[-1]
    code, _, err = command("train", "shapes", "--data", "digits", "--arch", "perceptron")
    assert code == 2
    assert "architecture 'perceptron' is unknown" in err.splitlines()[-1]
    assert json.loads(command("models", "--json")[1]) == {"models": []}


def test_a_store_that_is_down_is_exit_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    code, out, err = command("models")
    assert (code, out) == (3, "")
    assert "127.0.0.1:9" in err
    assert "secret" not in err


def test_a_home_that_cannot_be_made_is_exit_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXPUNGE_HOME", str(tmp_path / "file" / "home"))
    code, _, err = command(*TRAIN)
    assert code == 3
    assert err.count("\n") == 1


def test_what_is_given_overrides_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an empty text, as `mlflow run` hands it on, does not."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("grade: forgotten\nbudget: 0.5\nforget_error: 0.7\nblock: [cmia]\n")
    gates: list[GateConfig] = []

    def keep_gate(name: str, class_texts: list[str], *, policy: Policy, **options: object) -> None:
        gates.append(policy.gate)
        raise RefusedError("seen")

    monkeypatch.setattr(forget_job, "forget", keep_gate)
    request = ["forget", "shapes", "--classes", "1", "--budget", "0.25", "--worst-drop", ""]
    assert command(*request, "--policy", str(policy))[0] == 1
    assert command(*request)[0] == 1
    monkeypatch.setenv("EXPUNGE_POLICY", str(policy))
    assert command(*request)[0] == 1
    own = GateConfig(forget_error=0.7, budget=0.25, grade="forgotten", block=("cmia",))
    assert gates == [own, GateConfig(budget=0.25), own]


def test_an_untrustworthy_measurement_is_exit_3_and_still_a_document(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = {"passed": False, "trustworthy": False, "checks": [], "report": "page.html"}
    result |= {"reasons": ["The mask passed.", "It differs."], "problems": ["The mask passed."]}
    monkeypatch.setattr(forget_job, "forget", lambda *_, **__: result)
    code, out, err = command("forget", "shapes", "--classes", "1", "--json")
    assert code == 3
    assert json.loads(out) == result
    assert err == "expunge: this measurement cannot be trusted: The mask passed.\n"
    del result["problems"]
    err = command("forget", "shapes", "--classes", "1", "--json")[2]
    assert err == "expunge: this measurement cannot be trusted: The mask passed. It differs.\n"


def test_an_interrupt_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models_job, "list_models", interrupted)
    code, _, err = command("models")
    assert code == 130
    assert "expunge: interrupted" in err


def test_a_bug_is_one_line_that_says_how_to_see_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str | None) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(models_job, "list_models", broken)
    code, _, err = command("models")
    assert code == 3
    assert err == "expunge: RuntimeError: no such thing (EXPUNGE_DEBUG=1 shows where)\n"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main(["forget", "--help"]) == 0
    assert "--dry-run" in capsys.readouterr().out


def test_help_lists_every_command_in_the_order_of_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    rows = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert [row.split()[0] for row in rows] == list(COMMANDS)
    assert all(len(row.split()) > 1 and not row.endswith("...") for row in rows)


def test_a_command_is_a_line_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "greet.py").write_text(
        "import click\n@click.command()\ndef greet():\n    'Say hello.'\n    click.echo('hello')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "greet", "greet:greet")
    try:
        assert main(["greet"]) == 0
        assert capsys.readouterr().out == "hello\n"
        assert main(["--help"]) == 0
        assert "greet" in capsys.readouterr().out
    finally:
        cli.commands.pop("greet", None)


def test_a_command_imports_no_other() -> None:
    """And the package itself can be run."""
    code = (
        "import runpy, sys; sys.argv = ['expunge', 'ui', '--port', '0']\n"
        "try: runpy.run_module('expunge_pipelines.cli', run_name='__main__')\n"
        "except SystemExit as end: print(end.code)\n"
        "prefix = 'expunge_pipelines.cli.'\n"
        "print(sorted(name.removeprefix(prefix) for name in sys.modules if prefix in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "0 is not in the range 1<=x<=65535" in done.stderr
    assert done.stdout.splitlines() == ["2", "['main', 'ui']"]


def test_help_starts_without_the_heavy_imports() -> None:
    code = (
        "import sys; from expunge_pipelines.cli.main import main; main(['--help']); "
        "print(sorted({'torch', 'mlflow', 'kfp', 'torchvision', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
