"""The Kubernetes manifests, without a cluster: their schemas, and the names that others use."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from manifests import (
    FILES,
    FOLDERS,
    MANIFESTS,
    ROOT,
    Document,
    documents,
    kustomization,
    named,
    pods,
    variables,
)

from expunge import __version__
from expunge.ops import IMAGE
from expunge_pipelines.kubeflow import resources
from expunge_pipelines.kubeflow.settings import ClusterSettings

KUBERNETES = ("1.30", "1.37")  # the oldest and the newest that are checked against
DATABASE = "EXPUNGE_DATABASE_URL"
# What stands in an example and is no secret.
HARMLESS = {"http://mlflow.expunge.svc:5000", "admin"}


def refused(found: Document, version: str) -> str:
    """Return what the schema of a Kubernetes version says against a document, or nothing."""
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(MANIFESTS)))
def test_a_manifest_fits_the_schema(file: Path, version: str) -> None:
    found = documents(file)
    assert found
    assert [refused(document, version) for document in found] == [""] * len(found)


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_schema_refuses_what_is_misspelt_or_of_a_wrong_type(version: str) -> None:
    service = named("Service", "mlflow")[0]
    spec = service["spec"]
    assert "porst" in refused({**service, "spec": {**spec, "porst": []}}, version)
    assert "'5000'" in refused({**service, "spec": {**spec, "ports": [{"port": "5000"}]}}, version)


def test_every_file_belongs_to_the_kustomization_beside_it_and_each_entry_exists() -> None:
    listed = set()
    for folder in FOLDERS:
        found = kustomization(folder)
        commented = re.findall(
            r"^  # (\S+),$", (folder / "kustomization.yaml").read_text(), re.MULTILINE
        )
        assert found["kind"] in {"Kustomization", "Component"}
        for entry in [*found.get("resources", ()), *found.get("components", ()), *commented]:
            path = (folder / entry).resolve()
            assert path.is_file() or (path / "kustomization.yaml").is_file(), f"{folder}: {entry}"
            listed.add(path)
        for generator in found.get("secretGenerator", ()):
            for name in generator["envs"]:
                assert (folder / f"{name}.example").is_file()
    assert set(FILES) <= listed
    by_hand = {MANIFESTS, MANIFESTS / "standalone", *(MANIFESTS / "checks").iterdir()}
    assert set(FOLDERS) - listed <= by_hand


def test_what_the_readme_says_to_apply_is_there() -> None:
    text = (MANIFESTS / "README.md").read_text()
    applied = re.findall(r"-k (docker/kubernetes\S*)", text)
    assert len(applied) > 4
    for path in applied:
        assert (ROOT / path / "kustomization.yaml").is_file(), path
    for path in re.findall(r"`((?:components|network|pipelines|mlflow|checks)/[\w./-]*)`", text):
        example = f"{path}.example"  # for a file that the reader fills in
        assert (MANIFESTS / (example if path.endswith(".env") else path)).exists(), path


def test_the_secrets_are_those_that_the_compiled_pipelines_ask_for() -> None:
    folder = MANIFESTS / "pipelines"
    examples = {
        generator["name"]: folder / f"{generator['envs'][0]}.example"
        for generator in kustomization(folder)["secretGenerator"]
    }
    secrets = ClusterSettings().secrets
    assert {name: set(variables(file)) for name, file in examples.items()} == {
        secrets.s3: set(resources.S3_KEYS),
        secrets.mlflow: {*resources.MLFLOW_KEYS, *resources.MLFLOW_LOGIN},
        secrets.database: set(resources.DATABASE_KEYS),
    }
    # A step does not start without these, so no # may stand before them.
    for name, key in ((secrets.mlflow, "MLFLOW_TRACKING_URI"), (secrets.database, DATABASE)):
        assert re.search(rf"^{key}=.", examples[name].read_text(), re.MULTILINE)


def test_an_example_holds_no_credential() -> None:
    examples = list(MANIFESTS.rglob("*.env.example"))
    assert len(examples) == 4
    for file in examples:
        for key, value in variables(file).items():
            assert "CHANGE-ME" in value or value in HARMLESS, f"{file}: {key}"


def test_no_manifest_holds_a_secret_and_no_variable_a_password() -> None:
    assert named("Secret") == []
    for pod in pods().values():
        for container in pod["containers"]:
            for variable in container.get("env", ()):
                assert not re.search("PASSWORD|SECRET|TOKEN|KEY|_URL", variable["name"])


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout of the repository")
def test_git_ignores_the_filled_in_copies_and_holds_none() -> None:
    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *command], check=True, capture_output=True, text=True
        ).stdout

    examples = sorted(MANIFESTS.rglob("*.env.example"))
    copies = [str(file.relative_to(ROOT)).removesuffix(".example") for file in examples]
    assert git("check-ignore", "--no-index", *copies).split() == copies
    assert [file for file in git("ls-files", str(MANIFESTS)).split() if file.endswith(".env")] == []


def test_the_images_are_those_of_this_version() -> None:
    used = {container["image"] for pod in pods().values() for container in pod["containers"]}
    assert used == {IMAGE, f"expunge-mlflow:{__version__}"}
    for folder in (MANIFESTS, MANIFESTS / "checks" / "image"):
        (image,) = kustomization(folder)["images"]
        assert image["name"] == image["newName"]
        assert f"{image['name']}:{image['newTag']}" in used


def test_what_the_settings_of_a_cluster_name_is_made_here() -> None:
    text = (ROOT / "docker" / "cluster.yaml").read_text()
    for kind, name in (
        ("ServiceAccount", "expunge-pipeline"),
        ("PersistentVolumeClaim", "expunge-checkpoints"),
        ("PersistentVolumeClaim", "expunge-training"),
    ):
        assert f"makes {name}." in text
        assert named(kind, name)
    for component in re.findall(r"docker/kubernetes/(components/\w+)", text):
        assert (MANIFESTS / component / "kustomization.yaml").is_file()


def test_no_pod_gets_a_sidecar_of_the_mesh_in_a_profile() -> None:
    templates = [found["spec"]["template"] for found in [*named("Deployment"), *named("Job")]]
    assert len(templates) == len(pods())
    for template in templates:
        assert template["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"


def test_volumes_that_several_pods_mount_are_shared_ones() -> None:
    modes = {
        found["metadata"]["name"]: found["spec"]["accessModes"]
        for found in named("PersistentVolumeClaim")
    }
    shared = ["ReadWriteMany"]
    assert modes == {
        "mlflow": ["ReadWriteOnce"],
        "expunge-checkpoints": shared,
        "expunge-training": shared,
    }
    assert named("Deployment", "mlflow")[0]["spec"]["strategy"] == {"type": "Recreate"}


def mlflow() -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the variables of MLflow's container."""
    (container,) = pods()["Deployment/mlflow"]["containers"]
    assert container["command"] == ["mlflow"]
    return container["args"], {found["name"]: found["value"] for found in container["env"]}


def allowed_hosts() -> list[str]:
    (found,) = (text for text in mlflow()[0] if text.startswith("--allowed-hosts="))
    return found.partition("=")[2].split(",")


def test_the_address_in_the_secret_is_that_of_the_server_which_answers_to_it() -> None:
    address = variables(MANIFESTS / "pipelines/secrets/mlflow.env.example")["MLFLOW_TRACKING_URI"]
    host = address.removeprefix("http://")
    (service,) = named("Service")
    namespace = kustomization(MANIFESTS)["namespace"]
    port = service["spec"]["ports"][0]
    assert host == f"{service['metadata']['name']}.{namespace}.svc:{port['port']}"
    assert host in allowed_hosts()
    pod = named("Deployment", "mlflow")[0]["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    assert {"name": port["targetPort"], "containerPort": port["port"]} in container["ports"]
    assert f"--port={port['port']}" in container["args"]


def test_mlflow_runs_one_process_and_writes_to_its_volume_alone() -> None:
    arguments, environment = mlflow()
    assert {"--workers=1", "--host=0.0.0.0", "--serve-artifacts"} <= set(arguments)
    assert "--backend-store-uri=sqlite:////mlflow/mlflow.db" in arguments
    assert "--artifacts-destination=/mlflow/artifacts" in arguments
    assert environment == {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HOME": "/tmp",
    }
    pod = pods()["Deployment/mlflow"]
    assert pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/mlflow", "/tmp"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}


def status(port: int, path: str, host: str) -> int:
    """Return the status of an answer, or 0 where nobody listens yet."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    except ConnectionError:
        return 0
    finally:
        connection.close()


@pytest.mark.slow
def test_the_server_starts_with_these_arguments_and_refuses_other_hosts(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    arguments, variables = mlflow()
    moved = [text.replace("/mlflow/", f"{tmp_path}/") for text in arguments]
    moved = [text.replace("=0.0.0.0", "=127.0.0.1").replace("5000", str(port)) for text in moved]
    server = subprocess.Popen(
        [Path(sys.executable).with_name("mlflow"), *moved],
        env={**os.environ, **variables, "HOME": str(tmp_path)},
        cwd=tmp_path,
    )
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        until = time.monotonic() + 120
        while not status(port, "/health", "10.0.0.1") and time.monotonic() < until:
            assert server.poll() is None
            time.sleep(0.2)
        assert status(port, "/health", "10.0.0.1") == 200  # as a probe of the kubelet asks
        answers = {
            host: status(port, search, f"{host}:{port}")
            for host in ("mlflow", "mlflow.expunge.svc", "localhost", "evil.example.com")
        }
    finally:
        server.terminate()
        server.wait(30)
    assert list(answers.values()) == [200, 200, 200, 403]
    assert (tmp_path / "mlflow.db").is_file()


def builder() -> list[str]:
    if kustomize := shutil.which("kustomize"):
        return [kustomize, "build"]
    if kubectl := shutil.which("kubectl"):
        return [kubectl, "kustomize"]
    return []


@pytest.fixture(scope="module")
def filled_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the manifests, with the secrets filled in and every component on."""
    if not builder():
        pytest.skip("neither kubectl nor kustomize is on PATH, to build the kustomizations with")
    copy = tmp_path_factory.mktemp("kustomize") / "kubernetes"
    shutil.copytree(MANIFESTS, copy, ignore=shutil.ignore_patterns("*.env"))
    for example in copy.rglob("*.env.example"):
        shutil.copy(example, example.with_suffix(""))
    for folder in (copy, copy / "standalone"):
        file = folder / "kustomization.yaml"
        file.write_text(re.sub(r"^  # (\S+,)$", r"  \1", file.read_text(), flags=re.MULTILINE))
    return copy


def built(folder: Path) -> list[Document]:
    done = subprocess.run([*builder(), folder], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize(
    ("folder", "namespace"),
    [
        (".", "expunge"),
        ("standalone", "kubeflow"),
        ("checks/gpu", "expunge"),
        ("checks/checkpoints", "expunge"),
        ("checks/training", "expunge"),
    ],
)
def test_what_is_built_fits_the_schema_and_is_in_one_namespace(
    filled_in: Path, folder: str, namespace: str, version: str
) -> None:
    found = built(filled_in / folder)
    assert found
    assert [refused(document, version) for document in found] == [""] * len(found)
    for document in found:
        metadata = document["metadata"]
        assert metadata["name" if document["kind"] == "Namespace" else "namespace"] == namespace
        for subject in document.get("subjects", ()):
            assert subject["namespace"] == namespace


def test_a_component_changes_the_server_and_nothing_of_the_rest(filled_in: Path) -> None:
    """With basic-auth: the patch applies, and its users are on the volume."""
    (server,) = [found for found in built(filled_in) if found["kind"] == "Deployment"]
    (container,) = server["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [*mlflow()[0], "--app-name=basic-auth"]
    assert {"secretRef": {"name": "expunge-mlflow-admin"}} in container["envFrom"]
    settings = (MANIFESTS / "components/basic-auth/basic_auth.ini").read_text()
    assert "database_uri = sqlite:////mlflow/" in settings
    assert "password" not in settings


def test_the_namespace_of_kubeflow_gets_no_policy_and_no_server(filled_in: Path) -> None:
    kinds = {document["kind"] for document in built(filled_in / "standalone")}
    assert kinds == {"PersistentVolumeClaim", "Role", "RoleBinding", "Secret", "ServiceAccount"}


def test_the_secrets_have_the_names_that_the_pipelines_were_compiled_with(filled_in: Path) -> None:
    secrets = {
        document["metadata"]["name"]: set(document["data"])
        for document in built(filled_in)
        if document["kind"] == "Secret"
    }
    assert {"expunge-s3", "expunge-mlflow", "expunge-database"} <= set(secrets)
    assert secrets["expunge-database"] == set(resources.DATABASE_KEYS)
    assert secrets["expunge-mlflow"] == set(resources.MLFLOW_KEYS)


# The checks


def script(job: str) -> str:
    (container,) = pods()[f"Job/{job}"]["containers"]
    return str(container["command"][2])


def test_the_check_of_a_volume_says_whether_it_can_be_written(tmp_path: Path) -> None:
    def checked(folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script("expunge-check-checkpoints"), folder],
            check=False,
            capture_output=True,
            text=True,
        )

    assert "is writable" in checked(tmp_path).stdout
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "no-folder"
    file.touch()
    done = checked(file)
    assert done.returncode == 1
    assert "make it writable for 10001:0" in done.stderr


def test_the_check_of_a_gpu_is_python() -> None:
    compile(script("expunge-check-gpu"), "check", "exec")
