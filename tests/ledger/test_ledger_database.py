"""The database itself: how it comes to its tables, and how it fails."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from databases import KINDS, Database, Server, claimed, filed
from disks import fill, mounted
from sqlalchemy import NullPool, create_engine

from expunge import ledger
from expunge.errors import OperationalError, UserError
from expunge.ledger import database as connecting
from expunge.ledger.schema import metadata

pytest_plugins = ["databases"]

IN_A_FILE, ON_A_SERVER = (
    pytest.mark.parametrize("database", [kind], indirect=True) for kind in KINDS
)
TABLES = {*metadata.tables, "ledger_version"}
KILLED = """
import os, signal, sys
from sqlalchemy import Engine, event
from expunge import ledger

@event.listens_for(Engine, "after_cursor_execute")
def kill(connection, cursor, statement, *rest):
    if sys.argv[1] in statement:
        os.kill(os.getpid(), signal.SIGKILL)

ledger.list_champion_models()
"""
# Each waits for the others, so that all of them find nothing and begin.
FIRST = """
import sys
from expunge import ledger
print("ready", flush=True)
sys.stdin.readline()
ledger.add_request("birds", {int(sys.argv[1]): None}, reason="r", requester="ann")
"""
HELD = """
import sys, sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert text.count("the ledger at") <= 1
    return text


def differences(database: Database) -> list[object]:
    engine = create_engine(database.url, poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "version_table": "ledger_version"}
        )
        return list(compare_metadata(context, metadata))


def test_another_programs_migrations_in_the_same_database(new_database: Database) -> None:
    """MLflow's, such as on one Postgres for both, with a revision of its own."""
    new_database.execute(
        "CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)",
        "INSERT INTO alembic_version VALUES ('f5a4f2784254')",
    )
    filed(1)
    assert new_database.execute("SELECT version_num FROM alembic_version") == [("f5a4f2784254",)]
    assert new_database.execute("SELECT version_num FROM ledger_version") == [("r0001",)]


def test_the_migrated_tables_are_those_of_the_schema(new_database: Database) -> None:
    assert new_database.tables() == set()
    assert len(ledger.verify_events()) == 0
    assert new_database.tables() == TABLES
    assert differences(new_database) == []
    new_database.execute("ALTER TABLE champions ADD COLUMN extra INTEGER", "DROP INDEX queue")
    assert len(differences(new_database)) == 2


def test_a_ledger_is_made_where_its_folder_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", f"sqlite:///{tmp_path}/some/where/new.db")
    filed(1)
    assert (tmp_path / "some" / "where" / "new.db").is_file()
    assert not (tmp_path / "home").exists()


def test_several_processes_open_a_new_database(new_database: Database) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0] * 4, ends
    assert sorted(entry.classes[0] for entry in ledger.list_requests()) == list(range(4))
    assert len(ledger.verify_events()) == 4
    assert new_database.execute("SELECT version_num FROM ledger_version") == [("r0001",)]


@pytest.mark.parametrize("moment", ["CREATE TABLE events", "INTO ledger_version"])
def test_a_migration_that_is_killed_leaves_nothing(new_database: Database, moment: str) -> None:
    command = [sys.executable, "-c", KILLED, moment]
    killed = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert new_database.tables() == set()
    filed(1)
    assert len(ledger.verify_events()) == 1
    assert new_database.tables() == TABLES


def test_tables_of_a_newer_version_are_left_alone(new_database: Database) -> None:
    new_database.execute(
        "CREATE TABLE ledger_version (version_num VARCHAR(32) PRIMARY KEY)",
        "INSERT INTO ledger_version VALUES ('r9000')",
    )
    text = (
        "the ledger has tables of revision r9000 and this version of expunge knows r0001; upgrade "
        "expunge"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=text) as caught:
            ledger.verify_events()
        assert caught.value.exit_code == 2
    assert new_database.tables() == {"ledger_version"}


EXPECTED = "expected sqlite:////absolute/file.db or postgresql+psycopg://user@host/database"
NO_ADDRESS = f"EXPUNGE_DATABASE_URL is no address of a database; {EXPECTED}"
NO_FILE = f"EXPUNGE_DATABASE_URL names no file to keep the ledger in; {EXPECTED}"
MISWRITTEN = "EXPUNGE_DATABASE_URL has an '@' or '/' in its user or password; write %40 or %2F"
OPTION = "EXPUNGE_DATABASE_URL has an option that a file does not take; expected at most ?timeout="


def kind(name: str) -> str:
    return f"EXPUNGE_DATABASE_URL names a database of kind '{name}'; {EXPECTED}"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("garbage secret", NO_ADDRESS),
        ("://secret", NO_ADDRESS),
        ("/var/lib/secret.db", NO_ADDRESS),
        ("postgresql+psycopg://ann:secret@host:port/name", NO_ADDRESS),
        ("mysql://ann:secret@host/name", kind("mysql")),
        ("mysql+pymysql://ann:secret@host/name", kind("mysql+pymysql")),
        ("postgres://ann:secret@host/name", kind("postgres")),
        ("postgresql+asyncpg://ann:secret@host/name", kind("postgresql+asyncpg")),
        ("postgresql+nothing://ann:secret@host/name", kind("postgresql+nothing")),
        ("sqlite+aiosqlite:////tmp/secret.db", kind("sqlite+aiosqlite")),
        ("sqlite://", NO_FILE),
        ("sqlite:///", NO_FILE),
        ("sqlite:///:memory:", NO_FILE),
        ("sqlite:////tmp/x.db?timeout=secret", OPTION),
        ("sqlite:////tmp/x.db?secret=1", OPTION),
        ("sqlite:///file:x?mode=memory&uri=true", OPTION),
        ("postgresql+psycopg://ann:pass@secret@host/name", MISWRITTEN),
        ("postgresql+psycopg://a/nn:secret@host/name", MISWRITTEN),
    ],
)
def test_an_address_that_is_none(address: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", address)
    for act in (ledger.verify_events, lambda: filed(1)):
        with pytest.raises(UserError) as caught:
            act()
        assert one_line(caught.value).startswith(text)
        assert "secret" not in str(caught.value)


def test_a_driver_need_not_be_named(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", database.url.replace("+psycopg", ""))
    filed(1)
    assert len(ledger.verify_events()) == 1


@contextmanager
def closed_port() -> Iterator[int]:
    """Yield a port that nobody listens on, and that nobody else takes meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("password", ["secret", "sec/ret", "sec'r\"et", "sec%20ret", "sec:ret"])
def test_a_database_that_is_down(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_port() as port:
        address = f"127.0.0.1:{port}/ledger"
        monkeypatch.setenv(
            "EXPUNGE_DATABASE_URL",
            f"postgresql+psycopg://ann:{password}@{address}?application_name=secret",
        )
        begun = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            filed(1)
    assert time.monotonic() - begun < connecting.CONNECT_SECONDS
    text = one_line(caught.value)
    assert text.startswith(f"the ledger at postgresql+psycopg://{address} could not file a request")
    assert text.endswith("; start the database, or check EXPUNGE_DATABASE_URL")
    assert "Connection refused" in text
    assert "sec" not in text
    assert "ann" not in text
    assert caught.value.exit_code == 3


def test_a_server_that_does_not_let_one_in(
    postgres: Server, postgres_template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
    for url, remedy in (
        (
            postgres.url(postgres_template, "guarded:secret"),
            'password authentication failed for user "guarded"; check the user and password in '
            "EXPUNGE_DATABASE_URL",
        ),
        (
            postgres.url("nowhere"),
            'database "nowhere" does not exist; create it, or check EXPUNGE_DATABASE_URL',
        ),
        (
            postgres.url(postgres_template, "guarded:right"),
            "permission denied for table ledger_version; check its permissions",
        ),
    ):
        monkeypatch.setenv("EXPUNGE_DATABASE_URL", url)
        with pytest.raises(OperationalError) as caught:
            ledger.verify_events()
        assert one_line(caught.value).endswith(remedy)
        for secret in ("secret", "right"):
            assert secret not in str(caught.value)
    postgres.execute("DROP ROLE guarded")


def test_a_server_with_too_many_connections(
    postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres.create()
    postgres.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    postgres.execute("CREATE ROLE visitor LOGIN")
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", postgres.url(name, "visitor"))
    with pytest.raises(OperationalError, match="; try again, or let the server take more conn"):
        ledger.verify_events()


@ON_A_SERVER
def test_a_connection_that_breaks_off_leaves_nothing(database: Database) -> None:
    made, before = filed(1), ledger.list_events()

    def break_off() -> None:
        with connecting.begin_write("do half") as connection:
            connection.exec_driver_sql("UPDATE requests SET state = 'cancelled'")
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
            database.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
            connection.exec_driver_sql("UPDATE requests SET state = 'parked'")

    with pytest.raises(
        OperationalError, match=r"could not do half: .*; start the database"
    ) as lost:
        break_off()
    one_line(lost.value)
    assert ledger.find_request(made.id) == made
    assert ledger.list_events() == before


def test_a_body_that_raises_leaves_nothing(database: Database) -> None:
    def fail() -> None:
        with connecting.begin_write("do half") as connection:
            connection.exec_driver_sql("UPDATE requests SET state = 'cancelled'")
            raise KeyboardInterrupt

    made = filed(1)
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert ledger.find_request(made.id) == made


def test_a_file_that_another_process_holds(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shutil.copyfile(sqlite_template, tmp_path / "ledger.db")
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", f"sqlite:///{file}?timeout=0.2")
    command = [sys.executable, "-c", HELD, str(file)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        begun = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            filed(1)
        waited = time.monotonic() - begun
        assert ledger.list_requests() == []  # reading goes on
        process.communicate("done\n")
    assert 0.2 <= waited < connecting.WAIT / 2
    assert one_line(caught.value) == (
        f"the ledger at sqlite:///{file} could not file a request: database is locked; another "
        "process holds it; try again, or end that process"
    )
    filed(1)


@ON_A_SERVER
def test_a_server_whose_writer_does_not_end(database: Database) -> None:
    options = "options=-c%20lock_timeout%3D200ms"
    engine = create_engine(database.url, poolclass=NullPool)
    with engine.begin() as connection, pytest.MonkeyPatch.context() as patch:
        connection.exec_driver_sql("SELECT seq FROM head FOR UPDATE")
        patch.setenv("EXPUNGE_DATABASE_URL", f"{database.url}?{options}")
        with pytest.raises(OperationalError) as caught:
            filed(1)
        assert ledger.list_requests() == []
    assert one_line(caught.value).endswith(
        "canceling statement due to lock timeout; another process holds it; try again, or end that "
        "process"
    )
    filed(1)


@ON_A_SERVER
def test_nobody_waits_for_ever(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("lock_timeout", "idle_in_transaction_session_timeout")

    def settings() -> list[str]:
        with connecting.begin_write("look") as connection:
            return [str(connection.exec_driver_sql(f"SHOW {name}").scalar()) for name in names]

    assert settings() == ["30s", "30s"]
    options = "options=-c%20lock_timeout%3D7s"
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", f"{database.url}?{options}&connect_timeout=20")
    assert settings() == ["7s", "30s"]


@IN_A_FILE
def test_erased_bytes_are_overwritten(database: Database) -> None:
    """Some builds of SQLite do not do so by themselves."""
    with connecting.begin_write("look") as connection:
        assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == 1


def test_a_file_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ledger.db"
    file.write_bytes(b"no database at all, whatever it is called " * 100)
    before = file.read_bytes()
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", f"sqlite:///{file}")
    with pytest.raises(OperationalError) as caught:
        filed(1)
    assert one_line(caught.value) == (
        f"the ledger at sqlite:///{file} could not file a request: file is not a database; it is "
        "another kind of file; name another in EXPUNGE_DATABASE_URL"
    )
    assert file.read_bytes() == before


@contextmanager
def sealed(path: Path) -> Iterator[None]:
    """Keep anybody, even root, from writing a file or folder while the body runs."""
    if os.geteuid():
        mode = path.stat().st_mode
        path.chmod(mode & ~0o222)
        try:
            yield
        finally:
            path.chmod(mode)
        return
    chattr = shutil.which("chattr")
    if not chattr or subprocess.run([chattr, "+i", path], check=False).returncode:
        pytest.skip("root writes everywhere, and this file system knows no immutable files")
    try:
        yield
    finally:
        subprocess.run([chattr, "-i", path], check=True)


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", f"sqlite:///{folder}/ledger.db")
    with sealed(folder), pytest.raises(OperationalError) as caught:
        filed(1)
    assert one_line(caught.value).endswith(
        "unable to open database file; check that the folder exists and its permissions"
    )
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", f"sqlite:///{folder}/deeper/ledger.db")
    with sealed(folder), pytest.raises(OperationalError) as caught:
        filed(1)
    denied = one_line(caught.value)
    assert "deeper" in denied
    assert denied.endswith("; check its permissions")
    file = shutil.copyfile(sqlite_template, folder / "ledger.db")
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", f"sqlite:///{file}")
    with sealed(file):
        assert ledger.list_requests() == []
        with pytest.raises(OperationalError) as caught:
            filed(1)
    assert one_line(caught.value).endswith(
        "attempt to write a readonly database; check its permissions"
    )
    filed(1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", megabytes=1) as folder:
        yield folder


FULL = r"; (free some space|check the disk)$"


def test_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", f"sqlite:///{small_disk}/ledger.db")
    filler = fill(small_disk)
    with pytest.raises(OperationalError, match=FULL) as caught:
        filed(1)
    one_line(caught.value)
    assert caught.value.exit_code == 3
    filler.unlink()
    made, events = filed(1), ledger.list_events()
    claim = claimed()
    fill(small_disk)
    for act in (
        lambda: [filed(index) for index in range(2, 99)],
        lambda: [ledger.close_claim("run-1", ledger.FAILED, error="x" * 9999) for _ in range(9)],
        lambda: [ledger.note_written("/x" * 9999, "model", [1]) for _ in range(9)],
    ):
        with pytest.raises(OperationalError, match=FULL) as caught:
            act()
        one_line(caught.value)
        assert caught.value.exit_code == 3
    filler.unlink()
    assert ledger.find_claim("run-1") == claim
    assert ledger.list_events()[: len(events)] == events
    assert len(ledger.verify_events()) == len(ledger.list_events())
    assert ledger.list_remembering("birds", [1]) == []
    ledger.close_claim("run-1", ledger.INTERRUPTED)
    assert ledger.find_request(made.id).state == "pending"
