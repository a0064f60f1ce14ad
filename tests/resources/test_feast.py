"""What is published online is read back alike by plain Feast and by the packed store, on SQLite and Redis."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from mlops_assets import Bool, Entity, Float64, Int64, String, UnixTimestamp
from mlops_assets.declarations import FeatureView
from resources.feast import FeastResource, Published, UnknownViewError
from resources.lake import Lake
from resources.online.packed_store import PackedStore

if TYPE_CHECKING:
    import feast

TABLE = "test__route"
TYPES = (pl.String, pl.Int64, pl.Datetime("us", "UTC"), pl.Float64)
START = datetime(2013, 3, 10, tzinfo=UTC)
origin, number = Entity("origin", "origin"), Entity("flight", "number", Int64)
SCHEMA = {
    "delay": Float64("Delay", unit="minute"),
    "flights": Int64("Flights"),
    "late": Bool("Late"),
    "carrier": String("Carrier"),
    "landed": UnixTimestamp("Landed"),
}


def view(name: str = "route", team: str = "test", **options: Any) -> FeatureView:
    return FeatureView(
        name=name,
        team=team,
        schema=SCHEMA,
        compute=pl.LazyFrame,
        entities=(origin, number),  # not in the order of the alphabet: keys must keep the view's order
        ttl=timedelta(hours=3),
        **options,
    )


def objects(*views: FeatureView) -> list[Any]:
    from mlops_assets import feast_objects

    return feast_objects.compile(views, [], Lake())


def rows(*given: tuple[str | None, int | None, int, float | None]) -> pl.DataFrame:
    keys = pl.DataFrame(
        [(airport, flight, START + timedelta(hours=hours), delay) for airport, flight, hours, delay in given],
        schema=dict(zip(("origin", "number", "event_timestamp", "delay"), TYPES, strict=True)),
        orient="row",
    )
    return keys.with_columns(
        flights=pl.when(pl.col("delay") > 0).then(7),
        late=pl.col("delay") > 15,
        carrier=pl.when(pl.col("delay") > 0).then(pl.lit("UA")),
        landed=pl.when(pl.col("delay") > 0).then("event_timestamp"),
    )


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, home: Path) -> str:
    return (
        f"sqlite:///{home}/feast/online_store.db" if request.param == "sqlite" else request.getfixturevalue("redis_url")
    )


@pytest.fixture
def feast_resource(url: str, home: Path) -> FeastResource:
    resource = FeastResource(online_store=url)
    resource.apply(objects(view()))
    return resource


def plain_store(url: str, home: Path) -> feast.FeatureStore:
    """A Feast client that knows nothing of ours."""
    from feast import FeatureStore, RepoConfig

    redis = {"type": "redis", "connection_string": url.removeprefix("redis://").removesuffix("/0")}
    sqlite = {"type": "sqlite", "path": str(home / "feast" / "online_store.db")}
    return FeatureStore(
        config=RepoConfig(
            project="mlops_assets",
            provider="local",
            registry=str(home / "feast" / "registry.db"),
            online_store=redis if url.startswith("redis") else sqlite,
            offline_store={"type": "dask"},
            entity_key_serialization_version=3,
        )
    )


def by_plain_feast(url: str, home: Path, keys: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    answer = plain_store(url, home).get_online_features(
        features=[f"{TABLE}:{name}" for name in SCHEMA],
        entity_rows=[{"origin": airport, "number": flight} for airport, flight in keys],
    )
    columns = answer.to_dict()
    return [{name: columns[name][row] for name in SCHEMA} for row in range(len(keys))]


def test_a_plain_feast_client_and_the_packed_store_read_what_was_written(
    feast_resource: FeastResource, url: str, home: Path
) -> None:
    """Every type, nulls, and a key that was never published."""
    published = feast_resource.write_online(TABLE, rows(("EWR", 1, 0, 20.5), ("JFK", 2, 1, None), ("EWR", 2, 2, -4.0)))
    assert published == Published(keys=3, written=3)
    full = {"delay": 20.5, "flights": 7, "late": True, "carrier": "UA", "landed": START}
    nothing = dict.fromkeys(SCHEMA)
    keys = [("EWR", 1), ("JFK", 2), ("EWR", 2), ("LGA", 9)]
    expected = [full, nothing, {**nothing, "delay": -4.0, "late": False}, nothing]
    assert by_plain_feast(url, home, keys) == expected
    assert feast_resource.read_online(TABLE, keys, list(SCHEMA)) == expected
    packed = PackedStore.open(url).read(TABLE, keys)
    assert packed[0] == (1362873600000000, {**full, "landed": "2013-03-10T00:00:00+00:00"})
    assert [row and row[1] for row in packed[1:]] == [*expected[1:3], None]


def test_only_the_newest_row_of_a_key_is_published(feast_resource: FeastResource, url: str, home: Path) -> None:
    of_nothing = [(None, 1, 9, 9.0), ("EWR", None, 9, 9.0)]
    history = rows(("EWR", 1, 0, 1.0), ("EWR", 1, 5, 5.0), ("EWR", 1, 3, 3.0), *of_nothing)
    assert feast_resource.write_online(TABLE, history) == Published(keys=1, written=1)
    assert by_plain_feast(url, home, [("EWR", 1)])[0]["delay"] == 5.0


def test_an_older_event_never_replaces_a_newer_one(feast_resource: FeastResource, url: str, home: Path) -> None:
    """In Feast's own format too, whose SQLite store would take it."""
    feast_resource.write_online(TABLE, rows(("EWR", 1, 5, 5.0)))
    assert feast_resource.write_online(TABLE, rows(("EWR", 1, 4, 4.0), ("JFK", 1, 4, 4.0))) == Published(2, 1)
    keys = [("EWR", 1), ("JFK", 1)]
    assert [row["delay"] for row in by_plain_feast(url, home, keys)] == [5.0, 4.0]
    assert [row and row[1]["delay"] for row in feast_resource.packed().read(TABLE, keys)] == [5.0, 4.0]


def test_a_correction_of_the_newest_event_replaces_it(feast_resource: FeastResource, url: str, home: Path) -> None:
    feast_resource.write_online(TABLE, rows(("EWR", 1, 5, 5.0)))
    assert feast_resource.write_online(TABLE, rows(("EWR", 1, 5, 6.0))).written == 1
    assert by_plain_feast(url, home, [("EWR", 1)])[0]["delay"] == 6.0


def test_what_is_held_is_not_written_again_unless_asked(feast_resource: FeastResource, url: str, home: Path) -> None:
    frame = rows(("EWR", 1, 5, 5.0), ("JFK", 1, 5, None))
    feast_resource.write_online(TABLE, frame)
    assert feast_resource.write_online(TABLE, frame) == Published(keys=2, written=0)
    held = feast_resource.store().get_feature_view(TABLE)
    provider = feast_resource.store()._get_provider()
    provider.update_infra("mlops_assets", [held], [], [], [], partial=True)  # Feast's own half is emptied
    provider.update_infra("mlops_assets", [], [held], [], [], partial=True)
    assert by_plain_feast(url, home, [("EWR", 1)])[0]["delay"] is None
    assert feast_resource.write_online(TABLE, frame, republish=True) == Published(keys=2, written=2)
    assert by_plain_feast(url, home, [("EWR", 1)])[0]["delay"] == 5.0


def test_nan_infinity_and_columns_beyond_the_view_are_published_by_neither(
    feast_resource: FeastResource, url: str, home: Path
) -> None:
    """What plain Feast answers and what the endpoint reads is the same, value for value."""
    frame = rows(("EWR", 1, 0, float("nan")), ("JFK", 1, 0, float("inf"))).with_columns(extra=1)
    feast_resource.write_online(TABLE, frame.select("extra", *reversed(frame.columns[:-1])))
    keys = [("EWR", 1), ("JFK", 1)]
    answers = by_plain_feast(url, home, keys)
    assert [answer["delay"] for answer in answers] == [None, None]
    packed = [row and row[1] for row in feast_resource.packed().read(TABLE, keys)]
    assert [{**answer, "landed": row and row["landed"]} for answer, row in zip(answers, packed, strict=True)] == packed


def test_nothing_to_publish_is_no_error(feast_resource: FeastResource) -> None:
    assert feast_resource.write_online(TABLE, rows()) == Published(keys=0, written=0)
    assert feast_resource.read_online(TABLE, [], list(SCHEMA)) == []


def test_an_unknown_view_names_the_known_ones(feast_resource: FeastResource) -> None:
    with pytest.raises(UnknownViewError, match=r"'test__rout' \(known: test__route\).*feast apply"):
        feast_resource.write_online("test__rout", rows())


def test_a_view_registered_by_another_process_is_found(feast_resource: FeastResource, url: str) -> None:
    FeastResource(online_store=url).apply(objects(view("other")))
    assert feast_resource.write_online("test__other", rows(("EWR", 1, 0, 1.0))).written == 1


def test_applying_the_same_again_changes_nothing(home: Path) -> None:
    resource, registry = FeastResource(), home / "feast" / "registry.db"
    assert resource.apply(objects(view()))
    before = registry.read_bytes()
    assert not FeastResource().apply(list(reversed(objects(view()))))
    assert registry.read_bytes() == before
    assert resource.apply(objects(view(description="Said better")))
    assert plain_store("sqlite://", home).get_feature_view(TABLE).description == "Said better"
    registry.unlink()
    assert resource.apply(objects(view(description="Said better")))


def test_a_ttl_and_its_lack_reach_plain_feast(home: Path) -> None:
    FeastResource().apply(objects(view(), replace(view("lasting"), ttl=None)))
    store = plain_store("sqlite://", home)
    assert store.get_feature_view(TABLE).ttl == timedelta(hours=3)
    assert not store.get_feature_view("test__lasting").ttl


def test_concurrent_registrations_lose_nothing(home: Path) -> None:
    """Each registers a view of its own at once, from a store (and its cache) of its own."""
    names = [f"view{number}" for number in range(6)]
    together = Barrier(len(names))

    def register(name: str) -> None:
        resource, mine = FeastResource(), objects(view(name))
        resource.store()
        together.wait()
        resource.apply(mine)

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(register, names))
    found = {item.name for item in plain_store("sqlite://", home).list_feature_views()}
    assert found == {f"test__{name}" for name in names}


def test_feasts_own_registrations_at_once_lose_nothing(home: Path) -> None:
    """Stores that all read the registry before any of them wrote, as several `feast apply` at once do."""
    FeastResource().apply(objects(view()))
    names = [f"view{number}" for number in range(6)]
    stores = {name: FeastResource().store() for name in names}
    together = Barrier(len(names))

    def register(name: str) -> None:
        mine = objects(view(name))
        together.wait()
        stores[name].apply(mine)

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(register, names))
    found = {item.name for item in plain_store("sqlite://", home).list_feature_views()}
    assert found == {TABLE, *(f"test__{name}" for name in names)}


def test_importing_the_resource_does_not_import_feast() -> None:
    code = "import sys, resources.feast; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"feast", "pandas", "pyarrow", "polars", "redis"} & set(loaded)
