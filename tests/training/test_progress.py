"""A bar where there is a terminal, log lines elsewhere."""

import logging
import os
import pty
import select
import time
from pathlib import Path

import pytest
import torch

from expunge.training.progress import TTY, Progress

METRICS = {
    "train_loss": 0.25,
    "code_accuracy": 1.0,
    "test_accuracy": 0.875,
    "images_per_second": 1234.0,
}


def show(shown: bool = True) -> None:
    with Progress(2, 0, shown=shown) as progress:
        progress.show_step(6, 9, torch.tensor(0.5))
        progress.show_epoch(1, METRICS)


def read_until(terminal: int, awaited: list[str], seconds: float = 20.0) -> str:
    """Read what a terminal shows, maybe in pieces, until all that is awaited is there."""
    text, deadline = b"", time.monotonic() + seconds
    while not all(words in text.decode(errors="replace") for words in awaited):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([terminal], [], [], left)[0]:
            break
        text += os.read(terminal, 100_000)
    return text.decode(errors="replace")


def test_log_lines_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(TTY, raising=False)
    with caplog.at_level(logging.INFO):
        show()
    assert caplog.messages == [
        "epoch 1 of 2: loss 0.2500, test accuracy 0.8750, codes 1.0000, 1234 images/s"
    ]


def test_a_bar_on_the_terminal_that_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    master, slave = pty.openpty()
    monkeypatch.setenv(TTY, os.ttyname(slave))
    with caplog.at_level(logging.INFO):
        show()
    awaited = ["step 7/9, loss 0.500", "1/2", "accuracy 0.875, 1234 images/s"]
    text = read_until(master, awaited)
    os.close(slave)
    os.close(master)
    for words in awaited:
        assert words in text
    assert caplog.messages == []


def test_a_terminal_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(TTY, str(tmp_path / "no" / "terminal"))
    with caplog.at_level(logging.INFO):
        show()
    assert "EXPUNGE_TTY names" in caplog.messages[0]
    assert caplog.messages[1].startswith("epoch 1 of 2")


def test_other_processes_are_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(TTY, raising=False)
    with caplog.at_level(logging.INFO):
        show(shown=False)
    assert caplog.messages == []
