"""Connection to MLflow: quiet, quick to say that a server is down, and without secrets in it.

Importing mlflow takes 1 to 2 s; the first use of an SQLite store about 1 s, new or not.
"""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from expunge import environment
from expunge.errors import ExpungeError, OperationalError
from expunge.oracles import check_model_name

# What the user set comes first. A server that answers is retried twice, not for MLflow's minutes.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",  # seconds; a small pipeline is over in 10
}
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
CONNECT_SECONDS = 5.0  # a TCP handshake takes two round trips at most; 5 s cover any network
CONNECT_TRIES = 2
SQLITE = "sqlite:///"
# What SQLite says of a file that it cannot write or open.
BLOCKED = ("readonly", "unable to open", "disk is full", "disk I/O")


def connect() -> Any:
    """Return an `MlflowClient` on `environment.mlflow_uri()`, which becomes mlflow's own as well.

    Raises:
        OperationalError: the server or database cannot be reached, or the SQLite file is none.
    """
    for key, value in DEFAULTS.items():
        os.environ.setdefault(key, value)
    uri = environment.mlflow_uri()
    path = _find_sqlite_path(uri)
    if path is None:
        _check_reachable(uri)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # it prints a traceback for an error that is raised as well
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with translate_errors("open the store"):
        if path is not None:
            _check_sqlite(path)
        mlflow.set_tracking_uri(uri)
        return mlflow.MlflowClient()


def prepare_uri() -> str:
    """Make the store ready, and return its URI: what `mlflow server` is given."""
    connect()
    return environment.mlflow_uri()


def ensure_experiment(client: Any, model: str) -> str:
    """Return the id of the experiment `expunge/<model>`, and make it where it is not there yet.

    On a local SQLite store its artifacts lie under `environment.artifact_root()`; a server decides
    for itself.
    """
    name = f"expunge/{check_model_name(model, oracles=True)}"
    known = client.get_experiment_by_name(name)
    if known is None:
        local = _find_sqlite_path(environment.mlflow_uri()) is not None
        location = f"{environment.artifact_root()}/{model}" if local else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise
            known = client.get_experiment_by_name(name)  # another process was first
    return str(known.experiment_id)


def iterate_pages(search: Callable[..., Any], **query: Any) -> Iterator[Any]:
    """Yield all results of one of MLflow's searches, which answers a page at a time."""
    token = None
    while True:
        page = search(**query, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def translate_errors(doing: str) -> Iterator[None]:
    """Turn what MLflow and the stores under it raise into one `OperationalError` with the URI."""
    try:
        yield
    except ExpungeError:
        raise
    except Exception as error:
        if not isinstance(error, _list_error_types()):
            raise
        uri = environment.redact_url(environment.mlflow_uri())
        raise OperationalError(f"MLflow at {uri} could not {doing}: {_explain(error)}") from error


def _explain(error: Exception) -> str:
    """Return the first line of what was raised, or the words of the database behind it.

    SQLAlchemy puts advice for programmers before those, and MLflow keeps it.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, sqlite3.Error):
        cause = getattr(cause, "orig", None) or cause.__cause__
    text = str(cause or error).strip()
    reason = environment.redact_url(text.splitlines()[0] if text else repr(error))
    blocked = cause is not None and any(sign in reason for sign in BLOCKED)
    return f"{reason}; check its permissions and space" if blocked else reason


def _list_error_types() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    types: tuple[type[Exception], ...] = (MlflowException, SQLAlchemyError, OSError, sqlite3.Error)
    if "boto3" in sys.modules:  # an artifact store on S3, without a server between
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        types = (*types, Boto3Error, BotoCoreError, ClientError)
    return types


def _find_sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def _check_reachable(uri: str) -> None:
    """Try a TCP handshake, unless a proxy stands between: MLflow itself would wait for minutes."""
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if parts.hostname is None or scheme not in PORTS:
        return
    if scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname):
        return
    for left in reversed(range(CONNECT_TRIES)):
        try:
            address = (parts.hostname, parts.port or PORTS[scheme])
            socket.create_connection(address, CONNECT_SECONDS).close()
        except OSError as error:
            if left == 0:
                raise OperationalError(
                    f"MLflow at {environment.redact_url(uri)} cannot be reached ({error}); start "
                    "it, or check MLFLOW_TRACKING_URI"
                ) from error
            time.sleep(1)
        else:
            return


def _check_sqlite(path: Path) -> None:
    """Make the store if it is new; else see that it is a database, since MLflow tries for 100 s."""
    if not path.exists():
        _make_sqlite(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA schema_version")


def _make_sqlite(path: Path) -> None:
    """Make a migrated store beside `path` and link it there: whole, or not at all.

    A process that is killed among the hundred migrations leaves nothing that the next one takes
    for a store. Nothing is lost with an unfinished file, so it is not synced at each migration,
    which is most of the time: 6 s become 1 s. MLflow's experiment 0, where `mlflow run` puts its
    runs, keeps its artifacts with the others and not in the working folder.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def skip_sync(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        event.listen(Engine, "connect", skip_sync)
        try:
            made: Any = SqlAlchemyStore  # it has no type hints
            made(f"{SQLITE}{fresh}", environment.artifact_root()).engine.dispose()
        finally:
            event.remove(Engine, "connect", skip_sync)
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        try:
            path.hardlink_to(fresh)
        except FileExistsError:
            return  # another process was first
        except OSError:  # a file system without hard links
            fresh.replace(path)
