"""Fixtures for every test: state in a temporary folder, and data that is too large for the tree."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_store import VARIABLES
from xdist.scheduler import LoadFileScheduling

PIPELINES = ("tests/pipelines/jobs/", "tests/pipelines/test_mlflow_project.py")
QUEUE = "tests/pipelines/jobs/test_queue.py"
# What the second worker does while the first one makes the trained store, which the queue reads.
MEANWHILE = "tests/report/"


class OneWorkerForPipelines(LoadFileScheduling):
    """Give each file to one worker, and all that changes the trained store to one and the same."""

    def _split_scope(self, nodeid: str) -> str:
        changes_it = nodeid.startswith(PIPELINES) and not nodeid.startswith(QUEUE)
        scope: str = PIPELINES[0] if changes_it else super()._split_scope(nodeid)
        return scope


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    # Where the tests of one file are to be shared out (--dist load), xdist's own scheduler does it.
    return OneWorkerForPipelines(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker waits for it at the end."""
    items.sort(key=lambda item: _rank(item.nodeid))


def _rank(nodeid: str) -> int:
    if nodeid.startswith(QUEUE):
        return 2
    return 0 if nodeid.startswith(PIPELINES) else 1 if nodeid.startswith(MEANWHILE) else 3


@pytest.fixture(autouse=True, scope="session")
def _interrupts_are_heard() -> None:
    """Hear SIGINT, which some tests send and a shell's background jobs ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _home_of_what_is_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give what several tests share a home of its own, and never one of the machine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def _temporary_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:  # MLflow sets one for the whole process once a store is open
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EXPUNGE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with `MNIST/raw/`, from EXPUNGE_TEST_DATA or beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EXPUNGE_TEST_DATA") or beside)
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"{folder} holds no MNIST/raw; set EXPUNGE_TEST_DATA to a folder that does")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, as in the processes that tests start: sums may depend on it. Small models are
    faster so, too.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
