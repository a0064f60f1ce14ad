"""Dagster's events in one SQLite file, through connections that stay open.

Dagster's default writes every asset event into two files and opens, checkpoints and closes a connection
for each; a backfill of a year spends most of its time there. This is Dagster's own consolidated store
with a pool of connections and write-ahead logging that syncs at checkpoints: after a crash of the process
nothing is lost, after a power cut at most the last events.

Dagster's own watches the file to show a run while it goes on, and a connection that stays open writes beside
the file; so this one asks for new events, as Dagster's stores on servers do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.polling_event_watcher import SqlPollingEventWatcher
from dagster._core.storage.event_log.sqlite.consolidated_sqlite_event_log import ConsolidatedSqliteEventLogStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy import Connection, Engine, create_engine, event, inspect
from sqlalchemy.pool import QueuePool

BUSY_SECONDS = 30
Handler = Callable[[EventLogEntry, str], None]


class PooledSqliteEventLog(ConsolidatedSqliteEventLogStorage):
    """Named in `dagster.yaml` as `event_log_storage`; `base_dir` is where the file lies."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        """The first of the processes that start together makes the store; one that was killed at it left half of it."""
        from filelock import FileLock

        Path(base_dir).mkdir(parents=True, exist_ok=True)
        with FileLock(Path(base_dir) / "event_log.lock"):
            super().__init__(base_dir, inst_data)
            if not self.has_table("alembic_version"):
                self._init_db()  # type: ignore[no-untyped-call]

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

    @cached_property
    def _watcher(self) -> SqlPollingEventWatcher:
        return SqlPollingEventWatcher(self)

    def watch(self, run_id: str, cursor: str | None, callback: Handler) -> None:
        self._watcher.watch_run(run_id, cursor, callback)

    def end_watch(self, run_id: str, handler: Handler) -> None:
        self._watcher.unwatch_run(run_id, handler)

    def dispose(self) -> None:
        self._watcher.close()
        self._engine.dispose()


def _sync_at_checkpoints(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")
