"""Connection to the ledger's database, its migrations, and its failures as one line each.

Writers take turns: each locks the one row of `head` first (SQLite: the file), for the milliseconds
of a transaction. A ledger has few writes, and with one writer at a time every rule of it can be
read from top to bottom.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from expunge import environment
from expunge.errors import OperationalError, UserError
from expunge.ledger.schema import head

WAIT = 30  # seconds for other writers; a transaction takes milliseconds
CONNECT_SECONDS = 5  # a TCP handshake and a login
FIRST = "0" * 64  # the hash before the first event
# By what an address may begin with, what it stands for: which driver SQLAlchemy takes where none is
# named depends on its version.
DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
# Any number that no other program takes for a lock of its own: "expunge" as hexadecimal digits.
MIGRATION_LOCK = 0x657870756E6765

_ready: set[str] = set()  # addresses whose tables this process has seen to be the newest
_migrating = threading.Lock()


@contextmanager
def begin_write(doing: str) -> Iterator[Connection]:
    """Open a transaction that no other writer is in; it is rolled back when the body raises.

    Raises:
        OperationalError: the database is down, locked or full; `doing` says what could not be done.
        UserError: `EXPUNGE_DATABASE_URL` is none, a newer version of expunge made the tables, or a
            text to be written is not UTF-8.
    """
    with _translate_errors(doing), _open_transaction(writes=True) as connection:
        connection.execute(select(head.c.seq).with_for_update())
        yield connection


@contextmanager
def begin_read(doing: str) -> Iterator[Connection]:
    """Open a transaction that only reads; it raises what `begin_write` raises."""
    with _translate_errors(doing), _open_transaction(writes=False) as connection:
        yield connection


def now(connection: Connection) -> datetime:
    """Return the time, by the database server's clock where there is one: leases span machines."""
    if connection.dialect.name == "postgresql":
        value: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return value.astimezone(UTC)
    return datetime.now(UTC)


def stamp(moment: datetime) -> str:
    """Return a moment as ISO 8601 in UTC with microseconds: as text, the earlier is the lesser."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


@contextmanager
def _open_transaction(writes: bool) -> Iterator[Connection]:
    engine = _get_engine(environment.database_url())
    # Once a process and address: a look at the tables before each transaction would double it.
    if engine.url.render_as_string(False) not in _ready:
        _migrate(engine)
    with _connect(engine, writes) as connection:
        yield connection


@contextmanager
def _connect(engine: Engine, writes: bool) -> Iterator[Connection]:
    """Open a transaction, in which a reader sees one moment whatever others write meanwhile.

    A writer waits for its turn first, and has to see what the one before it left. Neither waits for
    ever, and a writer that was stopped halfway loses its turn.
    """
    options: dict[str, Any] = {"writes": writes}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "READ COMMITTED" if writes else "REPEATABLE READ"
    with engine.connect().execution_options(**options) as connection, connection.begin():
        if writes and engine.dialect.name == "postgresql":
            connection.execute(text(_PATIENCE), {"wait": f"{WAIT}s"})
        yield connection


# For one transaction, where neither the address nor the server says anything else.
_PATIENCE = """
SELECT set_config(name, :wait, true)
FROM (VALUES ('lock_timeout'), ('idle_in_transaction_session_timeout')) AS settings (name)
WHERE current_setting(name) = '0'
"""


@cache
def _get_engine(address: str) -> Engine:
    """Return the engine of an address, without a pool.

    A step opens a handful of connections, and one that is kept open may be dead when needed.
    """
    url = _parse_address(address)
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        patience = {"timeout": WAIT}
    else:
        patience = {"connect_timeout": CONNECT_SECONDS}
    options = {key: value for key, value in patience.items() if key not in url.query}
    engine = create_engine(url, poolclass=NullPool, connect_args=options)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_transaction)
    return engine


def _parse_address(address: str) -> URL:
    """Return the parts of `EXPUNGE_DATABASE_URL`, checked, with the driver that we install."""
    expected = "expected sqlite:////absolute/file.db or postgresql+psycopg://user@host/database"
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise UserError(f"EXPUNGE_DATABASE_URL is no address of a database; {expected}") from None
    if url.drivername not in DRIVERS:
        raise UserError(
            f"EXPUNGE_DATABASE_URL names a database of kind {url.drivername!r}; {expected}"
        )
    url = url.set(drivername=DRIVERS[url.drivername])
    if url.drivername == "sqlite":
        _check_file(url, expected)
    elif "@" in f"{url.host}{url.database}":
        raise UserError(
            "EXPUNGE_DATABASE_URL has an '@' or '/' in its user or password; write %40 or %2F"
        )
    return url


def _check_file(url: URL, expected: str) -> None:
    """Refuse what SQLAlchemy takes for a database in memory, or hands on as an unknown option."""
    if url.database in (None, "", ":memory:"):
        raise UserError(f"EXPUNGE_DATABASE_URL names no file to keep the ledger in; {expected}")
    try:
        float(str(url.query.get("timeout", WAIT)))
        known = set(url.query) <= {"timeout"}
    except ValueError:
        known = False
    if not known:
        raise UserError(
            "EXPUNGE_DATABASE_URL has an option that a file does not take; expected at most "
            "?timeout=SECONDS"
        )


def _set_up_sqlite(connection: Any, _: Any) -> None:
    """Keep sqlite3 from opening transactions by itself, late and without DDL in them.

    Also have it overwrite what is deleted, which it does by itself only where it was built so.
    """
    connection.isolation_level = None
    connection.execute("PRAGMA secure_delete = ON")


def _begin_transaction(connection: Connection) -> None:
    """Begin a transaction; a writer takes the file at once.

    One that first read and then wrote could not wait: SQLite refuses it if another wrote between.
    """
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(engine: Engine) -> None:
    """Bring the tables to the newest revision, in one transaction; of several, one does it."""
    address = engine.url.render_as_string(False)
    with _migrating:
        if address in _ready:
            return
        with _connect(engine, writes=False) as connection:
            found = _read_revision(connection)
        if found != _find_newest_revision():
            # Read again inside: another process may have migrated between the two.
            with _connect(engine, writes=True) as connection:
                if engine.dialect.name == "postgresql":
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
                _upgrade(connection, _read_revision(connection))
        _ready.add(address)


def _read_revision(connection: Connection) -> str | None:
    """Return the revision of the tables; None where there are none yet."""
    if not inspect(connection).has_table("ledger_version"):
        return None
    value: str | None = connection.scalar(text("SELECT version_num FROM ledger_version"))
    return value


@cache
def _find_newest_revision() -> str:
    """Return the newest revision, by the name of its file: alembic takes 0.2 s to import."""
    folder = Path(__file__).parent / "migrations" / "versions"
    return max(path.stem for path in folder.glob("r*.py")).split("_")[0]


def _upgrade(connection: Connection, found: str | None) -> None:
    """Bring tables of a revision to the newest one.

    Raises:
        UserError: a newer version of expunge made them.
    """
    newest = _find_newest_revision()
    if found is not None and found > newest:
        raise UserError(
            f"the ledger has tables of revision {found} and this version of expunge knows {newest};"
            " upgrade expunge"
        )
    if found == newest:
        return  # another process was first
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    command.upgrade(config, "head")


@contextmanager
def _translate_errors(doing: str) -> Iterator[None]:
    """Turn what SQLAlchemy, the driver and the disk raise into one line with a remedy."""
    try:
        yield
    except UnicodeError as error:
        raise UserError(f"the ledger could not {doing}: {error}; use UTF-8") from error
    except (SQLAlchemyError, OSError) as error:
        raise OperationalError(
            f"the ledger at {_show_address()} could not {doing}: {_explain(error)}"
        ) from error


def _show_address() -> str:
    """Return the address without its user, password and options."""
    url = _parse_address(environment.database_url())
    shown = URL.create(url.drivername, host=url.host, port=url.port, database=url.database)
    return shown.render_as_string()


# What the databases say in lower case, and what can be done about it: the first that fits. Of a
# failure to connect, whatever its cause, PostgreSQL's driver says "connection" too.
_REMEDIES = {
    "database is locked": "another process holds it; try again, or end that process",
    "lock timeout": "another process holds it; try again, or end that process",
    "disk is full": "free some space",
    "no space left": "free some space",
    "disk i/o error": "check the disk",
    "readonly": "check its permissions",
    "read-only": "check its permissions",
    "permission denied": "check its permissions",
    "not permitted": "check its permissions",
    "unable to open": "check that the folder exists and its permissions",
    "not a database": "it is another kind of file; name another in EXPUNGE_DATABASE_URL",
    "authentication": "check the user and password in EXPUNGE_DATABASE_URL",
    "does not exist": "create it, or check EXPUNGE_DATABASE_URL",
    "too many": "try again, or let the server take more connections",
    "connection": "start the database, or check EXPUNGE_DATABASE_URL",
}


def _explain(error: Exception) -> str:
    """Return the driver's own words in one line, with a remedy where there is one."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(cause).strip().splitlines()
    reason = environment.redact_url(lines[0] if lines else repr(cause))
    for sign, remedy in _REMEDIES.items():
        if sign in reason.lower():
            return f"{reason}; {remedy}"
    return reason
