"""Aircraft features: one row per airframe flown in the last two weeks and midnight.

What the registry says of the airframe, and how it was used over the seven days before the midnight, by
flights whose outcome was public by then. Airframes missing from the registry keep their utilisation.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from feature_assets.flights.entities import OWNERS, aircraft, daily
from feature_assets.flights.trailing import at_midnight
from mlops_assets import Float64, Popularity, String, feature_view


@feature_view(
    entities=[aircraft],
    ttl=timedelta(days=14),
    lookback=timedelta(days=9),
    partitions=daily,
    owners=OWNERS,
    cold_start=Popularity(by="aircraft_flights_7d", window=timedelta(days=90)),
    schema={
        "aircraft_age": Float64("Years since manufacture", unit="year", minimum=-1, maximum=80),
        "aircraft_seats": Float64("Seats", unit="seat", minimum=1, maximum=600),
        "aircraft_manufacturer": String("Manufacturer, by the registry"),
        "aircraft_flights_7d": Float64("Flights from New York flown", unit="flight", minimum=1),
        "aircraft_air_time_7d": Float64("Time in the air from New York", unit="minute", minimum=0, maximum=10080),
        "aircraft_mean_delay_7d": Float64("Mean arrival delay", unit="minute", minimum=-180, maximum=2000),
    },
)
def aircraft_use(raw_flights: pl.LazyFrame, raw_planes: pl.LazyFrame) -> pl.LazyFrame:
    """Age, size, maker and recent use of each airframe that flew from New York in the last week."""
    use = at_midnight(
        raw_flights.filter(~pl.col("cancelled")),
        ["tailnum"],
        days=7,
        aggregates={
            "aircraft_flights_7d": pl.len().cast(pl.Float64),
            "aircraft_air_time_7d": pl.col("air_time").sum(),
            "aircraft_mean_delay_7d": pl.col("arr_delay").mean(),
        },
    )
    year = pl.col("event_timestamp").dt.year()
    return use.join(raw_planes, on="tailnum", how="left").select(
        "tailnum",
        "event_timestamp",
        aircraft_age=(year - pl.col("built")).cast(pl.Float64),
        aircraft_seats=pl.col("seats").cast(pl.Float64),
        aircraft_manufacturer="manufacturer",
        aircraft_flights_7d="aircraft_flights_7d",
        aircraft_air_time_7d="aircraft_air_time_7d",
        aircraft_mean_delay_7d="aircraft_mean_delay_7d",
    )
