"""The table of runners, and what follows from it."""

import subprocess
import sys

from command import command

from expunge_pipelines.runners.base import DOCKER, LOCAL, RUNNERS


def test_the_choices_of_the_command_are_the_table() -> None:
    assert list(RUNNERS) == [LOCAL, DOCKER]
    code, told, _ = command("train", "--help")
    assert code == 0
    assert f"--runner [{'|'.join(RUNNERS)}]" in told


def test_the_table_is_read_without_what_the_runners_need() -> None:
    code = "import sys, expunge_pipelines.runners.base; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"kfp", "docker", "torch", "mlflow", "sqlalchemy"} & set(done.stdout.split())
