"""What a process that torchrun started tells its launcher, and when it ends by itself."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from expunge.errors import UserError
from expunge.training.process import report_events

logger = logging.getLogger("expunge.training.loop")


@pytest.fixture(autouse=True)
def _package_log() -> Iterator[None]:
    package = logging.getLogger("expunge")
    before = package.level, package.propagate
    yield
    package.setLevel(before[0])
    package.propagate = before[1]


def events(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_the_first_process_tells_epochs_and_log(tmp_path: Path) -> None:
    with report_events(tmp_path, first=True) as on_epoch:
        on_epoch(1, {"train_loss": 0.5})
        logger.info("going on after epoch %d", 1)
        assert len(events(tmp_path)) == 2  # at once, not at the end
    logger.info("nobody hears this")
    assert events(tmp_path) == [
        {"epoch": 1, "metrics": {"train_loss": 0.5}},
        {"logger": logger.name, "level": logging.INFO, "message": "going on after epoch 1"},
    ]


def test_the_others_keep_their_log(tmp_path: Path) -> None:
    with report_events(tmp_path, first=False):
        logger.warning("in the output of this process")
    assert events(tmp_path) == []


def test_an_error_is_written_down(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended, report_events(tmp_path, first=False):
        raise UserError("training diverged")
    assert ended.value.code == 1
    assert json.loads((tmp_path / "error.json").read_text()) == {
        "kind": "UserError",
        "message": "training diverged",
    }


def test_a_process_ends_with_the_one_that_launched_it() -> None:
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    code = f"from expunge.training.process import exit_without; exit_without({gone.pid})"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 1
