"""The lists that the images are built from, against the package and the lock; no engine needed."""

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
LOCK = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().split()}
# What only compiles, submits and runs pipelines; the steps run without.
ELSEWHERE = {"docker", "kfp", "kfp-kubernetes", "mlflow", "pydantic"}
INSTEAD = {"mlflow-skinny", "pandas", "scipy"}
# Of PyTorch's own requirements: nothing calls torch.compile, or builds an extension.
UNUSED = {"setuptools", "triton"}


def names(path: str) -> set[str]:
    """Return the packages of a list, without comments and extras."""
    lines = (ROOT / path).read_text().splitlines()
    return {line.partition("[")[0] for line in lines if not line.startswith("#")}


def required(package: str) -> set[str]:
    """Name what a package that is installed here requires, and what these require in turn."""
    found: set[str] = set()
    waiting = [package]
    while waiting:
        for wanted in map(Requirement, requires(waiting.pop()) or []):
            name = wanted.name.lower().replace("_", "-")
            applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if applies and name not in found:
                found.add(name)
                waiting.append(name)
    return found


def test_the_image_holds_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {re.split(r"[\[<>=]", line)[0] for line in project["dependencies"]}
    assert names("docker/requirements.txt") == (asked - ELSEWHERE) | INSTEAD


@pytest.mark.parametrize("path", ["docker/requirements.txt", "docker/mlflow.txt"])
def test_the_lock_has_every_version(path: str) -> None:
    assert names(path) <= LOCK


def test_the_layer_of_pytorch_has_all_that_pytorch_requires() -> None:
    (pattern,) = re.findall(r"grep -E '\^\((.*)\)=='", DOCKERFILE)
    taken = {name for name in LOCK if re.fullmatch(pattern, name)}
    needed = {"torch", "torchvision"} | required("torch") | required("torchvision")
    assert {"sympy", "nvidia-nccl-cu13"} < needed
    assert needed - UNUSED <= taken
    assert not taken & UNUSED


def test_what_is_copied_is_sent_and_nothing_else() -> None:
    """A secret that lies in the folder never reaches a build."""
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, flags=re.MULTILINE):
        copied |= set(line.split()[:-1])
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / path).exists() for path in copied)


def test_the_base_and_the_images_user() -> None:
    assert "ARG BASE_IMAGE=python:3.11-slim-bookworm\n" in DOCKERFILE
    finals = re.split(r"^FROM .* AS (expunge|mlflow)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    for name, stage in zip(finals[::2], finals[1::2], strict=True):
        assert "\nUSER 10001:0\n" in stage, name
        assert "HEALTHCHECK" in stage, name
        assert "/pip" not in stage.split("FROM")[0], name
