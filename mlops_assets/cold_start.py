"""Cold start: what stands in for a key of which a view knows nothing.

The stand-in of a view is a feature view of its own, `<view>_cold_start`: no key, one row per midnight after new
rows came, made of the view's rows of the window before it. So it is an asset with checks, published offline and
online, and joined by the same rule as everything else: training at time t sees what the endpoint saw at t.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

from mlops_assets.declarations import EVENT_TIMESTAMP, NUMBERS, Constant, FeatureView, MeanOverEntities, Popularity
from mlops_assets.fields import Field

if TYPE_CHECKING:
    import polars as pl

SUFFIX = "_cold_start"
WEIGHT = "__weight"


def cold_start_view(view: FeatureView) -> FeatureView | None:
    """The view that stands in for `view`; None where nothing does, or a constant that needs no data."""
    if not isinstance(view.cold_start, MeanOverEntities | Popularity):
        return None

    def compute(rows: pl.LazyFrame) -> pl.LazyFrame:
        return stand_ins(rows, view)

    # A table's inputs are the parameters of its function.
    compute.__signature__ = Signature([Parameter(view.name, Parameter.POSITIONAL_OR_KEYWORD)])  # type: ignore[attr-defined]
    return FeatureView(
        name=f"{view.name}{SUFFIX}",
        team=view.team,
        schema={name: replace(field, max_null_share=1.0) for name, field in view.schema.items()},
        compute=compute,
        partitions=view.partitions,
        lookback=view.cold_start.window,
        description=f"What stands in for keys without a row in {view.id}: {_said(view.cold_start)}.",
        owners=view.owners,
        code_version=view.code_version,
        online=view.online,
    )


def _said(kind: MeanOverEntities | Popularity) -> str:
    weight = f"weighted by {kind.by}" if isinstance(kind, Popularity) else "all alike"
    return f"the average of its rows of the last {kind.window.days} days, {weight}"


def constant_values(view: FeatureView) -> dict[str, Any] | None:
    return dict(view.cold_start.values) if isinstance(view.cold_start, Constant) else None


def stand_ins(rows: pl.LazyFrame, view: FeatureView) -> pl.LazyFrame:
    """One row per midnight at or after which the view had news: the average of the rows of the window up to it."""
    import polars as pl

    held = rows.collect()
    day, moment = pl.duration(days=1), pl.col(EVENT_TIMESTAMP)
    floor = moment.dt.truncate("1d")
    midnights = held.select(pl.when(floor == moment).then(floor).otherwise(floor + day)).to_series().unique().sort()
    made = [average(held, view, midnight) for midnight in midnights]
    return (pl.concat(made) if made else held.clear().select(EVENT_TIMESTAMP, *view.schema)).lazy()


def average(rows: pl.DataFrame, view: FeatureView, at: datetime) -> pl.DataFrame:
    """The view's features as one row for `at`, of the rows of its window up to that moment."""
    import polars as pl

    kind = view.cold_start
    if not isinstance(kind, MeanOverEntities | Popularity):
        raise TypeError(f"{view.title} has no average: its cold start is {kind}.")
    weight = pl.lit(1.0)
    if isinstance(kind, Popularity):
        weight = pl.col(kind.by).cast(pl.Float64).fill_null(0.0).clip(lower_bound=0.0)
    moment = pl.col(EVENT_TIMESTAMP)
    window = rows.filter(moment <= at, moment > at - kind.window).with_columns(weight.alias(WEIGHT))
    values = {name: _typical(window, name, field) for name, field in view.schema.items()}
    return pl.DataFrame({EVENT_TIMESTAMP: pl.Series([at], dtype=pl.Datetime("us", "UTC")), **values})


def _typical(window: pl.DataFrame, name: str, field: Field) -> pl.Series:
    """One value: the weighted mean of numbers, element by element of arrays, else the most frequent."""
    import polars as pl

    value = pl.col(name)
    if field.dtype == "Float64Array":
        means = [_mean(window, value.list.get(i, null_on_oob=True)) for i in range(field.size or 0)]
        typical: Any = None if None in means else means
    elif field.dtype in NUMBERS:
        mean = _mean(window, value)
        typical = round(mean) if mean is not None and field.dtype == "Int64" else mean
    else:
        typical = _most_frequent(window, name)
    return pl.Series(name, [typical], field.polars)


def _mean(window: pl.DataFrame, value: pl.Expr) -> float | None:
    """The weighted mean of what is there; None where nothing is, or nothing has weight."""
    import polars as pl

    number = value.cast(pl.Float64)
    weight = pl.when(number.is_finite()).then(pl.col(WEIGHT)).otherwise(0.0)
    total, weighed = window.select(
        weight.sum().alias("total"), (number.fill_null(0.0) * weight).sum().alias("sum")
    ).row(0)
    return weighed / total if total > 0 else None


def _most_frequent(window: pl.DataFrame, name: str) -> Any:
    """Of equally frequent values the smallest, so that the same rows give the same value."""
    import polars as pl

    counted = window.drop_nulls(name).group_by(name).agg(pl.col(WEIGHT).sum()).filter(pl.col(WEIGHT) > 0)
    ordered = counted.sort([WEIGHT, name], descending=[True, False])
    return ordered[name].first() if ordered.height else None
