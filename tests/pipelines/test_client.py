"""What is compiled for a cluster."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import components

from expunge.ops import STEPS
from expunge_pipelines.client import compile_all
from expunge_pipelines.settings import ClusterSettings, Secrets
from expunge_pipelines.tasks import RESOURCES

DATABASE_SECRET, MLFLOW_SECRET, S3_SECRET = Secrets.database, Secrets.mlflow, Secrets.s3

# Each pipeline, and steps that it has to have.
PIPELINES = {
    "train": {"validate", "record", "register", "promote"},
    "oracles": {"find-oracle", "train", "export-onnx", "keep-oracle"},
    "forget": {
        "claim-requests",
        "load-oracles",
        "validate",
        "report",
        "record",
        "register",
        "promote",
        "close-requests",
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compiled")
    compile_all(made, ClusterSettings())
    return made


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def test_compiling_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    written = compile_all(tmp_path, ClusterSettings())
    assert len(written) == len(PIPELINES) + len(STEPS)
    for path in map(Path, written):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize("name", [*PIPELINES, *(f"components/{step}" for step in STEPS)])
def test_kfp_loads_what_was_written(folder: Path, name: str) -> None:
    loaded = components.load_component_from_file(str(folder / f"{name}.yaml"))
    assert loaded.component_spec.inputs


@pytest.mark.parametrize("name", PIPELINES)
def test_each_task_asks_for_its_resources(folder: Path, name: str) -> None:
    spec, platform = documents(folder / f"{name}.yaml")
    executors = spec["deploymentSpec"]["executors"]
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for label, executor in executors.items():
        step = label.removeprefix("exec-").rstrip("0123456789").rstrip("-")
        wanted, given = RESOURCES[step], executor["container"]["resources"]
        assert given["resourceMemoryLimit"] == wanted.memory
        assert ("accelerator" in given) == bool(wanted.gpus)
        if wanted.gpus:
            assert given["accelerator"]["resourceType"] == "nvidia.com/gpu"
        secrets = {row["secretName"] for row in kubernetes[label].get("secretAsEnv", [])}
        assert (MLFLOW_SECRET in secrets, S3_SECRET in secrets) == (wanted.mlflow, wanted.s3)
        assert (DATABASE_SECRET in secrets) == wanted.ledger
        fields = {row["name"] for row in kubernetes[label].get("fieldPathAsEnv", [])}
        assert ("EXPUNGE_PIPELINE_RUN" in fields) == (wanted.mlflow or wanted.ledger)
        mounts = kubernetes[label].get("emptyDirMounts", [])
        assert [mount["mountPath"] for mount in mounts] == (
            ["/dev/shm"] if wanted.shared_memory else []
        )


def tasks(dag: dict[str, Any], spec: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for task in dag["tasks"].values():
        name = task["componentRef"]["name"]
        inner = spec["components"][name].get("dag")
        found += tasks(inner, spec) if inner else [(name.removeprefix("comp-"), task)]
    return found


@pytest.mark.parametrize("name", PIPELINES)
def test_only_pure_steps_are_cached_and_all_are_retried(folder: Path, name: str) -> None:
    spec, _ = documents(folder / f"{name}.yaml")
    found = tasks(spec["root"]["dag"], spec)
    assert PIPELINES[name] <= {step for step, _ in found}
    for label, task in found:
        step = label.rstrip("0123456789").rstrip("-")
        assert task["cachingOptions"].get("enableCache", False) == RESOURCES[step].cached
        assert task["retryPolicy"]["maxRetryCount"] == RESOURCES[step].retries
    changing = ("claim-requests", "load-oracles", "find-oracle", "keep-oracle", "record")
    last = ("register", "promote", "close-requests")
    assert not any(RESOURCES[step].cached for step in (*changing, *last))


def test_the_seeds_of_oracles_are_a_parameter_and_run_side_by_side(folder: Path) -> None:
    spec, _ = documents(folder / "oracles.yaml")
    seeds = spec["root"]["inputDefinitions"]["parameters"]["seeds"]
    assert seeds["parameterType"] == "LIST"
    assert not seeds.keys() & {"defaultValue", "isOptional"}, "none would do nothing and succeed"
    loops = [task for task in spec["root"]["dag"]["tasks"].values() if "parameterIterator" in task]
    assert [loop["parameterIterator"]["items"]["inputParameter"] for loop in loops] == [
        "pipelinechannel--seeds"
    ]
    assert "iteratorPolicy" not in loops[0]


def test_requests_are_settled_however_a_forget_ends(folder: Path) -> None:
    """kfp's sign of an exit handler is a task that takes the others' final status."""
    spec, _ = documents(folder / "forget.yaml")
    last = spec["root"]["dag"]["tasks"]["close-requests"]
    assert last["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert "taskFinalStatus" in last["inputs"]["parameters"]["status"]
    handled = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert {"claim-requests", "condition-2"} == set(handled)


@pytest.mark.parametrize("name", PIPELINES)
def test_credentials_are_references(folder: Path, name: str) -> None:
    """Every name of a credential stands in a secret's key, and none beside a value."""
    spec, platform = documents(folder / f"{name}.yaml")
    assert "AWS_SECRET_ACCESS_KEY" not in yaml.safe_dump(spec)
    assert "MLFLOW_TRACKING_PASSWORD" not in yaml.safe_dump(spec)
    assert "EXPUNGE_DATABASE_URL" not in yaml.safe_dump(spec)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    pairs = [
        pair
        for executor in executors.values()
        for secret in executor.get("secretAsEnv", [])
        for pair in secret["keyToEnv"]
    ]
    assert pairs
    assert all(pair.keys() == {"envVar", "secretKey"} for pair in pairs)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    from expunge.errors import OperationalError

    (tmp_path / "file").write_text("")
    with pytest.raises(OperationalError, match="cannot be written"):
        compile_all(tmp_path / "file", ClusterSettings())
