"""No cached task is answered for other code or other data: each has both in its key.

kfp keys the cache by the values of a task's parameters, those behind a text that joins several
included, and by no artifact's content.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.ops import STEPS
from expunge_pipelines.kubeflow.compile import compile_all
from expunge_pipelines.kubeflow.settings import ClusterSettings
from expunge_pipelines.kubeflow.task_defaults import RESOURCES

PIPELINES = ("train", "oracles", "forget")
UNCACHED = {
    "plan-training", "prepare-data", "claim-requests", "load-oracles", "find-oracle",
    "keep-oracle", "render-report", "log-run", "register", "promote", "close-requests",
}  # fmt: skip
CHANNEL = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")

Output = tuple[str, str]  # a task, by its path through the conditions and loops, and its output


@dataclass(frozen=True)
class Scope:
    """One graph of a compiled pipeline, and the task of the graph around it that it belongs to."""

    path: str
    inputs: Mapping[str, Any]
    outer: "Scope | None"

    def source(self, kind: str, entry: Mapping[str, Any]) -> Output | None:
        """Return the output that an input comes from, or None for a parameter of the pipeline."""
        if found := entry.get(f"taskOutput{kind}"):
            return f"{self.path}/{found['producerTask']}", found[f"output{kind}Key"]
        name = entry.get(f"componentInput{kind}")
        if name is None or self.outer is None:
            return None
        field = "artifacts" if kind == "Artifact" else "parameters"
        return self.outer.source(kind, self.inputs[field][name])


@dataclass(frozen=True)
class Task:
    step: str
    cached: bool
    inputs: Mapping[str, Any]
    scope: Scope

    def reads(self) -> set[str]:
        """Return the tasks whose artifacts it reads."""
        ports = self.inputs.get("artifacts", {}).values()
        found = {self.scope.source("Artifact", port) for port in ports}
        assert None not in found
        return {output[0] for output in found if output}

    def key(self, name: str) -> set[Output]:
        """Return the outputs that a parameter is made of: one, or several joined in a text."""
        parameters = self.inputs.get("parameters", {})
        if name not in parameters:
            return set()
        constant = parameters[name].get("runtimeValue", {}).get("constant")
        entries = (
            [parameters[name]]
            if constant is None
            else [parameters[channel] for channel in CHANNEL.findall(constant)]
        )
        found = {self.scope.source("Parameter", entry) for entry in entries}
        return {output for output in found if output}


def walk(spec: Mapping[str, Any], dag: Mapping[str, Any], scope: Scope) -> Iterator[Task]:
    for label, task in dag["tasks"].items():
        component = spec["components"][task["componentRef"]["name"]]
        inputs = task.get("inputs", {})
        if "dag" in component:
            yield from walk(spec, component["dag"], Scope(f"{scope.path}/{label}", inputs, scope))
            continue
        step = task["componentRef"]["name"].removeprefix("comp-").rstrip("0123456789").rstrip("-")
        cached = task["cachingOptions"].get("enableCache", False)
        yield Task(step, cached, inputs, scope)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Task]]:
    folder = tmp_path_factory.mktemp("compiled")
    compile_all(folder, ClusterSettings())
    return {name: tasks_of(folder / f"{name}.yaml") for name in PIPELINES}


def tasks_of(file: Path) -> list[Task]:
    spec = next(yaml.safe_load_all(file.read_text()))
    return list(walk(spec, spec["root"]["dag"], Scope("", {}, None)))


def missing(task: Task) -> str:
    """Say what is wrong with the key of a cached task."""
    codes = task.key("code")
    if {output for _, output in codes} != {"code"}:
        return f"{task.step}: code is {codes or 'not wired'}"
    unkeyed = task.reads() - {
        producer for producer, output in task.key("data") if output == "digest"
    }
    return f"{task.step}: data lacks the digest of {sorted(unkeyed)}" if unkeyed else ""


@pytest.mark.parametrize("name", PIPELINES)
def test_a_cached_task_is_keyed_by_code_and_by_all_that_it_reads(
    found: dict[str, list[Task]], name: str
) -> None:
    cached = [task for task in found[name] if task.cached]
    assert {"train", "export-onnx"} <= {task.step for task in cached} or name == "forget"
    assert all(task.reads() for task in cached)
    assert [fault for task in cached if (fault := missing(task))] == []


def test_the_code_is_what_an_uncached_step_of_the_run_found(
    found: dict[str, list[Task]],
) -> None:
    """A digest from a cached step could be of the code of another day."""
    for tasks in found.values():
        given = {producer.rpartition("/")[2] for task in tasks for producer, _ in task.key("code")}
        assert given <= UNCACHED
        assert len(given) == 1


def test_a_training_is_keyed_by_the_weights_that_it_begins_with(
    found: dict[str, list[Task]],
) -> None:
    for name, step in (("train", "plan-training"), ("oracles", "find-oracle")):
        (task,) = (task for task in found[name] if task.step == "train")
        starts = {p.rpartition("/")[2] for p, output in task.key("data") if output == "start"}
        assert starts == {step}


def test_all_others_are_never_answered_from_the_cache(found: dict[str, list[Task]]) -> None:
    tasks = [task for every in found.values() for task in every]
    assert {task.step for task in tasks if not task.cached} == UNCACHED
    assert {step for step, wanted in RESOURCES.items() if not wanted.cached} == UNCACHED


def test_a_step_is_cached_if_it_has_ports_for_the_key() -> None:
    for name, component in STEPS.items():
        keyed = {"code", "data"} <= set(component.component_spec.inputs or {})
        assert keyed == RESOURCES[name.replace("_", "-")].cached, name


def test_a_task_that_lacks_a_part_of_its_key_is_found(found: dict[str, list[Task]]) -> None:
    """The walk sees through conditions: each digest is missed that is taken out."""
    gates = [task for task in found["forget"] if task.step == "validate"]
    # those of the upper rungs read the report of the one before as well
    assert sorted(len(gate.reads()) for gate in gates) == [5, 6, 6]
    gate = max(gates, key=lambda task: len(task.reads()))
    whole = gate.inputs["parameters"]
    constant = whole["data"]["runtimeValue"]["constant"]
    for channel in CHANNEL.findall(constant):
        less = constant.replace(f"{{{{$.inputs.parameters['{channel}']}}}}", "")
        data = {"runtimeValue": {"constant": less}}
        inputs = {**gate.inputs, "parameters": {**whole, "data": data}}
        producer = channel.removeprefix("pipelinechannel--").removesuffix("-digest")
        assert producer in missing(Task(gate.step, True, inputs, gate.scope))
    for name in ("code", "data"):
        parameters = {key: value for key, value in whole.items() if key != name}
        task = Task(gate.step, True, {**gate.inputs, "parameters": parameters}, gate.scope)
        assert f"validate: {name}" in missing(task)
