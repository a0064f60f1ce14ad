"""The training set of every labelled flight of the year with every feature view, against a bare Polars chain.

Ours is what the training_set asset calls. The peer is what somebody would write by hand: `join_asof`
after `join_asof`, sorted by time, with each view's ttl as tolerance, what stands in for missing rows after it, and
no guard at all. Both give the very same table, row for row. Used at run time only: Polars is imported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import dagster as dg
import polars as pl
from polars.testing import assert_frame_equal

from benchmarks.harness import Figure, Measurement, fresh_home, in_turn, seconds
from feature_assets.flights.entities import daily
from feature_assets.flights.sources import all_flights, all_weather, raw_planes
from mlops_assets.catalog import Table, asset_key, gather
from mlops_assets.claims import conform
from mlops_assets.declarations import EVENT_TIMESTAMP, ModelPipeline, StoredSelection
from mlops_assets.links.training_set import (
    added_columns,
    cold_start_name,
    cold_start_used,
    point_in_time_rows,
    stored_views,
)
from resources.lake import Lake, split_by_window

MODEL = "flights/late_arrival"
YEAR = (date(2013, 1, 1), date(2014, 1, 2))
TARGET = 2.0
Frames = Mapping[str, pl.LazyFrame]


def measure(rounds: int = 11, days: tuple[date, date] = YEAR) -> Measurement:
    """The join on frames in memory, and on the lake's daily files, from which the asset reads them."""
    model = gather().model(MODEL)
    held = frames(model, days)
    with fresh_home():
        published = through_the_lake(model, held)
        return Measurement(
            [
                figure("training_set.in_memory", model, held, rounds),
                figure("training_set.from_the_lake", model, published, rounds),
            ]
        )


def figure(name: str, model: ModelPipeline, given: Frames, rounds: int) -> Figure:
    """The figure of one way in which the frames lie; raises AssertionError when the tables differ."""
    rows = point_in_time_rows(model, given["spine"], given)
    assert_frame_equal(rows, bare_rows(model, given), check_exact=True)
    ours, peer = in_turn(
        lambda: seconds(lambda: point_in_time_rows(model, given["spine"], given)),
        lambda: seconds(lambda: bare_rows(model, given)),
        rounds,
    )
    return Figure(
        name, ours, peer, f"join_asof of {rows.height:,} rows and {len(model.selections)} views", target=TARGET
    )


def bare_rows(model: ModelPipeline, given: Frames) -> pl.DataFrame:
    joined = given["spine"].sort(EVENT_TIMESTAMP)
    for item in model.selections:
        view = given[f"view_{item.view.name}"].sort(EVENT_TIMESTAMP).with_columns(seen=True)
        by, ttl = list(item.view.join_keys), item.view.ttl
        joined = joined.join_asof(view, on=EVENT_TIMESTAMP, by=by, tolerance=ttl, check_sortedness=False)
        if item.view.stand_in:
            joined = bare_stand_in(joined, item, given[f"view_{item.view.stand_in.name}"])
        joined = joined.drop("seen")
    return joined.select(*given["spine"].collect_schema(), *added_columns(model)).collect()


def bare_stand_in(joined: pl.LazyFrame, item: StoredSelection, rows: pl.LazyFrame) -> pl.LazyFrame:
    """Where the view had no row, the newest row of what stands in for it."""
    named = rows.sort(EVENT_TIMESTAMP).rename({name: cold_start_name(name) for name in item.features})
    cold = pl.col("seen").is_null()
    return joined.join_asof(named, on=EVENT_TIMESTAMP, check_sortedness=False).with_columns(
        cold.alias(cold_start_used(item.view)),
        *(pl.when(cold).then(cold_start_name(name)).otherwise(name).alias(name) for name in item.features),
    )


def tables(model: ModelPipeline) -> dict[str, Table]:
    """The tables that the training set reads, by the name under which it asks for them."""
    return {"spine": model.labels, **stored_views(model)}


def frames(model: ModelPipeline, days: tuple[date, date]) -> dict[str, pl.LazyFrame]:
    """Those tables from the raw files: the rows of `days` (first included, last not), by their own functions."""
    raw = {
        "raw_flights": _since(all_flights(), "scheduled_departure", days),
        "raw_weather": _since(all_weather(), "observed_at", days),
        "raw_planes": raw_planes.compute(),
    }
    made: dict[str, pl.DataFrame] = {}
    for name, table in tables(model).items():
        read = [raw[source] if source in raw else made[f"view_{source}"].lazy() for source in table.inputs]
        made[name] = conform(table.compute(*read), table)
    return {name: _since(rows, EVENT_TIMESTAMP, days).collect().lazy() for name, rows in made.items()}


def _since(rows: pl.DataFrame, column: str, days: tuple[date, date]) -> pl.LazyFrame:
    first, end = (pl.lit(day).cast(pl.Datetime("us", "UTC")) for day in days)
    return rows.lazy().filter(pl.col(column).is_between(first, end, closed="left"))


def through_the_lake(model: ModelPipeline, held: Frames) -> dict[str, pl.LazyFrame]:
    """The same frames, published by day in the lake and scanned from there."""
    lake = Lake()
    for name, table in tables(model).items():
        rows, key = held[name].collect(), asset_key(table)
        lake.write_partitions(split_by_window(rows, EVENT_TIMESTAMP, _windows(rows), key), key)
    return {name: lake.scan(asset_key(table)) for name, table in tables(model).items()}


def _windows(rows: pl.DataFrame) -> dict[str, dg.TimeWindow]:
    stamped = rows[EVENT_TIMESTAMP].dt.date().unique().sort().to_list()
    return {str(day): daily.time_window_for_partition_key(str(day)) for day in stamped}
