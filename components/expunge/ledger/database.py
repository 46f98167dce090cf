"""The connection to the ledger's database, its migrations, and its failures as one line each.

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
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from expunge import environment
from expunge.errors import OperationalError, UserError
from expunge.ledger.schema import head

SQLITE_WAIT = 30  # seconds for other writers; a transaction takes milliseconds
CONNECT_SECONDS = 5  # a TCP handshake and a login
FIRST = "0" * 64  # the hash before the first event
# Any number that no other program takes for a lock of its own: "expunge" as hexadecimal digits.
MIGRATION_LOCK = 0x657870756E6765

_ready: set[str] = set()  # addresses whose tables this process has seen to be the newest
_migrating = threading.Lock()


@contextmanager
def writing(doing: str) -> Iterator[Connection]:
    """One transaction that no other writer is in; it is rolled back when the body raises.

    Raises:
        OperationalError: the database is down, locked or full; `doing` says what could not be done.
        UserError: `EXPUNGE_DATABASE_URL` is none, or a newer version of expunge made the tables.
    """
    with _errors(doing), _transaction(writes=True) as connection:
        connection.execute(select(head.c.seq).with_for_update())
        yield connection


@contextmanager
def reading(doing: str) -> Iterator[Connection]:
    """A transaction that only reads; it raises what `writing` raises."""
    with _errors(doing), _transaction(writes=False) as connection:
        yield connection


def now(connection: Connection) -> datetime:
    """The time, by the database server's clock where there is one: leases span machines."""
    if connection.dialect.name == "postgresql":
        value: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return value.astimezone(UTC)
    return datetime.now(UTC)


def stamp(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds: as text, the earlier is the lesser."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


@contextmanager
def _transaction(writes: bool) -> Iterator[Connection]:
    engine = _engine(environment.database_url())
    if engine.url.render_as_string(False) not in _ready:
        _migrate(engine)
    with engine.connect().execution_options(writes=writes) as connection, connection.begin():
        yield connection


@cache
def _engine(address: str) -> Engine:
    """No pool: a step opens a handful of connections, and one kept open may be dead when needed."""
    url = _parsed(address)
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        options = {} if "timeout" in url.query else {"timeout": SQLITE_WAIT}
    else:
        options = {"connect_timeout": CONNECT_SECONDS}
    engine = create_engine(url, poolclass=NullPool, connect_args=options)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _ours_to_begin)
        event.listen(engine, "begin", _begin)
    return engine


def _parsed(address: str) -> URL:
    expected = "expected sqlite:////absolute/file.db or postgresql+psycopg://user@host/database"
    try:
        url = make_url(address)
        backend = url.get_backend_name()
    except ArgumentError:
        raise UserError(f"EXPUNGE_DATABASE_URL is no address of a database; {expected}") from None
    if backend not in ("sqlite", "postgresql"):
        raise UserError(f"EXPUNGE_DATABASE_URL names a database of kind {backend!r}; {expected}")
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise UserError(f"EXPUNGE_DATABASE_URL names no file to keep the ledger in; {expected}")
    return url


def _ours_to_begin(connection: Any, _: Any) -> None:
    """Keep sqlite3 from opening transactions by itself, late and without DDL in them."""
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    """A writer takes the file at once: one that first read and then wrote could not wait."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(engine: Engine) -> None:
    """Bring the tables to the newest revision, in one transaction; of several, one does it."""
    address = engine.url.render_as_string(False)
    with _migrating:
        if address in _ready:
            return
        with engine.connect().execution_options(writes=False) as connection, connection.begin():
            found = _revision(connection)
        if found != _newest():
            with engine.connect().execution_options(writes=True) as connection, connection.begin():
                if engine.dialect.name == "postgresql":
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
                _upgrade(connection, _revision(connection))
        _ready.add(address)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    value: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return value


@cache
def _newest() -> str:
    """The newest revision, by the name of its file: alembic takes 0.2 s to import."""
    folder = Path(__file__).parent / "migrations" / "versions"
    return max(path.stem for path in folder.glob("r*.py")).split("_")[0]


def _upgrade(connection: Connection, found: str | None) -> None:
    newest = _newest()
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
def _errors(doing: str) -> Iterator[None]:
    """Turn what SQLAlchemy, the driver and the disk raise into one line with a remedy."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        where = environment.redacted(environment.database_url())
        raise OperationalError(
            f"the ledger at {where} could not {doing}: {_reason(error)}"
        ) from error


# What the databases say, and what can be done about it.
_REMEDIES = {
    "database is locked": "another process holds it; try again, or end that process",
    "disk is full": "free some space",
    "No space left": "free some space",
    "disk I/O error": "check the disk",
    "readonly": "check its permissions",
    "read-only": "check its permissions",
    "unable to open": "check that the folder exists and its permissions",
    "not a database": "it is another kind of file; name another in EXPUNGE_DATABASE_URL",
    "connection": "start the database, or check EXPUNGE_DATABASE_URL",
    "authentication": "check the user and password in EXPUNGE_DATABASE_URL",
    "does not exist": "create it, or check EXPUNGE_DATABASE_URL",
}


def _reason(error: Exception) -> str:
    if isinstance(error, NoSuchModuleError):
        return f"{error}; check EXPUNGE_DATABASE_URL"
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(cause).strip().splitlines()
    reason = environment.redacted(lines[0] if lines else repr(cause))
    for sign, remedy in _REMEDIES.items():
        if sign in reason:
            return f"{reason}; {remedy}"
    return reason
