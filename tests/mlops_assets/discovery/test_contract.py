"""The feature contract: what is read is told by bundles, and each change that a reader would feel is a breach."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets import Entity, Float64, Int64, String, feature_view, labels, on_demand, source
from mlops_assets.catalog import Catalog
from mlops_assets.declarations import FeatureView
from mlops_assets.discovery.contract import (
    Read,
    Reader,
    UnreadableContractError,
    UnreadablePlanError,
    breaches,
    from_json,
    reads_of,
    to_json,
)
from mlops_assets.fields import Float64Array

shop, city = Entity("shop", "shop_id"), Entity("city", "city_id", dtype=Int64)
HOUR = timedelta(hours=1)


@source(team="shops", key=["shop_id"], schema={"shop_id": String})
def orders() -> pl.LazyFrame:
    """Orders."""
    return pl.LazyFrame()


@feature_view(team="shops", entities=[shop, city], ttl=HOUR, schema={"spend": Float64, "visits": Int64, "name": String})
def shop_week(orders: pl.LazyFrame) -> pl.LazyFrame:
    """A shop's week."""
    return orders


@labels(team="shops", key="order_id", entities=[shop, city], targets={"late": Float64}, request={"amount": Float64})
def deliveries(orders: pl.LazyFrame) -> pl.LazyFrame:
    """Deliveries."""
    return orders


@on_demand(team="shops", reads=[deliveries, shop_week[["spend"]]], schema={"share": Float64("Of the week's money")})
def share_of_week(amount: pl.Expr, spend: pl.Expr) -> pl.Expr:
    """How much of its week an order is."""
    return amount / spend


STORED = Read(
    "shops/shop_week", {"spend": "Float64", "visits": "Int64"}, {"shop_id": "String", "city_id": "Int64"}, 3600
)
COMPUTED = Read("shops/share_of_week", {"share": "Float64"}, None, None)
CHAMPION = Reader("shops/late", "3", ("champion", "endpoint"), (STORED, COMPUTED))


def declared(view: FeatureView | None = shop_week, *, computed: Any = share_of_week) -> Catalog:
    """What is declared when `shop_week` is `view`, which the features on demand then read."""
    computed = computed and view and replace(computed, reads=(deliveries, view[["spend"]]))
    return Catalog.of([item for item in (orders, deliveries, view, computed) if item is not None])


def told(view: FeatureView | None, **more: Any) -> list[str]:
    return [str(breach) for breach in breaches([CHAMPION], declared(view, **more))]


def changed(**changes: Any) -> FeatureView:
    return replace(shop_week, **changes)


def without(*names: str) -> dict[str, Any]:
    return {name: field for name, field in shop_week.schema.items() if name not in names}


# -- what is a breach


def test_what_is_declared_as_it_is_read_is_no_breach():
    assert told(shop_week) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": {**shop_week.schema, "visits": Float64}}, "shops/shop_week:visits is Float64, was Int64"),
        ({"schema": without("visits")}, "shops/shop_week:visits is removed"),
        ({"ttl": 2 * HOUR}, "shops/shop_week:spend,visits holds for 2:00:00, was 1:00:00"),
        ({"ttl": None}, "shops/shop_week:spend,visits holds for ever, was 1:00:00"),
        ({"entities": (shop,)}, "is found by shop_id (String), was by shop_id (String), city_id (Int64)"),
        ({"entities": (city, shop)}, "is found by city_id (Int64), shop_id (String), was by"),
        ({"entities": (shop, Entity("city", "city_id"))}, "is found by shop_id (String), city_id (String), was by"),
    ],
    ids=["type", "removed", "ttl", "no ttl", "entity removed", "entities in another order", "entity of another type"],
)
def test_a_change_that_a_reader_would_feel_is_one_breach(change: dict[str, Any], says: str):
    """It names the features, the change, the model, its version and its endpoint."""
    (line,) = told(changed(**change))
    assert says in line
    assert "shops/late version 3 (champion, endpoint /shops/late/predict) reads it" in line


def test_a_view_that_is_gone_names_all_that_was_read_of_it():
    assert told(None)[0].startswith("shops/shop_week:spend,visits is removed with its view")


def test_a_feature_on_demand_is_held_to_its_declaration_too():
    assert told(shop_week, computed=None) == [
        f"shops/share_of_week:share is removed with its view; {CHAMPION} reads it"
    ]
    other = replace(share_of_week, schema={"part": Float64})
    assert told(shop_week, computed=other) == [f"shops/share_of_week:share is removed; {CHAMPION} reads it"]


@pytest.mark.parametrize(
    "change",
    [
        {"schema": {"another": String, **shop_week.schema}},
        {"schema": without("name")},
        {"schema": {**shop_week.schema, "name": Int64}},
        {"schema": {**shop_week.schema, "spend": Float64("Money", unit="EUR", minimum=0)}},
        {"description": "Said otherwise."},
        {"owners": ("team:shops",)},
        {"online": False},
    ],
    ids=[
        "added",
        "removed what nobody reads",
        "changed what nobody reads",
        "meaning",
        "description",
        "owner",
        "online",
    ],
)
def test_what_no_reader_feels_is_no_breach(change: dict[str, Any]):
    assert told(changed(**change)) == []


def test_a_type_that_no_plan_tells_is_not_judged():
    """What only an older on-demand feature reads; that it is there still is."""
    unknown = Reader("shops/late", "1", ("champion",), (replace(STORED, features={"spend": None, "gone": None}),))
    assert [str(item).split(";")[0] for item in breaches([unknown], declared())] == ["shops/shop_week:gone is removed"]


def test_every_reader_is_held_against_the_declarations():
    """Champion and challenger may be of different declarations; each is named."""
    challenger = Reader("shops/late", "4", ("endpoint",), (replace(STORED, features={"visits": "Float64"}),))
    found = breaches([CHAMPION, challenger], declared())
    assert [(item.reader.version, item.change) for item in found] == [("4", "is Int64, was Float64")]


# -- what a bundle tells


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    def write(plan: Any, schema: Any) -> Path:
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        (tmp_path / "schema.json").write_text(json.dumps(schema))
        return tmp_path

    return write


PLAN: dict[str, Any] = {
    "entities": [{"join_key": "shop_id", "dtype": "String"}, {"join_key": "city_id", "dtype": "Int64"}],
    "views": [
        {
            "view": "shops/shop_week",
            "join_keys": ["city_id", "shop_id"],
            "features": ["spend", "visits"],
            "ttl_seconds": 3600.0,
        }
    ],
    "transforms": [
        {
            "view": "shops/share_of_week",
            "inputs": {"amount": "Float64", "spend": "Float64"},
            "features": {"share": "..."},
        }
    ],
}
SCHEMA = {"columns": [{"name": "visits", "dtype": "Int64"}, {"name": "share", "dtype": "Float64"}]}


def test_a_bundle_tells_what_its_model_reads(bundle: Callable[..., Path]):
    """Keys in the order of the table; types of inputs, and of what only features on demand read."""
    stored, computed = reads_of(bundle(PLAN, SCHEMA))
    assert stored == replace(STORED, keys={"city_id": "Int64", "shop_id": "String"})
    assert list(stored.keys or ()) == ["city_id", "shop_id"]
    assert computed == COMPUTED


def test_a_plan_of_before_there_were_features_on_demand_is_read(bundle: Callable[..., Path]):
    (stored,) = reads_of(bundle({name: PLAN[name] for name in ("entities", "views")}, SCHEMA))
    assert stored.features == {"spend": None, "visits": "Int64"}


def test_what_stands_in_for_missing_rows_is_read_too(bundle: Callable[..., Path]):
    """It is a view of its own, found by no key; without it, keys without a row would get nulls."""
    view = {**PLAN["views"][0], "cold_start_table": "shops__shop_week_cold_start"}
    _, stand_in = reads_of(bundle({"entities": PLAN["entities"], "views": [view]}, SCHEMA))
    assert stand_in == Read("shops/shop_week_cold_start", {"spend": None, "visits": "Int64"}, {}, None)


def test_an_array_of_another_length_is_of_another_type(bundle: Callable[..., Path]):
    view = replace(shop_week, schema={"place": Float64Array("Where", size=8)})
    plan = {"entities": PLAN["entities"], "views": [{**PLAN["views"][0], "features": ["place"]}]}
    column = {"name": "place", "dtype": "Float64Array", "size": 4}
    (read,) = reads_of(bundle(plan, {"columns": [column]}))
    reader = Reader("shops/late", "3", ("champion",), (replace(read, keys=STORED.keys),))
    (breach,) = breaches([reader], Catalog.of([orders, view]))
    assert breach.change == "is Float64Array[8], was Float64Array[4]"


@pytest.mark.parametrize(("plan", "schema"), [({}, SCHEMA), (PLAN, {}), ([], SCHEMA), (PLAN, {"columns": [{}]})])
def test_a_bundle_that_does_not_tell_is_an_error(bundle: Callable[..., Path], plan: Any, schema: Any):
    """Never taken for one that reads nothing."""
    with pytest.raises(UnreadablePlanError, match=r"does not tell which features it reads.*Train the model again"):
        reads_of(bundle(plan, schema))


# -- on file

names = st.text("abcdefgh_", min_size=1, max_size=5)
types = st.sampled_from(["Float64", "Int64", "String", "Bool", "Float64Array"])
reads = st.builds(
    Read,
    view=names,
    features=st.dictionaries(names, st.none() | types, min_size=1, max_size=4),
    keys=st.none() | st.dictionaries(names, types, max_size=3),
    ttl_seconds=st.none() | st.floats(1, 1e6),
)
readers = st.builds(
    Reader,
    model=names,
    version=st.integers(1, 99).map(str),
    roles=st.sampled_from([("champion",), ("endpoint",), ("champion", "endpoint")]),
    reads=st.lists(reads, max_size=3).map(tuple),
)


@given(found=st.lists(readers, max_size=4))
def test_a_contract_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, found: list[Reader]):
    """Also the order of keys, which an object of JSON does not promise."""
    path = tmp_path_factory.mktemp("contract") / "contract.json"
    path.write_text(json.dumps(to_json(found), sort_keys=True))
    again = from_json(path)
    assert again == found
    assert [[list(read.keys or ()) for read in reader.reads] for reader in again] == [
        [list(read.keys or ()) for read in reader.reads] for reader in found
    ]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"readers": [{"model": "x"}]}', '{"readers": 3}'])
def test_a_file_that_is_no_contract_is_an_error(tmp_path: Path, text: str):
    """Never taken for an empty one, which everything keeps."""
    path = tmp_path / "contract.json"
    path.write_text(text)
    with pytest.raises(UnreadableContractError, match=r"contract.json is no feature contract.*Write it again"):
        from_json(path)
