"""One state folder for the session in which version 1 was trained and version 2 forgot class 3.

It takes two pipelines of some ten processes each, so all workers of pytest-xdist share it. The
tests that change it are given to one worker (`tests/conftest.py`).
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from command import command, document
from filelock import FileLock
from mlflow_store import VARIABLES as MLFLOW

__all__ = ["EPOCHS", "GONE", "NAME", "RECIPE", "Store", "command", "document", "state", "trained"]

NAME, GONE = "digits", 3
EPOCHS = 30
RECIPE = ["--data", "digits", "--arch", "mlp", "--batch-size", "32"]
RECIPE += ["--epochs", str(EPOCHS), "--lr", "0.05"]


@dataclass(frozen=True)
class Store:
    """Where it lies, and what `--json` printed for both jobs."""

    home: Path
    train: dict[str, Any]
    forget: dict[str, Any]


@contextlib.contextmanager
def state(home: Path) -> Iterator[None]:
    """`home` as the current state, for what is made once for several tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in MLFLOW:
            patch.delenv(name, raising=False)
        patch.setenv("EXPUNGE_HOME", str(home))
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Store:
    base = tmp_path_factory.getbasetemp()
    # a worker's base lies in that of the whole session
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    said = shared / "trained.json"
    with FileLock(shared / "trained.lock"):
        if not said.exists():
            made = _train_and_forget(shared / "trained")
            said.write_text(json.dumps(asdict(made), default=str))
    found = json.loads(said.read_text())
    return Store(Path(found["home"]), found["train"], found["forget"])


def _train_and_forget(home: Path) -> Store:
    home.mkdir()
    with state(home):
        train = document("train", NAME, *RECIPE)
        forget = document("forget", NAME, "--classes", str(GONE))
    return Store(home, train, forget)


@pytest.fixture
def trained_store(trained: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Make the trained state the current one; a test that changes it says so in its name."""
    monkeypatch.setenv("EXPUNGE_HOME", str(trained.home))
    return trained
