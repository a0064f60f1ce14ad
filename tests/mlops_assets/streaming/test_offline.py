"""What a stream keeps fresh equals what a batch computes, whatever came when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.catalog import Catalog, asset_key
from mlops_assets.streaming.offline import OfflineTables
from resources.lake import Lake

if TYPE_CHECKING:
    from conftest import Sensors

hours = st.integers(0, 24 * 8)
readings = st.lists(
    st.tuples(st.sampled_from("ab"), hours, st.integers(-9, 9)), min_size=1, max_size=14, unique_by=lambda r: r[:2]
)


def frame(sensors: Sensors, given: list[tuple[str, int, int]]) -> pl.DataFrame:
    schema = {name: field.polars for name, field in sensors.module.readings.schema.items()}
    return pl.DataFrame([sensors.event(name, hour, float(value)) for name, hour, value in given], schema)


@settings(max_examples=15)
@given(data=st.data(), rows=readings)
def test_tables_equal_their_batch_run_after_any_batches(
    sensors: Sensors, same_tables: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, rows: list[Any]
) -> None:
    """Late, shuffled, repeated events in batches of any size; days without events included."""
    lake = Lake(root=str(tmp_path_factory.mktemp("lake")))
    tables = OfflineTables(sensors.module.readings, sensors.catalog, lake)
    arriving = data.draw(st.permutations(rows + data.draw(st.lists(st.sampled_from(rows), max_size=4))))
    size = data.draw(st.integers(2, 6))
    for start in range(0, len(arriving), size):
        assert tables.apply(frame(sensors, arriving[start : start + size])).held_back == {}
    wanted = sensors.batch([sensors.event(name, hour, float(value)) for name, hour, value in rows])
    found = {
        table.name: lake.scan(asset_key(table)).collect() for table in (sensors.module.readings, *sensors.module.VIEWS)
    }
    same_tables(found, wanted)
    assert tables.newest() == wanted["readings"]["at"].max()


@pytest.fixture
def tables(sensors: Sensors, tmp_path: Path) -> OfflineTables:
    return OfflineTables(sensors.module.readings, sensors.catalog, Lake(root=str(tmp_path)))


def test_views_come_after_what_they_read(tables: OfflineTables) -> None:
    """Through any number of views; what does not read the source is left alone."""
    names = [view.name for view in tables.views]
    assert sorted(names) == ["peaks", "recent", "totals"]
    assert names.index("recent") < names.index("peaks")


def test_only_partitions_that_can_differ_are_computed(sensors: Sensors, tables: OfflineTables) -> None:
    """A late event touches its day and those that look back to it, not the month in between."""
    for _ in range(2):  # the second time, days just before the newest were made good as well
        tables.apply(frame(sensors, [("a", 0, 1), ("a", 24 * 30, 1)]))
    changed = tables.apply(frame(sensors, [("a", 24, 1)]))
    assert changed.partitions["sensors/readings"] == ["2024-03-02"]
    assert changed.partitions["sensors/recent"] == ["2024-03-02", "2024-03-03"]
    assert changed.partitions["sensors/totals"] == ["2024-03-02", "2024-03-03", "2024-03-04"]


def test_no_view_is_published_for_days_that_have_no_events_yet(sensors: Sensors, tables: OfflineTables) -> None:
    """Midnights to come are computed when their day has begun, from all that is known by then."""
    tables.apply(frame(sensors, [("a", 5, 1)]))
    assert tables.lake.partitions(asset_key(sensors.module.totals)) == ["2024-03-01"]


@pytest.mark.parametrize("written", [[], ["2024-03-02"], ["2024-03-03"], ["2024-03-02", "2024-03-03"]])
def test_what_a_killed_writer_left_out_is_made_good(
    sensors: Sensors, tables: OfflineTables, same_tables: Any, written: list[str]
) -> None:
    """Whichever of the quiet days it had written, in whatever order, when the batch comes again."""
    given = [("a", 1, 1), ("b", 24 * 4, 2)]
    key = asset_key(sensors.module.totals)
    for row in given:
        tables.apply(frame(sensors, [row]))
    for name in {"2024-03-02", "2024-03-03", "2024-03-05"} - set(written):
        Path(str(tables.lake.path(key, name))).unlink()
    tables.apply(frame(sensors, given[1:]))
    wanted = sensors.batch([sensors.event(name, hour, float(value)) for name, hour, value in given])
    same_tables({"totals": tables.lake.scan(key).collect()}, {"totals": wanted["totals"]})


def test_a_view_that_breaks_its_promise_is_held_back_and_the_others_go_on(sensors: Sensors, tmp_path: Path) -> None:
    """What was published stands; the reason names the column."""
    from dataclasses import replace

    from mlops_assets import Float64

    recent = sensors.module.recent
    strict = replace(recent, schema={**recent.schema, "mean_6h": Float64("Mean", maximum=5)})
    catalog = Catalog.of([sensors.module.readings, strict, sensors.module.totals])
    tables = OfflineTables(sensors.module.readings, catalog, Lake(root=str(tmp_path)))
    tables.apply(frame(sensors, [("a", 1, 5)]))
    before = tables.lake.scan(asset_key(strict)).collect()
    changed = tables.apply(frame(sensors, [("a", 2, 9)]))
    assert "mean_6h: 1 values outside" in changed.held_back["sensors/recent"]
    assert tables.lake.scan(asset_key(strict)).collect().equals(before)
    assert changed.partitions["sensors/totals"] == ["2024-03-01"]


def test_a_view_that_waits_for_another_table_says_so(sensors: Sensors, tmp_path: Path) -> None:
    """A table that was never materialized stops nothing else."""
    from mlops_assets import Float64, String, feature_view, source

    places = source(team="sensors", key=["sensor"], schema={"sensor": String, "height": Float64})(_places)
    placed = feature_view(
        team="sensors", entities=[sensors.module.sensor], partitions=sensors.module.daily, schema={"height": Float64}
    )(_placed)
    catalog = Catalog.of([sensors.module.readings, places, placed, sensors.module.recent])
    tables = OfflineTables(sensors.module.readings, catalog, Lake(root=str(tmp_path)))
    changed = tables.apply(frame(sensors, [("a", 1, 1)]))
    assert "'sensors/places' has no file" in changed.held_back["sensors/placed"]
    assert tables.lake.scan(asset_key(sensors.module.recent)).collect().height == 1
    tables.lake.write(pl.DataFrame({"sensor": ["a"], "height": [2.0]}), asset_key(places))
    assert tables.apply(frame(sensors, [("a", 2, 1)])).held_back == {}
    assert tables.lake.scan(asset_key(placed)).collect()["height"].to_list() == [2.0, 2.0]


def _places() -> pl.LazyFrame:
    return pl.LazyFrame()


def _placed(readings: pl.LazyFrame, places: pl.LazyFrame) -> pl.LazyFrame:
    return readings.rename({"at": "event_timestamp"}).join(places, on="sensor")


_places.__name__, _placed.__name__ = "places", "placed"


def test_an_event_at_the_edge_of_a_day_belongs_to_the_day_it_begins(sensors: Sensors, tables: OfflineTables) -> None:
    """Partitions are closed at their start and open at their end."""
    midnight = [("a", 24, 1)]
    assert tables.apply(frame(sensors, midnight)).partitions["sensors/readings"] == ["2024-03-02"]
    assert tables.newest() == datetime(2024, 3, 1, tzinfo=UTC) + timedelta(days=1)
