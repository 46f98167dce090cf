"""Fixtures for every test: state in a temporary folder, and data that is too large for the tree."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_store import VARIABLES


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each file to one worker, and all that reads the trained store to one, at the start.

    That store takes a training and a forget, each a pipeline of some ten processes. Several workers
    would each make it, and the last to do so would have the others wait at the end.
    """
    longest = "the trained store"
    groups = {
        item: longest if "trained" in getattr(item, "fixturenames", ()) else str(item.path)
        for item in items
    }
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: groups[item] != longest)


@pytest.fixture(autouse=True, scope="session")
def _interrupts_are_heard() -> None:
    """A shell has what it starts in the background ignore SIGINT, which some tests send."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _home_of_what_is_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures that several tests share: their own home, and never one of the machine's."""
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
    """The folder with `MNIST/raw/`, from EXPUNGE_TEST_DATA or beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EXPUNGE_TEST_DATA") or beside)
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"{folder} holds no MNIST/raw; set EXPUNGE_TEST_DATA to a folder that does")
    return folder
