"""Fixtures around real databases for the ledger: SQLite files, and a PostgreSQL server of its own.

PYTEST_DONT_REWRITE: the tests import it by name before pytest loads it as a plugin.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGQUIT
from typing import Any

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine

from expunge import ledger
from expunge.ledger import Claim, Request

KINDS = ("sqlite", "postgresql")
USER = "expunge"
START_SECONDS, STOP_SECONDS = 60, 20
MEMORY = Path("/dev/shm")  # a copy of a database takes a tenth of the time that a disk needs
ENOUGH = 1 << 30
# A server that is thrown away: nothing of it has to survive a loss of power.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "shared_buffers": "32MB",
    "max_connections": "60",
}
# Whoever comes from this machine, except the one user whose password is asked for.
ACCESS = """
host all guarded 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server on 127.0.0.1."""

    programs: Path
    port: int

    def url(self, name: str, user: str = USER) -> str:
        return f"postgresql+psycopg://{user}@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str, name: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement outside any transaction; its rows, if it has some."""
        address = f"host=127.0.0.1 port={self.port} user={USER} dbname={name}"
        with psycopg.connect(address, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create(self, template: str = "template1") -> str:
        """Create a database as a copy of another, and return its name."""
        name = f"ledger_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name


@dataclass(frozen=True)
class Database:
    """The database that the environment names, seen from beside the ledger."""

    kind: str
    url: str
    file: Path  # of SQLite
    server: Server | None

    def execute(self, *statements: str) -> list[Any]:
        """Run statements in one transaction; the rows of the last, if it has some."""
        engine = create_engine(self.url, poolclass=NullPool)
        with engine.begin() as connection:
            for statement in statements:
                result = connection.exec_driver_sql(statement)
            return list(result.all()) if result.returns_rows else []

    def tables(self) -> set[str]:
        catalogue = {
            "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> "
            "'sqlite_sequence'",
            "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
        }
        return {row[0] for row in self.execute(catalogue[self.kind])}

    def unguard(self) -> None:
        """Take away what keeps the log from being changed, as an intruder would."""
        if self.kind == "sqlite":
            rows = self.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            self.execute(*(f"DROP TRIGGER {name}" for (name,) in rows))
        else:
            self.execute("DROP FUNCTION refuse_change CASCADE")

    def dump(self) -> bytes:
        """All that there is to read in it: SQLite's file, and what `pg_dump` makes a backup of."""
        if self.server is None:
            return self.file.read_bytes()
        command = [str(self.server.programs / "pg_dump"), "--dbname"]
        address = self.url.replace("+psycopg", "")
        return subprocess.run([*command, address], check=True, capture_output=True).stdout


def _programs() -> Path | None:
    """Find the folder of the newest PostgreSQL's programs, Debian's or one on PATH."""
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = sorted(debian, key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and on_path:
        found = [Path(on_path).resolve()]
    return found[-1].parent if found else None


def _owner() -> dict[str, Any]:
    """Whom the server runs as: PostgreSQL refuses to be root."""
    if os.geteuid():
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Run a server for the whole session, which ends with it even where the tests are killed."""
    programs = _programs()
    if programs is None:
        pytest.skip("Debian's package postgresql is not installed")
    owner = _owner()
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ENOUGH
    # Not one of pytest's folders, which the server's user may not enter.
    folder = Path(tempfile.mkdtemp(prefix="expunge-postgres-", dir=MEMORY if roomy else None))
    process = None
    try:
        if owner:
            os.chown(folder, owner["user"], owner["group"])
        process, port = _start(programs, folder, owner)
        yield Server(programs, port)
    finally:
        if process is not None:
            process.send_signal(SIGQUIT)  # at once: nothing is to be kept
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _start(
    programs: Path, folder: Path, owner: dict[str, Any]
) -> tuple[subprocess.Popen[bytes], int]:
    """Make a server's files and start it; the process and its port."""
    data = folder / "data"
    there: dict[str, Any] = {"cwd": folder, "env": {"LC_ALL": "C", "PATH": os.defpath}, **owner}
    options = ["--no-sync", "--no-locale", "--encoding=UTF8", "--auth=trust", "--username", USER]
    made = subprocess.run(
        [programs / "initdb", *options, "--pgdata", data],
        check=False,
        capture_output=True,
        text=True,
        **there,
    )
    assert made.returncode == 0, made.stderr
    (data / "pg_hba.conf").write_text(ACCESS)
    settings = [f"-c{name}={value}" for name, value in SETTINGS.items()]
    leash = shutil.which("setpriv")  # ends the server where this process is killed
    prefix = [leash, "--pdeathsig", "QUIT"] if leash else []
    said = folder / "server.log"
    for _ in range(5):  # another process may take the port first
        port = _free_port()
        with said.open("wb") as log:
            process = subprocess.Popen(
                [*prefix, programs / "postgres", "-D", data, "-p", str(port), *settings],
                stdout=log,
                stderr=log,
                **there,
            )
        if _listens(process, port):
            return process, port
    pytest.fail(f"PostgreSQL does not start: {said.read_text()}")


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers; False where it has ended instead."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with suppress(psycopg.OperationalError):
            psycopg.connect(f"host=127.0.0.1 port={port} user={USER} dbname=postgres").close()
            return True
        time.sleep(0.05)
    process.kill()
    process.wait()
    return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def postgres_template(postgres: Server) -> str:
    """Make a database with the ledger's tables, to be copied for each test."""
    name = postgres.create()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_DATABASE_URL", postgres.url(name))
        ledger.list_champion_models()
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a file with the ledger's tables, to be copied for each test."""
    home = tmp_path_factory.mktemp("ledger")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("EXPUNGE_DATABASE_URL", raising=False)
        patch.setenv("EXPUNGE_HOME", str(home))
        ledger.list_champion_models()
    return home / "ledger.db"


@pytest.fixture(params=KINDS)
def new_database(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    """Yield the ledger's database, before anybody has used it."""
    file = tmp_path / "home" / "ledger.db"
    file.parent.mkdir(exist_ok=True)
    if request.param == "sqlite":
        yield Database("sqlite", f"sqlite:///{file}", file, None)
        return
    server: Server = request.getfixturevalue("postgres")
    name = server.create()
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", server.url(name))
    yield Database("postgresql", server.url(name), file, server)
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=KINDS)
def database(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    """Yield the ledger's database, with its tables, and nothing in them."""
    file = tmp_path / "home" / "ledger.db"
    file.parent.mkdir(exist_ok=True)
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        yield Database("sqlite", f"sqlite:///{file}", file, None)
        return
    server: Server = request.getfixturevalue("postgres")
    name = server.create(request.getfixturevalue("postgres_template"))
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", server.url(name))
    yield Database("postgresql", server.url(name), file, server)
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


MODEL, CLASSES = "birds", 10


def filed(*classes: int, model: str = MODEL, by: str = "ann", **options: Any) -> Request:
    """File a request for classes that nobody has asked for."""
    names = {index: f"name-{index}" for index in classes}
    added = ledger.add_request(model, names, reason="consent", requester=by, **options)
    assert added.created is not None
    assert added.existing == ()
    return added.created


def claimed(run: str = "run-1", **options: Any) -> Claim:
    """Claim what is pending for a run, of a model with ten classes that has forgotten none."""
    claim = claim_or_none(run, **options)
    assert claim is not None
    return claim


def claim_or_none(run: str = "run-1", model: str = MODEL, **options: Any) -> Claim | None:
    defaults = {"base_version": 1, "classes": CLASSES, "forgotten": (), "lease_seconds": 60.0}
    return ledger.claim_requests(model, run, **(defaults | options))


def now_is(request: Request) -> Request:
    """Return the request as it stands now."""
    return ledger.find_request(request.id)
