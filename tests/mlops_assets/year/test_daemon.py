"""Dagster's daemons live by the year's clock, and do what deliveries ask for."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg

from feature_assets.flights.entities import daily
from mlops_assets.year.callers import midnight
from mlops_assets.year.daemon import Clock, daemon
from mlops_assets.year.launcher import launched
from mlops_assets.year.upstream import Upstream

DAY = date(2013, 1, 3)


def test_dagster_knows_no_day_that_has_not_come() -> None:
    """Inside the block today is the clock's; after it, the world's."""
    with Clock(datetime(2013, 3, 5, 12, tzinfo=UTC)).ruling():
        assert daily.get_last_partition_key() == "2013-03-04"
    assert daily.get_last_partition_key() == "2014-01-01"


def test_a_delivery_is_a_run_at_the_next_tick_and_no_more_after_it(home, monkeypatch) -> None:
    """By the sensor of events, through the queue; the event log carries the year's time, and the run its cost."""
    monkeypatch.setenv("MLOPS_ENV", "local")
    Upstream.here().deliver(DAY)
    with daemon(midnight(DAY) + timedelta(days=1)) as running:
        running.tick()
        key = dg.AssetKey(["flights", "raw_flights"])
        (record,) = running.instance.fetch_materializations(key, limit=5).records
        assert record.partition_key == str(DAY)
        assert datetime.fromtimestamp(record.timestamp, UTC).date() == DAY + timedelta(days=1)
        running.settle()
        assert len(running.instance.fetch_materializations(key, limit=5).records) == 1
    costs = {tuple(run["assets"]): run["cpu_seconds"] for run in launched()}
    assert costs[("flights/raw_flights", "flights/raw_weather")] > 0
