"""From the spool into MLflow: in batches, in order, each point once, whoever delivers it.

A loop's own process delivers every few seconds and the rest when the loop ends. What it leaves (it was killed, MLflow
was away) is delivered by the next process that logs, or by the sensor. A point that MLflow has already is no second
one: run, name, step, time and value are the key of its row, so that a delivery that broke off is simply repeated.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from resources.tracking import spool
from resources.tracking.spool import Point, Spool

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from resources.mlflow import MlflowResource

EVERY_SECONDS = 5.0
METRICS_A_REQUEST = 1_000  # as many as MLflow takes

logger = logging.getLogger(__name__)


class RefusedPointsError(RuntimeError):
    """MLflow will never take these points: their run is gone."""

    @classmethod
    def of(cls, run_id: str, problem: object) -> Self:
        return cls(f"MLflow takes no points of run {run_id}: {problem}. They are set aside under mlflow/spool/refused.")


@dataclass(frozen=True)
class Delivered:
    """How many points went to MLflow, and the spools that could not be delivered, with the reason."""

    points: int
    waiting: dict[str, str]
    refused: dict[str, str]


class Loop:
    """What a training loop logs with: `log(step, loss=0.3)`; a few microseconds, whatever MLflow does.

    `path` may be handed to another process, which logs with `Spool(path)`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spool = Spool(path)

    def __call__(self, step: int, **metrics: float) -> None:
        self._spool.log(step, metrics)

    def close(self) -> None:
        self._spool.close()


@contextmanager
def loop(
    mlflow: MlflowResource,
    run_id: str,
    every: float = EVERY_SECONDS,
    meanwhile: Callable[[], object] | None = None,
) -> Iterator[Loop]:
    """A logger for the time of the block. After it, an error or not, MLflow has every point, or the spool keeps it."""
    from filelock import FileLock

    path, ended = spool.new_path(run_id), threading.Event()
    log = Loop(path)
    try:
        with FileLock(spool.lock_path(path)):
            given = (mlflow, path, ended, every, meanwhile)
            helper = threading.Thread(target=_now_and_then, args=given, daemon=True)
            helper.start()
            try:
                yield log
            finally:
                ended.set()
                helper.join()
                log.close()
                _try(mlflow, path)
    finally:
        if path.exists() and spool.delivered(path) == path.stat().st_size:
            spool.remove(path)


def _now_and_then(
    mlflow: MlflowResource,
    path: Path,
    ended: threading.Event,
    every: float,
    meanwhile: Callable[[], object] | None,
) -> None:
    from mlflow.exceptions import MlflowException

    from resources.mlflow import MlflowUnreachableError

    deliver_left(mlflow)
    while not ended.wait(every):
        _try(mlflow, path)
        try:
            if meanwhile:
                meanwhile()
        except (MlflowUnreachableError, MlflowException) as problem:
            logger.warning("MLflow was not told meanwhile: %s", problem)


def deliver_left(mlflow: MlflowResource) -> Delivered:
    """Deliver the spools whose processes are gone."""
    from filelock import FileLock, Timeout

    points, waiting, refused = 0, {}, {}
    for path in sorted(spool.directory().glob(f"*{spool.SUFFIX}")):
        try:
            with FileLock(spool.lock_path(path), blocking=False):
                if not path.exists():
                    continue
                count, problem = _try(mlflow, path)
                points += count
                if problem is None:
                    spool.remove(path)
                elif isinstance(problem, RefusedPointsError):
                    refused[path.name] = str(problem)
                else:
                    waiting[path.name] = str(problem)
        except Timeout:
            continue  # its process lives, or another delivers it
    return Delivered(points, waiting, refused)


def left() -> bool:
    """Whether there are spools at all; costs a look into a directory."""
    return next(iter(spool.directory().glob(f"*{spool.SUFFIX}")), None) is not None


def _try(mlflow: MlflowResource, path: Path) -> tuple[int, Exception | None]:
    """Deliver what is there; what cannot be delivered now stays, and is told in the log."""
    from sqlalchemy.exc import SQLAlchemyError

    from resources.mlflow import MlflowUnreachableError

    before = spool.delivered(path)
    try:
        return deliver(mlflow, path), None
    except (MlflowUnreachableError, SQLAlchemyError, OSError) as problem:
        logger.warning("Points of run %s stay in %s for later: %s", spool.run_of(path), path, problem)
        return int(spool.delivered(path) > before), problem
    except RefusedPointsError as problem:
        logger.exception("Points of run %s are set aside", spool.run_of(path))
        aside = path.parent / "refused" / path.name
        aside.parent.mkdir(exist_ok=True)
        path.rename(aside)
        spool.remove(path)
        return 0, problem


def deliver(mlflow: MlflowResource, path: Path) -> int:
    """Deliver what a spool holds beyond what was delivered; how many points. The caller holds its lock."""
    count, run_id = 0, spool.run_of(path)
    for found, offset, bad in spool.points(path, spool.delivered(path)):
        if bad:
            logger.error("%s lines of %s are no points and are left out", bad, path)
        if found:
            _store(mlflow, run_id, found)
        spool.note_delivered(path, offset)
        count += len(found)
    return count


def _store(mlflow: MlflowResource, run_id: str, points: Sequence[Point]) -> None:
    if mlflow.owned_database is None:
        _send(mlflow, run_id, points)
        return
    from resources.tracking.tables import writing

    with writing(mlflow.owned_database).begin() as connection:
        insert_points(connection, run_id, points)


def _send(mlflow: MlflowResource, run_id: str, points: Sequence[Point]) -> None:
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    numbers = [Metric(one.name, one.value, one.timestamp, one.step) for one in points]
    try:
        for at in range(0, len(numbers), METRICS_A_REQUEST):
            mlflow.log_points(run_id, numbers[at : at + METRICS_A_REQUEST])
    except MlflowException as problem:
        if problem.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"):
            raise RefusedPointsError.of(run_id, problem.message) from problem
        raise OSError(f"MLflow answered {problem.error_code}: {problem.message}") from problem


def insert_points(connection: Connection, run_id: str, points: Sequence[Point]) -> None:
    """Into MLflow's tables as MLflow itself would: no row twice, the latest of each metric by step, time and value."""
    from sqlalchemy import select, tuple_

    from resources.tracking.tables import latest_metrics, metrics, runs

    stage = connection.execute(select(runs.c.lifecycle_stage).where(runs.c.run_uuid == run_id)).scalar()
    if stage != "active":
        raise RefusedPointsError.of(run_id, "it was deleted" if stage else "there is no such run")
    rows = [{"run_uuid": run_id, **_row(point)} for point in points]
    connection.execute(_insert(connection, metrics).on_conflict_do_nothing(), rows)
    newest = {row["key"]: row for row in sorted(rows, key=_recency)}
    upsert = _insert(connection, latest_metrics)
    new = upsert.excluded
    upsert = upsert.on_conflict_do_update(
        index_elements=["key", "run_uuid"],
        set_={name: new[name] for name in ("value", "timestamp", "step", "is_nan")},
        where=tuple_(new.step, new.timestamp, new.value)
        > tuple_(latest_metrics.c.step, latest_metrics.c.timestamp, latest_metrics.c.value),
    )
    connection.execute(upsert, sorted(newest.values(), key=lambda row: str(row["key"])))


def _insert(connection: Connection, table: Any) -> Any:
    from sqlalchemy.dialects import postgresql, sqlite

    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def _row(point: Point) -> dict[str, Any]:
    """As MLflow writes what SQL cannot hold: NaN as 0 with a mark, the infinite as the largest."""
    nan = math.isnan(point.value)
    value = 0.0 if nan else max(-sys.float_info.max, min(sys.float_info.max, point.value))
    return {"key": point.name, "value": value, "timestamp": point.timestamp, "step": point.step, "is_nan": nan}


def _recency(row: dict[str, Any]) -> tuple[int, int, float]:
    return row["step"], row["timestamp"], row["value"]
