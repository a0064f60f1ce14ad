"""The join on Spark equals the one in Polars, row for row."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from resources.point_in_time import ColumnClashError, KeyTypeError, MissingColumnError, TimeTypeError, ViewFrame
from resources.point_in_time import point_in_time_join as polars_join
from resources.spark.point_in_time import ORDER, naive_join, point_in_time_join
from tests.resources.spark.frames import from_spark, to_spark

START = datetime(2013, 3, 10, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")
TTLS = (None, timedelta(hours=1), timedelta(hours=3))
KEYS: tuple[Mapping[str, str], ...] = (
    {"airport": "origin"},
    {"airport": "origin", "number": "id"},
    {"number": "id"},
    {},
)


def spine(draw: random.Random, rows: int = 150) -> pl.DataFrame:
    """Few keys and moments, so that most of them are met several times; some are null."""
    drawn = [
        (draw.choice(["EWR", "JFK", None]), draw.choice([1, 2, None]), draw.choice([None, *moments()]))
        for _ in range(rows)
    ]
    schema = {"origin": pl.String, "id": pl.Int32, "event_timestamp": TIME}
    return pl.DataFrame(drawn, schema=schema, orient="row").with_row_index("label").cast({"label": pl.Int64})


def moments() -> list[datetime]:
    return [START + timedelta(hours=hour) for hour in range(-4, 5)]


def view(draw: random.Random, number: int) -> ViewFrame:
    """Ties in event time and in creation, late rows, nulls, a second name for everything."""
    drawn = [
        (
            draw.choice(["EWR", "JFK", "LGA", None]),
            draw.choice([1, 2, None]),
            draw.choice([None, *moments()]),
            draw.choice([None, *moments()]),
            draw.choice([None, *range(99)]),
            draw.choice([None, [1.0, 2.0], [float(draw.randint(0, 9)), 0.5]]),
        )
        for _ in range(draw.choice([0, 3, 60]))
    ]
    schema: dict[str, Any] = {"airport": pl.String, "number": pl.Int64, "seen": TIME, "created": TIME, "x": pl.Int64}
    schema["vector"] = pl.List(pl.Float64)
    frame = pl.DataFrame(drawn, schema=schema, orient="row")
    if draw.random() < 0.3:
        frame = frame.with_columns(pl.col("seen").dt.replace_time_zone(None))
    return ViewFrame(
        frame.lazy(),
        draw.choice(KEYS),
        {"x": f"x{number}", "created": f"created {number}", "vector": f"vector{number}"},
        ttl=draw.choice(TTLS),
        event_timestamp="seen",
        created_timestamp=draw.choice([None, "created"]),
        matched_at=f"matched.{number}",
    )


def on_spark(given: ViewFrame) -> ViewFrame:
    """The view with a frame of Spark's, which says the place of each row."""
    rows = given.frame.collect().with_row_index(ORDER).cast({ORDER: pl.Int64})
    return replace(given, frame=to_spark(rows))


@pytest.mark.parametrize(
    ("seed", "keys", "as_known", "slice_rows"),
    [(0, [KEYS[0], KEYS[3]], False, 10), (1, [KEYS[1], KEYS[3]], True, 10), (2, KEYS, False, 10_000)],
    ids=["in slices of time", "in slices of time, as known", "whole"],
)
def test_the_join_equals_the_one_in_polars(
    seed: int, keys: list[Mapping[str, str]], as_known: bool, slice_rows: int
) -> None:
    """Whatever the keys, ttl, ties, late rows and nulls, and however much time is worked on at once."""
    draw = random.Random(seed)
    rows, views = spine(draw), [replace(view(draw, number), keys=of) for number, of in enumerate(keys)]
    expected = polars_join(rows.lazy(), views, as_known=as_known).collect()
    there = [on_spark(given) for given in views]
    joined = point_in_time_join(to_spark(rows), there, as_known=as_known, slice_rows=slice_rows)
    assert joined.columns == expected.columns
    assert_frame_equal(from_spark(joined, expected.schema).sort("label"), expected)


def test_the_naive_join_on_spark_equals_the_one_in_polars() -> None:
    draw = random.Random(20)
    rows, views = spine(draw, 30), [view(draw, number) for number in range(2)]
    expected = polars_join(rows.lazy(), views, as_known=True).collect()
    joined = naive_join(to_spark(rows), [on_spark(given) for given in views], as_known=True)
    assert_frame_equal(from_spark(joined, expected.schema).sort("label"), expected)


def test_errors_name_the_columns() -> None:
    """As the join in Polars has them, in the types of Spark."""
    draw = random.Random(1)
    rows, given = to_spark(spine(draw)), on_spark(view(draw, 1))
    with pytest.raises(ColumnClashError, match="x1"):
        point_in_time_join(rows, [given, given])
    with pytest.raises(MissingColumnError, match="A view has no column nothing"):
        point_in_time_join(rows, [replace(given, features={"nothing": "n"})])
    with pytest.raises(KeyTypeError, match=r"'airport' is string .* 'id' is int"):
        point_in_time_join(rows, [replace(given, keys={"airport": "id"})])
    with pytest.raises(TimeTypeError, match="'x' is bigint"):
        point_in_time_join(rows, [replace(given, event_timestamp="x")])


def test_no_row_of_a_table_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan asks the cluster for three numbers, whatever the number of rows: what it brings here is counted."""
    from pyspark.sql import DataFrame

    brought: list[Any] = []
    collect = DataFrame.collect
    monkeypatch.setattr(DataFrame, "collect", lambda frame: brought.extend(rows := collect(frame)) or rows)
    draw = random.Random(2)
    rows, given = spine(draw), view(draw, 1)
    point_in_time_join(to_spark(rows), [on_spark(given)], slice_rows=10).write.format("noop").mode("overwrite").save()
    assert len(brought) <= 1
