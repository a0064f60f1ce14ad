"""The spine of the flights models: one row per flight that left New York and reached its destination.

A prediction is wanted at the scheduled departure; the truth is known at the arrival. Cancelled and
diverted flights have no arrival and so no row: they stay in `raw_flights`, and their outcome reaches
the models through the congestion and punctuality features.
"""

from __future__ import annotations

import polars as pl

from feature_assets.flights.entities import OWNERS, aircraft, airport, carrier, daily, destination
from feature_assets.flights.sources import NEW_YORK
from feature_assets.flights.trailing import LATE_MINUTES
from mlops_assets import Bool, Float64, String, labels


@labels(
    key="flight_id",
    entities=[airport, destination, carrier, aircraft],
    partitions=daily,
    owners=OWNERS,
    request={
        "distance": Float64("Great-circle distance", unit="mile", minimum=1, maximum=6000),
        "planned_minutes": Float64("Planned time from gate to gate", unit="minute", minimum=1, maximum=1440),
        "departure_hour": Float64("Scheduled departure, New York's clock", unit="hour of day", minimum=0, maximum=24),
        "weekday": Float64("Day of the week in New York, Monday is 1", minimum=1, maximum=7),
        "carrier": String("Operating airline, IATA code"),
    },
    targets={
        "late": Bool("Reached the gate more than 15 minutes after schedule"),
        "arrival_delay": Float64("Arrival after schedule; negative is early", unit="minute"),
        "departure_delay": Float64("Departure after schedule; negative is early", unit="minute"),
    },
)
def arrivals(raw_flights: pl.LazyFrame) -> pl.LazyFrame:
    """Every completed flight, with what its passengers know when they board and what came of it."""
    return boarding(raw_flights.drop_nulls("arrival")).with_columns(
        label_known_at="arrival",
        late=pl.col("arr_delay") > LATE_MINUTES,
        arrival_delay="arr_delay",
        departure_delay="dep_delay",
    )


def boarding(flights: pl.LazyFrame) -> pl.LazyFrame:
    """The flights with what a caller of the models knows of each at its scheduled departure."""
    local = pl.col("scheduled_departure").dt.convert_time_zone(NEW_YORK)
    planned = pl.col("scheduled_arrival") - pl.col("scheduled_departure")
    return flights.with_columns(
        event_timestamp="scheduled_departure",
        planned_minutes=planned.dt.total_minutes().cast(pl.Float64),
        departure_hour=local.dt.hour() + local.dt.minute() / 60,
        weekday=local.dt.weekday().cast(pl.Float64),
    )
