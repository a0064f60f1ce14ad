"""Which partitions of a table a model's rows were made of.

Of a training set this is found out by joining its events to the table again, on the keys and times alone, as it lies
in the lake now. Of an answer the log says it: the event time of the row used from each view.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.catalog import Table, asset_key
from mlops_assets.declarations import EVENT_TIMESTAMP, FeatureView, Labels, ModelPipeline
from mlops_assets.links import spec
from mlops_assets.links.training_set import cold_start_used

if TYPE_CHECKING:
    import polars as pl

    from resources.lake import Lake

    Window = dg.TimeWindow | None

Trained = FeatureView | Labels
WHOLE = "all"  # the partition of a table that has none
USED_AT = "__used_at"


def read_tables(model: ModelPipeline) -> dict[str, Trained]:
    """What a training set of the model is joined from, by id: its labels, its views, what stands in for those."""
    views = [item.view for item in model.selections]
    stand_ins = [view.stand_in for view in views if view.stand_in]
    tables: list[Trained] = [model.labels, *views, *stand_ins]
    return {table.id: table for table in tables}


def trained_on(model: ModelPipeline, cutoff: str, lake: Lake) -> dict[str, dict[str, int]]:
    """For each table, the partitions that the training set of a cutoff used, and how many of its rows did."""
    return {name: used(model, table, cutoff, lake) for name, table in read_tables(model).items()}


def used(model: ModelPipeline, table: Trained, cutoff: str, lake: Lake, partition: str | None = None) -> dict[str, int]:
    """Rows of the training set by the partition of `table` that they used, of all or one.

    Raises NotMaterializedError.
    """
    window = window_of(table, partition)
    events = _reached(lake.scan(spec.link_key(model, "training_set"), [cutoff]), window, table)
    rows = events if isinstance(table, Labels) else _joined(model, table, events, lake, window)
    found = _by_partition(table, rows.select(USED_AT).collect()[USED_AT].drop_nulls(), lake)
    return found if partition is None else {name: count for name, count in found.items() if name == partition}


def _joined(model: ModelPipeline, view: FeatureView, events: pl.LazyFrame, lake: Lake, window: Window) -> pl.LazyFrame:
    """The events with the time of the view's row that each saw; of a stand-in, those that needed it."""
    import polars as pl

    from resources.point_in_time import ViewFrame, point_in_time_join

    stood_in_for = [item.view for item in model.selections if item.view.stand_in is view]
    needed = [pl.col(cold_start_used(other)) for other in stood_in_for]
    asked = events.filter(pl.any_horizontal(needed)) if needed else events
    rows = lake.scan(asset_key(view)).select(*view.join_keys, EVENT_TIMESTAMP)
    if window is not None:  # an event that saw an older row did not use the window's
        rows = rows.filter(pl.col(EVENT_TIMESTAMP) >= window.start)
    keys = {name: name for name in view.join_keys}
    frame = ViewFrame(rows, keys, {}, view.ttl, matched_at=USED_AT, name=view.title)
    return point_in_time_join(asked.select(*view.join_keys, EVENT_TIMESTAMP), [frame])


def _reached(spine: pl.LazyFrame, window: Window, table: Trained) -> pl.LazyFrame:
    """The events that may have used a row of the window, each with its own time as that of the label's row."""
    import polars as pl

    time = pl.col(EVENT_TIMESTAMP)
    events = spine.with_columns(time.alias(USED_AT))
    if window is None:
        return events
    if isinstance(table, Labels):
        return events.filter(time >= window.start, time < window.end)
    last = window.end + table.ttl if table.ttl else None
    return events.filter(time >= window.start, *([time < last] if last else []))


def _by_partition(table: Trained, times: pl.Series, lake: Lake) -> dict[str, int]:
    """How many times fall into each published partition."""
    import polars as pl

    if not isinstance(table.partitions, dg.TimeWindowPartitionsDefinition):
        return {WHOLE: times.len()} if times.len() else {}
    windows = {name: window_of(table, name) for name in lake.partitions(asset_key(table))}
    names = sorted(windows, key=lambda name: _window(windows[name]).start)
    starts = pl.Series([_window(windows[name]).start for name in names], dtype=pl.Datetime("us", "UTC"))
    places = starts.search_sorted(times.sort(), side="right").cast(pl.Int64) - 1
    counted = places.filter(places >= 0).value_counts().sort(places.name or "")
    return {names[place]: count for place, count in counted.iter_rows()}


def _window(window: Window) -> dg.TimeWindow:
    if window is None:
        raise TypeError("a table by time has windows")
    return window


def window_of(table: Table, partition: str | None) -> Window:
    """The time of a partition; None for no partition, and for that of a table without any."""
    if partition is None or not isinstance(table.partitions, dg.TimeWindowPartitionsDefinition):
        return None
    return table.partitions.time_window_for_partition_key(partition)


def partition_at(table: Table, moment: datetime) -> str:
    """The partition that a row of this time lies in."""
    if not isinstance(table.partitions, dg.TimeWindowPartitionsDefinition):
        return WHOLE
    return table.partitions.get_partition_key_for_timestamp(moment.timestamp())


def used_by(answer: Mapping[str, Any]) -> dict[str, datetime]:
    """The event time of the row that a logged answer used, by view."""
    return {view: datetime.fromisoformat(at) for view, at in answer["event_times"].items()}
