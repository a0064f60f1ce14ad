"""Congestion features: one row per airport of departure and hour, as known at the start of that hour.

The timetable is public in advance, so scheduled departures may look ahead; delays and cancellations
may not: a departure counts from the moment it left the gate, and a flight that has not left counts as
waiting from its scheduled time on.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from feature_assets.flights.entities import OWNERS, airport, daily
from mlops_assets import Float64, feature_view

HOUR = timedelta(hours=1)
TRAILING_HOURS = 3


def _hours(moment: pl.Expr, count: int) -> pl.Expr:
    """The `count` full hours that begin after `moment`."""
    return pl.concat_list(moment.dt.truncate("1h") + HOUR * (i + 1) for i in range(count))


def planned(flights: pl.LazyFrame) -> pl.LazyFrame:
    """Departures planned in the hour that begins at `event_timestamp`."""
    return flights.group_by("origin", event_timestamp=pl.col("scheduled_departure").dt.truncate("1h")).agg(
        planned_departures_1h=pl.len().cast(pl.Float64)
    )


def departed(flights: pl.LazyFrame) -> pl.LazyFrame:
    """Delays of the departures of the three hours before `event_timestamp`."""
    return (
        flights.drop_nulls("departure")
        .with_columns(event_timestamp=_hours(pl.col("departure"), TRAILING_HOURS))
        .explode("event_timestamp")
        .group_by("origin", "event_timestamp")
        .agg(
            departure_delay_3h=pl.col("dep_delay").mean(),
            departures_3h=pl.len().cast(pl.Float64),
        )
    )


def waiting(flights: pl.LazyFrame) -> pl.LazyFrame:
    """Flights due in the six hours before `event_timestamp` that had not left by then."""
    return (
        flights.with_columns(event_timestamp=_hours(pl.col("scheduled_departure"), 6))
        .explode("event_timestamp")
        .filter(pl.col("departure").is_null() | (pl.col("departure") > pl.col("event_timestamp")))
        .group_by("origin", "event_timestamp")
        .agg(waiting_departures=pl.len().cast(pl.Float64))
    )


@feature_view(
    entities=[airport],
    ttl=timedelta(hours=3),
    lookback=timedelta(days=1),
    partitions=daily,
    owners=OWNERS,
    schema={
        "planned_departures_1h": Float64("Departures planned in the coming hour", unit="flight", minimum=0),
        "departure_delay_3h": Float64("Mean delay of departures in the last three hours", unit="minute"),
        "departures_3h": Float64("Departures in the last three hours", unit="flight", minimum=0),
        "waiting_departures": Float64("Flights due in the last six hours and still at the gate", unit="flight"),
    },
)
def origin_congestion(raw_flights: pl.LazyFrame) -> pl.LazyFrame:
    """How busy and how late each airport of departure is, one row per airport and hour."""
    keys = ["origin", "event_timestamp"]
    return (
        planned(raw_flights)
        .join(departed(raw_flights), on=keys, how="full", coalesce=True)
        .join(waiting(raw_flights), on=keys, how="full", coalesce=True)
        .with_columns(pl.col("planned_departures_1h", "departures_3h", "waiting_departures").fill_null(0.0))
    )
