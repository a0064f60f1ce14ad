"""A snapshot in the lake is what the online store holds; it changes only when that does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl
from polars.testing import assert_frame_equal

from feature_assets.flights.weather import weather_hourly
from mlops_assets.catalog import asset_key
from mlops_assets.links.snapshot import rebuild_online, snapshot_key

if TYPE_CHECKING:
    from conftest import Platform

START = datetime(2013, 6, 20, tzinfo=UTC)


def test_a_snapshot_is_the_offline_row_of_each_key_as_it_was_published(platform: Platform) -> None:
    """Taken twice it is the same; after a rebuild from offline as of an earlier hour it is of that hour."""
    lake, feast = platform.resources["lake"], platform.resources["feast"]
    offline = lake.scan(asset_key(weather_hourly)).collect()

    def at(moment: datetime) -> pl.DataFrame:
        known = offline.filter(pl.col("event_timestamp") <= moment).sort("event_timestamp")
        return known.unique("origin", keep="last").sort("origin")

    def taken() -> tuple[pl.DataFrame, str]:
        ran = platform.run("snapshot/weather_hourly", model=False)
        assert ran.ok and not ran.failed, "Feast's own format agrees"
        (event,) = ran.result.get_asset_materialization_events()
        tags = event.materialization.tags or {}
        return lake.scan(snapshot_key(weather_hourly)).collect(), tags["dagster/data_version"]

    assert platform.publish_online(START + timedelta(hours=6), "weather_hourly").ok
    rows, version = taken()
    assert_frame_equal(rows, at(START + timedelta(hours=6)).select(rows.columns))
    assert taken()[1] == version
    rebuild_online(feast, lake, weather_hourly, START)
    assert_frame_equal(taken()[0], at(START).select(rows.columns))
