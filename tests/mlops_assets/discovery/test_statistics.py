"""Statistics of what is published: right for every type, over the newest partitions alone, within a bound."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets import Bool, Entity, Float64, Int64, String, UnixTimestamp, feature_view
from mlops_assets.catalog import asset_key
from mlops_assets.declarations import FeatureView
from mlops_assets.discovery.statistics import statistics
from mlops_assets.fields import Float64Array
from resources.lake import Lake, NotMaterializedError

shop = Entity("shop", "shop_id")
daily = dg.DailyPartitionsDefinition(start_date="2024-01-01")


def view_of(**schema: Any) -> FeatureView:
    @feature_view(team="shops", entities=[shop], schema=schema, partitions=daily)
    def shop_week(orders: pl.LazyFrame) -> pl.LazyFrame:
        """A shop's week."""
        return orders

    declared: FeatureView = shop_week
    return declared


def rows(view: FeatureView, day: int, **columns: list[Any]) -> pl.DataFrame:
    size = len(next(iter(columns.values())))
    moments = [datetime(2024, 1, day, tzinfo=UTC) + timedelta(minutes=at) for at in range(size)]
    given_columns = {"shop_id": [f"s{at}" for at in range(size)], "event_timestamp": moments, **columns}
    return pl.DataFrame(given_columns, schema={name: field.polars for name, field in view.columns.items()})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(root=str(tmp_path / "lake"))


def publish(lake: Lake, view: FeatureView, day: int, **columns: list[Any]) -> None:
    lake.write(rows(view, day, **columns), asset_key(view), f"2024-01-{day:02}")


def test_a_number_is_told_by_its_spread(lake: Lake):
    view = view_of(spend=Float64, visits=Int64)
    publish(lake, view, 1, spend=[0.0, 1.0, 2.0, 3.0, None], visits=[1, 1, 1, 5, 2])
    found = statistics(lake, view)
    assert found.rows == 5 and found.partitions == ("2024-01-01",)
    spend = found.features["spend"]
    expected = {"null_share": 0.2, "min": 0.0, "max": 3.0, "mean": 1.5, "p05": 0.15, "p50": 1.5, "p95": 2.85}
    assert spend == pytest.approx(expected)
    assert found.features["visits"]["max"] == 5 and found.features["visits"]["mean"] == 2.0


def test_other_types_are_told_by_what_means_something(lake: Lake):
    """How many different texts, the share that is true, the first and last moment."""
    view = view_of(city=String, open=Bool, since=UnixTimestamp)
    first, last = datetime(2020, 1, 1, tzinfo=UTC), datetime(2023, 1, 1, tzinfo=UTC)
    publish(lake, view, 1, city=["A", "B", "A", None], open=[True, True, True, False], since=[last, first, None, last])
    assert statistics(lake, view).features == {
        "city": {"null_share": 0.25, "distinct": 2},
        "open": {"null_share": 0.0, "mean": 0.75},
        "since": {"null_share": 0.25, "min": first, "max": last},
    }


def test_an_array_is_told_by_its_length_and_its_elements(lake: Lake):
    view = view_of(embedding=Float64Array("Where it flies", size=2))
    publish(lake, view, 1, embedding=[[1.0, 2.0], None, [3.0, -2.0]])
    assert statistics(lake, view).features["embedding"] == {
        "null_share": pytest.approx(1 / 3), "shortest": 2, "longest": 2, "min": -2.0, "max": 3.0, "mean": 1.0,
    }  # fmt: skip


def test_a_feature_named_like_the_beginning_of_another_keeps_its_own_numbers(lake: Lake):
    view = view_of(spend=Float64, spend_max=Float64)
    publish(lake, view, 1, spend=[1.0], spend_max=[9.0])
    features = statistics(lake, view).features
    assert (features["spend"]["max"], features["spend_max"]["max"]) == (1.0, 9.0)


def test_only_the_newest_partitions_are_read(lake: Lake):
    """What they say is of now; the answer tells which they were."""
    view = view_of(spend=Float64)
    for day in range(1, 11):
        publish(lake, view, day, spend=[float(day)])
    found = statistics(lake, view, partitions=3)
    assert found.partitions == ("2024-01-08", "2024-01-09", "2024-01-10")
    assert (found.features["spend"]["min"], found.newest) == (8.0, datetime(2024, 1, 10, tzinfo=UTC))


def test_a_bound_of_rows_takes_fewer_partitions(lake: Lake):
    """The newest one at least, and of that no more than the bound."""
    view = view_of(spend=Float64)
    for day in range(1, 4):
        publish(lake, view, day, spend=[float(at) for at in range(10)])
    assert statistics(lake, view, rows=20).partitions == ("2024-01-02", "2024-01-03")
    assert statistics(lake, view, rows=19).partitions == ("2024-01-03",)
    small = statistics(lake, view, rows=4)
    assert (small.partitions, small.rows, small.features["spend"]["max"]) == (("2024-01-03",), 4, 3.0)


def test_a_table_without_partitions_is_one(lake: Lake):
    view = view_of(spend=Float64)
    lake.write(rows(view, 1, spend=[1.0, 2.0]), asset_key(view))
    assert (statistics(lake, view).partitions, statistics(lake, view).rows) == ((), 2)


def test_a_day_without_rows_has_no_numbers(lake: Lake):
    """And no share of nulls either: of nothing, nothing is missing."""
    view = view_of(spend=Float64, city=String, embedding=Float64Array("", size=2))
    publish(lake, view, 1, spend=[], city=[], embedding=[])
    found = statistics(lake, view)
    assert (found.rows, found.newest) == (0, None)
    assert set(found.features["spend"].values()) == {None}


def test_a_feature_that_was_declared_since_has_no_numbers_yet(lake: Lake):
    publish(lake, view_of(spend=Float64), 1, spend=[1.0])
    assert set(statistics(lake, view_of(spend=Float64, visits=Int64)).features) == {"spend"}


def test_what_was_never_published_says_so(lake: Lake):
    with pytest.raises(NotMaterializedError, match=r"shops/offline/shop_week.*first"):
        statistics(lake, view_of(spend=Float64))


values = st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=20)


@settings(max_examples=25)
@given(days=st.lists(values, min_size=1, max_size=4))
def test_numbers_are_those_of_all_rows_together(
    tmp_path_factory: pytest.TempPathFactory, days: list[list[float | None]]
):
    """However the rows are cut into partitions."""
    lake, view = Lake(root=str(tmp_path_factory.mktemp("lake"))), view_of(spend=Float64)
    for at, column in enumerate(days):
        publish(lake, view, at + 1, spend=column)
    every = pl.Series([value for column in days for value in column], dtype=pl.Float64)
    found = statistics(lake, view).features["spend"]
    assert found["null_share"] == pytest.approx(every.null_count() / len(every))
    assert (found["min"], found["max"]) == (every.min(), every.max())
    assert found["p50"] == every.median() or found["p50"] == pytest.approx(every.median())
