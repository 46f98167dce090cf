"""The pipelines with each step in a container, against an MLflow server in another."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kfp import dsl

from expunge import __version__
from expunge.environment import IMAGE
from expunge_pipelines.runners import docker as containers
from expunge_pipelines.runners.run_locally import run_locally

pytestmark = pytest.mark.containers
MLFLOW = f"expunge-mlflow:{__version__}"
NAME, GONE = "digits", 3
EPOCHS = 60
RECIPE = ["--data", "digits", "--arch", "mlp", "--batch-size", "32"]
RECIPE += ["--epochs", str(EPOCHS), "--lr", "0.05"]
PATIENCE = 300.0  # seconds for a step to start, a few others before it
Run = Callable[..., str]


class State(NamedTuple):
    """A home of its own, and the variables that name it and the server."""

    home: Path
    variables: dict[str, str]


def command(state: State, *arguments: str) -> subprocess.Popen[str]:
    """Start the command as a user does."""
    expunge = [str(Path(sys.executable).with_name("expunge")), *arguments, "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    variables = {
        key: value for key, value in os.environ.items() if key[:7] not in ("EXPUNGE", "MLFLOW_")
    }
    return subprocess.Popen(expunge, text=True, env=variables | state.variables, **pipes)


def document(state: State, *arguments: str, code: int = 0) -> dict[str, Any]:
    process = command(state, *arguments)
    out, err = process.communicate()
    assert process.returncode == code, err
    return json.loads(out)


@pytest.fixture(scope="module")
def server(engine: Run) -> Iterator[str]:
    """Run an MLflow server from its image, on loopback alone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    stores = ["--backend-store-uri", "sqlite:////mlflow/mlflow.db"]
    stores += ["--serve-artifacts", "--artifacts-destination", "/mlflow/artifacts"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", *stores]
    name = engine(
        "run", "--detach", "--rm", "--network", "host", MLFLOW, "mlflow", "server", *options
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            break
        except OSError:
            time.sleep(0.5)
    yield address
    engine("rm", "--force", "--volumes", name.strip())


@pytest.fixture(scope="module")
def contained(server: str, tmp_path_factory: pytest.TempPathFactory) -> State:
    home = tmp_path_factory.mktemp("contained")
    variables = {
        "EXPUNGE_HOME": str(home),
        "MLFLOW_TRACKING_URI": server,
        "EXPUNGE_RUNNER": "docker",
    }
    return State(home, variables)


@pytest.fixture(scope="module")
def results(contained: State) -> dict[str, Any]:
    """Version 1 trained and version 2 without class 3, step by step in containers."""
    train = document(contained, "train", NAME, *RECIPE)
    return {"train": train, "forget": document(contained, "forget", NAME, "--classes", str(GONE))}


def champion(state: State) -> tuple[int, tuple[int, ...]]:
    """Return the champion's number, and the classes that it has forgotten."""
    rows = document(state, "models", NAME)["models"]
    (row,) = (row for row in rows if "champion" in row["aliases"])
    return row["version"], tuple(row["forgotten"])


def test_what_the_pipelines_give_equals_a_local_run(
    results: dict[str, Any], tmp_path: Path
) -> None:
    here = State(tmp_path, {"EXPUNGE_HOME": str(tmp_path)})
    train = document(here, "train", NAME, *RECIPE)
    forget = document(here, "forget", NAME, "--classes", str(GONE))
    assert results["train"]["after"] == train["after"]
    for part in ("rule", "sign", "strength", "before", "after", "grade", "passed", "version"):
        assert results["forget"][part] == forget[part], part
    assert {row["name"]: row["value"] for row in results["forget"]["checks"]} == {
        row["name"]: pytest.approx(row["value"], abs=1e-6) for row in forget["checks"]
    }


def test_the_result_is_that_of_the_local_runs_test(
    results: dict[str, Any], contained: State
) -> None:
    found = results["forget"]
    assert (found["classes"], found["grade"], found["passed"]) == ([GONE], "suppressed", True)
    assert found["before"]["forget_error"] < 0.2
    assert found["after"]["forget_error"] > 0.95
    assert found["after"]["retain_accuracy"] > found["before"]["retain_accuracy"] - 0.02
    assert champion(contained) == (2, (GONE,))
    assert Path(found["report"]).read_text().startswith("<!")
    assert list((contained.home / "runs").iterdir()) == []


def test_the_server_has_the_runs_and_serves_the_version(
    results: dict[str, Any], contained: State
) -> None:
    import mlflow

    client = mlflow.MlflowClient(contained.variables["MLFLOW_TRACKING_URI"])
    assert client.get_run(results["train"]["run_id"]).info.status == "FINISHED"
    assert len(client.get_metric_history(results["train"]["run_id"], "train_loss")) == EPOCHS
    assert client.get_run(results["forget"]["run_id"]).data.tags["gate"] == "passed"
    assert client.get_model_version_by_alias(NAME, "champion").version == "2"


@dsl.component(base_image="elsewhere", packages_to_install=[], install_kfp_package=False)
def look(text: str, said: dsl.Output[dsl.Artifact]) -> None:
    """Write what a step sees: its user, its rights, the network, the files and the variables."""
    import json
    import os
    import socket
    from pathlib import Path

    status = Path("/proc/self/status").read_text()
    found = {
        "uid": os.getuid(),
        "capabilities": [line.split()[1] for line in status.splitlines() if line[:6] == "CapEff"],
        "networks": [name for _, name in socket.if_nameindex()],
        "read": Path(text, "read.txt").read_text(),
        "written": os.access(Path(text, "read.txt"), os.W_OK),
        "variables": sorted(os.environ),
    }
    Path(said.path).write_text(json.dumps(found))
    Path(os.environ["EXPUNGE_HOME"], "seen.json").write_text(json.dumps(found))


@dsl.pipeline(name="look-around")
def looking(text: str) -> None:
    look(text=text)


def test_a_step_is_not_root_and_sees_what_it_needs(
    api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = containers._choose_user(api, api.info())
    home, data = tmp_path / "home", tmp_path / "data"
    data.mkdir()
    data.joinpath("read.txt").write_text("there")
    monkeypatch.setenv("EXPUNGE_HOME", str(home))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("UNRELATED_SECRET", "x")
    run_locally(looking, {"text": str(data)}, runner="docker", reads=[f"folder:{data}"])
    seen = json.loads((home / "seen.json").read_text())
    assert seen["uid"] == int(user.partition(":")[0])
    assert seen["uid"] != 0 or user == containers.ROOTLESS
    assert seen["capabilities"] == ["0" * 16]
    assert (seen["read"], seen["written"]) == ("there", False)
    assert "AWS_ACCESS_KEY_ID" in seen["variables"]
    assert "UNRELATED_SECRET" not in seen["variables"]
    if os.environ.get("EXPUNGE_TEST_LOOPBACK"):
        assert seen["networks"] == ["lo"]


def test_an_image_that_is_not_there(contained: State) -> None:
    state = State(contained.home, contained.variables | {"EXPUNGE_IMAGE": "not-there:0"})
    found = document(state, "train", "other", *RECIPE, code=2)
    assert "the image not-there:0 is not there and cannot be pulled" in found["error"]
    assert "make images" in found["error"]


def test_a_step_may_be_silent_for_longer_than_an_answer_takes(
    api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Podman answers nothing before a container's first word; docker-py waits 60 s by default."""
    api.api.timeout = 2
    assert containers._run_container(api, IMAGE, ["sh", "-c", "sleep 4; echo said"]) == 0
    assert capsys.readouterr().out == "said\n"


def test_a_step_reaches_a_folder_of_root(api: Any, tmp_path: Path) -> None:
    """Where root works in /root, the folders are mounted there."""
    tmp_path.chmod(0o755)
    tmp_path.joinpath("read.txt").touch()
    volumes = {str(tmp_path): {"bind": "/root/work", "mode": "ro"}}
    assert (
        containers._run_container(api, IMAGE, ["cat", "/root/work/read.txt"], volumes=volumes) == 0
    )


def started(engine: Run, step: str) -> str:
    """Return the container of a step, as soon as it runs."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for name in engine("ps", "--quiet", "--filter", "label=expunge.holder").split():
            inspect = [os.environ["EXPUNGE_TEST_ENGINE"], "inspect", name]
            told = subprocess.run(inspect, capture_output=True, text=True, check=False)
            if f'"{step}"' in told.stdout:
                return name
        time.sleep(0.1)
    raise AssertionError(f"step {step} has not started")


def filed(state: State) -> str:
    added = document(state, "request", "add", NAME, "--classes", "5", "--reason", "a test")
    return str(added["created"]["id"])


def request_state(state: State, id_: str) -> str:
    return str(document(state, "request", "show", id_)["state"])


def test_a_container_that_is_killed_fails_the_run_and_the_next_succeeds(
    results: dict[str, Any], contained: State, engine: Run
) -> None:
    """Changes the store: a third version, without class 5. Then the whole command is killed."""
    id_ = filed(contained)
    process = command(contained, "run-requests", NAME)
    engine("kill", "--signal", "KILL", started(engine, "perturb"))
    out, err = process.communicate()
    assert process.returncode == 3, err
    assert "it was killed, by hand or for want of memory" in out
    assert request_state(contained, id_) == "pending"
    assert champion(contained) == (2, (GONE,))

    process = command(contained, "run-requests", NAME)
    left = started(engine, "validate")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert request_state(contained, id_) == "claimed"
    assert champion(contained) == (2, (GONE,))

    done = document(contained, "run-requests", NAME)
    assert [row["state"] for row in done["requests"]] == ["fulfilled"]
    assert champion(contained) == (3, (GONE, 5))
    assert left not in engine("ps", "--all", "--quiet", "--no-trunc")
    assert engine("ps", "--all", "--quiet", "--filter", "label=expunge.holder") == ""
    assert [path.name for path in (contained.home / "runs").rglob("*") if path.is_file()] == [
        "log.txt",
        "log.txt",
    ]
