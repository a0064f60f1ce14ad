"""What was usual while a model was trained: measured once, kept in its bundle as `usual.json`.

A week is never like the months before it. How unlike the past weeks were each is what a later week is held against,
column by column; likewise the share of nulls that some weeks had, and each slice's own metric on the holdout. Of real
flights of 2013 a third to two thirds of all inputs have a PSI over 0.2 in any week, also right after a training; over
what was usual as well are more than 30 % of them only when the summer, its storms, and the autumn begin.

Only ever imported at run time, hence numpy and polars at the top.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from mlops_assets.declarations import EVENT_TIMESTAMP
from mlops_assets.monitoring.drift import ColumnDrift, drift

FILE = "usual.json"
QUANTILE = 0.9  # one window in ten was further away
DAYS_QUANTILE = 0.98  # an input may be missing for most of a calm or a rainy day, and nothing is wrong
FEWEST = 3  # windows, or days, from which something usual is told
FEWEST_ROWS = 30  # of a day
DRAWN = 16  # places of an array; an image is no heap of pixels


@dataclass(frozen=True)
class Usual:
    """By column the PSI against the baseline that nine of ten past windows stayed under.

    `windows` of `days` each were measured. `null_share` is, by input, what 98 of 100 past days stayed under, `slices`,
    by slice column and value, the gate's metric on the holdout. Empty for a model that was trained before any of it
    was kept.
    """

    windows: int = 0
    days: float = 0.0
    psi: Mapping[str, float] = field(default_factory=dict)
    null_share: Mapping[str, float] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        rows: pl.DataFrame,
        baseline: pl.DataFrame,
        window: timedelta,
        slices: Mapping[str, Mapping[str, float]] | None = None,
        *,
        classes: bool = False,
    ) -> Self:
        """Measure the windows of `rows`, what the model learned from, against the `baseline` drawn of them.

        `rows` has `event_timestamp` and the baseline's columns; the prediction may be one of several `classes`.
        """
        found = [drift(baseline, some, min_rows=1, classes=classes) for some in _windows(rows, window)]
        columns = [(*one.columns, *([one.prediction] if one.prediction else [])) for one in found]
        return cls(
            len(found),
            window / timedelta(days=1),
            _psi(columns) if len(found) >= FEWEST else {},
            _null_shares(rows.select(EVENT_TIMESTAMP, *baseline.columns)),
            slices or {},
        )

    @classmethod
    def read(cls, bundle: Path) -> Self:
        """What a bundle says; nothing where it is of a time before."""
        path = bundle / FILE
        return cls(**json.loads(path.read_bytes())) if path.exists() else cls()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def numbered(rows: pl.DataFrame, sizes: Mapping[str, int]) -> pl.DataFrame:
    """The rows with a column for each place of an array, as a page draws them; none of an array that is long."""
    arrays = {name: size for name, size in sizes.items() if name in rows.columns}
    places = [
        pl.col(name).list.get(place, null_on_oob=True).alias(f"{name}[{place}]")
        for name, size in arrays.items()
        if size <= DRAWN
        for place in range(size)
    ]
    return rows.with_columns(places).drop(arrays)


def _windows(rows: pl.DataFrame, window: timedelta) -> Iterator[pl.DataFrame]:
    """The rows in windows, counted back from the newest; the oldest, which may not be whole, is left out."""
    times = rows[EVENT_TIMESTAMP]
    if rows.is_empty():
        return
    oldest, end = times.min(), times.max()
    while end - window >= oldest:  # type: ignore[operator]
        some = rows.filter(pl.col(EVENT_TIMESTAMP) > end - window, pl.col(EVENT_TIMESTAMP) <= end)  # type: ignore[operator]
        if not some.is_empty():
            yield some
        end = end - window  # type: ignore[operator]


def _psi(windows: Sequence[Sequence[ColumnDrift]]) -> dict[str, float]:
    """By column the `QUANTILE` of the index over the windows that have it."""
    values: dict[str, list[float]] = {}
    for column in (column for columns in windows for column in columns):
        if column.psi is not None:
            values.setdefault(column.name, []).append(column.psi)
    return {name: float(np.quantile(found, QUANTILE)) for name, found in values.items()}


def _null_shares(rows: pl.DataFrame) -> dict[str, float]:
    """By input the `DAYS_QUANTILE` of its share of nulls in a day."""
    inputs = [name for name in rows.columns if name != EVENT_TIMESTAMP]
    by_day = rows.group_by(pl.col(EVENT_TIMESTAMP).dt.date()).agg(
        pl.col(inputs).null_count() / pl.len(), pl.len().alias("rows of the day")
    )
    days = by_day.filter(pl.col("rows of the day") >= FEWEST_ROWS)
    if days.height < FEWEST:
        return {}
    return dict(days.select(pl.col(inputs).quantile(DAYS_QUANTILE, "higher")).row(0, named=True))
