"""What a step in a container is given, as far as no engine is needed for it.

The rest is in `tests/containers`.
"""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import document

from expunge import environment
from expunge.errors import ERROR_FILE, UserError
from expunge_pipelines.runners import docker as containers


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
    assert containers._list_addresses() == [
        "unix:///var/run/docker.sock",
        "unix:///run/user/7/docker.sock",
        "unix:///run/user/7/podman/podman.sock",
        "unix:///run/podman/podman.sock",
    ]
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    assert containers._list_addresses() == ["tcp://elsewhere:2375"]


def test_state_is_mounted_for_writing_and_what_is_read_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, weights, bundle = tmp_path / "data", tmp_path / "weights.pth", tmp_path / "ca.pem"
    profiles = tmp_path / "profiles"
    data.mkdir()
    for file in (weights, bundle, profiles):
        file.touch()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profiles))
    monkeypatch.setenv("EXPUNGE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    reads = [f"folder:{data}", str(weights), "", "digits", "models:/digits/1", "IMAGENET1K_V1"]
    assert dict(containers._list_mounts([*reads, str(tmp_path / "missing")])) == {
        str(environment.home()): "rw",
        str(tmp_path / "checkpoints"): "rw",
        str(environment.home() / "data"): "rw",
        str(data): "ro",
        str(weights): "ro",
        str(bundle): "ro",
        str(profiles): "ro",
    }
    assert (tmp_path / "checkpoints").is_dir()


def test_only_variables_that_concern_a_step_go_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("EXPUNGE_TTY", "/dev/pts/1")
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "home" / "runs" / "1" / "error.json"))
    monkeypatch.setenv("EXPUNGE_HOME", os.path.relpath(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    given = containers._collect_variables()
    assert given["EXPUNGE_HOME"] == str(tmp_path / "home")
    assert ERROR_FILE in given
    assert given.keys() >= {"MLFLOW_TRACKING_URI", "AWS_ACCESS_KEY_ID", "https_proxy", "TMPDIR"}
    assert given["HOME"] == given["TMPDIR"] == str(tmp_path)
    assert given["CUDA_VISIBLE_DEVICES"] == "1"
    assert not given.keys() & {"EXPUNGE_TTY", "GITHUB_TOKEN", "PATH"}


def engine_with(user: str | None) -> Any:
    """Imitate an engine whose image has this user; None leaves it out, as a recent Docker does."""
    config = {} if user is None else {"User": user}
    image = SimpleNamespace(attrs={"Config": config})
    return SimpleNamespace(images=SimpleNamespace(get=lambda _: image))


def test_the_user_in_the_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine without root maps its 0 to who runs it; docker-py sends no keep-id."""
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "getgid", lambda: 100)
    client = engine_with("10001:0")
    assert containers._choose_user(client, {"SecurityOptions": None}) == "1000:100"
    seccomp = "name=seccomp,profile=default"
    assert containers._choose_user(client, {"SecurityOptions": [seccomp, "name=rootless"]}) == "0:0"
    assert (
        containers._choose_user(client, {"SecurityOptions": [seccomp], "Rootless": True}) == "0:0"
    )
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert containers._choose_user(client, {}) == "10001:0"
    assert containers._choose_user(engine_with("7"), {}) == "7:0"
    for given in (None, "", "0", "0:0", "somebody"):
        with pytest.raises(UserError, match=r"runs as '(0|0:0|somebody)'; since this user is root"):
            containers._choose_user(engine_with(given), {})


@pytest.mark.skipif(os.getuid() != 0, reason="only root hands over")
def test_folders_become_the_containers_users(tmp_path: Path) -> None:
    outside, home = tmp_path / "outside", tmp_path / "home"
    outside.touch()
    (home / "runs").mkdir(parents=True)
    (home / "runs" / "a").touch()
    (home / "link").symlink_to(outside)
    containers._hand_over("0:0", [home])
    assert home.stat().st_uid == 0
    containers._hand_over("10001:0", [home, tmp_path / "missing"])
    assert {path.lstat().st_uid for path in (home, *home.rglob("*"))} == {10001}
    assert outside.stat().st_uid == 0


@pytest.mark.parametrize("name", ["EXPUNGE_DATABASE_URL", "MLFLOW_TRACKING_URI"])
def test_a_store_in_a_file_has_to_lie_where_a_container_sees_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"sqlite:///{environment.home()}/own.db")
    assert containers._list_mounts([])
    for path in (f"{tmp_path}/elsewhere.db", "relative.db"):
        monkeypatch.setenv(name, f"sqlite:///{path}")
        with pytest.raises(UserError, match=rf"{name} is .*{path}, a file that no container sees"):
            containers._list_mounts([])


def test_root_gives_away_no_folder_that_holds_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    home = environment.home()
    for name in ("runs", "checkpoints", "mlartifacts", "data", "exports"):
        (home / name).mkdir(parents=True)
    for name in ("ledger.db", "ledger.db-journal", "mlflow.db"):
        (home / name).touch()
    monkeypatch.setattr(os, "getuid", lambda: 0)
    containers._check_home("10001:0")
    (home / ".ssh").mkdir()
    with pytest.raises(UserError, match=r"EXPUNGE_HOME is .* holds '.ssh' as well; .* state alone"):
        containers._check_home("10001:0")
    containers._check_home(containers.ROOTLESS)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    containers._check_home("1000:1000")
