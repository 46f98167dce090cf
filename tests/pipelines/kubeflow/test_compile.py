"""What is compiled for a cluster, without settings and with those in `golden/cluster.yaml`."""

import difflib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import document
from compiled import GOLDEN, SETTINGS, documents, executors, tasks_of
from disks import fill, mounted
from google.protobuf import json_format
from kfp import components
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec

from expunge.errors import OperationalError
from expunge.ops import IMAGE, STEPS
from expunge_pipelines.kubeflow.compile import KINDS, compile_all, compile_pipeline
from expunge_pipelines.kubeflow.resources import CHECKPOINTS, DATA_ROOT
from expunge_pipelines.kubeflow.settings import (
    CHECKPOINT_FOLDER,
    ClusterSettings,
    DataSettings,
    Secrets,
    TrainingSettings,
    read_settings,
)
from expunge_pipelines.kubeflow.task_defaults import DAY, HOUR, MINUTE, RESOURCES

DATABASE_SECRET, MLFLOW_SECRET, S3_SECRET = Secrets.database, Secrets.mlflow, Secrets.s3
REFRESH = "expunge compile tests/pipelines/golden --cluster tests/pipelines/golden/cluster.yaml"

# Each pipeline, and steps that it has to have.
PIPELINES = {
    "train": {"validate", "log-run", "register", "promote"},
    "oracles": {"find-oracle", "train", "export-onnx", "keep-oracle"},
    "forget": {
        "claim-requests",
        "load-oracles",
        "validate",
        "render-report",
        "log-run",
        "register",
        "promote",
        "close-requests",
    },
}


def test_compiling_elsewhere_gives_the_same_bytes(bare: Path, tmp_path: Path) -> None:
    """In another process, folder, locale, and order of sets, and over what is there already."""
    code = (
        "from pathlib import Path; from expunge_pipelines.kubeflow.compile import compile_all;"
        "from expunge_pipelines.kubeflow.settings import ClusterSettings;"
        "[compile_all(Path('made'), ClusterSettings()) for _ in range(2)]"
    )
    variables = {**os.environ, "PYTHONHASHSEED": "1234", "LC_ALL": "C", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, check=True)
    files = [file for file in bare.rglob("*") if file.is_file()]
    assert len(files) == len(PIPELINES) + len(STEPS)
    found = [file for file in (tmp_path / "made").rglob("*") if file.is_file()]
    assert {file.relative_to(tmp_path / "made") for file in found} == {
        file.relative_to(bare) for file in files
    }
    for file in files:
        content = file.read_bytes()
        assert (tmp_path / "made" / file.relative_to(bare)).read_bytes() == content
        assert content.isascii()
        assert str(Path.cwd()).encode() not in content


@pytest.mark.parametrize("name", KINDS)
def test_a_pipeline_is_the_golden_file(site: Path, name: str) -> None:
    """A change of what a cluster is told is seen in a diff, and meant."""
    golden, found = GOLDEN / f"{name}.yaml", site / f"{name}.yaml"
    lines = difflib.unified_diff(
        golden.read_text().splitlines(), found.read_text().splitlines(), "golden", "now", n=1
    )
    if differing := list(lines)[:40]:
        pytest.fail(
            "\n".join([f"golden/{name}.yaml differs; if that is meant: {REFRESH}", *differing]),
            pytrace=False,
        )


def test_the_parameters_are_returned_with_their_defaults(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "train.yaml"
    parameters = compile_pipeline("train", file, ClusterSettings())
    spec, _ = documents(file)
    written = spec["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == set(written)
    missing = {key for key, value in parameters.items() if value is None}
    assert missing == {key for key, value in written.items() if not value.get("isOptional")}
    assert missing == {"name", "source"}
    assert (parameters["recipe"]["epochs"], parameters["recipe"]["without"]) == (20, [])


def test_the_command_takes_the_settings(site: Path, tmp_path: Path) -> None:
    written = document("compile", str(tmp_path), "--cluster", str(SETTINGS))["files"]
    assert len(written) == len(PIPELINES) + len(STEPS)
    for file in map(Path, written):
        assert file.read_bytes() == (site / file.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize("name", [*PIPELINES, *(f"components/{step}" for step in STEPS)])
def test_kfp_loads_what_was_written(bare: Path, site: Path, name: str) -> None:
    for made in (bare, site):
        loaded = components.load_component_from_file(str(made / f"{name}.yaml"))
        assert loaded.component_spec.inputs


@pytest.mark.parametrize("name", PIPELINES)
def test_the_messages_of_kfp_know_every_field(bare: Path, site: Path, name: str) -> None:
    """Unknown fields and wrong types are errors, also in what only the cluster reads."""
    for made in (bare, site):
        spec, platform = documents(made / f"{name}.yaml")
        json_format.ParseDict(spec, PipelineSpec())
        json_format.ParseDict(platform, PlatformSpec())
        for _, _, kubernetes in executors(made / f"{name}.yaml"):
            json_format.ParseDict(kubernetes, KubernetesExecutorConfig())


@pytest.mark.parametrize("name", PIPELINES)
def test_every_step_has_the_image_of_the_settings(bare: Path, site: Path, name: str) -> None:
    image = read_settings(str(SETTINGS)).image
    assert "@sha256:" in image
    for made, expected in ((bare, IMAGE), (site, image)):
        files = [made / f"{name}.yaml", *(made / f"components/{step}.yaml" for step in STEPS)]
        for file in files:
            found = documents(file)[0]["deploymentSpec"]["executors"].values()
            assert {row["container"]["image"] for row in found} == {expected}
    for step in STEPS.values():
        assert step.component_spec.implementation.container.image == IMAGE, "they are for everyone"


@pytest.mark.parametrize("name", PIPELINES)
def test_the_settings_reach_every_step(site: Path, name: str) -> None:
    """What `golden/cluster.yaml` says, by hand, and not by way of the code that reads it."""
    # each rung of a ladder has its own, the first none
    gpus = {"train": "4", "compute-fim": "2", "perturb-2": "1", "perturb-3": "3", "validate": "1"}
    for step, container, kubernetes in executors(site / f"{name}.yaml"):
        assert kubernetes["imagePullPolicy"] == "IfNotPresent"
        pulls = [row["secretName"] for row in kubernetes["imagePullSecret"]]
        assert pulls == ["registry", "mirror"]
        assert kubernetes["securityContext"] == {
            "runAsUser": "20001",
            "runAsGroup": "3000",
            "runAsNonRoot": True,
        }
        wanted = container["resources"].get("accelerator", {})
        assert wanted.get("resourceCount") == gpus.get(step)
        assert wanted.get("resourceType") == ("nvidia.com/mig-3g.40gb" if step in gpus else None)
        labels = {"example.com/pool": "training" if step == "train" else "batch"}
        if step in gpus:
            labels["nvidia.com/gpu.product"] = "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb"
        assert kubernetes["nodeSelector"]["labels"] == labels
        spot = {
            "key": "example.com/spot",
            "operator": "Equal",
            "value": "true",
            "effect": "NoExecute",
            "tolerationSeconds": "300",
        }
        card = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        own = {"key": "example.com/training", "operator": "Exists"}
        assert kubernetes["tolerations"] == [
            spot,
            *([card] if step in gpus else []),
            *([own] if step == "train" else []),
        ]
        secrets = {row["secretName"] for row in kubernetes.get("secretAsEnv", [])}
        assert secrets <= {"store", "tracking", "ledger"}


def test_a_training_gets_what_its_table_says(site: Path) -> None:
    found = {step: rest for step, *rest in executors(site / "train.yaml")}
    container, kubernetes = found["train"]
    given = container["resources"]
    assert (given["resourceCpuRequest"], given["resourceMemoryLimit"]) == ("16", "96Gi")
    assert given["resourceMemoryRequest"] == "96Gi"
    assert kubernetes["activeDeadlineSeconds"] == str(2 * DAY)
    assert [mount["sizeLimit"] for mount in kubernetes["emptyDirMounts"]] == ["32Gi"]
    mounts = [(mount["constant"], mount["mountPath"]) for mount in kubernetes["pvcMount"]]
    assert mounts == [("expunge-checkpoints", CHECKPOINT_FOLDER), ("images", "/mnt/images")]
    assert container["env"] == [
        {"name": CHECKPOINTS, "value": CHECKPOINT_FOLDER},
        {"name": DATA_ROOT, "value": "/mnt/images"},
    ]
    container, kubernetes = found["log-run"]
    assert container["resources"]["resourceCpuRequest"] == "1"
    assert kubernetes["activeDeadlineSeconds"] == str(HOUR)
    assert "pvcMount" not in kubernetes
    assert "env" not in container


@pytest.mark.parametrize("name", PIPELINES)
def test_what_reads_files_has_the_volume_with_data(name: str, bare: Path, site: Path) -> None:
    readers = {"prepare-data", "plan-training", "find-oracle", "train"}
    for step, container, kubernetes in executors(site / f"{name}.yaml"):
        claims = [mount["constant"] for mount in kubernetes.get("pvcMount", [])]
        variables = {row["name"]: row["value"] for row in container.get("env", [])}
        assert ("images" in claims) == (step in readers)
        assert variables.get(DATA_ROOT) == ("/mnt/images" if step in readers else None)
    assert DATA_ROOT not in str([list(row) for row in executors(bare / f"{name}.yaml")])


def test_the_steps_of_a_training_over_nodes_have_the_volume_with_data_too(tmp_path: Path) -> None:
    settings = ClusterSettings(data=DataSettings("images"), training=TrainingSettings("shared"))
    compile_pipeline("train", tmp_path / "train.yaml", settings)
    told = {step: row["pvcMount"] for step, _, row in executors(tmp_path / "train.yaml")
            if "pvcMount" in row}  # fmt: skip
    claims = {step: [mount["constant"] for mount in rows] for step, rows in told.items()}
    assert claims == {
        "plan-training": ["images"],
        "prepare-data": ["images"],
        "train": ["shared", "images"],
    }


@pytest.mark.parametrize("name", PIPELINES)
def test_retries_wait_longer_each_time_and_have_time_for_each_attempt(
    bare: Path, site: Path, name: str
) -> None:
    """kfp's own limit on all attempts together is an hour, after which Argo ends what runs."""
    counts = {"train": 6, "render-report": 0}
    for label, task in tasks_of(site / f"{name}.yaml"):
        policy = task["retryPolicy"]
        assert policy.get("maxRetryCount", 0) == counts.get(label, 3)
        assert (policy["backoffDuration"], policy["backoffFactor"]) == ("60s", 3.0)
        assert policy["backoffMaxDuration"] == f"{10 * DAY}s"
    for label, task in tasks_of(bare / f"{name}.yaml"):
        policy = task["retryPolicy"]
        usual = RESOURCES[label]
        assert (policy["backoffDuration"], policy["backoffFactor"]) == ("30s", 2.0)
        longest = int(policy["backoffMaxDuration"].removesuffix("s"))
        assert longest >= (policy["maxRetryCount"] + 1) * usual.timeout_seconds
        assert longest < (policy["maxRetryCount"] + 1) * (usual.timeout_seconds + HOUR)


@pytest.mark.parametrize("name", PIPELINES)
def test_what_has_ended_is_kept_for_some_days(bare: Path, site: Path, name: str) -> None:
    _, usual = documents(bare / f"{name}.yaml")
    assert usual["platforms"]["kubernetes"]["pipelineConfig"] == {
        "resourceTtlOnCompletion": 7 * DAY
    }
    _, platform = documents(site / f"{name}.yaml")
    assert platform["platforms"]["kubernetes"]["pipelineConfig"] == {
        "resourceTtlOnCompletion": 14 * DAY,
        "resourceTtlOnSuccess": 3 * DAY,
        "resourceTtlOnFailure": 30 * DAY,
        "activeDeadlineSeconds": 60 * DAY,
    }


def test_kfp_takes_every_amount_that_the_settings_take(tmp_path: Path) -> None:
    sizes = ["1Ki", "2Mi", "3Gi", "4Ti", "5Pi", "6Ei", "7M", "8G", "9T", "10P", "11E"]
    cpus = ["1", "0.5", "1.125", "250m", "1000000"]
    rows = [
        f"  {step}: {{memory: {size}, cpu: {cpus[number % len(cpus)]}, shared_memory: 0}}"
        for number, (step, size) in enumerate(zip(RESOURCES, sizes, strict=False))
    ]
    settings = tmp_path / "cluster.yaml"
    settings.write_text("\n".join(["tasks:", *rows]))
    found = {}
    for kind in KINDS:
        compile_pipeline(kind, tmp_path / f"{kind}.yaml", read_settings(str(settings)))
        for step, container, _ in executors(tmp_path / f"{kind}.yaml"):
            found[step] = container["resources"]["resourceMemoryLimit"]
    assert {step: found[step] for step, _ in zip(RESOURCES, sizes, strict=False)} == dict(
        zip(RESOURCES, sizes, strict=False)
    )


def test_a_cluster_without_gpus_and_with_users_of_its_own(tmp_path: Path) -> None:
    settings = tmp_path / "cpu.yaml"
    settings.write_text("gpu: off\nrun_as: off\ntasks: {render-report: {timeout: 10m}}")
    for kind in KINDS:
        file = tmp_path / f"{kind}.yaml"
        compile_pipeline(kind, file, read_settings(str(settings)))
        assert "accelerator" not in file.read_text()
        assert "securityContext" not in file.read_text()
        for step, _, kubernetes in executors(file):
            minutes = 10 if step == "render-report" else RESOURCES[step].timeout_seconds // MINUTE
            assert kubernetes["activeDeadlineSeconds"] == str(minutes * MINUTE)
            assert not kubernetes.keys() & {"nodeSelector", "tolerations", "imagePullSecret"}


@pytest.mark.parametrize("name", PIPELINES)
def test_each_task_asks_for_its_resources(bare: Path, name: str) -> None:
    for step, container, kubernetes in executors(bare / f"{name}.yaml"):
        wanted, given = RESOURCES[step], container["resources"]
        assert given["resourceMemoryLimit"] == wanted.memory
        assert ("accelerator" in given) == bool(wanted.gpus)
        if wanted.gpus:
            assert given["accelerator"]["resourceType"] == "nvidia.com/gpu"
        secrets = {row["secretName"] for row in kubernetes.get("secretAsEnv", [])}
        assert (MLFLOW_SECRET in secrets, S3_SECRET in secrets) == (wanted.mlflow, wanted.s3)
        assert (DATABASE_SECRET in secrets) == wanted.ledger
        fields = {row["name"] for row in kubernetes.get("fieldPathAsEnv", [])}
        assert ("EXPUNGE_PIPELINE_RUN" in fields) == (wanted.mlflow or wanted.ledger)
        mounts = kubernetes.get("emptyDirMounts", [])
        assert [mount["mountPath"] for mount in mounts] == (
            ["/dev/shm"] if wanted.shared_memory else []
        )


@pytest.mark.parametrize("name", PIPELINES)
def test_only_pure_steps_are_cached_and_all_are_retried(bare: Path, name: str) -> None:
    found = tasks_of(bare / f"{name}.yaml")
    assert PIPELINES[name] <= {step for step, _ in found}
    for step, task in found:
        assert task["cachingOptions"].get("enableCache", False) == RESOURCES[step].cached
        assert task["retryPolicy"]["maxRetryCount"] == RESOURCES[step].retries
    changing = ("claim-requests", "load-oracles", "find-oracle", "keep-oracle", "log-run")
    last = ("register", "promote", "close-requests")
    assert not any(RESOURCES[step].cached for step in (*changing, *last))


def test_the_seeds_of_oracles_are_a_parameter_and_run_side_by_side(bare: Path) -> None:
    spec, _ = documents(bare / "oracles.yaml")
    seeds = spec["root"]["inputDefinitions"]["parameters"]["seeds"]
    assert seeds["parameterType"] == "LIST"
    assert not seeds.keys() & {"defaultValue", "isOptional"}, "none would do nothing and succeed"
    loops = [task for task in spec["root"]["dag"]["tasks"].values() if "parameterIterator" in task]
    assert [loop["parameterIterator"]["items"]["inputParameter"] for loop in loops] == [
        "pipelinechannel--seeds"
    ]
    assert "iteratorPolicy" not in loops[0]


def test_requests_are_settled_however_a_forget_ends(bare: Path) -> None:
    """kfp's sign of an exit handler is a task that takes the others' final status."""
    spec, _ = documents(bare / "forget.yaml")
    last = spec["root"]["dag"]["tasks"]["close-requests"]
    assert last["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert "taskFinalStatus" in last["inputs"]["parameters"]["status"]
    handled = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert {"claim-requests", "condition-2"} == set(handled)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperationalError, match="cannot be written"):
        compile_all(tmp_path / "file", ClusterSettings())
    (tmp_path / "train.yaml").mkdir()
    with pytest.raises(OperationalError, match=r"cannot be written .*check its permissions"):
        compile_pipeline("train", tmp_path / "train.yaml", ClusterSettings())
    assert {path.name for path in tmp_path.iterdir()} == {"file", "train.yaml"}


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 1) as disk:
        file = disk / "train.yaml"
        compile_pipeline("train", file, ClusterSettings())
        before = file.read_bytes()
        fill(disk)
        with pytest.raises(OperationalError, match=r"cannot be written .*No space left"):
            compile_pipeline("train", file, read_settings(str(SETTINGS)))
        assert file.read_bytes() == before
        assert {path.name for path in disk.iterdir()} == {"train.yaml", "filler"}
