"""Runs by metric, param and tag, and versions by tag: in SQL that begins where the fewest rows are.

MLflow joins every run with every value of a metric and sorts what comes out, before it takes the first page. Here a
page is walked to along an index: the runs from the newest, or the values of the metric from the best. Where a condition
holds for few runs, those are looked up first. The grammar is MLflow's own, read by its parser, and so are the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from resources.tracking.tables import (
    WORKSPACE,
    experiments,
    latest_metrics,
    model_versions,
    params,
    runs,
    tags,
    version_tags,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select

ACTIVE = "active"
FEW = 2_000  # so many runs are looked up by id and sorted at once
FIRST_PAGE = 20
DELETED = "Deleted_Internal"


class SearchSyntaxError(ValueError):
    """A condition or an order is not in MLflow's grammar."""

    @classmethod
    def of(cls, asked: str, problem: object) -> Self:
        return cls(
            f"Cannot search for {asked!r}: {problem} "
            "Write e.g. --where \"metrics.roc_auc > 0.7 and params.max_depth = '5'\" --order-by metrics.roc_auc."
        )


@dataclass(frozen=True)
class Order:
    """The metric to order by; None orders by start, the newest first."""

    metric: str | None = None
    ascending: bool = False


@dataclass(frozen=True)
class Query:
    """What is asked, read: conditions as MLflow's parser gives them, and one order."""

    conditions: tuple[Mapping[str, Any], ...]
    order: Order
    limit: int

    @classmethod
    def of(cls, where: str, order_by: Sequence[str], limit: int) -> Self | None:
        """None where only MLflow's own search knows the way: several orders, or one by a param, a tag, an end.

        Raises SearchSyntaxError.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.utils.search_utils import SearchUtils

        try:
            conditions = tuple(SearchUtils.parse_search_filter(where))
            for one in conditions:
                _refuse_comparator(one["type"], one["key"], one["comparator"].upper())
            order = [SearchUtils.parse_order_by_for_search_runs(one) for one in order_by]
        except MlflowException as problem:
            raise SearchSyntaxError.of(" ".join([where, *order_by]).strip(), problem.message) from problem
        if any(one["type"] == "dataset" for one in conditions) or len(order) > 1:
            return None
        if not order:
            return cls(conditions, Order(), limit)
        kind, key, ascending = order[0]
        if kind == "metric":
            return cls(conditions, Order(key, ascending), limit)
        newest_first = (kind, SearchUtils.translate_key_alias(key), ascending) == ("attribute", "start_time", False)
        return cls(conditions, Order(), limit) if newest_first else None


def _refuse_comparator(kind: str, key: str, comparator: str) -> None:
    """MLflow's parser lets some pass that nothing can compare with."""
    from mlflow.utils.search_utils import SearchUtils

    kinds = (SearchUtils.is_metric, SearchUtils.is_param, SearchUtils.is_tag, SearchUtils.is_dataset)
    attributes = (SearchUtils.is_string_attribute, SearchUtils.is_numeric_attribute)
    if not any(is_one(kind, comparator) for is_one in kinds):
        any(is_one(kind, SearchUtils.translate_key_alias(key), comparator) for is_one in attributes)


def run_ids(connection: Connection, experiment_ids: Sequence[int], query: Query) -> list[str]:
    """The ids of the runs that are asked for, in order, at most `query.limit`."""
    found: list[str] = []
    for statement in _statements(connection, experiment_ids, query):
        found += connection.execute(statement.limit(query.limit - len(found))).scalars()
        if len(found) >= query.limit:
            break
    return found


def _statements(connection: Connection, experiment_ids: Sequence[int], query: Query) -> Iterator[Select[Any]]:
    """One statement after another until enough is found: a metric's values, then NaNs, then runs without the metric."""
    from sqlalchemy import exists, select

    dialect, metric = connection.dialect.name, query.order.metric
    few = _few(connection, experiment_ids, query)
    conditions = [_condition(one, dialect) for one in query.conditions]
    newest = (runs.c.start_time.desc(), runs.c.run_uuid)
    walked = [runs.c.experiment_id.in_(experiment_ids), runs.c.lifecycle_stage == ACTIVE]
    # an expression is no column of an index: SQLite, which guesses, may not begin with all runs of the experiment
    number = runs.c.experiment_id if dialect == "postgresql" else runs.c.experiment_id + 0
    looked_up = [number.in_(experiment_ids), runs.c.lifecycle_stage == ACTIVE]
    if few is not None:
        looked_up.append(runs.c.run_uuid.in_(few))
    if metric is None:
        yield select(runs.c.run_uuid).where(*(walked if few is None else looked_up), *conditions).order_by(*newest)
        return
    value = latest_metrics.c.value
    joined = (
        select(runs.c.run_uuid)
        .select_from(latest_metrics.join(runs, runs.c.run_uuid == latest_metrics.c.run_uuid))
        .where(latest_metrics.c.key == metric, *looked_up, *conditions)
    )
    own = [_comparison(one, dialect) for one in query.conditions if _is_plain(one, metric)]
    best = value if query.order.ascending else value.desc()
    yield joined.where(_is_number(), *own).order_by(best, *newest)
    if own:
        return  # neither NaN nor a missing value fulfils it
    yield joined.where(~_is_number()).order_by(*newest)
    without = ~exists().where(latest_metrics.c.key == metric, latest_metrics.c.run_uuid == runs.c.run_uuid)
    yield select(runs.c.run_uuid).where(*(walked if few is None else looked_up), without, *conditions).order_by(*newest)


def _few(connection: Connection, experiment_ids: Sequence[int], query: Query) -> list[str] | None:
    """The ids of all runs that one condition, or the experiment itself, leaves over, where those are few.

    PostgreSQL knows by its statistics where to begin; SQLite has none of values.
    """
    from sqlalchemy import select

    if connection.dialect.name == "postgresql":
        return None
    bounds = [select(runs.c.run_uuid).where(runs.c.experiment_id.in_(experiment_ids), runs.c.lifecycle_stage == ACTIVE)]
    for one in query.conditions:
        if _is_plain(one, one["key"]):
            asked = (latest_metrics.c.key == one["key"], _is_number(), _comparison(one, "sqlite"))
            bounds.append(select(latest_metrics.c.run_uuid).where(*asked))
    for bound in bounds:
        found = list(connection.execute(bound.limit(FEW + 1)).scalars())
        if len(found) <= FEW:
            return found
    return None


def _is_plain(condition: Mapping[str, Any], metric: str) -> bool:
    """A comparison of this metric that only numbers fulfil."""
    return (
        condition["type"] == "metric"
        and condition["key"] == metric
        and condition["comparator"] in {">", ">=", "<", "<=", "="}
    )


def _is_number() -> Any:
    from sqlalchemy import false

    return latest_metrics.c.is_nan == false()


def _comparison(condition: Mapping[str, Any], dialect: str) -> Any:
    from mlflow.utils.search_utils import SearchUtils

    compare = SearchUtils.get_sql_comparison_func(condition["comparator"].upper(), dialect)
    return compare(latest_metrics.c.value, float(condition["value"]))


def _condition(condition: Mapping[str, Any], dialect: str) -> Any:
    """A condition on a run; as MLflow reads it, NaN is unequal to everything and fulfils no other comparison."""
    from mlflow.utils.search_utils import SearchUtils
    from sqlalchemy import and_, exists, or_

    kind, key = condition["type"], SearchUtils.translate_key_alias(condition["key"])
    comparator, value = condition["comparator"].upper(), condition["value"]
    compare = SearchUtils.get_sql_comparison_func(comparator, dialect)
    if kind == "attribute" and key != "run_name":
        return compare(runs.c[{"run_id": "run_uuid"}.get(key, key)], value)
    if kind == "attribute":
        kind, key = "tag", "mlflow.runName"
    values = {"metric": latest_metrics, "parameter": params, "tag": tags}[kind].alias()
    here = and_(values.c.key == key, values.c.run_uuid == runs.c.run_uuid)
    if comparator in {"IS NULL", "IS NOT NULL"}:
        return ~exists().where(here) if comparator == "IS NULL" else exists().where(here)
    if kind != "metric":
        return exists().where(here, compare(values.c.value, value))
    fulfils = compare(values.c.value, float(value))
    nan = values.c.is_nan
    return exists().where(here, or_(fulfils, nan) if comparator == "!=" else and_(fulfils, ~nan))


# -- what is told of runs and versions


def experiment_ids(connection: Connection, names: Sequence[str] | None = None) -> dict[int, str]:
    """The names of active experiments by id; None asks for all."""
    from sqlalchemy import select

    asked = select(experiments.c.experiment_id, experiments.c.name).where(
        experiments.c.workspace == WORKSPACE, experiments.c.lifecycle_stage == ACTIVE
    )
    if names is not None:
        asked = asked.where(experiments.c.name.in_(names))
    return {int(number): str(name) for number, name in connection.execute(asked)}


def run_rows(connection: Connection, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Each run with its metrics, params and tags and the version it became, in the order of `ids`; two questions."""
    from sqlalchemy import Float, String, false, literal, null, select, union_all
    from sqlalchemy import cast as as_type

    told: dict[str, dict[str, Any]] = {
        row.run_uuid: {**row._mapping, "metrics": {}, "params": {}, "tags": {}, "version": None}  # noqa: SLF001
        for row in connection.execute(select(runs).where(runs.c.run_uuid.in_(ids)))
    }
    number, text, no = as_type(null(), Float), as_type(null(), String), false()
    columns = ("run", "kind", "key", "text", "number", "nan")

    def part(values: Any, run: Any, kind: str, *rest: Any) -> Any:
        cells = zip(columns, (run, literal(kind), *rest), strict=True)
        return select(*(cell.label(name) for name, cell in cells)).select_from(values).where(run.in_(ids))

    latest, versions = latest_metrics.c, model_versions.c
    asked = union_all(
        part(latest_metrics, latest.run_uuid, "metrics", latest.key, text, latest.value, latest.is_nan),
        part(params, params.c.run_uuid, "params", params.c.key, params.c.value, number, no),
        part(tags, tags.c.run_uuid, "tags", tags.c.key, tags.c.value, number, no),
        part(model_versions, versions.run_id, "version", text, as_type(versions.version, String), number, no).where(
            versions.workspace == WORKSPACE, versions.current_stage != DELETED
        ),
    )
    for row in connection.execute(asked):
        if row.run not in told:
            continue
        if row.kind == "version":
            told[row.run]["version"] = row.text
        else:
            value = (float("nan") if row.nan else row.number) if row.kind == "metrics" else row.text
            told[row.run][row.kind][row.key] = value
    return [told[one] for one in ids if one in told]


def version_rows(
    database: str, name: str, having: Mapping[str, str], lacking: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """The versions of a model with all of the tags `having` and none of `lacking`, from the newest, with their tags."""
    from resources.tracking.tables import reading

    before, size = None, FIRST_PAGE
    while True:
        with reading(database).connect() as connection:
            page = _version_page(connection, name, having, lacking, before, size)
        yield from page
        if len(page) < size:
            return
        before, size = page[-1]["version"], FEW


def _version_page(
    connection: Connection,
    name: str,
    having: Mapping[str, str],
    lacking: Mapping[str, str],
    before: int | None,
    size: int,
) -> list[dict[str, Any]]:
    from sqlalchemy import exists, select

    versions = model_versions

    def tagged(key: str, value: str) -> Any:
        one = version_tags.alias()
        same = (one.c[part] == versions.c[part] for part in ("workspace", "name", "version"))
        return exists().where(*same, one.c.key == key, one.c.value == value)

    asked = (
        select(versions)
        .where(versions.c.workspace == WORKSPACE, versions.c.name == name, versions.c.current_stage != DELETED)
        .where(*(tagged(*pair) for pair in having.items()), *(~tagged(*pair) for pair in lacking.items()))
        .order_by(versions.c.version.desc())
        .limit(size)
    )
    if before is not None:
        asked = asked.where(versions.c.version < before)
    told = {row.version: {**row._mapping, "tags": {}} for row in connection.execute(asked)}  # noqa: SLF001
    mine = (version_tags.c.workspace == WORKSPACE, version_tags.c.name == name, version_tags.c.version.in_(told))
    for row in connection.execute(select(version_tags).where(*mine)):
        told[row.version]["tags"][row.key] = row.value
    return list(told.values())
