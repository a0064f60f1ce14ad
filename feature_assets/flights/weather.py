"""Weather features: one row per airport of departure and hour, as observed.

Every delay model reads them. An observation counts from its own hour on, never before.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from feature_assets.flights.entities import OWNERS, airport, daily
from feature_assets.flights.sources import WEATHER
from mlops_assets import feature_view


@feature_view(entities=[airport], ttl=timedelta(hours=3), partitions=daily, owners=OWNERS, schema=WEATHER)
def weather_hourly(raw_weather: pl.LazyFrame) -> pl.LazyFrame:
    """Observed weather at each airport of departure, one row per airport and hour."""
    return raw_weather.rename({"observed_at": "event_timestamp"}).select("origin", "event_timestamp", *WEATHER)
