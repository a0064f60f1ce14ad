"""Old metric history and old versions, moved from MLflow's database into Parquet, and still found.

    <MLOPS_HOME>/mlflow/archive/metrics/<year>-<month>/<hash of its runs>.parquet    a value a row
    <MLOPS_HOME>/mlflow/archive/versions/<model>/<first>-<last>.parquet              a version a row, its tags as JSON

History goes that is older than AGE, of runs that ended; the last value of each metric stays, so that searches, orders
and MLflow's pages show what they did. Versions go beyond the newest VERSIONS of a model that no alias names and that
never had a Bento (none was ever released). Their runs and artifacts stay where they are.

A file is written, read again and compared before its rows are deleted, in one transaction that deletes exactly those.
A process killed between the two leaves rows in both places: reading takes each once, and the next archiving goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from resources.environment import home

if TYPE_CHECKING:
    import polars as pl
    from sqlalchemy import Connection

AGE = timedelta(days=90)
VERSIONS = 10_000
RUNS_AT_ONCE = 200
BENTO = "bento"
POINT = ("run_uuid", "key", "step", "timestamp", "value")


class UnfaithfulArchiveError(RuntimeError):
    """What was read back from an archive file is not what was written to it."""

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(
            f"The archive file {path} does not hold what was written to it. Nothing was deleted from MLflow; "
            "look at the disk, remove the file and archive again."
        )


class NoDatabaseError(RuntimeError):
    """The database of a tracking server was needed, and nobody named it."""

    @classmethod
    def of(cls, uri: str) -> Self:
        return cls(
            f"MLflow at {uri} is reached over HTTP alone, and this needs its database. Name it in "
            "MLOPS_MLFLOW_DATABASE, e.g. postgresql+psycopg2://user:password@db:5432/mlflow."
        )


@dataclass(frozen=True)
class Archived:
    """What one archiving moved."""

    points: int
    runs: int
    versions: int
    files: int


def archive(database: str, now: datetime, age: timedelta = AGE, versions: int = VERSIONS) -> Archived:
    """Move what is old as of `now`. Harmless when repeated. Raises UnfaithfulArchiveError."""
    moved = [_archive_history(database, runs) for runs in _old_runs(database, now - age)]
    names = _long_models(database, versions)
    gone = [_archive_versions(database, name, versions) for name in names]
    return Archived(
        sum(points for points, _ in moved),
        sum(runs for _, runs in moved),
        sum(gone),
        len([points for points, _ in moved if points]) + len([count for count in gone if count]),
    )


def history(database: str, metric: str, runs: Sequence[str]) -> pl.DataFrame:
    """Every value of a metric of these runs, archived or not: run_uuid, key, step, timestamp, value; in this order."""
    from resources.tracking.tables import engine

    with engine(database).connect() as connection:
        return _both(_live_history(connection, metric, runs), metric, runs)


def with_archived(metric: str, runs: Sequence[str], live: Mapping[str, Sequence[Any]]) -> pl.DataFrame:
    """The same of what MLflow's API told of each run."""
    import polars as pl

    rows = [(run, metric, one.step, one.timestamp, one.value) for run, points in live.items() for one in points]
    return _both(pl.DataFrame(rows, schema=_schema(), orient="row"), metric, runs)


def _both(live: pl.DataFrame, metric: str, runs: Sequence[str]) -> pl.DataFrame:
    import polars as pl

    return pl.concat([live, _archived_history(metric, runs)]).unique().sort("run_uuid", "step", "timestamp", "value")


def archived_versions(name: str) -> list[dict[str, Any]]:
    """The archived versions of a model, newest first: version, run_id, source, created_at, tags."""
    import polars as pl

    files = sorted((root() / "versions" / name).glob("*.parquet"))
    if not files:
        return []
    found = pl.read_parquet(files).unique("version").sort("version", descending=True)
    return [{**row, "tags": json.loads(row["tags"])} for row in found.iter_rows(named=True)]


def root() -> Path:
    return home() / "mlflow" / "archive"


# -- metric history


def _old_runs(database: str, before: datetime) -> Iterator[list[tuple[str, int]]]:
    """Runs that ended before then and have a history, with the time of their end, some at a time."""
    from sqlalchemy import exists, select

    from resources.tracking.tables import engine, metrics, runs

    mine = (metrics.c.run_uuid == runs.c.run_uuid, ~_is_last())
    asked = (
        select(runs.c.run_uuid, runs.c.end_time)
        .where(runs.c.end_time < round(before.timestamp() * 1000), exists().where(*mine))
        .order_by(runs.c.end_time, runs.c.run_uuid)
    )
    with engine(database).connect() as connection:
        found = [(str(run), int(ended)) for run, ended in connection.execute(asked)]
    months: dict[str, list[tuple[str, int]]] = {}
    for run, ended in found:
        months.setdefault(_month(ended), []).append((run, ended))
    for of_month in months.values():
        yield from (of_month[at : at + RUNS_AT_ONCE] for at in range(0, len(of_month), RUNS_AT_ONCE))


def _archive_history(database: str, runs: Sequence[tuple[str, int]]) -> tuple[int, int]:
    import polars as pl
    from sqlalchemy import delete, select

    from resources.tracking.tables import metrics, writing

    ids = [run for run, _ in runs]
    old = (metrics.c.run_uuid.in_(ids), ~_is_last())
    with writing(database).begin() as connection:
        found = connection.execute(select(*(metrics.c[name] for name in POINT), metrics.c.is_nan).where(*old))
        rows = [(*row[:4], float("nan") if row.is_nan else row.value) for row in found]
        frame = pl.DataFrame(rows, schema=_schema(), orient="row").sort(POINT)
        digest = hashlib.sha256("".join(ids).encode()).hexdigest()[:16]
        path = root() / "metrics" / _month(runs[0][1]) / f"{digest}.parquet"
        if path.exists():  # these runs were archived before, and were logged to since
            frame = pl.concat([pl.read_parquet(path), frame]).unique().sort(POINT)
        _publish(frame, path)
        connection.execute(delete(metrics).where(*old))
    return len(rows), len(ids)


def _is_last() -> Any:
    """Whether a row of the history is the one that searches read."""
    from sqlalchemy import exists

    from resources.tracking.tables import latest_metrics, metrics

    same = (latest_metrics.c[name] == metrics.c[name] for name in ("run_uuid", "key", "step", "timestamp", "value"))
    return exists().where(*same)


def _live_history(connection: Connection, metric: str, runs: Sequence[str]) -> pl.DataFrame:
    import polars as pl
    from sqlalchemy import select

    from resources.tracking.tables import metrics

    asked = select(*(metrics.c[name] for name in POINT), metrics.c.is_nan).where(
        metrics.c.run_uuid.in_(runs), metrics.c.key == metric
    )
    rows = [(*row[:4], float("nan") if row.is_nan else row.value) for row in connection.execute(asked)]
    return pl.DataFrame(rows, schema=_schema(), orient="row")


def _archived_history(metric: str, runs: Sequence[str]) -> pl.DataFrame:
    import polars as pl

    files = sorted((root() / "metrics").glob("*/*.parquet"))
    if not files:
        return pl.DataFrame(schema=_schema())
    wanted = pl.col("run_uuid").is_in(list(runs)) & (pl.col("key") == metric)
    return pl.scan_parquet(files).filter(wanted).collect()


def _schema() -> Mapping[str, Any]:
    import polars as pl

    return dict(zip(POINT, (pl.String, pl.String, pl.Int64, pl.Int64, pl.Float64), strict=True))


def _month(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m")


# -- versions


def _long_models(database: str, kept: int) -> list[str]:
    from sqlalchemy import func, select

    from resources.tracking.tables import WORKSPACE, engine, model_versions

    counted = (
        select(model_versions.c.name)
        .where(model_versions.c.workspace == WORKSPACE)
        .group_by(model_versions.c.name)
        .having(func.count() > kept)
    )
    with engine(database).connect() as connection:
        return list(connection.execute(counted.order_by(model_versions.c.name)).scalars())


def _archive_versions(database: str, name: str, kept: int) -> int:
    """Move what is beyond the newest `kept`, unaliased and never released; how many."""
    import polars as pl
    from sqlalchemy import delete, select

    from resources.tracking.tables import model_versions, version_tags, writing

    with writing(database).begin() as connection:
        old = _old_versions(connection, name, kept)
        if not old:
            return 0
        told: dict[int, dict[str, str]] = {version: {} for version in old}
        mine = (version_tags.c.name == name, version_tags.c.version <= max(old))
        for row in connection.execute(select(version_tags).where(*mine)):
            if row.version in told:
                told[row.version][row.key] = row.value
        rows = [
            (
                row.version,
                row.run_id or "",
                row.source,
                row.creation_time,
                json.dumps(told[row.version], sort_keys=True),
            )
            for row in connection.execute(select(model_versions).where(model_versions.c.name == name))
            if row.version in told
        ]
        columns = {"version": pl.Int64, "run_id": pl.String, "source": pl.String, "created_at": pl.Int64}
        frame = pl.DataFrame(rows, schema={**columns, "tags": pl.String}, orient="row").sort("version")
        _publish(frame, root() / "versions" / name / f"{min(old)}-{max(old)}.parquet")
        for table in (version_tags, model_versions):
            for at in range(0, len(old), RUNS_AT_ONCE):
                some = old[at : at + RUNS_AT_ONCE]
                connection.execute(delete(table).where(table.c.name == name, table.c.version.in_(some)))
    return len(old)


def _old_versions(connection: Connection, name: str, kept: int) -> list[int]:
    from sqlalchemy import and_, exists, select

    from resources.tracking.tables import WORKSPACE, aliases, model_versions, version_tags

    here = and_(model_versions.c.workspace == WORKSPACE, model_versions.c.name == name)
    newest = select(model_versions.c.version).where(here).order_by(model_versions.c.version.desc())
    last = connection.execute(newest.offset(kept - 1).limit(1)).scalar()
    if last is None:
        return []

    def of(table: Any) -> Any:
        return and_(table.c.name == model_versions.c.name, table.c.version == model_versions.c.version)

    asked = select(model_versions.c.version).where(
        here,
        model_versions.c.version < last,
        ~exists().where(of(aliases)),
        ~exists().where(of(version_tags), version_tags.c.key == BENTO),
    )
    return sorted(connection.execute(asked).scalars())


def _publish(frame: pl.DataFrame, path: Path) -> None:
    """Written beside, read again, compared, then renamed: what is deleted afterwards is safe."""
    import polars as pl

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    frame.write_parquet(beside, compression="zstd")
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
    if not pl.read_parquet(beside).equals(frame):
        beside.unlink()
        raise UnfaithfulArchiveError.of(path)
    os.replace(beside, path)
