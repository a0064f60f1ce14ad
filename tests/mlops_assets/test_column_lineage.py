"""Column lineage is what the engine reads: what is not named cannot change a column, on real tables too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from mlops_assets import Entity, Float64, Int64, Popularity, String, UnixTimestamp, feature_view, source
from mlops_assets.catalog import Catalog, gather
from mlops_assets.claims import columns_of, conform
from mlops_assets.column_lineage import Column, UnknownLineageError, as_dagster, column_lineage, told
from mlops_assets.declarations import FeatureView, Labels

shop = Entity("shop", "shop_id")
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)


@source(
    team="shops",
    key=["order_id"],
    event_timestamp="event_timestamp",
    schema={
        "order_id": Int64,
        "shop_id": String,
        "event_timestamp": UnixTimestamp,
        "amount": Float64,
        "cost": Float64,
        "state": String,
        "note": String,
    },
)
def orders() -> pl.LazyFrame:
    """Orders."""
    return pl.LazyFrame()


@source(team="shops", key=["shop_id"], schema={"shop_id": String, "area": Float64, "city": String})
def places() -> pl.LazyFrame:
    """Where the shops are."""
    return pl.LazyFrame()


def view_of(function: Callable[..., Any], **schema: Any) -> FeatureView:
    declare = feature_view(team="shops", entities=[shop], schema=schema or {"made": Float64})
    function.__name__ = "made_view"
    view: FeatureView = declare(function)
    return view


def traced(function: Callable[..., Any], frames: Any = None, **schema: Any) -> dict[str, set[str]]:
    """The lineage of a view that `function` makes, as texts."""
    view = view_of(function, **schema)
    lineage = column_lineage(view, Catalog.of([orders, places, view]), frames)
    return {name: {str(column).removeprefix("shops/") for column in columns} for name, columns in lineage.items()}


def few_orders() -> pl.LazyFrame:
    times = [NOON + timedelta(hours=at) for at in range(4)]
    return pl.LazyFrame(
        {
            "order_id": [1, 2, 3, 4],
            "shop_id": ["a", "a", "b", "b"],
            "event_timestamp": times,
            "amount": [1.0, 2.0, 3.0, 4.0],
            "cost": [0.5, 0.5, 1.0, 1.0],
            "state": ["paid", "open", "paid", "paid"],
            "note": [None, "x", None, None],
        },
        schema={name: field.polars for name, field in orders.schema.items()},
    )


# -- what is named


def test_a_column_comes_from_what_it_is_computed_of():
    """Renamed, combined or taken over; by its own columns and no other's."""

    def compute(orders: pl.LazyFrame) -> pl.LazyFrame:
        return orders.select("shop_id", "event_timestamp", margin=pl.col("amount") - pl.col("cost"), what="note")

    assert traced(compute, margin=Float64, what=String) == {
        "shop_id": {"orders:shop_id"},
        "event_timestamp": {"orders:event_timestamp"},
        "margin": {"orders:amount", "orders:cost"},
        "what": {"orders:note"},
    }


def test_what_decides_which_rows_there_are_counts_for_every_column():
    """A filter and the keys of a group: another value there is another row here."""

    def compute(orders: pl.LazyFrame) -> pl.LazyFrame:
        paid = orders.filter(pl.col("state") == "paid").group_by("shop_id", "event_timestamp")
        return paid.agg(made=pl.col("amount").sum(), most=pl.col("cost").max())

    rows = {"orders:state", "orders:shop_id", "orders:event_timestamp"}
    lineage = traced(compute, made=Float64, most=Float64)
    assert lineage == {
        "shop_id": rows,
        "event_timestamp": rows,
        "made": {*rows, "orders:amount"},
        "most": {*rows, "orders:cost"},
    }


def test_both_sides_of_a_join_are_named():
    """The other table's column, and the keys that find it."""

    def compute(orders: pl.LazyFrame, places: pl.LazyFrame) -> pl.LazyFrame:
        return orders.join(places, on="shop_id", how="left").with_columns(made=pl.col("amount") / pl.col("area"))

    assert traced(compute)["made"] == {
        "orders:amount",
        "orders:shop_id",
        "places:area",
        "places:shop_id",
    }


def test_a_name_alone_is_no_origin():
    """A column that is overwritten does not come from its namesake."""

    def compute(orders: pl.LazyFrame) -> pl.LazyFrame:
        return orders.with_columns(amount=pl.col("cost") * 2)

    assert traced(compute, amount=Float64)["amount"] == {"orders:cost"}


def test_where_the_engine_cannot_look_inside_everything_is_named():
    """A Python function over whole tables may use any of it."""

    def compute(orders: pl.LazyFrame) -> pl.LazyFrame:
        halved = orders.map_batches(lambda rows: rows.with_columns(amount=rows["amount"] / 2))
        return halved.with_columns(made=pl.col("amount"))

    assert traced(compute)["made"] == {f"orders:{name}" for name in orders.schema}


def test_what_a_function_collects_while_it_runs_counts_for_all():
    def compute(orders: pl.LazyFrame) -> pl.LazyFrame:
        typical = orders.select(pl.col("cost").mean()).collect().item()
        return orders.with_columns(made=pl.col("amount") - pl.lit(typical, pl.Float64))

    lineage = traced(compute)
    assert lineage["made"] == {"orders:amount", "orders:cost"}
    assert lineage["shop_id"] == {"orders:shop_id", "orders:cost"}


def test_a_view_over_a_view_names_the_view():
    """Each table names what it reads; following on is the reader's."""

    def first(orders: pl.LazyFrame) -> pl.LazyFrame:
        return orders.with_columns(made=pl.col("amount"))

    def second(made_view: pl.LazyFrame) -> pl.LazyFrame:
        return made_view.with_columns(twice=pl.col("made") * 2)

    one = view_of(first)
    two: FeatureView = feature_view(team="shops", entities=[shop], schema={"twice": Float64})(second)
    assert column_lineage(two, Catalog.of([orders, one, two]))["twice"] == {Column("shops/made_view", "made")}


def test_a_source_comes_from_outside():
    assert column_lineage(orders, Catalog.of([orders])) == {}


# -- functions that need rows


def first_amount(orders: pl.LazyFrame) -> pl.LazyFrame:
    """Cannot do without a row, and collects while it runs."""
    first = orders.select("amount").collect().row(0)[0]
    return orders.with_columns(made=pl.col("cost") - first)


def test_a_function_that_needs_rows_is_given_them():
    assert traced(first_amount, frames={"orders": few_orders()})["made"] == {"orders:cost", "orders:amount"}


def test_rows_that_are_given_keep_to_what_was_asked():
    """Filtered and limited as the function says: it computes what it would compute of the table itself."""
    seen: list[list[float]] = []

    def compute(orders: pl.LazyFrame) -> pl.LazyFrame:
        chosen = orders.filter(pl.col("shop_id") == "b").select("amount").collect()
        seen.append([*chosen["amount"], *orders.select("cost").head(1).collect()["cost"]])
        return orders.with_columns(made=pl.lit(chosen["amount"][0]))

    traced(compute, frames={"orders": few_orders()})
    assert seen[-1] == [3.0, 4.0, 0.5]


def test_a_function_that_cannot_be_followed_says_why():
    """Without rows to give, the error names the view, what was raised, and what to do."""
    with pytest.raises(UnknownLineageError, match=r"shops/made_view.*OutOfBoundsError.*Let it take a day without rows"):
        traced(first_amount)


def test_an_asset_shows_why_it_has_no_lineage():
    """Publishing goes on: who reads the asset's page learns what is missing."""
    view = view_of(first_amount)
    shown = told(view, Catalog.of([orders, view]), {})
    assert list(shown) == ["column_lineage_unknown"] and "OutOfBoundsError" in shown["column_lineage_unknown"]


# -- laws

KEYS = ["shop_id", "event_timestamp"]
STEPS: dict[str, Callable[[pl.LazyFrame], pl.LazyFrame]] = {
    "filter": lambda rows: rows.filter(pl.col("amount") > 1.5),
    "drop nulls": lambda rows: rows.drop_nulls("note"),
    "combine": lambda rows: rows.with_columns(amount=pl.col("amount") + pl.col("cost")),
    "overwrite": lambda rows: rows.with_columns(cost=pl.col("order_id").cast(pl.Float64)),
    "condition": lambda rows: rows.with_columns(cost=pl.when(pl.col("state") == "paid").then("cost").otherwise(0.0)),
    "window": lambda rows: rows.with_columns(amount=pl.col("amount").sum().over("state")),
    "newest": lambda rows: rows.sort("event_timestamp", "order_id").unique("shop_id", keep="last", maintain_order=True),
    "largest": lambda rows: rows.sort("cost", "order_id").head(3),
    "semi join": lambda rows: rows.join(rows.filter(pl.col("cost") > 0.7), on="shop_id", how="semi"),
    "explode": lambda rows: rows.with_columns(amount=pl.concat_list("amount", "cost")).explode("amount"),
    "opaque": lambda rows: rows.map_batches(lambda batch: batch.with_columns(amount=batch["amount"] * 2)),
}
SCRAMBLED: dict[str, list[Any]] = {
    "order_id": [40, 30, 20, 10],
    "shop_id": ["b", "c", "a", "a"],
    "event_timestamp": [NOON - timedelta(hours=at) for at in range(4)],
    "amount": [9.0, None, 0.0, 1.0],
    "cost": [5.0, 0.0, None, 3.0],
    "state": ["open", "paid", "open", None],
    "note": ["y", None, "z", "w"],
}


@settings(max_examples=60)
@given(steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=4), changed=st.sampled_from(sorted(SCRAMBLED)))
def test_what_is_not_named_cannot_change_a_column(steps: list[str], changed: str):
    """Whatever steps a function takes: other values in a column change only the columns that name it."""

    def compute(orders: pl.LazyFrame) -> pl.LazyFrame:
        for step in steps:
            orders = STEPS[step](orders)
        return orders.select(*KEYS, made="amount", other="cost")

    lineage = traced(compute, made=Float64, other=Float64)
    before = few_orders()
    after = before.with_columns(pl.Series(changed, SCRAMBLED[changed], orders.schema[changed].polars))
    for name, origins in lineage.items():
        if f"orders:{changed}" not in origins:
            assert_frame_equal(
                *(compute(rows).select(name).collect() for rows in (before, after)), check_row_order=False
            )


DAYS = (datetime(2013, 7, 1, tzinfo=UTC), datetime(2013, 7, 3, tzinfo=UTC))


def real(table: Any) -> pl.LazyFrame:
    frame = table.compute(DAYS) if table.inputs else table.compute()
    return frame.collect().lazy()


def tables_over_sources() -> Iterator[Any]:
    catalog = gather()
    for table in catalog.tables.values():
        if isinstance(table, FeatureView | Labels) and all(item.kind == "source" for _, item in catalog.inputs(table)):
            yield table


@pytest.mark.parametrize("table", list(tables_over_sources()), ids=lambda table: table.id)
def test_on_real_days_what_is_not_named_changes_nothing(table: Any):
    """Each column of each raw table emptied in turn: the published columns that do not name it stay as they were."""
    catalog = gather()
    lineage = column_lineage(table, catalog)
    inputs = {name: real(item) for name, item in catalog.inputs(table)}
    before = conform(table(*inputs.values()), table)
    for name, item in catalog.inputs(table):
        for column, declared in columns_of(item).items():
            same = [made for made, origins in lineage.items() if Column(item.id, column) not in origins]
            emptied = inputs[name].with_columns(pl.lit(None, declared.polars).alias(column))
            after = table(*{**inputs, name: emptied}.values()).select(same).collect()
            assert_frame_equal(after, before.select(same), check_row_order=False, check_dtypes=False)


def test_the_features_of_the_weather_come_from_their_own_measurement():
    """And from the hour and the airport only what is the hour and the airport."""
    catalog = gather()
    lineage = column_lineage(catalog.view("flights/weather_hourly"), catalog)
    assert lineage["temp"] == {Column("flights/raw_weather", "temp")}
    assert lineage["event_timestamp"] == {Column("flights/raw_weather", "observed_at")}


def test_dagster_gets_the_lineage_by_asset_key():
    catalog = gather()
    lineage = column_lineage(catalog.view("flights/aircraft_use"), catalog)
    shown = as_dagster(lineage, catalog).deps_by_column["aircraft_seats"]
    assert dg.TableColumnDep(dg.AssetKey(["flights", "raw_planes"]), "seats") in shown
    assert {dep.asset_key.to_user_string() for dep in shown} == {"flights/raw_flights", "flights/raw_planes"}


def test_the_page_shows_the_lineage_as_a_table():
    """Dagster's open UI does not draw columns: the asset's page says it in words."""

    def made_view(orders: pl.LazyFrame) -> pl.LazyFrame:
        return orders.select("shop_id", "event_timestamp", made="amount")

    view = view_of(made_view)
    shown = told(view, Catalog.of([orders, view]), {})
    assert set(shown) == {"dagster/column_lineage", "columns_come_from"}
    assert "| made | shops/orders:amount |" in shown["columns_come_from"].value.splitlines()


def test_a_stand_in_comes_from_the_same_column_of_its_view():
    """And from the time that places it, and from what weighs it."""

    def made_view(orders: pl.LazyFrame) -> pl.LazyFrame:
        return orders.rename({"amount": "spent", "cost": "paid"})

    view = feature_view(
        team="shops", entities=[shop], schema={"spent": Float64, "paid": Float64}, cold_start=Popularity(by="paid")
    )(made_view)
    assert view.stand_in is not None
    lineage = column_lineage(view.stand_in, Catalog.of([orders, view]))
    assert {name: {str(column) for column in columns} for name, columns in lineage.items()} == {
        "event_timestamp": {"shops/made_view:event_timestamp"},
        "spent": {"shops/made_view:event_timestamp", "shops/made_view:spent", "shops/made_view:paid"},
        "paid": {"shops/made_view:event_timestamp", "shops/made_view:paid"},
    }
