import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from expunge import registry
from expunge.errors import OperationalError
from expunge.registry import store

pytest_plugins = ["mlflow_store"]


def test_a_server_that_is_down_is_said_quickly_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for scheme in ("http", "postgresql+psycopg"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://ann:secret@127.0.0.1:{port}/db?k=v")
        started = time.monotonic()
        with pytest.raises(
            OperationalError, match=f"127.0.0.1:{port}/db cannot be reached"
        ) as caught:
            registry.list_models()
        assert time.monotonic() - started < 10
        assert not {"ann", "secret", "k=v"} & set(str(caught.value).replace(":", " ").split())
        assert "secret" not in str(caught.value)


def test_a_server_that_answers_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()  # it takes connections and never answers
        port = server.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(OperationalError, match="could not list the models") as caught:
            registry.list_models()
        assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database(store: Path) -> None:
    (store / "mlflow.db").write_text("no database, but long enough to be read as one " * 100)
    with pytest.raises(OperationalError, match="could not open the store: file is not a database"):
        registry.list_models()


def test_a_store_that_cannot_be_written_says_so_in_a_line(store: Path) -> None:
    """SQLAlchemy begins with advice on its autoflush where the first table is known already."""
    code = (
        "from sqlalchemy import event; from sqlalchemy.engine import Engine;"
        "event.listen(Engine, 'connect', lambda c, _: c.execute('PRAGMA query_only = ON'));"
        "from expunge import registry; registry.attach_run('shapes', 'train')"
    )
    registry.attach_run("shapes", "train")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.rstrip().endswith(
        "could not attach to a run: attempt to write a readonly database; check its permissions "
        "and space"
    )


def test_a_new_store_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("EXPUNGE_HOME", str(tmp_path / "new"))
    assert registry.list_models() == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mlflow.db"]
    default = store.connect().get_experiment("0")
    assert default.artifact_location == (tmp_path / "new" / "mlartifacts" / "0").as_uri()


def test_importing_the_registry_does_not_import_mlflow_or_torch() -> None:
    code = (
        "import sys, expunge.registry, expunge.steps.promote, expunge.steps.register;"
        "import expunge.steps.log_run, expunge.steps.claim_requests;"
        "sys.exit(bool({'mlflow', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
