"""No feature knows the future: an outcome that becomes public later never changes an earlier row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.flights.aircraft import aircraft_use
from feature_assets.flights.arrivals import arrivals
from feature_assets.flights.congestion import origin_congestion
from feature_assets.flights.punctuality import carrier_punctuality, route_punctuality
from feature_assets.flights.sources import all_flights, raw_planes

START = datetime(2013, 5, 1, tzinfo=UTC)
VIEWS = [carrier_punctuality, route_punctuality, aircraft_use, origin_congestion]


def flight(number: int, minute: int, delay: int | None, block: int) -> dict:
    """A flight due `minute` minutes after START; `delay` None cancels it."""
    due = START + timedelta(minutes=minute)
    left = None if delay is None else due + timedelta(minutes=delay)
    return {
        "flight_id": f"F{number}",
        "carrier": "UA",
        "tailnum": "N10156",
        "origin": "EWR",
        "dest": "LAX",
        "distance": 100.0,
        "scheduled_departure": due,
        "scheduled_arrival": due + timedelta(minutes=block),
        "departure": left,
        "arrival": left + timedelta(minutes=block) if left else None,
        "dep_delay": None if delay is None else float(delay),
        "arr_delay": None if delay is None else float(delay),
        "air_time": None if delay is None else float(block),
        "cancelled": delay is None,
    }


# Evening flights that land around midnight are the ones that could leak; draw mostly those.
due = st.integers(0, 3).flatmap(lambda day: st.integers(day * 1440 + 1080, day * 1440 + 1439)) | st.integers(0, 5760)
flights = st.lists(
    st.tuples(due, st.none() | st.integers(-20, 600), st.integers(30, 400)), min_size=1, max_size=25
).map(lambda rows: pl.DataFrame([flight(i, *row) for i, row in enumerate(rows)], schema=all_flights().schema))


def computed(view, table: pl.DataFrame) -> pl.DataFrame:
    tables = {"raw_flights": table.lazy(), "raw_planes": raw_planes()}
    frame = view(*(tables[name] for name in view.inputs)).collect()
    return frame.sort(*view.join_keys, "event_timestamp").select(*view.join_keys, "event_timestamp", *view.schema)


def hide_the_future(table: pl.DataFrame, moment: datetime) -> pl.DataFrame:
    """The table as somebody at `moment` could have seen it: the timetable, and outcomes so far."""
    gone = pl.col("departure") <= moment
    landed = pl.col("arrival") <= moment
    cancelled = pl.col("cancelled") & (pl.col("scheduled_departure") <= moment)
    return table.with_columns(
        departure=pl.when(gone).then("departure"),
        dep_delay=pl.when(gone).then("dep_delay"),
        arrival=pl.when(landed).then("arrival"),
        arr_delay=pl.when(landed).then("arr_delay"),
        air_time=pl.when(landed).then("air_time"),
        cancelled=cancelled,
    )


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
@settings(max_examples=60)
@given(table=flights, hours=st.integers(1, 4).flatmap(lambda day: st.integers(day * 24, day * 24 + 4)))
def test_a_row_uses_only_what_was_known_at_its_time(view, table, hours):
    """Rows up to a moment are equal whether or not the table already holds what came after it."""
    moment = START + timedelta(hours=hours)
    known, everything = computed(view, hide_the_future(table, moment)), computed(view, table)
    past = pl.col("event_timestamp") <= moment
    assert known.filter(past).equals(everything.filter(past), null_equal=True)


def test_punctuality_counts_a_flight_from_the_midnight_after_it_landed():
    """Due at 22:00 and landed at 01:00, it is unknown at the first midnight and known at the second."""
    table = pl.DataFrame([flight(1, 22 * 60, 60, 120)], schema=all_flights().schema)
    rows = computed(carrier_punctuality, table)
    assert rows["event_timestamp"].min() == START + timedelta(days=2)
    assert rows["carrier_mean_delay_7d"].to_list() == [60.0] * 7


def test_a_cancelled_flight_counts_as_cancelled_and_never_as_a_delay():
    table = pl.DataFrame([flight(1, 600, None, 100), flight(2, 600, 30, 100)], schema=all_flights().schema)
    first = computed(carrier_punctuality, table).row(0, named=True)
    assert first["carrier_cancelled_share_7d"] == 0.5
    assert first["carrier_mean_delay_7d"] == 30.0


def test_congestion_sees_who_is_still_at_the_gate():
    """Due 10:00, left 12:30: waiting at 11:00 and 12:00, a departure from 13:00 on."""
    table = pl.DataFrame([flight(1, 600, 150, 100)], schema=all_flights().schema)
    rows = {row["event_timestamp"].hour: row for row in computed(origin_congestion, table).to_dicts()}
    assert [rows[hour]["waiting_departures"] for hour in (11, 12, 13)] == [1.0, 1.0, 0.0]
    assert [rows[hour]["departure_delay_3h"] for hour in (11, 12, 13)] == [None, None, 150.0]
    assert rows[10]["planned_departures_1h"] == 1.0


def test_labels_are_completed_flights_known_at_their_arrival():
    spine = arrivals(all_flights().lazy()).collect()
    assert spine.height == 327_346
    assert spine.filter(pl.col("label_known_at") <= pl.col("event_timestamp")).is_empty()
    assert spine.select("late", "arrival_delay").null_count().row(0) == (0, 0)
