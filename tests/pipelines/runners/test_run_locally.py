"""The local runner: what it reads from the steps, and what it leaves behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from kfp import dsl

from expunge import environment
from expunge.errors import DataError, OperationalError, UserError
from expunge_pipelines.runners.leftovers import HOLDER, remove_leftovers
from expunge_pipelines.runners.run_locally import run_locally


@dsl.component(base_image="python", packages_to_install=[], install_kfp_package=False)
def works(text: str) -> str:
    import os
    from pathlib import Path

    if not Path(os.environ["TMPDIR"]).is_dir():
        raise RuntimeError("no folder for temporary files")
    return text


@dsl.component(base_image="python", packages_to_install=[], install_kfp_package=False)
def refuses(text: str) -> None:
    from expunge.errors import DataError

    raise DataError(f"image {text} is broken; replace it")


@dsl.component(base_image="python", packages_to_install=[], install_kfp_package=False)
def dies(text: str) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


@dsl.component(base_image="python", packages_to_install=[], install_kfp_package=False)
def waits(text: str) -> None:
    import time
    from pathlib import Path

    try:
        Path(text, "ready").touch()
        time.sleep(60)
    finally:
        time.sleep(0.2)
        Path(text, "cleaned").touch()


@dsl.component(base_image="python", packages_to_install=[], install_kfp_package=False)
def breaks(text: str) -> None:
    import expunge

    raise KeyError(f"{text} of {expunge.__name__}")


@dsl.component(base_image="python", packages_to_install=[], install_kfp_package=False)
def breaks_before(text: str) -> None:
    raise RuntimeError(f"{text} is not there")


@dsl.pipeline(name="good")
def good(text: str) -> None:
    first = works(text=text)
    works(text=first.output)


@dsl.pipeline(name="bad")
def bad(text: str) -> None:
    refuses(text=text)


@dsl.pipeline(name="killed")
def killed(text: str) -> None:
    dies(text=text)


@dsl.pipeline(name="broken")
def broken(text: str) -> None:
    breaks(text=text)


@dsl.pipeline(name="broken-before")
def broken_before(text: str) -> None:
    breaks_before(text=text)


@dsl.pipeline(name="waiting")
def waiting(text: str) -> None:
    waits(text=text)


@dsl.pipeline(name="apart")
def apart(text: str) -> None:
    """Two steps that do not need each other."""
    refuses(text=text)
    refuses(text="behind it")


def runs() -> list[Path]:
    return sorted((environment.home() / "runs").iterdir())


def test_steps_are_announced_and_timed_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    started: list[str] = []
    run = run_locally(good, {"text": "hello"}, on_start=started.append)
    assert started == ["works", "works_2"] == list(run.seconds)
    assert 0 < sum(run.seconds.values()) <= run.total
    assert runs() == []
    assert os.environ["TMPDIR"] == "/tmp"
    assert capsys.readouterr().out == ""


def test_an_error_of_a_step_is_raised_here_as_it_was_there() -> None:
    with pytest.raises(DataError, match=r"^image a\.png is broken; replace it$") as caught:
        run_locally(bad, {"text": "a.png"})
    assert isinstance(caught.value, UserError)
    assert caught.value.exit_code == 2
    (work,) = runs()
    assert [path.name for path in work.iterdir()] == ["log.txt"]
    assert "DataError: image a.png is broken" in (work / "log.txt").read_text()


def test_an_error_of_several_lines_is_whole() -> None:
    with pytest.raises(DataError, match=r"^image first line\nsecond line is broken; replace it$"):
        run_locally(bad, {"text": "first line\nsecond line"})


def test_an_error_of_somebody_else_is_named_with_the_log() -> None:
    """Whether its process had imported a module of ours by then, or not."""
    with pytest.raises(OperationalError, match=r"breaks failed \(KeyError: 'x of expunge'\); its"):
        run_locally(broken, {"text": "x"})
    with pytest.raises(OperationalError, match=r"failed \(RuntimeError: x is not there\); its log"):
        run_locally(broken_before, {"text": "x"})


def test_no_step_starts_after_one_that_failed() -> None:
    started: list[str] = []
    with pytest.raises(DataError, match=r"^image (a\.png|behind it) is broken"):
        run_locally(apart, {"text": "a.png"}, on_start=started.append)
    assert len(started) == 1


def test_a_step_that_is_killed_names_its_log() -> None:
    with pytest.raises(
        OperationalError, match=r"step dies failed \(it was killed.*its log is .*log\.txt"
    ):
        run_locally(killed, {"text": ""})


def test_what_a_clean_up_left_that_was_killed_is_removed_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            run_locally(bad, {"text": "a.png"})
    (work,) = runs()
    assert (work / "tmp").is_dir()
    assert (work / HOLDER).exists()
    (work / HOLDER).write_text("ended")
    remove_leftovers()
    assert [path.name for path in work.iterdir()] == ["log.txt"]


COMMAND = """
import sys
sys.path.insert(0, sys.argv[1])
from test_run_locally import run_locally, waiting
run_locally(waiting, {"text": sys.argv[2]})
"""


def test_a_step_cleans_up_when_the_command_alone_is_interrupted(tmp_path: Path) -> None:
    """In a process of its own: Python drops an interrupt that meets a finalizer of the tests."""
    arguments = [str(Path(__file__).parent), str(tmp_path)]
    with (tmp_path / "said").open("w") as said:
        command = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stderr=said)
    try:
        while not (tmp_path / "ready").exists():
            assert command.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)
        since = time.monotonic()
        # Its own finalizers may drop one as well, so another follows, as a person's would.
        while command.poll() is None and time.monotonic() - since < 30:
            command.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                command.wait(12)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in (tmp_path / "said").read_text()
    assert (tmp_path / "cleaned").exists()
    assert time.monotonic() - since < 30, "it did not wait for the step to sleep through"
