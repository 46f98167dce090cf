"""One state folder for the session in which version 1 was trained and version 2 forgot class 3."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command import command, document
from mlflow_store import VARIABLES as MLFLOW

__all__ = ["EPOCHS", "GONE", "NAME", "RECIPE", "Store", "command", "document", "state", "trained"]

NAME, GONE = "digits", 3
EPOCHS = 60
RECIPE = ["--data", "digits", "--arch", "mlp", "--batch-size", "32"]
RECIPE += ["--epochs", str(EPOCHS), "--lr", "0.05"]  # the demo's: fewer leave class 3 hidden


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
    home = tmp_path_factory.mktemp("trained")
    with state(home):
        train = document("train", NAME, *RECIPE)
        forget = document("forget", NAME, "--classes", str(GONE))
    return Store(home, train, forget)


@pytest.fixture
def trained_store(trained: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Make the trained state the current one; a test that changes it says so in its name."""
    monkeypatch.setenv("EXPUNGE_HOME", str(trained.home))
    return trained
