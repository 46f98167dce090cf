"""What a step in a container is given, as far as no engine is needed for it.

The rest is in `tests/containers`.
"""

import os
from pathlib import Path

import pytest
from command import document

from expunge import environment
from expunge.errors import UserError
from expunge_pipelines import containers


def test_no_engine_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before anything is done: the home holds no version afterwards."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    recipe = ["--data", "digits", "--arch", "mlp", "--runner", "docker"]
    found = document("train", "digits", *recipe, code=3)
    assert f"no container engine answers at unix://{tmp_path}/none.sock" in found["error"]
    assert "podman system service" in found["error"]
    assert document("models")["models"] == []


def test_where_an_engine_may_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert containers._addresses() == [
        "unix:///var/run/docker.sock",
        "unix:///run/user/7/podman/podman.sock",
        "unix:///run/podman/podman.sock",
    ]
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    assert containers._addresses() == ["tcp://elsewhere:2375"]


def test_state_is_mounted_for_writing_and_what_is_read_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, weights, bundle = tmp_path / "data", tmp_path / "weights.pth", tmp_path / "ca.pem"
    data.mkdir()
    weights.touch()
    bundle.touch()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    monkeypatch.setenv("EXPUNGE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    reads = [f"folder:{data}", str(weights), "", "digits", "models:/digits/1", "IMAGENET1K_V1"]
    assert dict(containers._mounts([*reads, str(tmp_path / "missing")])) == {
        str(environment.home()): "rw",
        str(tmp_path / "checkpoints"): "rw",
        str(environment.home() / "data"): "rw",
        str(data): "ro",
        str(weights): "ro",
        str(bundle): "ro",
    }
    assert (tmp_path / "checkpoints").is_dir()


def test_only_variables_that_concern_a_step_go_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("EXPUNGE_TTY", "/dev/pts/1")
    monkeypatch.setenv("EXPUNGE_HOME", os.path.relpath(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    given = containers._variables()
    assert given["EXPUNGE_HOME"] == str(tmp_path / "home")
    assert given.keys() >= {"MLFLOW_TRACKING_URI", "AWS_ACCESS_KEY_ID", "TMPDIR"}
    assert given["HOME"] == given["TMPDIR"] == str(tmp_path)
    assert not given.keys() & {"EXPUNGE_TTY", "GITHUB_TOKEN", "PATH"}


@pytest.mark.parametrize("name", ["EXPUNGE_DATABASE_URL", "MLFLOW_TRACKING_URI"])
def test_a_store_in_a_file_has_to_lie_where_a_container_sees_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"sqlite:///{environment.home()}/own.db")
    assert containers._mounts([])
    for path in (f"{tmp_path}/elsewhere.db", "relative.db"):
        monkeypatch.setenv(name, f"sqlite:///{path}")
        with pytest.raises(UserError, match=rf"{name} is .*{path}, a file that no container sees"):
            containers._mounts([])
