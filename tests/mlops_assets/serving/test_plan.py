"""The feature plan: compiled from a declaration, kept as JSON, and honest about time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets import (
    Bool,
    Entity,
    Float64,
    Gate,
    Int64,
    Labels,
    MeanOverEntities,
    ModelPipeline,
    String,
    feature_view,
    on_demand,
)
from mlops_assets.serving.plan import (
    EmptyStore,
    FeaturePlan,
    PlannedEntity,
    RequestField,
    ViewRead,
    look_up,
    microseconds,
    moment_of,
)
from mlops_assets.trainers import XGBoostClassifier
from resources.online.packed_store import OnlineStoreUnavailableError, PackedStore, TableRead

NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
WEATHER = ViewRead("flights/weather", "flights__weather", ("origin",), ("temp", "wind"), ttl_seconds=10800)
ROUTE = ViewRead("flights/route", "flights__route", ("origin", "dest"), ("delay",))
PLAN = FeaturePlan(
    model="flights/late_arrival",
    key="flight_id",
    entities=(PlannedEntity("origin", "String", "Airport"), PlannedEntity("dest", "String")),
    request=(RequestField("distance", "Float64", "Miles to fly", "mi", 0, 6000),),
    views=(WEATHER, ROUTE),
    inputs=("distance", "temp", "wind", "delay"),
)
EWR_BOS: dict[str, Any] = {"origin": "EWR", "dest": "BOS", "distance": 200.0}


@pytest.fixture
def store(tmp_path: Path) -> PackedStore:
    return PackedStore.open(f"sqlite:///{tmp_path / 'packed.db'}")


def put(store: PackedStore, age: timedelta, temp: float = 50.0, origin: str = "EWR") -> None:
    row = {"temp": temp, "wind": 9.0}
    store.write(WEATHER.table, [((origin,), microseconds(NOON - age), row)])


def test_plan_survives_json() -> None:
    """What a bundle keeps is the whole plan."""
    assert FeaturePlan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN


def test_values_come_in_input_order_with_their_event_times(store: PackedStore) -> None:
    """Request features and every view's features, ordered as the model reads them."""
    put(store, timedelta(hours=1))
    store.write(ROUTE.table, [(("EWR", "BOS"), microseconds(NOON - timedelta(days=300)), {"delay": 4.0})])
    (looked,) = look_up(PLAN, store, [EWR_BOS], NOON)
    assert looked.values == [200.0, 50.0, 9.0, 4.0]
    assert {view: NOON - moment_of(us) for view, us in looked.event_times.items()} == {
        "flights/weather": timedelta(hours=1),
        "flights/route": timedelta(days=300),
    }
    assert looked.fallbacks == []


def test_order_of_inputs_is_the_plans_not_the_views(store: PackedStore) -> None:
    """A plan that reads in another order is given another order."""
    put(store, timedelta(0))
    (looked,) = look_up(replace(PLAN, inputs=("wind", "delay", "distance", "temp")), store, [EWR_BOS], NOON)
    assert looked.values == [9.0, None, 200.0, 50.0]


@pytest.mark.parametrize(
    ("age", "reason"),
    [
        (timedelta(hours=3), None),
        (timedelta(hours=3, microseconds=1), "expired"),
        (timedelta(0), None),
        (timedelta(microseconds=-1), "from the future"),
    ],
)
def test_a_row_holds_from_its_event_until_its_ttl_both_included(
    store: PackedStore, age: timedelta, reason: str | None
) -> None:
    """`t - ttl <= event_timestamp <= t`, to the microsecond, as the point-in-time join of training has it."""
    put(store, age)
    (looked,) = look_up(PLAN, store, [EWR_BOS], NOON)
    weather = [fallback.reason for fallback in looked.fallbacks if fallback.view == WEATHER.view]
    assert weather == ([reason] if reason else [])
    assert looked.values[1:3] == ([None, None] if reason else [50.0, 9.0])


def test_missing_rows_are_null_and_named(store: PackedStore) -> None:
    """A cold start answers with nulls and says which view had nothing for which keys."""
    (looked,) = look_up(PLAN, store, [EWR_BOS], NOON)
    assert looked.values == [200.0, None, None, None]
    assert [(fallback.view, fallback.keys, fallback.reason) for fallback in looked.fallbacks] == [
        ("flights/weather", {"origin": "EWR"}, "no row"),
        ("flights/route", {"origin": "EWR", "dest": "BOS"}, "no row"),
    ]


def test_a_feature_added_after_the_row_was_written_is_null(store: PackedStore) -> None:
    """An older row of a view that has grown answers what it knows."""
    store.write(WEATHER.table, [(("EWR",), microseconds(NOON), {"temp": 50.0})])
    (looked,) = look_up(PLAN, store, [EWR_BOS], NOON)
    assert looked.values[1:3] == [50.0, None]


def test_all_views_are_read_in_one_round_trip_for_many_rows() -> None:
    """A thousand rows of two keys ask the store once, for two keys of each view; its reader is made once."""
    made: list[list[str]] = []
    asked: list[list[int]] = []

    class Counting(EmptyStore):
        def reader(self, reads: Any, /) -> EmptyStore:
            made.append([read.table for read in reads])
            return self

        def read(self, keys: Any, /) -> list[Any]:
            asked.append([len(wanted) for wanted in keys])
            return super().read(keys)

    store, rows = Counting(), [{**EWR_BOS, "origin": origin} for origin in ("EWR", "JFK")] * 500
    for _ in range(2):
        assert len(look_up(PLAN, store, rows, NOON)) == 1000
    assert (made, asked) == ([["flights__weather", "flights__route"]], [[2, 2], [2, 2]])


@given(
    ages=st.dictionaries(st.sampled_from(["EWR", "JFK", "LGA"]), st.integers(-5, 5).map(lambda h: timedelta(hours=h))),
    origins=st.lists(st.sampled_from(["EWR", "JFK", "LGA", "BOS"]), min_size=1, max_size=8),
)
def test_many_rows_are_answered_as_each_alone(ages: dict[str, timedelta], origins: list[str]) -> None:
    """Batching reads never changes an answer, nor its order."""

    class Fake(EmptyStore):
        def read(self, keys: Any, /) -> list[Any]:
            weather, route = keys
            seen = [(microseconds(NOON - ages[k[0]]), (1.0, 2.0)) if k[0] in ages else None for k in weather]
            return [seen, [None] * len(route)]

    rows = [{**EWR_BOS, "origin": origin} for origin in origins]
    assert look_up(PLAN, Fake(), rows, NOON) == [look_up(PLAN, Fake(), [row], NOON)[0] for row in rows]


def test_plan_of_a_declaration_names_every_input_once() -> None:
    """Compiled from the user's own words: table names, keys, ttl, bounds, order."""
    plan = FeaturePlan.of(weather_pipeline([weather[["wind"]]]))
    assert plan.entities == (PlannedEntity("origin", "String", "Airport of departure"),)
    assert plan.request == (RequestField("distance", "Float64", "Miles", "mi", 0, None),)
    (view,) = plan.views
    assert (view.table, view.features, view.ttl_seconds) == (f"{weather.team}__weather", ("wind",), 10800)
    assert plan.inputs == ("distance", "wind")


airport = Entity("airport", "origin", String, "Airport of departure")


@feature_view(
    entities=[airport],
    ttl=timedelta(hours=3),
    schema={"temp": Float64, "wind": Float64},
    cold_start=MeanOverEntities(window=timedelta(days=30)),
)
def weather(raw: pl.LazyFrame) -> pl.LazyFrame:
    return raw


arrivals = Labels(
    "arrivals", "flights", {"late": Bool}, pl.LazyFrame, key="flight_id", entities=(airport,),
    request={"distance": Float64("Miles", "mi", minimum=0)},
)  # fmt: skip


@on_demand(reads=[weather, arrivals], schema={"wind_chill": Float64, "headwind_miles": Float64, "asked_hour": Int64})
def felt(temp: pl.Expr, wind: pl.Expr, distance: pl.Expr, event_timestamp: pl.Expr) -> dict[str, pl.Expr]:
    """What the weather does to a flight."""
    return {
        "wind_chill": pl.when(wind > 3).then(temp - wind / 2).otherwise(temp),
        "headwind_miles": wind * distance,
        "asked_hour": event_timestamp.dt.hour(),
    }


def weather_pipeline(features: list[Any]) -> ModelPipeline:
    weekly = dg.WeeklyPartitionsDefinition(start_date="2013-01-07")
    return ModelPipeline(
        name="late_arrival", team="flights", labels=arrivals, label="late", features=features,
        trainer=XGBoostClassifier(), cutoffs=weekly, gate=Gate("roc_auc", at_least=0.5),
    )  # fmt: skip


def test_on_demand_features_are_computed_from_what_was_looked_up_and_asked(store: PackedStore) -> None:
    """Their inputs are looked up though the model reads none of them, and the moment asked about is one."""
    plan = FeaturePlan.from_json(json.loads(json.dumps(FeaturePlan.of(weather_pipeline([felt])).to_json())))
    assert (plan.inputs, plan.views[0].features) == (
        ("distance", "wind_chill", "headwind_miles", "asked_hour"),
        ("temp", "wind"),
    )
    table = plan.views[0].table
    for origin, wind in (("EWR", 10.0), ("JFK", 1.0)):
        store.write(table, [((origin,), microseconds(NOON), {"temp": 50.0, "wind": wind})])
    asked = [{"origin": origin, "distance": 200.0} for origin in ("EWR", "JFK", "LGA")]
    found = [looked.values for looked in look_up(plan, store, asked, NOON)]
    assert found == [[200.0, 45.0, 2000.0, 12], [200.0, 50.0, 200.0, 12], [200.0, None, None, 12]]


@settings(deadline=None)  # Polars starts its threads with the first example
@given(
    st.lists(st.tuples(st.none() | st.floats(-100, 100), st.none() | st.floats(0, 100), st.floats(0, 5000)), min_size=1)
)
def test_one_row_and_a_million_get_the_same_on_demand_features(rows: list[tuple[Any, ...]]) -> None:
    """The transform of the plan, asked row by row, is the declaration's expressions over the table."""
    (transform,) = FeaturePlan.of(weather_pipeline([felt])).transforms
    frame = pl.DataFrame(
        rows, {"temp": pl.Float64, "wind": pl.Float64, "distance": pl.Float64}, orient="row"
    ).with_columns(event_timestamp=pl.lit(NOON))
    whole = frame.select(**felt.expressions()).rows()
    one_by_one = [
        tuple(column[0] for column in transform.columns([row]).values()) for row in frame.iter_rows(named=True)
    ]
    assert one_by_one == whole


def test_a_cold_start_stands_in_and_says_so(store: PackedStore) -> None:
    """The newest stand-in is used where there is no usable row, for any reason; it is marked."""
    plan = FeaturePlan.of(weather_pipeline([weather]))
    (view,) = plan.views
    assert view.cold_start_table == f"{weather.team}__weather_cold_start"
    store.write(view.table, [(("JFK",), microseconds(NOON - timedelta(days=1)), {"temp": 1.0, "wind": 2.0})])
    store.write(view.cold_start_table, [((), microseconds(NOON - timedelta(days=1)), {"temp": 40.0, "wind": 7.0})])
    new, old = look_up(plan, store, [{"origin": name, "distance": 1.0} for name in ("EWR", "JFK")], NOON)
    assert (new.values, old.values) == ([1.0, 40.0, 7.0], [1.0, 40.0, 7.0])
    assert [(item.reason, item.used) for item in (*new.fallbacks, *old.fallbacks)] == [
        ("no row", "cold start"),
        ("expired", "cold start"),
    ]


def test_a_stand_in_of_the_future_is_not_used(store: PackedStore) -> None:
    """What was made after the moment asked about was not known then."""
    plan = FeaturePlan.of(weather_pipeline([weather]))
    table = str(plan.views[0].cold_start_table)
    store.write(table, [((), microseconds(NOON + timedelta(seconds=1)), {"temp": 40.0, "wind": 7.0})])
    (looked,) = look_up(plan, store, [{"origin": "EWR", "distance": 1.0}], NOON)
    assert (looked.values, looked.fallbacks[0].used) == ([1.0, None, None], "nulls")


class Away:
    """A store that does not answer, and what reads it."""

    def reader(self, _: Sequence[TableRead], /) -> Away:
        return self

    def read(self, _: Sequence[Sequence[Any]], /) -> Any:
        raise OnlineStoreUnavailableError.of("redis://cache:6379/0", TimeoutError("timed out"))


def test_without_a_store_a_plan_falls_back_or_refuses_as_declared() -> None:
    """Marked for every view and every row; what is stated for a cold start holds, what lies in the store does not."""
    stated = replace(WEATHER, cold_start_values={"temp": 60.0, "wind": None})
    stored = replace(ROUTE, cold_start_table="flights__route_cold_start")
    plan = replace(PLAN, views=(stated, stored), without_store="fall back")
    found = look_up(plan, Away(), [EWR_BOS, {**EWR_BOS, "origin": "JFK"}], NOON)
    assert [looked.values for looked in found] == [[200.0, 60.0, None, None]] * 2
    assert {(f.reason, f.used, f.view) for looked in found for f in looked.fallbacks} == {
        ("store away", "cold start", "flights/weather"),
        ("store away", "nulls", "flights/route"),
    }
    assert found[1].fallbacks[0].keys == {"origin": "JFK"}
    with pytest.raises(OnlineStoreUnavailableError):
        look_up(replace(plan, without_store="refuse"), Away(), [EWR_BOS], NOON)


def test_a_plan_without_views_needs_no_store() -> None:
    """A model that asks its caller for everything is answered while the store of all others is away."""
    plan = replace(PLAN, views=(), inputs=("distance",))
    assert [looked.values for looked in look_up(plan, Away(), [EWR_BOS], NOON)] == [[200.0]]


def test_a_key_that_many_rows_name_is_read_once(store: PackedStore) -> None:
    """A batch about one airport costs the store one row."""
    asked: list[list[int]] = []

    class Watched:
        def reader(self, reads: Sequence[TableRead], /) -> Watched:
            self.inner = store.reader(reads)
            return self

        def read(self, keys: Sequence[Sequence[Any]], /) -> Any:
            asked.append([len(some) for some in keys])
            return self.inner.read(keys)

    put(store, timedelta(0))
    found = look_up(PLAN, Watched(), [EWR_BOS, {**EWR_BOS, "dest": "LAX"}, EWR_BOS], NOON)
    assert asked == [[1, 2]]
    assert [looked.values[1] for looked in found] == [50.0] * 3
