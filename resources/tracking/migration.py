"""Indices of our own on MLflow's tables: what a search by metric and the newest versions are found by.

They are named `mlops_...` and recorded in `mlops_tracking_version`, and MLflow's own migrations know nothing of them:
one that writes a table anew may drop an index, which is made again at the next look. Stock MLflow profits too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from resources.tracking.tables import engine

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

VERSION_TABLE = "mlops_tracking_version"


@dataclass(frozen=True)
class Index:
    """An index, and the migration that brought it."""

    migration: int
    name: str
    table: str
    columns: str


INDICES = (
    # the values of a metric in order: a range of them, the best of them
    Index(1, "mlops_latest_metrics_by_value", "latest_metrics", '"key", is_nan, value, run_uuid'),
    # the runs of an experiment from the newest
    Index(1, "mlops_runs_by_start", "runs", "experiment_id, lifecycle_stage, start_time DESC, run_uuid"),
    # which version a run became
    Index(1, "mlops_model_versions_by_run", "model_versions", "run_id"),
)


def migrate(url: str) -> list[str]:
    """Create what is missing and learn the tables' sizes; the names of what was created. Harmless when repeated."""
    made = engine(url)
    created = [index for index in INDICES if index.name not in _present(made)]
    for index in created:
        _create(made, index)
    if created:
        with _changing(made) as connection:
            _record(connection)
            _learn_sizes(connection)
    elif made.dialect.name == "sqlite":
        _refresh_sizes(made)
    return [index.name for index in created]


def applied(url: str) -> list[tuple[int, str]]:
    """The migrations that the database went through, each with its time; none before the first."""
    from sqlalchemy import inspect, text

    made = engine(url)
    if not inspect(made).has_table(VERSION_TABLE):
        return []
    with made.connect() as connection:
        found = connection.execute(text(f"SELECT version, applied_at FROM {VERSION_TABLE} ORDER BY version"))  # noqa: S608
        return [(int(version), str(at)) for version, at in found]


def _present(made: Engine) -> set[str]:
    """Indices of ours that work; on PostgreSQL one whose building broke off is there, and is not used."""
    from sqlalchemy import text

    asked = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE 'mlops_%'",
        "postgresql": "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "WHERE c.relname LIKE 'mlops_%' AND i.indisvalid",
    }
    with made.connect() as connection:
        return set(connection.execute(text(asked[made.dialect.name])).scalars())


def _create(made: Engine, index: Index) -> None:
    """On PostgreSQL without holding writers up."""
    from sqlalchemy import text

    slowly = "CONCURRENTLY" if made.dialect.name == "postgresql" else ""
    with _changing(made) as connection:
        if slowly:
            connection.execute(text(f"DROP INDEX IF EXISTS {index.name}"))  # half built
        connection.execute(text(f"CREATE INDEX {slowly} IF NOT EXISTS {index.name} ON {index.table} ({index.columns})"))


def _changing(made: Engine) -> AbstractContextManager[Connection]:
    """A connection that may change the schema; on PostgreSQL each statement by itself, as CONCURRENTLY wants it."""
    if made.dialect.name == "postgresql":
        return made.connect().execution_options(isolation_level="AUTOCOMMIT")
    return made.execution_options(writes=True).begin()


def _record(connection: Connection) -> None:
    from sqlalchemy import text

    connection.execute(
        text(
            f"CREATE TABLE IF NOT EXISTS {VERSION_TABLE} (version INTEGER PRIMARY KEY, applied_at VARCHAR(40) NOT NULL)"
        )
    )
    for version in sorted({index.migration for index in INDICES}):
        connection.execute(
            text(f"INSERT INTO {VERSION_TABLE} VALUES (:version, :at) ON CONFLICT (version) DO NOTHING"),  # noqa: S608
            {"version": version, "at": datetime.now(UTC).isoformat(timespec="seconds")},
        )


def _learn_sizes(connection: Connection) -> None:
    """What the planners go by; on PostgreSQL autovacuum would see to it, after a while."""
    from sqlalchemy import text

    if connection.dialect.name == "sqlite":
        connection.execute(text("PRAGMA analysis_limit = 1000"))
    for table in sorted({index.table for index in INDICES}):
        connection.execute(text(f"ANALYZE {table}"))


def _refresh_sizes(made: Engine) -> None:
    """SQLite looks again at tables that grew a lot since, and only then writes; nobody else makes it."""
    from sqlalchemy import text

    with made.connect() as connection:
        connection.execute(text("PRAGMA analysis_limit = 1000"))
        connection.execute(text("PRAGMA optimize"))
        connection.commit()
