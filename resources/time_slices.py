"""The point-in-time join in slices of time: of every table only one slice is in memory, however large it is.

A slice is a span of time `(after, until]`. Of each view the newest row per key is carried from slice to slice; with
the view's rows of the slice it is all that the slice's spine rows can see. A look at the tables' time columns chooses
the slices. The rule that must never break: the slices together are
the rows of `resources.point_in_time.point_in_time_join`, in the order of time, equals as they lie, null times last.

What stays in memory: about `rows` rows of the spine and of each view, and a row per key of each view. Rows of one
moment are never parted. Files whose rows lie in order of time, or by day, are each read once; others at each slice.
Used at run time only: Polars is imported at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from resources.point_in_time import CREATED, EVENT, TIME, ViewFrame, between, point_in_time_join, utc

BINS_PER_SLICE, PARTS = 32, 64
MOMENT = "__slice_moment"  # of a row, in microseconds since 1970


@dataclass(frozen=True)
class TimeSlice:
    """The moments after `after` (None: from the first) until `until`, in microseconds."""

    after: int | None
    until: int


def join_in_slices(
    spine: pl.LazyFrame,
    views: Sequence[ViewFrame],
    rows: int,
    *,
    event_timestamp: str = "event_timestamp",
    as_known: bool = False,
) -> Iterator[pl.DataFrame]:
    """The joined spine, at least one frame, each of about `rows` rows at most; see `point_in_time_join`."""
    options: dict[str, Any] = {"event_timestamp": event_timestamp, "as_known": as_known}
    schema = spine.collect_schema()
    unread = [replace(view, frame=view.frame.clear()) for view in views]
    nothing = point_in_time_join(spine.clear(), unread, **options).collect()
    carried = [view.frame.select(view.needed).collect() for view in unread]
    given = 0
    for span in time_slices(spine, views, rows, **options):
        seen = [_seen(view, held, span, as_known) for view, held in zip(views, carried, strict=True)]
        here = _rows(spine.filter(between(event_timestamp, schema, _first(span), span.until)))
        if here.height:
            frames = [replace(view, frame=held.lazy()) for view, held in zip(views, seen, strict=True)]
            yield point_in_time_join(
                here.sort(event_timestamp, maintain_order=True).lazy(), frames, **options
            ).collect()
            given += here.height
        carried = [_newest(view, held, span.until, as_known) for view, held in zip(views, seen, strict=True)]
        del seen, here
    timeless = _rows(spine.filter(pl.col(event_timestamp).is_null()))
    if timeless.height or not given:
        yield pl.concat([timeless, nothing], how="diagonal").select(nothing.columns)


def time_slices(
    spine: pl.LazyFrame, views: Sequence[ViewFrame], rows: int, *, event_timestamp: str, as_known: bool
) -> list[TimeSlice]:
    """Spans of time with at most about `rows` rows of any table in each, until the spine's last moment."""
    schema = spine.collect_schema()
    moments = spine.select(_micros(event_timestamp, schema).alias(MOMENT))
    begin, last, _ = _extent(moments)
    if begin is None or last is None:
        return []
    shown = [
        view.frame.filter(between(view.event_timestamp, view.frame.collect_schema(), None, last)).select(
            _shown(view, as_known).alias(MOMENT)
        )
        for view in views
    ]
    tables = [frame.filter(pl.col(MOMENT) <= last) for frame in (moments, *shown)]
    extents = [_extent(table) for table in tables]
    begin = min(start for start, _, _ in extents if start is not None)
    most = max(height for _, _, height in extents)
    bins = BINS_PER_SLICE * (most // rows + 1)
    ends = _cuts(_bins(tables, begin, 1 << ((last - begin) // bins).bit_length(), rows), rows)
    return [TimeSlice(after, until) for after, until in zip([None, *ends], [*ends, last], strict=True)]


def _bins(tables: Sequence[pl.LazyFrame], begin: int, width: int, rows: int) -> list[tuple[int, list[int]]]:
    """Spans of time in order: the last moment of each, and the rows of each table; few have more than `rows`.

    Widths are powers of two, so that a span that is too full is parted into whole ones.
    """
    counts = [_counts(table, begin, width) for table in tables]
    held = {place: [count.get(place, 0) for count in counts] for count in counts for place in count}
    full = [place for place, of in held.items() if max(of) > rows and width > 1]
    spans = [(begin + (place + 1) * width - 1, of) for place, of in held.items() if place not in full]
    if full:
        inside = ((pl.col(MOMENT) - begin) // width).is_in(full)
        spans += _bins([table.filter(inside) for table in tables], begin, max(1, width // PARTS), rows)
    return sorted(spans)


def _cuts(bins: Sequence[tuple[int, list[int]]], rows: int) -> list[int]:
    """After which moments a slice ends, for no table to have more than `rows` rows in one."""
    cuts: list[int] = []
    filled, before = [0] * len(bins[0][1]), 0
    for end, added in bins:
        if any(held and held + more > rows for held, more in zip(filled, added, strict=True)):
            cuts.append(before)
            filled = [0] * len(added)
        filled, before = [held + more for held, more in zip(filled, added, strict=True)], end
    return cuts


def _extent(moments: pl.LazyFrame) -> tuple[int | None, int | None, int]:
    """The first and the last moment of a table, and its rows."""
    first, last, rows = _rows(moments.select(first=pl.min(MOMENT), last=pl.max(MOMENT), rows=pl.len())).row(0)
    return first, last, rows


def _counts(moments: pl.LazyFrame, begin: int, width: int) -> dict[int, int]:
    """How many rows are in each bin of time."""
    return dict(_rows(moments.group_by((pl.col(MOMENT) - begin) // width).len()).rows())


def _seen(view: ViewFrame, carried: pl.DataFrame, span: TimeSlice, as_known: bool) -> pl.DataFrame:
    """What the slice's spine rows can see: the rows carried into it, and those that begin to show in it."""
    schema = view.frame.collect_schema()
    if as_known and view.created_timestamp:
        shown = _shown(view, as_known)
        fresh = shown <= span.until if span.after is None else (shown > span.after) & (shown <= span.until)
        fresh &= between(view.event_timestamp, schema, None, span.until)  # of this column files know the limits
    else:
        fresh = between(view.event_timestamp, schema, _first(span), span.until)
    return pl.concat([carried, _rows(view.frame.filter(fresh).select(view.needed))])


def _newest(view: ViewFrame, rows: pl.DataFrame, now: int, as_known: bool) -> pl.DataFrame:
    """Of each key the row that a later moment would see, unless a newer one comes; without those past their ttl."""
    times = {EVENT: view.event_timestamp} | ({CREATED: view.created_timestamp} if view.created_timestamp else {})
    stamped = rows.lazy().with_columns(utc(column, rows.schema).alias(name) for name, column in times.items())
    whole = stamped.drop_nulls([*view.keys, *(times if as_known else [EVENT])])
    if view.ttl:
        whole = whole.filter(pl.col(EVENT) >= pl.lit(now).cast(TIME) - view.ttl)
    ordered = whole.sort(list(times), maintain_order=True)
    newest = ordered.unique(list(view.keys), keep="last", maintain_order=True) if view.keys else ordered.tail(1)
    return newest.drop(*times).collect()


def _shown(view: ViewFrame, as_known: bool) -> pl.Expr:
    """From when on a row of the view can be seen, in microseconds; null: never."""
    schema = view.frame.collect_schema()
    event = _micros(view.event_timestamp, schema)
    if not (as_known and view.created_timestamp):
        return event
    created = _micros(view.created_timestamp, schema)
    return pl.when(event.is_not_null() & created.is_not_null()).then(pl.max_horizontal(event, created))


def _first(span: TimeSlice) -> int | None:
    return None if span.after is None else span.after + 1


def _micros(column: str, schema: pl.Schema) -> pl.Expr:
    return utc(column, schema).dt.epoch("us")


def _rows(frame: pl.LazyFrame) -> pl.DataFrame:
    """The frame's rows, read piece by piece: what a filter leaves out is never in memory together."""
    return frame.collect(engine="streaming")
