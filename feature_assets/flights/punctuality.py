"""Punctuality features: one row per carrier (or route) and midnight, as known at that midnight.

Only flights that had landed, or been cancelled, by then count; a flight still in the air at midnight
first counts a day later.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from feature_assets.flights.entities import OWNERS, airport, carrier, daily, destination
from feature_assets.flights.trailing import LATE_MINUTES, at_midnight
from mlops_assets import Float64, feature_view


@feature_view(
    entities=[carrier],
    ttl=timedelta(days=3),
    lookback=timedelta(days=9),
    partitions=daily,
    owners=OWNERS,
    schema={
        "carrier_mean_delay_7d": Float64("Mean arrival delay", unit="minute", minimum=-180, maximum=2000),
        "carrier_late_share_7d": Float64("Share of arrivals over 15 minutes late", unit="share", minimum=0, maximum=1),
        "carrier_cancelled_share_7d": Float64("Share of flights cancelled", unit="share", minimum=0, maximum=1),
        "carrier_flights_7d": Float64("Flights with a known outcome", unit="flight", minimum=1),
    },
)
def carrier_punctuality(raw_flights: pl.LazyFrame) -> pl.LazyFrame:
    """How punctual each carrier was over the seven days before each midnight."""
    return at_midnight(
        raw_flights,
        ["carrier"],
        days=7,
        aggregates={
            "carrier_mean_delay_7d": pl.col("arr_delay").mean(),
            "carrier_late_share_7d": (pl.col("arr_delay") > LATE_MINUTES).mean(),
            "carrier_cancelled_share_7d": pl.col("cancelled").mean(),
            "carrier_flights_7d": pl.len().cast(pl.Float64),
        },
    )


@feature_view(
    entities=[airport, destination],
    ttl=timedelta(days=7),
    lookback=timedelta(days=30),
    partitions=daily,
    owners=OWNERS,
    schema={
        "route_mean_delay_28d": Float64("Mean arrival delay", unit="minute", minimum=-180, maximum=2000),
        "route_late_share_28d": Float64("Share of arrivals over 15 minutes late", unit="share", minimum=0, maximum=1),
        "route_air_time_28d": Float64("Mean time in the air", unit="minute", minimum=1, maximum=1000),
        "route_flights_28d": Float64("Flights with a known outcome", unit="flight", minimum=1),
    },
)
def route_punctuality(raw_flights: pl.LazyFrame) -> pl.LazyFrame:
    """How punctual each route was over the four weeks before each midnight."""
    return at_midnight(
        raw_flights,
        ["origin", "dest"],
        days=28,
        aggregates={
            "route_mean_delay_28d": pl.col("arr_delay").mean(),
            "route_late_share_28d": (pl.col("arr_delay") > LATE_MINUTES).mean(),
            "route_air_time_28d": pl.col("air_time").mean(),
            "route_flights_28d": pl.len().cast(pl.Float64),
        },
    )
