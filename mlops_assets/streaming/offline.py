"""New rows of a source in the lake, and the feature views that read it computed anew where they can differ.

A view's partition is computed by its own function from the partitions that its batch run would read, and is
replaced whole: what the stream keeps fresh and what a batch computes are the same by construction, in whatever order
the events came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from graphlib import TopologicalSorter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.catalog import Catalog, Table, asset_key
from mlops_assets.claims import SchemaError, claims, conform, key_of
from mlops_assets.declarations import EVENT_TIMESTAMP, FeatureView, Source
from mlops_assets.links.table import computed
from mlops_assets.streaming.events import time_column
from resources.lake import UNPARTITIONED, Lake, NotMaterializedError, split_by_window

if TYPE_CHECKING:
    import polars as pl

# A day that has only begun may well hold more nulls than it will in the end.
JUDGED = ("unique_key", "in_bounds")
TOGETHER = 64  # partitions of a view that are computed at once


@dataclass
class Changed:
    """What a batch changed offline: partitions by table, and why a view was left as it was."""

    partitions: dict[str, list[str]] = field(default_factory=dict)
    held_back: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OfflineTables:
    """A source and the views that read it, directly or through other views. One writer at a time."""

    source: Source
    catalog: Catalog
    lake: Lake

    @cached_property
    def views(self) -> list[FeatureView]:
        """Each view after those that it reads."""
        inputs = {view.id: {table.id for _, table in self.catalog.inputs(view)} for view in self.catalog.views}
        fed = {self.source.id}
        for name in TopologicalSorter(inputs).static_order():
            if inputs.get(name, set()) & fed:
                fed.add(name)
        return [
            self.catalog.view(name)
            for name in TopologicalSorter(inputs).static_order()
            if name in fed - {self.source.id}
        ]

    def apply(self, rows: pl.DataFrame) -> Changed:
        """Put the source's new rows in their partitions, then bring every view up to date.

        Repeating it, also after it was cut short, leads to the same tables.
        """
        changed = Changed()
        if rows.is_empty():
            return changed
        published = {view.id: self.lake.partitions(asset_key(view)) for view in self.views}
        changed.partitions[self.source.id] = self._add(rows)
        for view in self.views:
            try:
                changed.partitions[view.id] = self._refresh(view, changed.partitions, published[view.id])
            except (NotMaterializedError, HeldBackError, SchemaError) as reason:
                changed.held_back[view.id] = str(reason)
        return changed

    def newest(self) -> datetime | None:
        """The time of the newest event that the source holds."""
        import polars as pl

        key = asset_key(self.source)
        if not (names := self.lake.partitions(key)):
            return None
        found: Any = self.lake.scan(key, names[-1:]).select(pl.col(time_column(self.source)).max()).collect().item()
        return found

    # -- the source

    def _add(self, rows: pl.DataFrame) -> list[str]:
        time, key = time_column(self.source), asset_key(self.source)
        definition = _windowed(self.source)
        moments: Any = rows[time]
        windows = _windows(definition, moments.min(), moments.max() + timedelta(microseconds=1))
        parts = split_by_window(rows, time, windows, key)
        touched = {name: part for name, part in parts.items() if part.height}
        self.lake.upsert(touched, key, list(dict.fromkeys([time, *key_of(self.source)])))
        return list(touched)

    # -- the views

    def _refresh(self, view: FeatureView, changed: Mapping[str, list[str]], published: list[str]) -> list[str]:
        """Compute what the changes can affect and publish it; returns its partitions."""
        if view.partitions is None:
            self.lake.write(self._judged(view, computed(view, self._inputs(view, None), None)), asset_key(view))
            return [UNPARTITIONED]
        affected = self._affected(view, changed, published)
        for run in _runs(affected):
            span = run[min(run)].start, run[max(run)].end
            rows = self._judged(view, computed(view, self._inputs(view, span), span))
            self.lake.write_partitions(split_by_window(rows, EVENT_TIMESTAMP, run, asset_key(view)), asset_key(view))
        return sorted(affected)

    def _affected(
        self, view: FeatureView, changed: Mapping[str, list[str]], published: list[str]
    ) -> dict[str, dg.TimeWindow]:
        """The partitions that read what changed, and those that time has come for: none later than their inputs."""
        definition, end = _windowed(view), self._horizon(view)
        found = self._unpublished(view, published, end)
        for _, table in self.catalog.inputs(view):
            for window in self._changed_windows(table, changed):
                found |= _windows(definition, window.start, min(window.end + view.lookback, end))
        return found

    @staticmethod
    def _unpublished(view: FeatureView, published: list[str], end: datetime) -> dict[str, dg.TimeWindow]:
        """Partitions without an event of their own that look back to one; a killed writer may have left any."""
        if not published:
            return {}
        definition = _windowed(view)
        last = definition.time_window_for_partition_key(published[-1])
        near = _windows(definition, last.start - view.lookback, min(last.end + view.lookback, end))
        return {name: window for name, window in near.items() if name > published[0] and name not in published}

    def _changed_windows(self, table: Table, changed: Mapping[str, list[str]]) -> Iterator[dg.TimeWindow]:
        if isinstance(table.partitions, dg.TimeWindowPartitionsDefinition):
            yield from (table.partitions.time_window_for_partition_key(name) for name in changed.get(table.id, ()))

    def _horizon(self, view: FeatureView) -> datetime:
        """The end of the newest partition of what the view reads."""
        ends = [
            table.partitions.time_window_for_partition_key(names[-1]).end
            for _, table in self.catalog.inputs(view)
            if isinstance(table.partitions, dg.TimeWindowPartitionsDefinition)
            and (names := self.lake.partitions(asset_key(table)))
        ]
        return max(ends)

    def _inputs(self, view: FeatureView, span: tuple[datetime, datetime] | None) -> dict[str, pl.LazyFrame]:
        """What a batch run over `span` would read: every input's partitions in it and in the lookback before it."""
        return {name: self._input(table, view, span) for name, table in self.catalog.inputs(view)}

    def _input(self, table: Table, view: FeatureView, span: tuple[datetime, datetime] | None) -> pl.LazyFrame:
        key = asset_key(table)
        if span is None or table.partitions is None:
            return self.lake.scan(key)
        asked = _windows(_windowed(table), span[0] - view.lookback, span[1])
        published = self.lake.partitions(key)
        if published and not asked.keys() & set(published):  # days without an event: a batch would have published none
            return self.lake.scan(key, published[-1:]).clear()
        return self.lake.scan(key, asked)

    @staticmethod
    def _judged(view: FeatureView, frame: pl.LazyFrame) -> pl.DataFrame:
        rows = conform(frame, view)
        broken = [claim for claim in claims(rows, view) if claim.name in JUDGED and not claim.passed]
        if broken:
            raise HeldBackError("; ".join(f"{claim.name}: {claim.reason}" for claim in broken))
        return rows


class HeldBackError(ValueError):
    """A view's new rows break what it promises; what was published before them stands."""


class NotWindowedError(TypeError):
    """A table that is fed by a stream is partitioned by something else than time."""


def _windowed(table: Table) -> dg.TimeWindowPartitionsDefinition:
    if not isinstance(table.partitions, dg.TimeWindowPartitionsDefinition):
        raise NotWindowedError(
            f"{table.title} is partitioned by {type(table.partitions).__name__} and is fed by a stream (needed: a "
            "TimeWindowPartitionsDefinition). An event is placed by its time."
        )
    return table.partitions


def _windows(definition: dg.TimeWindowPartitionsDefinition, start: datetime, end: datetime) -> dict[str, dg.TimeWindow]:
    """The partitions with a moment between `start` and before `end`, by key.

    Also those that Dagster does not count yet, because their time is not over.
    """
    start, end = max(start, definition.start), end if definition.end is None else min(end, definition.end)
    if start >= end:
        return {}
    first = definition.start_time_for_partition_key(definition.get_partition_key_for_timestamp(start.timestamp()))
    keys = definition.get_partition_keys_in_time_window(dg.TimeWindow(first, end))
    return {key: definition.time_window_for_partition_key(key) for key in keys}


def _runs(windows: Mapping[str, dg.TimeWindow]) -> Iterator[dict[str, dg.TimeWindow]]:
    """Partitions that follow each other without a gap, together, but never more than memory is meant for."""
    names = sorted(windows)
    run = names[:1]
    for before, name in pairwise(names):
        if windows[before].end != windows[name].start or len(run) == TOGETHER:
            yield {each: windows[each] for each in run}
            run = []
        run.append(name)
    if run:
        yield {each: windows[each] for each in run}
