"""What a process that torchrun started tells its launcher, and when it ends by itself."""

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_data import write_tiny

from expunge.config import TrainConfig
from expunge.errors import UserError
from expunge.training.exchange import Arguments, read_report, write_arguments
from expunge.training.process import report_events, run_process
from expunge.training.spec import TrainingSpec

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


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arguments:
    """As the launcher would give them to the only process."""
    monkeypatch.setenv("RANK", "0")
    data = write_tiny(tmp_path / "data")
    config = TrainConfig("mlp", epochs=2, batch_size=16, workers=0, precision="fp32")
    spec = TrainingSpec(config, data, tmp_path / "model", tmp_path / "checkpoints")
    # Without a launcher: a thread would look after it for as long as pytest runs.
    return Arguments(spec)


def test_a_process_trains_and_reports(tmp_path: Path, arguments: Arguments) -> None:
    write_arguments(tmp_path, arguments)
    run_process(tmp_path)
    report = read_report(tmp_path)
    assert report is not None
    assert report["epochs"] == 2
    assert [event["epoch"] for event in events(tmp_path) if "epoch" in event] == [1, 2]
    assert (tmp_path / "model" / "weights.safetensors").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes fp16")
def test_what_a_training_raises_is_written_down(tmp_path: Path, arguments: Arguments) -> None:
    config = dataclasses.replace(arguments.spec.config, precision="fp16")
    spec = dataclasses.replace(arguments.spec, config=config)
    write_arguments(tmp_path, dataclasses.replace(arguments, spec=spec))
    with pytest.raises(SystemExit):
        run_process(tmp_path)
    with pytest.raises(UserError, match=r"^precision is 'fp16' and the device is a cpu"):
        read_report(tmp_path)


def test_a_process_ends_with_the_one_that_launched_it() -> None:
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    code = f"from expunge.training.process import exit_without; exit_without({gone.pid})"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 1
