"""The point-in-time join equals its naive twin, and a later event never changes an earlier row."""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from resources.point_in_time import (
    ColumnClashError,
    KeyTypeError,
    TimeTypeError,
    ViewFrame,
    naive_join,
    point_in_time_join,
)

START = datetime(2013, 3, 10, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def weather(*rows: tuple[str | None, float, float | None], **options: Any) -> ViewFrame:
    frame = pl.DataFrame(
        [(origin, at(hours), temp) for origin, hours, temp in rows],
        schema={"origin": pl.String, "event_timestamp": TIME, "temp": pl.Float64},
        orient="row",
    )
    return ViewFrame(frame.lazy(), keys={"origin": "origin"}, features={"temp": "temp"}, **options)


def spine(*rows: tuple[str | None, float]) -> pl.LazyFrame:
    return pl.LazyFrame(
        [(origin, at(hours)) for origin, hours in rows],
        schema={"origin": pl.String, "event_timestamp": TIME},
        orient="row",
    )


def temps(frame: pl.LazyFrame, *views: ViewFrame, **options: Any) -> list[float | None]:
    return point_in_time_join(frame, views, **options).collect()["temp"].to_list()


def test_the_newest_row_of_the_key_is_seen() -> None:
    view = weather(("EWR", 0, 30.0), ("EWR", 1, 31.0), ("JFK", 1, 40.0), ("EWR", 9, 39.0))
    assert temps(spine(("EWR", 1.5), ("JFK", 2), ("EWR", 0.5), ("LGA", 5)), view) == [31.0, 40.0, 30.0, None]


def test_both_ends_of_the_ttl_are_included() -> None:
    """As Feast's stores have it: an event exactly ttl old is still seen, and one of this very moment is."""
    view = weather(("EWR", 0, 30.0), ttl=timedelta(hours=3))
    moments = spine(("EWR", 0), ("EWR", 3), ("EWR", 3 + 1e-6), ("EWR", -1e-6))
    assert temps(moments, view) == [30.0, 30.0, None, None]


def test_a_null_as_newest_value_is_what_is_seen() -> None:
    assert temps(spine(("EWR", 2)), weather(("EWR", 0, 30.0), ("EWR", 1, None))) == [None]


def test_null_keys_and_times_match_nothing() -> None:
    view = weather((None, 0, 30.0), ("EWR", 0, 31.0))
    moments = pl.concat([spine((None, 1)), spine(("EWR", 1)).with_columns(event_timestamp=pl.lit(None, TIME))])
    assert temps(moments, view) == [None, None]


def test_null_times_change_nothing_for_the_others() -> None:
    """Polars' own join picks the first of equal events for everyone, once most times of the spine are null."""
    view = ViewFrame(weather(("EWR", 0, 1.0), ("EWR", 0, 2.0)).frame.drop("origin"), {}, {"temp": "temp"})
    nobody = spine(("EWR", 0), ("EWR", 0), ("EWR", 0)).with_columns(event_timestamp=pl.lit(None, TIME))
    moments = pl.concat([spine(("EWR", 0)), nobody]).sort("event_timestamp", nulls_last=True)
    assert temps(moments, view) == [2.0, None, None, None]


def test_of_equal_event_times_the_last_created_is_seen() -> None:
    frame = weather(("EWR", 0, 1.0), ("EWR", 0, 2.0), ("EWR", 0, 3.0)).frame
    created = frame.with_columns(created=pl.Series([at(5), at(9), at(7)]))
    view = ViewFrame(created, {"origin": "origin"}, {"temp": "temp"}, created_timestamp="created")
    assert temps(spine(("EWR", 1)), view) == [2.0]
    assert temps(spine(("EWR", 4), ("EWR", 6), ("EWR", 8), ("EWR", 9)), view, as_known=True) == [None, 1.0, 3.0, 2.0]


def test_of_equal_rows_the_last_is_seen() -> None:
    assert temps(spine(("EWR", 1)), weather(("EWR", 0, 1.0), ("EWR", -1, 9.0), ("EWR", 0, 2.0))) == [2.0]


def test_a_late_correction_of_an_older_event_does_not_hide_the_newer_one() -> None:
    frame = weather(("EWR", 0, 1.0), ("EWR", 2, 2.0)).frame.with_columns(created=pl.Series([at(8), at(2)]))
    view = ViewFrame(frame, {"origin": "origin"}, {"temp": "temp"}, created_timestamp="created")
    assert temps(spine(("EWR", 9)), view, as_known=True) == [2.0]


def test_a_view_without_rows_gives_nulls_of_the_right_type() -> None:
    joined = point_in_time_join(spine(("EWR", 1)), [replace(weather(), matched_at="seen_at")]).collect()
    assert joined.schema == {"origin": pl.String, "event_timestamp": TIME, "temp": pl.Float64, "seen_at": TIME}
    assert joined["temp"].to_list() == [None]


def test_a_view_without_keys_holds_for_everyone() -> None:
    view = ViewFrame(weather(("EWR", 0, 1.0), ("JFK", 2, 2.0)).frame.drop("origin"), {}, {"temp": "temp"})
    assert temps(spine(("LGA", 3), (None, 1), ("EWR", -1)), view) == [2.0, 1.0, None]


def test_keys_and_features_are_renamed_and_the_match_is_dated() -> None:
    """One view joined twice, for the airport of departure and that of arrival."""
    frame = weather(("EWR", 0, 1.0), ("LAX", 1, 2.0)).frame
    views = [
        ViewFrame(frame, {"origin": "origin"}, {"temp": "origin_temp"}, matched_at="origin_seen"),
        ViewFrame(frame, {"origin": "dest"}, {"temp": "dest_temp"}),
    ]
    joined = point_in_time_join(spine(("EWR", 2)).with_columns(dest=pl.lit("LAX")), views).collect()
    assert joined.rows(named=True) == [
        {
            "origin": "EWR",
            "event_timestamp": at(2),
            "dest": "LAX",
            "origin_temp": 1.0,
            "origin_seen": at(0),
            "dest_temp": 2.0,
        }
    ]


@pytest.mark.parametrize(
    "given_as",
    [
        pl.col("event_timestamp").dt.replace_time_zone(None),
        pl.col("event_timestamp").dt.convert_time_zone("America/New_York"),
        pl.col("event_timestamp").dt.cast_time_unit("ms"),
        pl.col("event_timestamp").dt.cast_time_unit("ns"),
    ],
    ids=["naive is UTC", "New York", "milliseconds", "nanoseconds"],
)
def test_times_mean_the_same_moment_in_any_clothing(given_as: pl.Expr) -> None:
    """The hour that New York skips in spring included; the spine's own column keeps its type."""
    rows, moments = (
        [("EWR", hour, float(hour)) for hour in range(12)],
        spine(*[("EWR", hour + 0.5) for hour in range(12)]),
    )
    view = weather(*rows, ttl=timedelta(hours=1))
    expected = [float(hour) for hour in range(12)]
    dressed = moments.with_columns(given_as)
    assert temps(dressed, view) == expected
    assert temps(moments, replace(view, frame=view.frame.with_columns(given_as))) == expected
    assert point_in_time_join(dressed, [view]).collect().select(dressed.collect().columns).equals(dressed.collect())


def test_integer_keys_of_different_width_are_compared_by_value() -> None:
    history = pl.LazyFrame(
        {"id": [1, 2], "event_timestamp": [START, START], "x": [1.0, 2.0]}, schema_overrides={"id": pl.Int8}
    )
    moments = pl.LazyFrame({"id": [2, 258, 1], "event_timestamp": [START] * 3})
    joined = point_in_time_join(moments, [ViewFrame(history, {"id": "id"}, {"x": "x"})]).collect()
    assert joined["x"].to_list() == [2.0, None, 1.0]
    assert joined["id"].dtype == pl.Int64


def test_categories_and_texts_are_compared_by_value() -> None:
    moments = spine(("EWR", 1), ("JFK", 1)).with_columns(pl.col("origin").cast(pl.Categorical))
    assert temps(moments, weather(("JFK", 0, 2.0))) == [None, 2.0]


def test_errors_name_the_columns() -> None:
    with pytest.raises(ColumnClashError, match=r"named temp .*origin, event_timestamp") as clash:
        point_in_time_join(spine(), [weather(), weather()])
    with pytest.raises(KeyTypeError, match=r"'origin' is String .* 'origin' is Int64"):
        point_in_time_join(spine().with_columns(origin=pl.lit(1, pl.Int64)), [weather()])
    with pytest.raises(TimeTypeError, match=r"'event_timestamp' is String"):
        point_in_time_join(spine().with_columns(event_timestamp=pl.lit("now")), [weather()])
    assert str(pickle.loads(pickle.dumps(clash.value))) == str(clash.value)


hours = st.integers(-4, 4)
origins = st.sampled_from(["EWR", "JFK", None])
numbers = st.sampled_from([1, 2, None])


@st.composite
def views(draw: st.DrawFn) -> ViewFrame:
    rows = draw(
        st.lists(
            st.tuples(
                origins, numbers, st.none() | hours.map(at), st.none() | hours.map(at), st.none() | st.integers(0, 99)
            )
        )
    )
    schema = {"airport": pl.String, "number": pl.Int64, "seen": TIME, "created": TIME, "x": pl.Int64}
    frame = pl.LazyFrame(rows, schema=schema, orient="row")
    if draw(st.booleans()):
        frame = frame.with_columns(pl.col("seen").dt.replace_time_zone(None))
    keys = draw(st.sampled_from([{"airport": "origin"}, {"airport": "origin", "number": "id"}, {"number": "id"}, {}]))
    return ViewFrame(
        frame,
        keys,
        {"x": f"x{draw(st.uuids())}", "created": f"c{draw(st.uuids())}"},
        ttl=draw(st.sampled_from([None, timedelta(hours=1), timedelta(hours=3)])),
        event_timestamp="seen",
        created_timestamp=draw(st.sampled_from([None, "created"])),
        matched_at=f"m{draw(st.uuids())}",
    )


@st.composite
def spines(draw: st.DrawFn) -> pl.DataFrame:
    rows = draw(st.lists(st.tuples(origins, numbers, st.none() | hours.map(at))))
    schema = {"origin": pl.String, "id": pl.Int32, "event_timestamp": TIME}
    return pl.DataFrame(rows, schema=schema, orient="row").with_row_index("label")


@settings(max_examples=300)
@given(moments=spines(), histories=st.lists(views(), max_size=3), as_known=st.booleans())
def test_the_join_equals_the_naive_one(moments: pl.DataFrame, histories: list[ViewFrame], as_known: bool) -> None:
    """In values, types, order and number of rows; the spine's columns come first, untouched."""
    joined = point_in_time_join(moments.lazy(), histories, as_known=as_known).collect()
    assert_frame_equal(joined, naive_join(moments, histories, as_known=as_known))
    assert joined.select(moments.columns).equals(moments)


@settings(max_examples=150)
@given(moments=spines(), view=views(), later=views(), now=hours)
def test_a_later_event_never_changes_an_earlier_row(
    moments: pl.DataFrame, view: ViewFrame, later: ViewFrame, now: int
) -> None:
    """Rows of the spine up to `now` are the same whatever comes after `now`."""
    naive = view.frame.with_columns(pl.col("seen").dt.replace_time_zone(None))
    news = later.frame.with_columns(pl.col("seen").dt.replace_time_zone(None)).filter(
        pl.col("seen") > at(now).replace(tzinfo=None)
    )
    past = moments.filter(pl.col("event_timestamp") <= at(now)).lazy()
    before = point_in_time_join(past, [replace(view, frame=naive)]).collect()
    after = point_in_time_join(past, [replace(view, frame=pl.concat([naive, news]))]).collect()
    assert after.equals(before)
