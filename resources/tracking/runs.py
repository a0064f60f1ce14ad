"""Runs as they are asked for: by SQL where MLflow's database is at hand, else by its API. The answers are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from resources.mlflow import MlflowResource

PAGE = 1_000


class UnknownExperimentError(LookupError):
    """Runs were asked for of an experiment that is not there."""

    @classmethod
    def of(cls, name: str, known: Sequence[str]) -> Self:
        return cls(
            f"MLflow holds no experiment {name!r} (known: {', '.join(sorted(known)) or 'none'}). Train the model first."
        )


@dataclass(frozen=True)
class Run:
    """A run with what was logged to it; `version` is the registered version that it became."""

    run_id: str
    experiment: str
    name: str
    status: str
    started_at: datetime | None
    ended_at: datetime | None
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    version: str | None = None


def found(
    mlflow: MlflowResource,
    experiments: Sequence[str] | None = None,
    where: str = "",
    order_by: Sequence[str] = (),
    limit: int = 100,
) -> list[Run]:
    """The runs that fulfil `where`, in order, from the newest by default. `experiments` None asks in all.

    Raises SearchSyntaxError, UnknownExperimentError.
    """
    from resources.tracking.search import Query

    query = Query.of(where, order_by, limit)
    if query is None or mlflow.database is None:
        return list(islice(_by_api(mlflow, experiments, where, order_by, limit), limit))
    return _by_sql(mlflow.database, experiments, query)


def _by_sql(database: str, experiments: Sequence[str] | None, query: Any) -> list[Run]:
    from resources.tracking import search
    from resources.tracking.tables import reading

    with reading(database).connect() as connection:
        names = search.experiment_ids(connection, experiments)
        _refuse_unknown(experiments, names.values(), lambda: search.experiment_ids(connection).values())
        rows = search.run_rows(connection, search.run_ids(connection, list(names), query))
        return [_of_row(row, names[row["experiment_id"]]) for row in rows]


def _by_api(
    mlflow: MlflowResource, experiments: Sequence[str] | None, where: str, order_by: Sequence[str], limit: int
) -> Iterator[Run]:
    names = {one.experiment_id: one.name for one in mlflow.experiments()}
    _refuse_unknown(experiments, names.values(), names.values)
    asked = [number for number, name in names.items() if experiments is None or name in experiments]
    token = None
    while True:
        page = mlflow.search_page(asked, where, order_by, min(limit, PAGE), token)
        yield from (_of_entity(run, names[run.info.experiment_id]) for run in page)
        token = page.token
        if not token:
            return


def _refuse_unknown(asked: Sequence[str] | None, there: Any, known: Any) -> None:
    for name in asked or ():
        if name not in set(there):
            raise UnknownExperimentError.of(name, list(known()))


def _of_row(row: Mapping[str, Any], experiment: str) -> Run:
    return Run(
        row["run_uuid"],
        experiment,
        row["name"] or row["tags"].get("mlflow.runName", ""),
        row["status"],
        _time(row["start_time"]),
        _time(row["end_time"]),
        row["metrics"],
        row["params"],
        row["tags"],
        row["version"],
    )


def _of_entity(run: Any, experiment: str) -> Run:
    info, data = run.info, run.data
    times = _time(info.start_time), _time(info.end_time)
    return Run(info.run_id, experiment, info.run_name, info.status, *times, data.metrics, data.params, data.tags)


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
