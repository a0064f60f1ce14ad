"""A view of everybody (no entity, an array): written once, read alike by plain Feast, the packed store and offline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_assets import Entity, Float64, Float64Array, MeanOverEntities, String
from mlops_assets.catalog import asset_key
from mlops_assets.declarations import FeatureView
from resources.feast import FeastResource, Published
from resources.lake import Lake

START, DAY = datetime(2013, 3, 10, tzinfo=UTC), timedelta(days=1)
SCHEMA = {"age": Float64("Age"), "maker": String("Maker"), "place": Float64Array("Place", size=3)}
view = FeatureView(
    name="planes",
    team="test",
    schema=SCHEMA,
    compute=pl.LazyFrame,
    entities=(Entity("plane", "tailnum"),),
    ttl=3 * DAY,
    cold_start=MeanOverEntities(2 * DAY),
)
TABLE = "test__planes_cold_start"
REFERENCES = [f"{TABLE}:{name}" for name in SCHEMA]


def planes() -> pl.LazyFrame:
    """Three days of two airframes, the second of which never said where it flies."""
    return pl.LazyFrame(
        {
            "tailnum": ["N1", "N2"] * 3,
            "event_timestamp": [START + day * DAY for day in range(3) for _ in "ab"],
            "age": [1.0, 3.0, 2.0, 4.0, 30.0, 40.0],
            "maker": ["BOEING", "AIRBUS"] * 2 + ["BOEING", "BOEING"],
            "place": [[float(day), 0.1, -1.5] if plane else None for day in range(3) for plane in (1, 0)],
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )


def stand_ins(until: int) -> pl.DataFrame:
    """What `view` publishes for its stand-in, up to a day."""
    assert view.stand_in
    return view.stand_in(planes()).filter(pl.col("event_timestamp") <= START + until * DAY).collect()


@pytest.fixture(params=["sqlite", "redis"])
def feast_resource(request: pytest.FixtureRequest, home: Path) -> FeastResource:
    from mlops_assets import feast_objects

    redis = request.getfixturevalue("redis_url") if request.param == "redis" else None
    resource = FeastResource(online_store=redis or f"sqlite:///{home}/feast/online_store.db")
    resource.apply(feast_objects.compile([view, view.stand_in], [], Lake()))  # type: ignore[list-item]
    return resource


def online(resource: FeastResource) -> list[dict[str, Any]]:
    """Through plain Feast, which asks for a key all the same: any will do."""
    answer = resource.store().get_online_features(REFERENCES, [{"tailnum": "N9"}, {"tailnum": "N1"}]).to_dict()
    return [{name: answer[name][row] for name in SCHEMA} for row in range(2)]


def test_the_newest_stand_in_is_everybodys(feast_resource: FeastResource) -> None:
    """Published again it is the newer one; an older one takes nothing back."""
    wanted = {"age": 2.0, "maker": "AIRBUS", "place": [0.0, 0.1, -1.5]}
    assert feast_resource.write_online(TABLE, stand_ins(0)) == Published(keys=1, written=1)
    assert online(feast_resource) == [wanted, wanted]
    newest = {"age": 19.0, "maker": "BOEING", "place": [1.5, 0.1, -1.5]}
    assert feast_resource.write_online(TABLE, stand_ins(2)).written == 1
    assert feast_resource.write_online(TABLE, stand_ins(1)).written == 0
    assert online(feast_resource) == [newest, newest]
    ((at, features),) = feast_resource.packed().read(TABLE, [()])  # type: ignore[misc]
    assert features == newest and at == int((START + 2 * DAY).timestamp() * 1_000_000)


def test_before_the_first_there_is_none(feast_resource: FeastResource) -> None:
    """Nobody is refused; there is nothing to give."""
    assert online(feast_resource) == [dict.fromkeys(SCHEMA)] * 2
    assert feast_resource.packed().read(TABLE, [()]) == [None]


def test_history_has_the_stand_in_of_each_moment(feast_resource: FeastResource) -> None:
    """Any Feast client gets, for each event, the newest stand-in of then, joined without a key."""
    assert view.stand_in
    Lake().write(stand_ins(2), asset_key(view.stand_in), "2013-03-10")
    moments = [START - DAY, START, START + 1.5 * DAY, START + 30 * DAY]
    asked = pl.DataFrame({"tailnum": ["N1", "N9", None, "N1"], "event_timestamp": moments}).to_pandas()
    found = pl.from_pandas(feast_resource.store().get_historical_features(asked, REFERENCES).to_df())
    assert found.sort("event_timestamp")["age"].to_list() == [None, 2.0, 2.5, 19.0]
    assert found.sort("event_timestamp")["place"].to_list()[1:] == [
        [0.0, 0.1, -1.5],
        [0.5, 0.1, -1.5],
        [1.5, 0.1, -1.5],
    ]
