"""The engine of these tests: `make test-containers` names it, and builds the images before."""

import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest

from expunge.environment import IMAGE

Run = Callable[..., str]


@pytest.fixture(scope="session")
def engine() -> Run:
    """Call the engine's command, and return what it prints."""
    name = os.environ.get("EXPUNGE_TEST_ENGINE")
    if not name:
        pytest.skip("EXPUNGE_TEST_ENGINE names no container engine; run make test-containers")

    def run(*arguments: str) -> str:
        done = subprocess.run([name, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def inside(engine: Run) -> Run:
    """Run Python source in an image, as its user or another, and return what it prints."""

    def run(source: str, *options: str, image: str = IMAGE) -> str:
        return engine("run", "--rm", "--network", "host", *options, image, "python3", "-c", source)

    return run


@pytest.fixture(scope="session")
def api(engine: Run) -> Iterator[Any]:
    """Reach the same engine by Docker's API, which answers alike on Docker and Podman."""
    client = docker.from_env()
    yield client
    client.close()
