"""Discovery, over declarations and a real platform: what a view is, how fresh, who uses it, what a change reaches."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import polars as pl
import pytest

from mlops_assets import Entity, Float64, Int64, String, UnixTimestamp, feature_view, labels, on_demand, source
from mlops_assets.catalog import Catalog, UnknownDeclarationError, asset_key, gather
from mlops_assets.discovery.card import Stores, UnknownFeatureError, asked, entries, shown, used_by
from mlops_assets.discovery.impact import impact
from mlops_assets.discovery.search import Index
from resources.lake import Lake

shop = Entity("shop", "shop_id", description="A shop")
daily = dg.DailyPartitionsDefinition(start_date="2024-01-01")
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)


@source(
    team="shops",
    key=["order_id"],
    event_timestamp="event_timestamp",
    schema={
        "order_id": Int64, "shop_id": String, "event_timestamp": UnixTimestamp, "amount": Float64, "cost": Float64,
        "label_known_at": UnixTimestamp,
    },
)  # fmt: skip
def orders() -> pl.LazyFrame:
    """Orders."""
    return pl.LazyFrame()


@feature_view(
    team="shops",
    entities=[shop],
    ttl=timedelta(hours=2),
    partitions=daily,
    owners=("team:money",),
    schema={"spend": Float64("Money spent", unit="EUR"), "cost": Float64("What it cost", unit="EUR")},
)
def shop_week(orders: pl.LazyFrame) -> pl.LazyFrame:
    """A shop's week."""
    return orders.rename({"amount": "spend"})


@feature_view(team="shops", entities=[shop], schema={"trend": Float64("Change of spending"), "costly": Float64})
def shop_trend(shop_week: pl.LazyFrame) -> pl.LazyFrame:
    """How a shop's week differs."""
    return shop_week.with_columns(trend=pl.col("spend") * 2, costly=pl.col("cost"))


@labels(team="shops", key="order_id", entities=[shop], targets={"late": Float64}, request={"amount": Float64})
def deliveries(orders: pl.LazyFrame) -> pl.LazyFrame:
    """Deliveries."""
    return orders.with_columns(late=pl.col("cost"))


@on_demand(team="shops", reads=[deliveries, shop_week], schema={"share": Float64, "margin": Float64})
def of_the_week(amount: pl.Expr, spend: pl.Expr, cost: pl.Expr) -> dict[str, pl.Expr]:
    """How much of its week an order is."""
    return {"share": amount / spend, "margin": amount - cost}


SMALL = Catalog.of([orders, shop_week, shop_trend, deliveries, of_the_week])


@pytest.fixture
def nowhere(home: Any) -> Stores:
    """The small declarations over stores in which nothing is yet."""
    from mlops_assets.promotion import Promotion
    from resources.environment import resources_for

    resources = resources_for()
    return Stores(SMALL, resources["lake"], Promotion.of(resources))


# -- what is there


def test_every_view_and_feature_can_be_found():
    """Stored or on demand, with its type, meaning, view, owner and users."""
    found = {entry.id: entry for entry in entries(gather())}
    for view in (*gather().views, *gather().on_demand.values()):
        assert {view.id, *(f"{view.id}:{name}" for name in view.schema)} <= set(found)
    temp = found["flights/weather_hourly:temp"]
    assert (temp.kind, temp.type, temp.meaning) == ("feature", "Float64", "Air temperature [degF]")
    assert (temp.view, temp.owner) == ("flights/weather_hourly", "team:flights")
    assert "flights/late_arrival" in temp.used_by


def test_a_feature_that_a_model_leaves_out_is_not_used_by_it():
    """The YAML model reads one feature of the carriers' four."""
    users = used_by(gather(), gather().view("flights/carrier_punctuality"))
    assert users["flights/departure_delay"] == ("carrier_mean_delay_7d",)
    found = {entry.id: entry for entry in entries(gather())}
    assert "flights/departure_delay" not in found["flights/carrier_punctuality:carrier_flights_7d"].used_by


@pytest.mark.parametrize("text", ["airport temperature", "degf air", "origin temp", "team flights temp"])
def test_a_feature_is_found_by_entity_unit_owner_and_meaning(text: str):
    assert "flights/weather_hourly:temp" in [item.id for item in Index(entries(gather())).search(text).entries]


def test_what_is_asked_for_is_a_view_or_some_of_its_features():
    assert asked(SMALL, "shops/shop_week") == (shop_week, ("spend", "cost"))
    assert asked(SMALL, "shops/shop_week:cost, spend") == (shop_week, ("cost", "spend"))
    assert asked(SMALL, "shops/of_the_week:share") == (of_the_week, ("share",))
    with pytest.raises(
        UnknownDeclarationError, match=r"no feature view 'shops/shop_weak'.*Did you mean 'shops/shop_week'"
    ):
        asked(SMALL, "shops/shop_weak")
    with pytest.raises(UnknownFeatureError, match=r"no feature of feature view 'shops/shop_week' 'spent'.*'spend'"):
        asked(SMALL, "shops/shop_week:spent")


# -- one view


def instance() -> Any:
    return dg.DagsterInstance.ephemeral()


def test_a_view_that_was_never_published_says_so(nowhere: Stores):
    """Everything declared is shown; of rows it is said that there are none, and what to do."""
    with instance() as empty:
        document = shown(shop_week, nowhere, empty)
    assert document["schema"]["spend"] == {"type": "Float64", "description": "Money spent", "unit": "EUR"}
    assert document["keys"] == {"shop_id": {"type": "String", "entity": "shop"}}
    assert "Materialize 'shops/offline/shop_week' first" in document["statistics"]["none_because"]
    never = {"newest_event": None, "last_materialized": None}
    assert document["freshness"] == {"offline": never, "online": never}
    assert document["used_by"] == {"models": {}, "bentos": {}, "endpoints": []}


def test_a_view_on_demand_tells_what_it_is_computed_from(nowhere: Stores):
    with instance() as empty:
        document = shown(of_the_week, nowhere, empty)
    assert document["computed_from"] == ["amount", "spend", "cost"] and "statistics" not in document


def published(lake: Lake, moment: datetime) -> None:
    rows = pl.DataFrame(
        {"shop_id": ["a"], "event_timestamp": [moment], "spend": [1.0], "cost": [0.5]},
        schema={name: field.polars for name, field in shop_week.columns.items()},
    )
    lake.write(rows, asset_key(shop_week), f"{moment:%Y-%m-%d}")


@pytest.mark.parametrize(("age", "within"), [(timedelta(hours=2), True), (timedelta(hours=2, seconds=1), False)])
def test_freshness_is_told_against_the_ttl(nowhere: Stores, age: timedelta, within: bool):
    """By the newest event: at its ttl a reader still sees it."""
    published(nowhere.lake, NOON)
    with instance() as events:
        offline = shown(shop_week, nowhere, events, now=NOON + age)["freshness"]["offline"]
    assert offline["newest_event"] == NOON.isoformat()
    assert (offline["age_seconds"], offline["within_ttl"]) == (age.total_seconds(), within)


@pytest.mark.parametrize(("hours", "standing"), [(25, "fresh"), (27, "late"), (37, "overdue")])
def test_freshness_is_told_against_the_policy(nowhere: Stores, hours: int, standing: str):
    """By the last materialization, of the rows that training reads and of those that endpoints read."""
    online = dg.AssetMaterialization(["shops", "online", "shop_week"], metadata={"newest": str(NOON), "as_of": "None"})
    with instance() as events:
        events.report_runless_asset_event(dg.AssetMaterialization(asset_key(shop_week), partition="2024-03-01"))
        events.report_runless_asset_event(online)
        later = datetime.now(UTC) + timedelta(hours=hours)
        faces = shown(shop_week, nowhere, events, now=later)["freshness"]
    assert (faces["offline"]["policy"], faces["offline"]["partition"]) == (standing, "2024-03-01")
    assert (faces["online"]["policy"], faces["online"]["newest_event"]) == (standing, NOON.isoformat())
    assert "as_of" not in faces["online"]


def test_rows_that_cannot_be_read_do_not_hide_the_rest(nowhere: Stores):
    """A partition cut short: the error stands where the statistics would, the schema beside it."""
    published(nowhere.lake, NOON)
    path = nowhere.lake.path(asset_key(shop_week), "2024-03-01")
    path.write_bytes(path.read_bytes()[:100])
    with instance() as events:
        document = shown(shop_week, nowhere, events)
    assert "is no readable Parquet file" in document["statistics"]["none_because"] and document["schema"]


# -- both ways, on what is declared


def columns(document: Any, part: str) -> dict[str, list[str]]:
    return {item["table"]: item["columns"] for item in document[part]}


def test_an_impact_follows_columns_not_tables(nowhere: Stores):
    """Spending reaches what rests on spending: one feature of the view over it, one of two on demand."""
    document = impact(shop_week, ("spend",), nowhere)
    assert columns(document, "made_from") == {"shops/orders": ["amount"]}
    assert columns(document, "tables") == {"shops/of_the_week": ["share"], "shops/shop_trend": ["trend"]}
    assert document["untraced"] == [] and document["models"] == []


def test_an_impact_of_a_view_is_that_of_all_its_features(nowhere: Stores):
    document = impact(shop_week, ("spend", "cost"), nowhere)
    assert columns(document, "made_from") == {"shops/orders": ["amount", "cost"]}
    assert columns(document, "tables") == {
        "shops/of_the_week": ["margin", "share"],
        "shops/shop_trend": ["costly", "trend"],
    }


def test_what_is_made_from_is_followed_to_the_sources(nowhere: Stores):
    """Through the view between, and through the labels for what the caller gives."""
    trend = impact(shop_trend, ("trend",), nowhere)
    assert columns(trend, "made_from") == {"shops/orders": ["amount"], "shops/shop_week": ["spend"]}
    computed = impact(of_the_week, ("share",), nowhere)
    assert columns(computed, "made_from") == {
        "shops/deliveries": ["amount"],
        "shops/orders": ["amount"],
        "shops/shop_week": ["spend"],
    }


def test_where_a_function_cannot_be_followed_everything_it_reads_counts(nowhere: Stores):
    """And the answer says so."""

    @feature_view(team="shops", entities=[shop], schema={"first": Float64})
    def opaque(shop_week: pl.LazyFrame) -> pl.LazyFrame:
        """Needs a row."""
        first = shop_week.select("cost").collect().row(0)[0]
        return shop_week.with_columns(first=pl.lit(first))

    stores = Stores(Catalog.of([*SMALL.tables.values(), opaque]), nowhere.lake, nowhere.promotion)
    document = impact(shop_week, ("spend",), stores)
    assert document["untraced"] == ["shops/opaque"] and "first" in columns(document, "tables")["shops/opaque"]
    published(nowhere.lake, NOON)
    document = impact(shop_week, ("spend",), stores)
    assert document["untraced"] == [] and "shops/opaque" not in columns(document, "tables")


# -- on a platform with a first champion


@pytest.fixture(scope="module")
def stores(module_platform: Any) -> Stores:
    return Stores(module_platform.catalog, module_platform.resources["lake"], module_platform.promotion)


def test_a_view_in_use_names_model_bento_and_endpoint(module_platform: Any, stores: Stores):
    """By the plan in the Bento and the release record, with the features each reads and the share of the traffic."""
    view = stores.catalog.view("flights/route_punctuality")
    record = stores.releases.read("flights/late_arrival")
    assert record is not None
    uses = shown(view, stores, module_platform.instance)["used_by"]
    assert uses["models"] == uses_of(view, "flights/late_arrival")
    assert uses["bentos"] == uses_of(view, record.champion.release)
    assert uses["endpoints"] == [
        {
            "model": "flights/late_arrival",
            "route": "/flights/late_arrival/predict",
            "release": record.champion.release,
            "version": "1",
            "weight": 100,
            "role": "champion",
            "features": list(view.schema),
        }
    ]


def uses_of(view: Any, name: str) -> dict[str, list[str]]:
    return {name: list(view.schema)}


def test_statistics_of_real_rows_are_those_of_the_newest_week(module_platform: Any, stores: Stores):
    document = shown(stores.catalog.view("flights/weather_hourly"), stores, module_platform.instance)
    numbers = document["statistics"]
    assert (numbers["partitions"][-1], len(numbers["partitions"]), numbers["rows"]) == ("2013-06-30", 7, 7 * 3 * 24)
    assert 50 < numbers["features"]["temp"]["min"] < numbers["features"]["temp"]["max"] < 110
    offline = document["freshness"]["offline"]
    assert (offline["newest_event"], offline["within_ttl"]) == ("2013-06-30T23:00:00+00:00", False)
    assert offline["policy"] == "fresh" and document == json.loads(json.dumps(document))


def test_an_impact_reaches_versions_bentos_endpoint_and_reports(stores: Stores):
    """From one raw measurement to the share of the traffic that answers by it."""
    document = impact(*asked(stores.catalog, "flights/weather_hourly:temp"), stores)
    assert columns(document, "made_from") == {"flights/raw_weather": ["temp"]}
    (model,) = document["models"]
    assert model["reads"] == ["flights/weather_hourly:temp"]
    (version,) = model["versions"]
    assert (version["version"], version["champion"], version["gate"]) == ("1", True, "passed")
    assert [(item["version"], item["weight"], item["role"]) for item in model["endpoints"]] == [("1", 100, "champion")]
    assert list(model["bentos"]) == [version["bento"]]
    assert "flights/late_arrival/performance_report" in model["assets"]


def test_a_model_that_is_declared_no_more_is_still_reached(stores: Stores):
    """It serves: that nobody declares it any longer helps its callers nothing."""
    bare = Stores(Catalog.of(stores.catalog.tables.values()), stores.lake, stores.promotion)
    (model,) = impact(*asked(bare.catalog, "flights/weather_hourly:temp"), bare)["models"]
    assert (model["declared"], model["reads"], model["assets"]) == (False, [], [])
    assert [item["weight"] for item in model["endpoints"]] == [100]


def test_dagster_shows_the_column_lineage_of_the_newest_partition(module_platform: Any):
    """Of a backfill of three weeks one event holds it, the one that Dagster's page shows."""
    key = asset_key(module_platform.catalog.view("flights/aircraft_use"))
    records = module_platform.instance.fetch_materializations(key, limit=100).records
    told = {
        record.partition_key: record.asset_materialization.metadata.get("dagster/column_lineage") for record in records
    }
    assert [name for name, lineage in told.items() if lineage] == [max(told)] == ["2013-06-30"]
    seats = told["2013-06-30"].value.deps_by_column["aircraft_seats"]
    assert dg.TableColumnDep(dg.AssetKey(["flights", "raw_planes"]), "seats") in seats
