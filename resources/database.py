"""The platform's own small tables: decisions, approvals, events, alerts on their way. One database for all of them.

`platform.db` (SQLite) under MLOPS_HOME; in a deployed environment the PostgreSQL of MLOPS_POSTGRES_URL, in a schema of
its own. Each store declares its tables in a `MetaData` of its own and hands it to `transaction`, which creates them at
first use. A transaction that writes takes its turn: what it read is still true when it commits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from resources.environment import DEPLOYED, POSTGRES, address, environment, home

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, MetaData

SCHEMA = "mlops"
TURN = 0x6D6C6F7073  # the advisory lock of writers on PostgreSQL; SQLite has but one writer
LOCK_SECONDS = 30.0


def database_url() -> str:
    """Where the tables are; it may hold a password."""
    if environment() in DEPLOYED:
        return address(POSTGRES)
    home().mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{home() / 'platform.db'}"


@contextmanager
def transaction(tables: MetaData) -> Iterator[Connection]:
    """A connection whose writes are all there when the block ends, or none of them are when it raises."""
    from sqlalchemy import text

    url = database_url()
    engine = _engine(url)
    _create(url, tables)
    with engine.connect() as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:turn)"), {"turn": TURN})
        yield connection


@cache
def _engine(url: str) -> Engine:
    """An engine for a process; one for each database that it met."""
    from sqlalchemy import create_engine, event

    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True).execution_options(schema_translate_map={None: SCHEMA})
    engine = create_engine(url, connect_args={"timeout": LOCK_SECONDS})

    @event.listens_for(engine, "connect")
    def prepare(connection: object, _record: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # else sqlite3 begins late, and reads go stale
        connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def take_turn(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


@cache
def _create(url: str, tables: MetaData) -> None:
    from sqlalchemy import text

    engine = _engine(url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:turn)"), {"turn": TURN})
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        tables.create_all(connection)
