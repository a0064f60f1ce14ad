"""What the published rows of a feature view look like: rows, missing values, spread, over its newest partitions.

`mlops features show` reads it. Bounded: of the newest partitions as many as `ROWS` rows allow, each column read once by
Polars, lazily, straight from the lake's Parquet; the answer says over which partitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mlops_assets.catalog import asset_key
from mlops_assets.declarations import EVENT_TIMESTAMP, FeatureView

if TYPE_CHECKING:
    import polars as pl

    from resources.lake import Lake

PARTITIONS = 7
ROWS = 5_000_000
QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Statistics:
    """Numbers by feature over `rows` rows of `partitions`; `newest` is the youngest event time among them."""

    partitions: tuple[str, ...]
    rows: int
    newest: datetime | None
    features: Mapping[str, Numbers]


def statistics(lake: Lake, view: FeatureView, partitions: int = PARTITIONS, rows: int = ROWS) -> Statistics:
    """Over the newest partitions, at most so many with at most so many rows; of one that is larger, its first rows.

    Raises NotMaterializedError, UnreadableFileError, SchemaDriftError.
    """
    import polars as pl

    key = asset_key(view)
    chosen = _newest(lake, view, partitions, rows)
    frame = lake.scan(key, chosen or None).head(rows)
    there = {name: dtype for name, dtype in frame.collect_schema().items() if name in view.schema}
    asked = [expression for name, dtype in there.items() for expression in _expressions(name, dtype)]
    (found,) = frame.select(
        pl.len().alias("rows"), pl.col(EVENT_TIMESTAMP).max().alias("newest"), *asked
    ).collect().to_dicts()  # fmt: skip
    numbers = {name: _numbers(name, found) for name in there}
    return Statistics(tuple(chosen), found["rows"], found["newest"], numbers)


def _newest(lake: Lake, view: FeatureView, partitions: int, rows: int) -> list[str]:
    """The newest partitions that have no more than `rows` rows together, one at least; none for a table without any."""
    import polars as pl

    key, chosen, total = asset_key(view), list[str](), 0
    for name in reversed(lake.partitions(key)[-partitions:]):
        total += lake.scan(key, [name]).select(pl.len()).collect().item()
        if chosen and total > rows:
            break
        chosen.append(name)
    return sorted(chosen)


def _expressions(name: str, dtype: pl.DataType) -> list[pl.Expr]:
    """One value each, named `<feature>/<number>`."""
    import polars as pl

    column = pl.col(name)
    missing = pl.when(pl.len() > 0).then(column.null_count() / pl.len()).alias(f"{name}/null_share")
    return [missing, *(number.alias(f"{name}/{what}") for what, number in _spread(column, dtype).items())]


def _spread(column: pl.Expr, dtype: pl.DataType) -> dict[str, pl.Expr]:
    import polars as pl

    if isinstance(dtype, pl.List):
        lengths, elements = column.list.len(), column.explode()
        return {"shortest": lengths.min(), "longest": lengths.max(), **_range(elements), "mean": elements.mean()}
    if dtype.is_numeric():
        quantiles = {name: column.quantile(share, "linear") for name, share in QUANTILES.items()}
        return {**_range(column), "mean": column.mean(), **quantiles}
    if dtype == pl.Boolean:
        return {"mean": column.mean()}
    return _range(column) if dtype.is_temporal() else {"distinct": column.drop_nulls().n_unique()}


def _range(column: pl.Expr) -> dict[str, pl.Expr]:
    return {"min": column.min(), "max": column.max()}


def _numbers(name: str, found: Mapping[str, Any]) -> Numbers:
    """The feature's own, without its name; a name may be the beginning of another."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
