"""Performance: how well the predictions of the last days met the truth, as far as it is known by a moment.

A prediction is in one of three states as of that moment, and no other: its label is known (matured), it
may still come (pending), or it never will (unlabelled: the label is known to be missing, as for a
cancelled flight, or the event is older than `maturity` and nothing came). Only matured predictions are
judged; what is not known is counted and never taken for zero. No verdict is given on too few of them.

Only ever imported at run time, hence numpy and polars at the top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, Self

import numpy as np
import polars as pl

from mlops_assets.declarations import EVENT_TIMESTAMP, KNOWN_AT
from mlops_assets.metrics import METRICS
from mlops_assets.monitoring.drift import PREDICTION

Verdict = Literal["steady", "metric drop", "not enough rows"]
Calibration = tuple["CalibrationBin", ...]

STATE = "state"
TRUTH = "truth"
VERSION = "version"
MATURED, PENDING, UNLABELLED = "matured", "pending", "unlabelled"
BINS = 10
SLICE_VALUES = 20  # a slice column is judged on its most frequent values


class UnusableLabelsError(ValueError):
    """Predictions and labels that cannot be joined one to one."""

    @classmethod
    def doubled(cls, key: str, examples: Sequence[object]) -> Self:
        return cls(
            f"{len(examples)} values of {key!r} have more than one label, e.g. {examples[:3]}. "
            "Materialize the labels again; their check `unique_key` tells where."
        )

    @classmethod
    def missing(cls, table: str, columns: Sequence[str], known: Sequence[str]) -> Self:
        return cls(f"The {table} lack {', '.join(columns)} (they have: {', '.join(known)}). Select them with the rest.")


@dataclass(frozen=True)
class Maturity:
    """How many predictions of the window are judged, may still be, and never will be."""

    matured: int
    pending: int
    unlabelled: int


@dataclass(frozen=True)
class Score:
    """A group of matured predictions. `metric` is None on too few rows, or where the metric is undefined."""

    group: str
    value: str
    rows: int
    metric: float | None


@dataclass(frozen=True)
class Loss:
    """A slice that fell `by` so much (in the metric's own unit) below `reference`, what it had on the holdout."""

    score: Score
    reference: float
    by: float


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions in [low, high): their mean probability and the share that came true."""

    low: float
    high: float
    rows: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class PerformanceResult:
    """A model's metric over a trailing window, beside `reference`, what the holdout promised."""

    metric_name: str
    metric: float | None
    reference: float
    limit: float
    maturity: Maturity
    versions: tuple[Score, ...]
    slices: tuple[Score, ...]
    calibration: Calibration
    slice_references: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.maturity.matured

    @property
    def drop(self) -> float | None:
        """How much worse than the holdout, in the metric's own unit; negative when better."""
        return None if self.metric is None else -METRICS[self.metric_name].gain(self.metric, self.reference)

    @property
    def verdict(self) -> Verdict:
        if self.drop is None:
            return "not enough rows"
        return "metric drop" if self.drop > self.limit else "steady"

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The slices that fell by more than the limit below what they had on the holdout, the worst first.

        A slice without a metric of its own there is held against the whole holdout's.
        """
        gain, found = METRICS[self.metric_name].gain, []
        for score in self.slices:
            reference = self.slice_references.get(score.group, {}).get(score.value, self.reference)
            if score.metric is not None and (by := -gain(score.metric, reference)) > self.limit:
                found.append(Loss(score, reference, by))
        return tuple(sorted(found, key=lambda loss: -loss.by))

    @property
    def calibration_error(self) -> float | None:
        """Mean gap of predicted and observed share, weighted by rows; None for a regression or without rows."""
        rows = sum(cell.rows for cell in self.calibration)
        gaps = sum(cell.rows * abs(cell.predicted - cell.observed) for cell in self.calibration)
        return gaps / rows if rows else None

    def numbers(self) -> dict[str, float | int | str]:
        """Plain numbers for metadata, so that they are plotted over time; what is unknown is left out."""
        measured = {"metric": self.metric, "drop": self.drop, "calibration_error": self.calibration_error}
        return {
            "verdict": self.verdict,
            "metric_name": self.metric_name,
            "reference": self.reference,
            **{name: value for name, value in measured.items() if value is not None},
            **{f"metric/{s.group}={s.value}": s.metric for s in self.slices if s.metric is not None},
            "rows": self.rows,
            "pending": self.maturity.pending,
            "unlabelled": self.maturity.unlabelled,
        }

    def table(self) -> pl.DataFrame:
        """One row per version and slice: group, value, rows, metric."""
        columns = {"group": pl.String, "value": pl.String, "rows": pl.Int64, "metric": pl.Float64}
        scores = [(s.group, s.value, s.rows, s.metric) for s in (*self.versions, *self.slices)]
        return pl.DataFrame(scores, schema=columns, orient="row")


def performance(
    matched: pl.DataFrame,
    metric_name: str,
    reference: float,
    *,
    limit: float,
    min_rows: int = 500,
    slices: Sequence[str] = (),
    slice_min_rows: int = 200,
    slice_references: Mapping[str, Mapping[str, float]] | None = None,
) -> PerformanceResult:
    """Judge what `match` returned: as a whole, by version and by slice, and for probabilities their calibration.

    `slice_references` is, by slice column and value, the metric on the holdout.
    """
    matured = matched.filter(pl.col(STATE) == MATURED)
    probabilities = METRICS[metric_name].task == "classification"
    return PerformanceResult(
        metric_name=metric_name,
        metric=_metric(matured, metric_name, min_rows),
        reference=reference,
        limit=limit,
        maturity=maturity_of(matched),
        versions=_scores(matured, VERSION, metric_name, slice_min_rows) if VERSION in matured.columns else (),
        slices=tuple(score for name in slices for score in _scores(matured, name, metric_name, slice_min_rows)),
        calibration=calibration(matured) if probabilities else (),
        slice_references=slice_references or {},
    )


def slice_metrics(
    judged: pl.DataFrame, metric_name: str, slices: Sequence[str], min_rows: int
) -> dict[str, dict[str, float]]:
    """By slice column and value, the metric of rows with `truth` and `prediction`; of groups that have enough rows."""
    scores = {name: _scores(judged, name, metric_name, min_rows) for name in slices}
    return {name: {s.value: s.metric for s in found if s.metric is not None} for name, found in scores.items()}


def match(
    predictions: pl.DataFrame,
    labels: pl.DataFrame,
    *,
    key: str,
    label: str,
    as_of: datetime,
    window: timedelta,
    maturity: timedelta,
) -> pl.DataFrame:
    """The predictions of events in [as_of - window, as_of), each with its `state` and, if matured, its `truth`.

    `predictions` has `key` and `prediction`, one row an answer; `labels` one row a `key`, with
    `event_timestamp`, `label_known_at` and the column `label`. The event's time is the label's where
    there is one, else the prediction's own `event_timestamp`, or `at`, the moment it was answered.

    Raises:
        UnusableLabelsError: a column is missing, or a key has two labels.
    """
    _refuse_unusable(predictions, labels, key, label)
    known = labels.select(key, pl.col(EVENT_TIMESTAMP).alias("_event"), pl.col(KNOWN_AT), pl.col(label).alias(TRUTH))
    asked = next(name for name in (EVENT_TIMESTAMP, "at") if name in predictions.columns)
    joined = predictions.drop(KNOWN_AT, TRUTH, STATE, strict=False).join(known, on=key, how="left", validate="m:1")
    dated = joined.with_columns(_event=pl.coalesce("_event", asked))
    inside = dated.filter(pl.col("_event") >= as_of - window, pl.col("_event") < as_of)
    stated = inside.with_columns(_state(as_of, maturity).alias(STATE))
    # What is not known yet must not be readable, or a later reader would judge by the future.
    truth = pl.when(pl.col(STATE) == MATURED).then(pl.col(TRUTH).cast(pl.Float64))
    return stated.with_columns(truth.alias(TRUTH)).drop("_event", KNOWN_AT)


def maturity_of(matched: pl.DataFrame) -> Maturity:
    """Counts by state; they add up to the rows of the window."""
    counts = dict(matched[STATE].value_counts().iter_rows())
    return Maturity(counts.get(MATURED, 0), counts.get(PENDING, 0), counts.get(UNLABELLED, 0))


def calibration(matured: pl.DataFrame, bins: int = BINS) -> Calibration:
    """Equal bins of predicted probability from 0 to 1; empty ones are left out. 1.0 is in the last bin."""
    index = (pl.col(PREDICTION) * bins).floor().clip(0, bins - 1).cast(pl.Int64)
    binned = matured.group_by(index.alias("bin")).agg(
        rows=pl.len(), predicted=pl.col(PREDICTION).mean(), observed=pl.col(TRUTH).mean()
    )
    return tuple(
        CalibrationBin(cell["bin"] / bins, (cell["bin"] + 1) / bins, cell["rows"], cell["predicted"], cell["observed"])
        for cell in binned.sort("bin").iter_rows(named=True)
    )


def _state(as_of: datetime, maturity: timedelta) -> pl.Expr:
    known = pl.col(KNOWN_AT) <= as_of
    too_old = pl.col("_event") <= as_of - maturity
    return (
        pl.when(known & pl.col(TRUTH).is_not_null())
        .then(pl.lit(MATURED))
        .when(known | too_old)
        .then(pl.lit(UNLABELLED))
        .otherwise(pl.lit(PENDING))
    )


def _scores(matured: pl.DataFrame, group: str, metric_name: str, min_rows: int) -> tuple[Score, ...]:
    """One score a value of the column, the most frequent first."""
    counted = matured.group_by(pl.col(group).cast(pl.String)).agg(rows=pl.len())
    values = counted.sort("rows", group, descending=[True, False])
    return tuple(
        Score(group, str(value), rows, _metric(matured.filter(_is(group, value)), metric_name, min_rows))
        for value, rows in values.head(SLICE_VALUES).iter_rows()
    )


def _is(group: str, value: str | None) -> pl.Expr:
    return pl.col(group).cast(pl.String).eq_missing(pl.lit(value, pl.String))


def _metric(matured: pl.DataFrame, name: str, min_rows: int) -> float | None:
    """None on too few rows or, for a classification, where all came out the same way."""
    if matured.height < max(min_rows, 1):
        return None
    truth = matured[TRUTH].to_numpy()
    if METRICS[name].task == "classification" and len(np.unique(truth)) < 2:
        return None
    return METRICS[name].compute(truth, matured[PREDICTION].to_numpy())


def _refuse_unusable(predictions: pl.DataFrame, labels: pl.DataFrame, key: str, label: str) -> None:
    for table, frame, needed in (
        ("predictions", predictions, [key, PREDICTION]),
        ("labels", labels, [key, EVENT_TIMESTAMP, KNOWN_AT, label]),
    ):
        if missing := [name for name in needed if name not in frame.columns]:
            raise UnusableLabelsError.missing(table, missing, frame.columns)
    if not {EVENT_TIMESTAMP, "at"} & set(predictions.columns):
        raise UnusableLabelsError.missing("predictions", [f"{EVENT_TIMESTAMP} or at"], predictions.columns)
    if len(doubled := labels[key].filter(labels[key].is_duplicated()).unique()):
        raise UnusableLabelsError.doubled(key, doubled.to_list())
