"""The pipelines as they are compiled, without settings and with those of `golden/cluster.yaml`."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge_pipelines.kubeflow.compile import compile_all
from expunge_pipelines.kubeflow.settings import ClusterSettings, read_settings
from expunge_pipelines.kubeflow.task_defaults import RESOURCES

GOLDEN = Path(__file__).parents[1] / "pipelines" / "golden"
SETTINGS = GOLDEN / "cluster.yaml"


@pytest.fixture(autouse=True, scope="session")
def _quick_stacks() -> Iterator[None]:
    """Show kfp the two nearest frames of its stack alone.

    kfp asks for the whole stack at each setting of a task, to name one caller. For each frame the
    standard library then looks through all modules that are loaded. Pytest's stack is deep, and a
    worker that has run other tests has loaded MLflow and PyTorch: there a pipeline took 2.4 s of
    computing to compile, and takes 0.1 s with this.
    """

    whole = inspect.stack

    def stack(context: int = 1) -> list[inspect.FrameInfo]:
        asked = sys._getframe(1)
        if asked.f_globals.get("__name__") != "kfp.dsl.pipeline_task" or asked.f_back is None:
            return whole(context)
        nearest = ((frame, inspect.getframeinfo(frame, 0)) for frame in (asked, asked.f_back))
        return [inspect.FrameInfo(frame, *info) for frame, info in nearest]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", stack)
        yield


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compiled")
    compile_all(made, ClusterSettings())
    return made


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is compiled with the settings of a site that sets everything."""
    made = tmp_path_factory.mktemp("site")
    compile_all(made, read_settings(str(SETTINGS)))
    return made


def documents(path: Path) -> list[dict[str, Any]]:
    # libyaml: every test of what is compiled reads some of these files.
    return [found for found in yaml.load_all(path.read_text(), yaml.CSafeLoader) if found]


def executors(file: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each step of a compiled pipeline with its container and what Kubernetes is told of it."""
    spec, platform = documents(file)
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    containers = spec["deploymentSpec"]["executors"]
    assert set(kubernetes) == set(containers)
    for label, executor in containers.items():
        yield name_row(label.removeprefix("exec-")), executor["container"], kubernetes[label]


def tasks_of(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each step of a compiled pipeline with its task, from every group."""
    spec, _ = documents(file)
    found = _tasks(spec["root"]["dag"], spec)
    return [(name_row(label), task) for label, task in found]


def name_row(label: str) -> str:
    """Return the row of the settings that a task goes by: its own, or that of its step."""
    return label if label in RESOURCES else label.rstrip("0123456789").rstrip("-")


def _tasks(dag: dict[str, Any], spec: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for task in dag["tasks"].values():
        name = task["componentRef"]["name"]
        inner = spec["components"][name].get("dag")
        found += _tasks(inner, spec) if inner else [(name.removeprefix("comp-"), task)]
    return found
