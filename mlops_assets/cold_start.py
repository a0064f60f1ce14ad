"""Cold start: what stands in for a key of which a view knows nothing.

The stand-in of a view is a feature view of its own, `<view>_cold_start`: no key, one row per midnight after new
rows came, made of the view's rows of the window before it. So it is an asset with checks, published offline and
online, and joined by the same rule as everything else: training at time t sees what the endpoint saw at t.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.declarations import EVENT_TIMESTAMP, NUMBERS, Constant, FeatureView, MeanOverEntities, Popularity
from mlops_assets.fields import Field

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

SUFFIX = "_cold_start"
WEIGHT, MIDNIGHT = "__weight", "__midnight"
DAY = timedelta(days=1)


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
        sparse=view.sparse,
    )


def stood_for(column: str, view: FeatureView) -> set[str]:
    """The columns of the view that a column of its stand-in is made from."""
    weight = {view.cold_start.by} if isinstance(view.cold_start, Popularity) else set()
    return {EVENT_TIMESTAMP} if column == EVENT_TIMESTAMP else {EVENT_TIMESTAMP, column, *weight}


def _said(kind: MeanOverEntities | Popularity) -> str:
    weight = f"weighted by {kind.by}" if isinstance(kind, Popularity) else "all alike"
    return f"the average of its rows of the last {kind.window.days} days, {weight}"


def constant_values(view: FeatureView) -> dict[str, Any] | None:
    return dict(view.cold_start.values) if isinstance(view.cold_start, Constant) else None


def stand_ins(rows: pl.LazyFrame, view: FeatureView) -> pl.LazyFrame:
    """One row per midnight at or after which the view had news: the average of the rows of the window up to it.

    The same bytes whatever order the rows come in, and whether they are a year's or those of one window: they are
    summed by day first, and then over the days of each window.
    """
    import polars as pl

    kind = view.cold_start
    if not isinstance(kind, MeanOverEntities | Popularity):
        raise TypeError(f"{view.title} has no average: its cold start is {kind}.")
    held = rows.with_columns(_weight(kind), _midnight()).collect().sort(EVENT_TIMESTAMP, *view.join_keys)
    windows = Windows.of(held[MIDNIGHT], kind.window)
    columns = [
        pl.Series(name, _typical(held, name, field, windows), field.polars) for name, field in view.schema.items()
    ]
    return pl.LazyFrame([windows.midnights.alias(EVENT_TIMESTAMP), *columns])


def _weight(kind: MeanOverEntities | Popularity) -> pl.Expr:
    """What a row counts; a weight that is missing, negative or not finite counts nothing."""
    import polars as pl

    if isinstance(kind, MeanOverEntities):
        return pl.lit(1.0).alias(WEIGHT)
    given = pl.col(kind.by).cast(pl.Float64)
    return pl.when(given.is_finite() & (given > 0)).then(given).otherwise(0.0).alias(WEIGHT)


def _midnight() -> pl.Expr:
    """The first midnight at which a row is known."""
    import polars as pl

    moment = pl.col(EVENT_TIMESTAMP)
    floor = moment.dt.truncate("1d")
    return pl.when(floor == moment).then(floor).otherwise(floor + DAY).alias(MIDNIGHT)


@dataclass(frozen=True)
class Windows:
    """The midnights with news, and for each the days of its window: `first[i]` up to and with `i`.

    `starts` says at which row each day begins.
    """

    midnights: pl.Series
    starts: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, days: pl.Series, window: timedelta) -> Self:
        """Of the midnight of each row, ascending."""
        distinct = days.unique(maintain_order=True)
        return cls(
            distinct,
            days.search_sorted(distinct, "left").to_numpy(),
            distinct.search_sorted(distinct - window, "right").to_numpy(),
        )

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum over each window of a number a row."""
        import numpy as np

        daily = np.add.reduceat(values, self.starts)
        return np.array([daily[first : at + 1].sum() for at, first in enumerate(self.first)])

    def extremes(self, reduce: np.ufunc, values: np.ndarray) -> np.ndarray:
        import numpy as np

        daily = reduce.reduceat(values, self.starts)
        return np.array([reduce.reduce(daily[first : at + 1]) for at, first in enumerate(self.first)])

    @property
    def pairs(self) -> pl.DataFrame:
        """Each midnight (`at`) with each day of its window."""
        import polars as pl

        days = [self.midnights[first : at + 1].to_list() for at, first in enumerate(self.first.tolist())]
        return pl.DataFrame(
            [self.midnights.alias("at"), pl.Series(MIDNIGHT, days, pl.List(self.midnights.dtype))]
        ).explode(MIDNIGHT)


def _typical(held: pl.DataFrame, name: str, field: Field, windows: Windows) -> list[Any]:
    """For each window the weighted mean of a number, element by element of an array, else the most frequent value."""
    if field.dtype == "Float64Array":
        elements = [_means(held, held[name].list.get(i, null_on_oob=True), windows) for i in range(field.size or 0)]
        return [None if None in means else list(means) for means in zip(*elements, strict=True)]
    if field.dtype not in NUMBERS:
        return _most_frequent(held, name, windows)
    means = _means(held, held[name], windows)
    return [round(mean) if mean is not None and field.dtype == "Int64" else mean for mean in means]


def _means(held: pl.DataFrame, column: pl.Series, windows: Windows) -> list[float | None]:
    """Never outside the values that count, whatever rounding says; None where none counts."""
    import numpy as np
    import polars as pl

    if held.is_empty():
        return []
    values = column.cast(pl.Float64).to_numpy()
    there = np.isfinite(values) & (held[WEIGHT].to_numpy() > 0)
    weights, numbers = np.where(there, held[WEIGHT].to_numpy(), 0.0), np.where(there, values, 0.0)
    totals, sums = windows.sums(weights), windows.sums(weights * numbers)
    low = windows.extremes(np.minimum, np.where(there, values, np.inf))
    high = windows.extremes(np.maximum, np.where(there, values, -np.inf))
    means = np.clip(np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0), low, high)
    return [float(mean) if total > 0 else None for mean, total in zip(means, totals, strict=True)]


def _most_frequent(held: pl.DataFrame, name: str, windows: Windows) -> list[Any]:
    """Of equally frequent values the smallest, so that the same rows give the same value."""
    import polars as pl

    counted = held.filter(pl.col(WEIGHT) > 0).drop_nulls(name).group_by(MIDNIGHT, name).agg(pl.col(WEIGHT).sum())
    summed = windows.pairs.join(counted, on=MIDNIGHT).group_by("at", name).agg(pl.col(WEIGHT).sum())
    best = summed.sort(WEIGHT, name, descending=[True, False]).unique("at", keep="first", maintain_order=True)
    return (
        windows.midnights.alias("at").to_frame().join(best, on="at", how="left", maintain_order="left")[name].to_list()
    )
