"""Data quality: whether the answers of a day stand on features that the data pipeline delivered as it should.

A day is measured (`figures`) and judged against what the model was trained on, what is declared, and the days before
(`judged`). What it finds is named, a line each. A cause of the pipeline breaks the verdict; answers that took long, or
were asked for twice, are named too, and break nothing. One that concerns most answers spoils the day: a view without
usable rows or with rows that have gone stale, an input that is gone or nonsense.

Only ever imported at run time, hence polars at the top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from statistics import median
from typing import Any, Literal

import polars as pl

from mlops_assets.claims import out_of_bounds
from mlops_assets.declarations import Monitor
from mlops_assets.fields import Field
from mlops_assets.monitoring.causes import Cause

Verdict = Literal["healthy", "broken pipeline", "not enough rows"]

DAYS_BEFORE = 3  # so many days make a habit that a day can break
FEWEST = 30  # answers from which a share is told
STALE = 2.0  # times as old as on the days before
STALE_SECONDS = 3600.0
DOUBLED = 0.1  # share of answers that were asked for again
SLOWER_MS = 1.0


@dataclass(frozen=True)
class Asked:
    """What the answers of a model should look like.

    `categories` are the values of each text that training saw, `views` the ttl in seconds of each view by its id,
    `reads` the inputs of each release, `null_shares` how often each input was missing in training.
    """

    fields: Mapping[str, Field]
    categories: Mapping[str, Sequence[str]]
    views: Mapping[str, float | None]
    null_shares: Mapping[str, float]
    reads: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ColumnQuality:
    """An input of a day: shares of the answers in which it is missing, out of its bounds, or an unknown category."""

    name: str
    rows: int
    null_share: float
    outside_share: float
    unknown_share: float


@dataclass(frozen=True)
class ViewQuality:
    """A view of a day: for which share of the answers it had no usable row, and how old the rows were that were used.

    `expired_share` of the answers found a row beyond its ttl; `age_seconds` is the median, None where none was used.
    """

    view: str
    fallback_share: float
    expired_share: float
    age_seconds: float | None
    ttl_seconds: float | None


@dataclass(frozen=True)
class Figures:
    """A day in numbers."""

    day: date
    rows: int
    columns: tuple[ColumnQuality, ...] = ()
    views: tuple[ViewQuality, ...] = ()
    doubled_share: float = 0.0
    latency_ms_p95: float | None = None


@dataclass(frozen=True)
class QualityResult:
    """A day's figures, what was found in them, and the days before; `rows` are those of the whole window."""

    figures: Figures
    before: tuple[Figures, ...]
    causes: tuple[Cause, ...]
    rows: int
    min_rows: int
    null_shares: Mapping[str, float] = field(default_factory=dict)
    late: Mapping[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        if self.rows < self.min_rows:
            return "not enough rows"
        return "broken pipeline" if any(cause.of == "pipeline" for cause in self.causes) else "healthy"

    def numbers(self) -> dict[str, float | int | str]:
        """Plain numbers for metadata, so that they are plotted over time; what is unknown is left out."""
        today, usual = self.figures, _habit([one.rows for one in self.before])
        slow = _habit([one.latency_ms_p95 for one in self.before])
        known = {"volume_before": usual, "latency_ms_p95": today.latency_ms_p95, "latency_ms_p95_before": slow}
        return {
            "verdict": self.verdict,
            "rows": self.rows,
            "volume": today.rows,
            "doubled_share": today.doubled_share,
            **{name: float(value) for name, value in known.items() if value is not None},
            **{f"null_share/{column.name}": column.null_share for column in today.columns},
            **{f"outside_share/{column.name}": column.outside_share for column in today.columns},
            **{f"fallback_share/{_short(view.view)}": view.fallback_share for view in today.views},
            **{f"age_seconds/{_short(v.view)}": v.age_seconds for v in today.views if v.age_seconds is not None},
            **{f"late_share/{_short(view)}": share for view, share in self.late.items()},
        }

    def columns(self) -> pl.DataFrame:
        """One row per input: column, null share, that of training, outside its bounds, unknown categories."""
        shown = self.figures.columns
        return pl.DataFrame(
            {
                "column": [column.name for column in shown],
                "null_share": [column.null_share for column in shown],
                "null_share_training": [self.null_shares.get(column.name) for column in shown],
                "outside_share": [column.outside_share for column in shown],
                "unknown_share": [column.unknown_share for column in shown],
            },
            schema_overrides={"null_share_training": pl.Float64},
        )

    def views(self) -> pl.DataFrame:
        """One row per view: view, fallback share, expired share, median age and ttl in hours, share that came late."""
        shown = self.figures.views
        return pl.DataFrame(
            {
                "view": [view.view for view in shown],
                "fallback_share": [view.fallback_share for view in shown],
                "expired_share": [view.expired_share for view in shown],
                "age_hours": [None if view.age_seconds is None else view.age_seconds / 3600 for view in shown],
                "ttl_hours": [None if view.ttl_seconds is None else view.ttl_seconds / 3600 for view in shown],
                "late_share": [self.late.get(view.view) for view in shown],
            },
            schema_overrides=dict.fromkeys(("age_hours", "ttl_hours", "late_share"), pl.Float64),
        )


def figures(day: date, rows: pl.DataFrame, asked: Asked) -> Figures:
    """Measure the answers of one day; `rows` is the prediction log's table."""
    if rows.is_empty():
        return Figures(day, 0)
    return Figures(
        day,
        rows.height,
        tuple(_column(rows, name, declared, asked) for name, declared in asked.fields.items() if name in rows.columns),
        tuple(_views(rows, asked.views)),
        1.0 - rows["request_id"].n_unique() / rows.height,
        rows["latency_ms"].quantile(0.95),
    )


def quality(
    days: Sequence[Figures], asked: Asked, monitor: Monitor, *, slower: float = 3.0, late: Mapping[str, float] = {}
) -> QualityResult:
    """Judge the last of some days in a row against those before it.

    `slower` is how many times as long as before an answer may take, `late` the share of answers by view that a row
    was due for that had not come by then.
    """
    *before, today = days
    causes = tuple(judged(today, before, asked, monitor, slower=slower, late=late))
    rows = sum(one.rows for one in days)
    return QualityResult(today, tuple(before), causes, rows, monitor.min_rows, asked.null_shares, late)


def judged(
    today: Figures,
    before: Sequence[Figures],
    asked: Asked,
    monitor: Monitor,
    *,
    slower: float = 3.0,
    late: Mapping[str, float] = {},
) -> Iterator[Cause]:
    """What is wrong with a day, that of the pipeline first."""
    if today.rows >= fewest(monitor):
        yield from _fallbacks(today, monitor)
        yield from _stale(today, before)
        yield from _late(late, today.rows, monitor)
        yield from _nulls(today, asked, monitor)
        yield from _invalid(today, asked, monitor)
    yield from _volume(today, before, monitor)
    if today.rows >= fewest(monitor):
        yield from _doubled(today)
        yield from _slow(today, before, slower)


def fewest(monitor: Monitor) -> int:
    """Answers of one day from which its shares are judged: a day's part of the window's least."""
    return max(FEWEST, round(monitor.min_rows / max(monitor.window.days, 1)))


def _column(rows: pl.DataFrame, name: str, declared: Field, asked: Asked) -> ColumnQuality:
    """A release that does not read the column says nothing about it."""
    blind = [release for release, inputs in asked.reads.items() if name not in inputs]
    values = (rows.filter(~pl.col("release").is_in(blind)) if blind else rows)[name]
    there, beyond, unknown = values.drop_nulls(), pl.lit(False), pl.lit(False)
    if declared.dtype in ("Float64", "Int64"):
        beyond = out_of_bounds(pl.col(name), declared)
    if name in asked.categories:
        unknown = ~pl.col(name).is_in(list(asked.categories[name]))
    counts = [values.null_count(), *there.to_frame().select(beyond.sum().alias("b"), unknown.sum().alias("u")).row(0)]
    return ColumnQuality(name, len(values), *(count / max(len(values), 1) for count in counts))


def _views(rows: pl.DataFrame, ttls: Mapping[str, float | None]) -> Iterator[ViewQuality]:
    """From the receipts in the log: the views that had no usable row and why, and the event times of the rows used."""
    told = pl.List(pl.Struct({"view": pl.String, "reason": pl.String}))
    fell = rows.filter(pl.col("fallbacks") != "[]").select(pl.col("fallbacks").str.json_decode(told))
    reasons = fell.explode("fallbacks").unnest("fallbacks").group_by("view", "reason").len()
    counts = {(view, reason): count for view, reason, count in reasons.iter_rows()}
    ages = _ages(rows, list(ttls))
    for view, ttl in ttls.items():
        fallbacks = sum(count for (of, _), count in counts.items() if of == view)
        expired = counts.get((view, "expired"), 0)
        yield ViewQuality(view, fallbacks / rows.height, expired / rows.height, ages.get(view), ttl)


def _ages(rows: pl.DataFrame, views: Sequence[str]) -> dict[str, float]:
    """By view the median seconds from the event time of the row used to the moment asked about."""
    if not views:
        return {}
    told = pl.Struct(dict.fromkeys(views, pl.String()))
    times = rows.select("at", pl.col("event_times").str.json_decode(told)).unnest("event_times")
    used = {view: pl.col(view).str.to_datetime(time_unit="us", time_zone="UTC", strict=False) for view in views}
    medians = times.select(**{view: (pl.col("at") - time).dt.total_seconds().median() for view, time in used.items()})
    return {view: float(seconds) for view, seconds in medians.row(0, named=True).items() if seconds is not None}


def _fallbacks(today: Figures, monitor: Monitor) -> Iterator[Cause]:
    for view in today.views:
        if view.fallback_share > monitor.fallback_share:
            expired = f", {view.expired_share:.0%} beyond its ttl" if view.expired_share else ""
            said = f"{view.view} had no usable row for {view.fallback_share:.0%} of {today.rows} answers{expired}"
            yield Cause("pipeline", view.view, said, spoils=True)


def _stale(today: Figures, before: Sequence[Figures]) -> Iterator[Cause]:
    """A view that is not published any more is still read until its ttl; its rows grow old by a day a day."""
    for view in today.views:
        ages = [one.age_seconds for past in before for one in past.views if one.view == view.view]
        usual, age, ttl = _habit(ages), view.age_seconds, view.ttl_seconds
        old = usual is not None and age is not None and age > STALE * usual and age > usual + STALE_SECONDS
        if old and usual is not None and age is not None and (ttl is None or age > ttl / 2):
            allowed = f", ttl {ttl / 3600:.0f} h" if ttl else ""
            said = f"rows of {view.view} were {age / 3600:.1f} h old, {usual / 3600:.1f} h on the days before{allowed}"
            yield Cause("pipeline", view.view, said, spoils=True)


def _late(late: Mapping[str, float], rows: int, monitor: Monitor) -> Iterator[Cause]:
    for view, share in late.items():
        if share > monitor.fallback_share:
            said = f"rows of {view} came too late for {share:.0%} of {rows} answers: the offline store has newer ones"
            yield Cause("pipeline", view, said)


def _nulls(today: Figures, asked: Asked, monitor: Monitor) -> Iterator[Cause]:
    for column in today.columns:
        usual = asked.null_shares.get(column.name)
        if usual is not None and column.rows and column.null_share > usual + monitor.null_share_rise:
            said = f"{column.name} is missing in {column.null_share:.0%} of {column.rows} answers"
            spoils = column.null_share > usual + monitor.fallback_share
            yield Cause("pipeline", column.name, f"{said}, in training {usual:.0%}", spoils)


def _invalid(today: Figures, asked: Asked, monitor: Monitor) -> Iterator[Cause]:
    for column in today.columns:
        declared = asked.fields[column.name]
        found = {
            f"out of its bounds [{declared.minimum}, {declared.maximum}]": column.outside_share,
            "a category that training never saw": column.unknown_share,
        }
        for what, share in found.items():
            if share > monitor.invalid_share:
                said = f"{column.name} is {what} in {share:.0%} of {column.rows} answers"
                yield Cause("pipeline", column.name, said, spoils=share > monitor.fallback_share)


def _volume(today: Figures, before: Sequence[Figures], monitor: Monitor) -> Iterator[Cause]:
    usual = _habit([one.rows for one in before])
    if usual is None or usual < fewest(monitor):
        return
    if today.rows * monitor.volume_change < usual or today.rows > usual * monitor.volume_change:
        yield Cause("pipeline", "volume", f"{today.rows} answers in the day, {usual:.0f} on the days before")


def _doubled(today: Figures) -> Iterator[Cause]:
    if today.doubled_share > DOUBLED:
        yield Cause("callers", "doubled", f"{today.doubled_share:.0%} of {today.rows} answers were asked for again")


def _slow(today: Figures, before: Sequence[Figures], slower: float) -> Iterator[Cause]:
    now, usual = today.latency_ms_p95, _habit([one.latency_ms_p95 for one in before])
    if now is not None and usual is not None and now > slower * usual and now > usual + SLOWER_MS:
        said = f"answers took {now:.1f} ms (95th percentile), {usual:.1f} ms on the days before"
        yield Cause("machine", "latency", said)


def _habit(values: Sequence[Any]) -> float | None:
    """What is usual of some days: their median; None of fewer than make a habit."""
    known = [value for value in values if value is not None]
    return float(median(known)) if len(known) >= DAYS_BEFORE else None


def _short(view: str) -> str:
    return view.rpartition("/")[2]
