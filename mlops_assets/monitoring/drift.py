"""Drift: how far the inputs of today have moved from those the model was trained on.

The population stability index (PSI) of each column, over all rows, equal to Evidently's `psi` to 1e-6
(`evidently.legacy.calculations.stattests.psi` and the column types of `Dataset.from_pandas`):

- nulls, NaN and infinities are left out; their share is reported beside the index;
- a numeric column whose reference has more than 20 distinct values is cut into Sturges' equal bins over
  both samples; every other column is compared value by value;
- a column of arrays is one column, compared as a whole (see `array_drift`);
- integers with at most 10 distinct values in the current sample are categories, as are booleans and strings;
- an empty bin counts as 1e-4, or as a millionth of the smallest share where one is smaller than 1e-4.

Unlike Evidently, a string column of mostly distinct values is a category too, and a column without a
single value on one side has no index instead of raising an error. Too few rows never make a drift.

A week differs from the months before it also where nothing is wrong: by the season, and in columns that have but a few
values a day. So a column has drifted when its index is at least the limit and over what was usual for a window of the
same length while the model was trained (`usual`); the index itself stays what it is.

Only ever imported at run time, hence numpy and polars at the top.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, log2
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_assets.monitoring.array_drift import array_index, auc_of, whole

Kind = Literal["numeric", "categorical", "array"]
Verdict = Literal["stable", "drift", "not enough rows"]
Shares = npt.NDArray[np.float64]

PREDICTION = "prediction"
BINNED_ABOVE = 20
INTEGER_CATEGORIES = 10
EMPTY_BIN = 1e-4
GLANCE = 1_000  # a look at so many values mostly tells that there are more than a few distinct ones


class IncomparableColumnsError(ValueError):
    """The two frames do not hold the same columns, or a column of two natures."""

    @classmethod
    def missing(cls, columns: Iterable[str], known: Iterable[str]) -> Self:
        return cls(
            f"The current frame lacks {', '.join(columns)} of the reference (it has: {', '.join(known)}). "
            "Compare inputs of the release that the baseline belongs to."
        )

    @classmethod
    def mixed(cls, column: str, reference: pl.DataType, current: pl.DataType) -> Self:
        return cls(
            f"Column {column!r} is {reference} in the reference and {current} in the current frame. "
            "Cast it to the type that the input schema declares."
        )

    @classmethod
    def unequal(cls, column: str, sizes: Iterable[int]) -> Self:
        return cls(
            f"Column {column!r} holds arrays of {' and '.join(map(str, sorted(sizes)))} numbers. "
            "Compare inputs of releases that read arrays of one length."
        )

    @classmethod
    def unknown(cls, column: str, dtype: pl.DataType) -> Self:
        return cls(
            f"Column {column!r} is {dtype} (comparable: numbers, Boolean, String, lists). Leave it out or cast it."
        )


@dataclass(frozen=True)
class ColumnDrift:
    """One column's move. `psi` is None where a side has no value; shares are 0 to 1.

    `usual` is the index that was usual while training, None where that is not known; `how` says of a drifted column
    in which direction it went.
    """

    name: str
    kind: Kind
    psi: float | None
    drifted: bool
    null_share_reference: float
    null_share_current: float
    usual: float | None = None
    how: str = ""

    @property
    def null_share_change(self) -> float:
        return self.null_share_current - self.null_share_reference


@dataclass(frozen=True)
class DriftResult:
    """Every input's drift, and the prediction's, which stands beside the verdict and is not part of it."""

    columns: tuple[ColumnDrift, ...]
    prediction: ColumnDrift | None
    rows_reference: int
    rows: int
    limit: float
    share_limit: float
    min_rows: int

    @property
    def drifted(self) -> tuple[str, ...]:
        """The drifted inputs, the furthest moved first."""
        moved = sorted((column for column in self.columns if column.drifted), key=lambda c: -(c.psi or 0.0))
        return tuple(column.name for column in moved)

    @property
    def drifted_share(self) -> float:
        return len(self.drifted) / len(self.columns) if self.columns else 0.0

    @property
    def psi_max(self) -> float:
        return max((column.psi for column in self.columns if column.psi is not None), default=0.0)

    @property
    def verdict(self) -> Verdict:
        """`drift` when at least `share_limit` of the inputs drifted; never on fewer than `min_rows` on a side."""
        if min(self.rows, self.rows_reference) < self.min_rows:
            return "not enough rows"
        return "drift" if self.drifted and self.drifted_share >= self.share_limit else "stable"

    @property
    def prediction_verdict(self) -> Verdict:
        """Whether what the model answers has moved; by the same rule as a column, and not part of `verdict`."""
        if self.prediction is None or self.prediction.psi is None or self.rows < self.min_rows:
            return "not enough rows"
        return "drift" if self.prediction.drifted else "stable"

    @property
    def rule(self) -> str:
        """What the verdicts go by, in words."""
        known = [column for column in self.columns if column.usual is not None]
        arrays = any(column.kind == "array" for column in self.columns)
        told = " (an array's is that of two normal distributions as easily told apart)" if arrays else ""
        usual = f", and over what was usual while training where that is known ({len(known)} of {len(self.columns)})"
        return (
            f"A column drifted when its PSI{told} is at least {self.limit:g}{usual if known else ''}; "
            f"the dataset when at least {self.share_limit:.0%} of its columns did. "
            f"Nothing is said on fewer than {self.min_rows} rows."
        )

    def numbers(self) -> dict[str, float | int | str]:
        """Plain numbers for metadata, so that they are plotted over time."""
        psi = self.prediction.psi if self.prediction else None
        return {
            "verdict": self.verdict,
            "prediction_verdict": self.prediction_verdict,
            "drifted_share": self.drifted_share,
            "psi_max": self.psi_max,
            **({} if psi is None else {"psi_prediction": psi}),
            "rows": self.rows,
            "rows_reference": self.rows_reference,
        }

    def table(self) -> pl.DataFrame:
        """One row per column, the prediction last: name, kind, psi, what was usual, drifted, how, null shares."""
        listed = [*self.columns, *([self.prediction] if self.prediction else [])]
        return pl.DataFrame(
            {
                "column": [column.name for column in listed],
                "kind": [column.kind for column in listed],
                "psi": pl.Series([column.psi for column in listed], dtype=pl.Float64),
                "usual": pl.Series([column.usual for column in listed], dtype=pl.Float64),
                "drifted": [column.drifted for column in listed],
                "how": [column.how for column in listed],
                "null_share_reference": [column.null_share_reference for column in listed],
                "null_share_current": [column.null_share_current for column in listed],
                "null_share_change": [column.null_share_change for column in listed],
            }
        )


def drift(
    reference: pl.DataFrame,
    current: pl.DataFrame,
    *,
    limit: float = 0.2,
    share_limit: float = 0.3,
    min_rows: int = 500,
    prediction: str = PREDICTION,
    usual: Mapping[str, float] | None = None,
    classes: bool = False,
    threads: int | None = None,
) -> DriftResult:
    """Compare every column of `reference` with the same column of `current`, which may have more.

    `usual` is, by column, the index that a window had while the model was trained. A prediction that is one of several
    `classes` is no number, however many there are. Columns are compared side by side by so many `threads`, by default
    as many as there are CPUs.

    Raises:
        IncomparableColumnsError: a column is missing, or of another nature, in `current`.
    """
    if absent := [name for name in reference.columns if name not in current.columns]:
        raise IncomparableColumnsError.missing(absent, current.columns)
    known = usual or {}
    if classes and prediction in reference.columns:
        reference, current = (as_classes(side, prediction) for side in (reference, current))

    def compared(name: str) -> ColumnDrift:
        return column_drift(reference[name], current[name], limit, min_rows, known.get(name))

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        moved = dict(zip(reference.columns, pool.map(compared, reference.columns), strict=True))
    return DriftResult(
        columns=tuple(column for name, column in moved.items() if name != prediction),
        prediction=moved.get(prediction),
        rows_reference=reference.height,
        rows=current.height,
        limit=limit,
        share_limit=share_limit,
        min_rows=min_rows,
    )


def as_classes(rows: pl.DataFrame, prediction: str = PREDICTION) -> pl.DataFrame:
    """The rows with the predicted class as a word."""
    return rows.with_columns(pl.col(prediction).cast(pl.Int64).cast(pl.String))


def column_drift(
    reference: pl.Series, current: pl.Series, limit: float = 0.2, min_rows: int = 500, usual: float | None = None
) -> ColumnDrift:
    """One column's PSI; drifted at `limit` or above, and over `usual`, given `min_rows` values on both sides."""
    reference, current = _typed(reference, current), _typed(current, reference)
    if _nature(reference) != _nature(current):
        raise IncomparableColumnsError.mixed(reference.name, reference.dtype, current.dtype)
    kind = kind_of(current)
    past, now = (whole(side) if kind == "array" else present(side) for side in (reference, current))
    if kind == "array" and len(sizes := {*past.list.len(), *now.list.len()}) > 1:
        raise IncomparableColumnsError.unequal(current.name, sizes)
    psi = _psi(past, now, kind) if len(past) and len(now) else None
    far = psi is not None and psi >= limit and (usual is None or psi > usual)
    drifted = far and min(len(past), len(now)) >= min_rows
    return ColumnDrift(
        name=current.name,
        kind=kind,
        psi=psi,
        drifted=drifted,
        null_share_reference=_absent_share(reference, past),
        null_share_current=_absent_share(current, now),
        usual=usual,
        how=_how(past, now, psi) if drifted and psi is not None else "",
    )


def _how(past: pl.Series, now: pl.Series, psi: float) -> str:
    """In which direction a column went: its mean, or the value whose share changed most; of arrays, how far."""
    if isinstance(past.dtype, pl.List):
        return f"away, told apart with ROC AUC {auc_of(psi):.2f}"
    if past.dtype.is_numeric():
        before, after = (float(side.cast(pl.Float64).mean() or 0.0) for side in (past, now))  # type: ignore[arg-type]
        way = "up" if after > before else "down" if after < before else "to another shape"
        return f"{way}, mean {before:.4g} -> {after:.4g}"
    counts = _both(past, now).with_columns(pl.col("past") / len(past), pl.col("now") / len(now))
    value, before, after = counts.sort((pl.col("now") - pl.col("past")).abs(), "value").row(-1)
    return f"{value!r} {before:.1%} -> {after:.1%}"


def kind_of(current: pl.Series) -> Kind:
    """Evidently's column type, which it takes from the current sample, with pandas' view of integers with nulls.

    Arrays are of their own.
    """
    if isinstance(current.dtype, pl.List):
        return "array"
    if current.dtype.is_integer():
        few = current.null_count() == 0 and not has_more_distinct(current, INTEGER_CATEGORIES)
        return "categorical" if few else "numeric"
    return "numeric" if current.dtype.is_float() else "categorical"


def _typed(column: pl.Series, like: pl.Series) -> pl.Series:
    """A column read from JSON that holds nothing but nulls has no type of its own."""
    return column.cast(like.dtype) if column.dtype == pl.Null else column


def _nature(column: pl.Series) -> Literal["number", "flag", "text", "array"]:
    if isinstance(column.dtype, pl.List):
        return "array"
    if column.dtype.is_numeric():
        return "number"
    if column.dtype in (pl.Boolean, pl.String, pl.Categorical, pl.Enum, pl.Null):
        return "flag" if column.dtype == pl.Boolean else "text"
    raise IncomparableColumnsError.unknown(column.name, column.dtype)


def present(column: pl.Series) -> pl.Series:
    """The values that are there: no null, no NaN, no infinity."""
    values = column.drop_nulls()
    if not column.dtype.is_float():
        # As in pandas: an integer column with nulls becomes floating, and its bins with it.
        return values.cast(pl.Float64) if column.dtype.is_integer() and len(values) < len(column) else values
    ends = values.to_numpy()
    # NaN and infinities are in the ends where there are any: a quarter of the time that looking at each value takes.
    if not len(ends) or np.isfinite((ends.min(), ends.max())).all():
        return values
    return values.filter(values.is_finite())


def has_more_distinct(values: pl.Series, count: int) -> bool:
    """Whether there are more than `count` distinct values; a glance, or the range of whole numbers, mostly answers."""
    if values.head(GLANCE).n_unique() > count:
        return True
    if values.dtype.is_integer() and len(values) and values.max() - values.min() < count:  # type: ignore[operator]
        return False
    return values.n_unique() > count


def _psi(reference: pl.Series, current: pl.Series, kind: Kind) -> float | None:
    if kind == "array":
        return array_index(reference, current)
    binned = kind == "numeric" and has_more_distinct(reference, BINNED_ABOVE)
    expected, actual = (_binned if binned else _counted)(reference, current)
    expected, actual = _filled(expected / len(reference)), _filled(actual / len(current))
    return float(np.sum((expected - actual) * np.log(expected / actual)))


def _binned(reference: pl.Series, current: pl.Series) -> tuple[Shares, Shares]:
    """Counts per bin. `np.histogram` sorts in blocks that fit the cache: 4 ms a million rows, a full sort takes 15."""
    past, now = reference.to_numpy(), current.to_numpy()
    edges = sturges_edges(past, now)
    return np.histogram(past, edges)[0].astype(np.float64), np.histogram(now, edges)[0].astype(np.float64)


def sturges_edges(past: npt.NDArray[np.generic], now: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """`np.histogram_bin_edges` of both samples in one with `bins="sturges"`, without copying them together."""
    ends = np.array([np.minimum(past.min(), now.min()), np.maximum(past.max(), now.max())])
    span = float(ends[1]) - float(ends[0])
    width = span / (log2(len(past) + len(now)) + 1.0)
    if width and width < 1 and np.issubdtype(ends.dtype, np.integer):
        width = 1.0
    return np.histogram_bin_edges(ends, bins=ceil(span / width) if width else 1)


def _counted(reference: pl.Series, current: pl.Series) -> tuple[Shares, Shares]:
    """Counts per value, ordered by value, so that the order of rows cannot change a rounding."""
    if reference.dtype == pl.Boolean:
        true = np.array([reference.sum(), current.sum()], dtype=np.float64)
        flags = np.array([len(reference), len(current)]) - true, true
        past, now = np.array([count for count in flags if count.any()]).T  # a value that neither side has is none
        return past, now
    both = _both(reference, current)
    return both["past"].to_numpy().astype(np.float64), both["now"].to_numpy().astype(np.float64)


def _both(reference: pl.Series, current: pl.Series) -> pl.DataFrame:
    """How often each value is there, on either side: value, past, now."""
    past, now = _value_counts(reference, "past"), _value_counts(current, "now")
    return past.join(now, on="value", how="full", coalesce=True).sort("value").fill_null(0)


def _value_counts(values: pl.Series, name: str) -> pl.DataFrame:
    """Counted first, then made comparable: there are few of them by then. `value_counts` takes twice as long."""
    counts = values.to_frame("value").lazy().group_by("value").agg(pl.len().alias(name)).collect()
    kind = pl.Float64 if values.dtype.is_numeric() else pl.String
    return counts.with_columns(pl.col("value").cast(kind))


def _filled(shares: Shares) -> Shares:
    smallest = shares[shares > 0].min()
    return np.where(shares > 0, shares, smallest / 1e6 if smallest <= EMPTY_BIN else EMPTY_BIN)


def _absent_share(column: pl.Series, values: pl.Series) -> float:
    return 1.0 - len(values) / len(column) if len(column) else 0.0
