"""Dagster's events in one SQLite file, through connections that stay open.

Dagster's default writes every asset event into two files and opens, checkpoints and closes a connection
for each; a backfill of a year spends most of its time there. This is Dagster's own consolidated store
with a pool of connections and write-ahead logging that syncs at checkpoints: after a crash of the process
nothing is lost, after a power cut at most the last events.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from dagster._core.storage.event_log.sqlite.consolidated_sqlite_event_log import ConsolidatedSqliteEventLogStorage
from sqlalchemy import Connection, Engine, create_engine, event, inspect
from sqlalchemy.pool import QueuePool

BUSY_SECONDS = 30


class PooledSqliteEventLog(ConsolidatedSqliteEventLogStorage):
    """Named in `dagster.yaml` as `event_log_storage`; `base_dir` is where the file lies."""

    @cached_property
    def _engine(self) -> Engine:
        engine = create_engine(
            self._conn_string,
            poolclass=QueuePool,
            pool_size=4,
            max_overflow=-1,
            connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        )
        event.listen(engine, "connect", _sync_at_checkpoints)
        return engine

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        with self._engine.begin() as connection:
            yield connection

    def has_table(self, table_name: str) -> bool:
        """Asked before every asset event; a table that is there stays there."""
        if table_name not in self._tables:
            self._tables.update(inspect(self._engine).get_table_names())
        return table_name in self._tables

    @cached_property
    def _tables(self) -> set[str]:
        return set()

    def dispose(self) -> None:
        super().dispose()  # type: ignore[no-untyped-call]
        self._engine.dispose()


def _sync_at_checkpoints(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")
