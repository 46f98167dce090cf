"""One node of several: torchrun's status, its words, and the end when nobody waits."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from expunge.config import TrainConfig
from expunge.training import node
from expunge.training.exchange import Arguments, write_arguments
from expunge.training.node import run_node
from expunge.training.spec import TrainingSpec


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "run"
    found.mkdir()
    tell_patience(found, 0.3)
    monkeypatch.setenv("PET_NODE_RANK", "1")
    monkeypatch.setattr(node, "LOOK", 0.02)
    return found


def tell_patience(folder: Path, seconds: float) -> None:
    spec = TrainingSpec(TrainConfig("mlp"), folder / "data", folder / "model", folder / "c")
    write_arguments(folder, Arguments(spec, patience=seconds))


def torchrun(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Something else in its place."""
    path = folder.parent / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_the_status_and_the_words_are_torchruns(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    torchrun(folder, monkeypatch, 'echo "$@"; echo aside >&2; exit 3')
    assert run_node(folder) == 3
    line = f"-m torch.distributed.run -m expunge.training.process {folder}\naside\n"
    assert (folder / "output-1.txt").read_text() == line
    assert capfdbinary.readouterr().out == line.encode()


def test_a_node_that_nobody_waits_for_ends_well(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torchrun(folder, monkeypatch, f"echo $$ > {folder}/pid; exec sleep 60")
    started = time.monotonic()
    assert run_node(folder) == 0
    assert 0.3 < time.monotonic() - started < 10
    assert "nobody has waited for this training for 0.3 s" in caplog.text
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)


def test_a_node_that_somebody_waits_for_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchrun(folder, monkeypatch, "sleep 1; exit 5")
    done = threading.Event()

    def wait() -> None:
        for beat in range(1000):
            (folder / "alive").write_text(str(beat))
            if done.wait(0.05):
                return

    threading.Thread(target=wait).start()
    try:
        assert run_node(folder) == 5
    finally:
        done.set()


def test_the_end_of_the_pod_ends_torchrun(folder: Path) -> None:
    """As the first process of a container is ended: by SIGTERM, for which it needs a handler."""
    code = (
        "import sys; from pathlib import Path; from expunge.training.node import run_node;"
        f"sys.executable = '{folder}/python'; run_node(Path('{folder}'))"
    )
    (folder / "python").write_text(f"#!/bin/sh\necho $$ > {folder}/pid; exec sleep 60\n")
    (folder / "python").chmod(0o755)
    tell_patience(folder, 60)
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
