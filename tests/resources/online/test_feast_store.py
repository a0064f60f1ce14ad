"""Whoever writes through our configuration, with Feast's own verbs or ours: the newest row wins, in both formats."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import resources.feast
from mlops_assets import Bool, Entity, Float64, Int64, String, UnixTimestamp, feast_objects
from mlops_assets.catalog import asset_key
from mlops_assets.declarations import FeatureView
from mlops_assets.fields import Float64Array
from mlops_assets.links.online import publish_online
from mlops_assets.links.snapshot import held_online, rebuild_online
from resources.environment import PROJECT
from resources.feast import FeastResource, Published
from resources.lake import Lake

if TYPE_CHECKING:
    import feast

YAML = PROJECT / "feature_assets" / "feature_store.yaml"
START = datetime(2013, 3, 10, tzinfo=UTC)
SCHEMA = {
    "delay": Float64("Delay", unit="minute"),
    "flights": Int64("Flights"),
    "late": Bool("Late"),
    "carrier": String("Carrier"),
    "landed": UnixTimestamp("Landed"),
    "where": Float64Array("Where it goes", size=2),
}
VIEW = FeatureView(
    name="route",
    team="test",
    schema=SCHEMA,
    compute=pl.LazyFrame,
    entities=(Entity("origin", "origin"), Entity("flight", "number", Int64)),
    ttl=timedelta(hours=3),
)
TABLE, KEYS = "test__route", ("origin", "number")


def frame(*given: tuple[str, int, float, float | None]) -> pl.DataFrame:
    """Rows of (origin, number, hours after START, delay); the other features follow from the delay."""
    types = {"origin": pl.String(), "number": pl.Int64(), "event_timestamp": pl.Datetime("us", "UTC")}
    times = [(origin, number, START + timedelta(hours=hours), delay) for origin, number, hours, delay in given]
    return pl.DataFrame(times, schema={**types, "delay": pl.Float64()}, orient="row").with_columns(
        flights=pl.col("delay").cast(pl.Int64),
        late=pl.col("delay") > 15,
        carrier=pl.when(pl.col("delay") > 0).then(pl.lit("UA")),
        landed=pl.col("event_timestamp").dt.truncate("1h"),
        where=pl.when(pl.col("delay") > 0).then(pl.concat_list("delay", pl.col("delay") * 2)),
    )


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The online store of the environment, as `feature_store.yaml` finds it."""
    sqlite = request.param == "sqlite"
    where = f"sqlite:///{home}/feast/online_store.db" if sqlite else request.getfixturevalue("redis_url")
    monkeypatch.setenv("MLOPS_ONLINE_STORE", where)
    return where


@pytest.fixture
def ours(url: str) -> FeastResource:
    resource = FeastResource()
    resource.apply(feast_objects.compile([VIEW], [], Lake()))
    return resource


def client() -> feast.FeatureStore:
    """A Feast client of our configuration, as the command line and a user's program have it."""
    from feast import FeatureStore

    return FeatureStore(repo_path=str(YAML.parent), fs_yaml_file=YAML)


def delays(ours: FeastResource, *keys: tuple[str, int]) -> list[Any]:
    """By Feast and from the packed rows, which must agree."""
    found = [row["delay"] for row in ours.read_online(TABLE, keys, ["delay"])]
    assert [row and row[1]["delay"] for row in ours.packed().read(TABLE, keys)] == found
    assert list(ours.online_differences(TABLE)) == []
    return found


def test_feasts_own_write_goes_into_both_formats(ours: FeastResource) -> None:
    """`write_to_online_store` writes what our publication of the same rows writes, byte for byte."""
    rows = frame(("EWR", 1, 0, 20.5), ("JFK", 2, 1, None), ("EWR", 2, 2, -4.0))
    client().write_to_online_store(TABLE, rows.to_pandas())
    by_feast = stored(ours)
    assert ours.write_online(TABLE, rows) == Published(keys=3, written=0), "it is all held already"
    ours.empty_online(TABLE)
    assert ours.write_online(TABLE, rows).written == 3
    assert stored(ours) == by_feast


def test_feasts_own_format_is_byte_for_byte_what_feast_writes(ours: FeastResource, home: Path) -> None:
    """Compared with Feast's own store, in a database of its own."""
    from feast import FeatureStore, RepoConfig

    rows = frame(("EWR", 1, 0, 20.5), ("JFK", 2, 1, None), ("EWR", 2, 2.5, -4.0))
    ours.write_online(TABLE, rows)
    redis, own = ours._url.startswith("redis"), f"{home}/feast/plain.db"
    address = f"{ours._url.removeprefix('redis://').removesuffix('/0')},db=1"
    online = {"type": "redis", "connection_string": address} if redis else {"type": "sqlite", "path": own}
    config = RepoConfig(
        project="mlops_assets",
        provider="local",
        registry=str(home / "feast" / "registry.db"),
        online_store=online,
        entity_key_serialization_version=3,
    )
    plain = FeatureStore(config=config)
    plain._get_provider().update_infra("mlops_assets", [], [plain.get_feature_view(TABLE)], [], [], partial=True)
    plain.write_to_online_store(TABLE, rows.to_pandas())
    assert feasts(ours._url) == feasts(ours._url.replace("/0", "/1") if redis else f"sqlite:///{own}")


def feasts(url: str) -> Any:
    """All that Feast's format holds."""
    if url.startswith("redis"):
        import redis

        with redis.Redis.from_url(url) as held:
            return {key: held.hgetall(key) for key in held.keys("*mlops_assets")}
    import sqlite3

    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    rows = connection.execute(f"SELECT * FROM mlops_assets_{TABLE} ORDER BY entity_key, feature_name").fetchall()
    connection.close()
    return rows


def stored(ours: FeastResource) -> Any:
    return feasts(ours._url), sorted(ours.packed()._scan(TABLE))


def test_a_missing_time_is_null_however_feast_says_it(ours: FeastResource) -> None:
    """From a pandas frame Feast makes it the smallest number there is."""
    rows = frame(("EWR", 1, 0, 20.5), ("JFK", 1, 0, 3.0))
    missing = rows.with_columns(landed=pl.when(pl.col("origin") == "JFK").then("landed"))
    client().write_to_online_store(TABLE, missing.to_pandas())
    assert [row and row[1]["landed"] for row in ours.packed().read(TABLE, [("EWR", 1), ("JFK", 1)])] == [
        None,
        "2013-03-10T00:00:00+00:00",
    ]
    assert list(ours.online_differences(TABLE)) == []


def test_an_older_row_never_wins_whoever_writes_it(ours: FeastResource) -> None:
    ours.write_online(TABLE, frame(("EWR", 1, 5, 5.0)))
    client().write_to_online_store(TABLE, frame(("EWR", 1, 4, 4.0), ("JFK", 1, 4, 4.0)).to_pandas())
    assert delays(ours, ("EWR", 1), ("JFK", 1)) == [5.0, 4.0]
    client().write_to_online_store(TABLE, frame(("EWR", 1, 6, 6.0), ("EWR", 1, 5.5, 5.5)).to_pandas())
    assert ours.write_online(TABLE, frame(("EWR", 1, 5.9, 5.9))).written == 0
    assert delays(ours, ("EWR", 1)) == [6.0]


def test_times_within_one_second_are_told_apart(ours: FeastResource) -> None:
    """Feast's SQLite store holds whole seconds."""
    second = 1 / 3600
    ours.write_online(TABLE, frame(("EWR", 1, 0.4 * second, 4.0)))
    ours.write_online(TABLE, frame(("EWR", 1, 0.3 * second, 3.0)))
    assert delays(ours, ("EWR", 1)) == [4.0]


def test_of_many_writers_at_once_the_newest_wins(ours: FeastResource) -> None:
    """Eight, with Feast's verbs and ours, each with every event in an order of its own."""
    events = [("EWR", 1, hour, float(hour)) for hour in range(12)]
    view, provider, config = ours._view(TABLE), ours.store()._get_provider(), ours.store().config

    def write(seed: int) -> None:
        for event in random.Random(seed).sample(events, len(events)):
            if seed % 2:
                ours.write_online(TABLE, frame(event))
            else:
                provider.online_write_batch(config, view, protos(view, event), None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert delays(ours, ("EWR", 1)) == [11.0]


def protos(view: Any, *events: Any, created: Sequence[datetime | None] = (None,)) -> list[Any]:
    """Rows as Feast hands them to an online store."""
    from feast.utils import _convert_arrow_to_proto

    rows = frame(*events)
    keys = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
    given = _convert_arrow_to_proto(rows.with_columns(pl.col("event_timestamp").dt.cast_time_unit("us")).to_arrow(
        compat_level=pl.CompatLevel.oldest()
    ), view, keys)  # fmt: skip
    return [(*row[:3], when) for row, when in zip(given, created * len(given), strict=False)]


def test_of_one_event_time_the_later_created_wins_then_the_later_arrived(ours: FeastResource) -> None:
    view, provider, config = ours._view(TABLE), ours.store()._get_provider(), ours.store().config

    def write(delay: float, created: datetime | None) -> Any:
        provider.online_write_batch(config, view, protos(view, ("EWR", 1, 5, delay), created=[created]), None)
        return delays(ours, ("EWR", 1))[0]

    noon = START + timedelta(hours=12)
    assert write(1.0, None) == 1.0
    assert write(2.0, noon) == 2.0
    assert write(3.0, noon - timedelta(minutes=1)) == 2.0
    assert write(4.0, noon) == 4.0
    assert write(5.0, None) == 4.0


def test_a_value_past_its_ttl_is_null_and_says_so(ours: FeastResource) -> None:
    """Through plain `FeatureStore.get_online_features`; what was never written is not found."""
    now = datetime.now(UTC)
    fresh, old = (now - timedelta(hours=hours) - START for hours in (1, 4))
    given = frame(("EWR", 1, fresh / timedelta(hours=1), 1.0), ("JFK", 1, old / timedelta(hours=1), 4.0))
    ours.write_online(TABLE, given)
    keys = [{"origin": origin, "number": 1} for origin in ("EWR", "JFK", "LGA")]
    answer = client().get_online_features([f"{TABLE}:delay", f"{TABLE}:carrier"], keys)
    columns = answer.to_dict()
    assert (columns["delay"], columns["carrier"]) == ([1.0, None, None], ["UA", None, None])
    assert statuses(answer, "delay") == statuses(answer, "carrier") == ["PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND"]
    asked = [("EWR", 1), ("JFK", 1)]
    assert [row["delay"] for row in ours.read_online(TABLE, asked, ["delay"])] == [1.0, 4.0], "as it is held"
    at = now + timedelta(hours=2.5)
    assert [row["delay"] for row in ours.read_online(TABLE, asked, ["delay"], at=at)] == [None, None]


def statuses(answer: Any, feature: str) -> list[str]:
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    place = list(answer.proto.metadata.feature_names.val).index(feature)
    return [FieldStatus.Name(status) for status in answer.proto.results[place].statuses]


def test_a_publication_that_was_cut_off_goes_on_where_it_was(
    ours: FeastResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is half written: each row is in both formats or in neither; what is held is not written again."""
    monkeypatch.setattr(resources.feast, "ROWS_AT_ONCE", 10)
    rows = frame(*(("EWR", number, 0, float(number)) for number in range(35)))
    told: list[tuple[int, int]] = []

    def killed(done: int, total: int) -> None:
        told.append((done, total))
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ours.write_online(TABLE, rows, progress=killed)
    assert told == [(10, 35), (20, 35)]
    assert ours.packed().count(TABLE) == 20 and list(ours.online_differences(TABLE)) == []
    assert ours.write_online(TABLE, rows) == Published(keys=35, written=15)
    assert delays(ours, *(("EWR", number) for number in range(35))) == [float(number) for number in range(35)]


def test_where_the_formats_differ_is_told_and_made_good(ours: FeastResource, home: Path) -> None:
    """Somebody wrote past our store: every difference is named, and publishing again restores both."""
    rows = frame(("EWR", 1, 0, 20.5), ("JFK", 2, 1, 3.0))
    ours.write_online(TABLE, rows)
    tamper(ours._url)
    assert list(ours.online_differences(TABLE)) == [(("EWR", 1), "delay", 20.5, 99.0)]
    ours.write_online(TABLE, rows, republish=True)
    assert list(ours.online_differences(TABLE)) == []


def tamper(url: str) -> None:
    """Set EWR's delay to 99 in Feast's format alone."""
    from feast.infra.online_stores.helpers import _mmh3
    from feast.protos.feast.types.Value_pb2 import Value

    value = Value(double_val=99.0).SerializeToString()
    if url.startswith("redis"):
        import redis

        with redis.Redis.from_url(url) as held:
            (key,) = held.keys("*EWR*mlops_assets")
            held.hset(key, _mmh3(f"{TABLE}:delay"), value)
    else:
        import sqlite3

        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        where = "feature_name = 'delay' AND instr(entity_key, CAST('EWR' AS BLOB))"
        connection.execute(f"UPDATE mlops_assets_{TABLE} SET value = ? WHERE {where}", (value,))
        connection.commit()
        connection.close()


def test_a_view_that_is_deleted_is_gone_from_both_formats(ours: FeastResource) -> None:
    ours.write_online(TABLE, frame(("EWR", 1, 0, 1.0)))
    store = client()
    store._get_provider().update_infra("mlops_assets", [store.get_feature_view(TABLE)], [], [], [], partial=True)
    assert ours.packed().read(TABLE, [("EWR", 1)]) == [None]


@pytest.fixture
def lake(home: Path) -> Iterator[Lake]:
    """Three days of the view, offline."""
    lake = Lake()
    for day in range(3):
        rows = frame(*(("EWR", number, 24 * day + number, float(10 * day + number)) for number in range(1, 5)))
        lake.write(rows, asset_key(VIEW), f"{START + timedelta(days=day):%Y-%m-%d}")
    return lake


def test_rebuilt_from_offline_alone_the_online_store_is_equal(ours: FeastResource, lake: Lake) -> None:
    """Also after late, repeated and corrected writes: every byte of both formats, and the snapshot."""
    lasting = replace(VIEW, ttl=None)
    end = START + timedelta(days=3)
    everything = lake.scan(asset_key(VIEW)).collect()
    for seed in range(4):
        ours.write_online(TABLE, everything.sample(5, seed=seed, with_replacement=True))
    wrong = everything.tail(2).with_columns(delay=-1.0)
    ours.write_online(TABLE, wrong)
    publish_online(ours, lake, lasting, end)
    before, snapshot = stored(ours), held_online(ours, VIEW)
    rebuild_online(ours, lake, lasting, end)
    assert stored(ours) == before
    assert_frame_equal(held_online(ours, VIEW), snapshot)
    newest = everything.filter(pl.col("event_timestamp") >= START + timedelta(days=2)).sort(KEYS)
    assert_frame_equal(snapshot, newest.select(snapshot.columns))


def test_rebuilt_as_of_a_moment_nothing_newer_stays(ours: FeastResource, lake: Lake) -> None:
    publish_online(ours, lake, VIEW, START + timedelta(days=2, hours=4))
    rebuild_online(ours, lake, VIEW, START + timedelta(days=1, hours=3))
    assert held_online(ours, VIEW)["delay"].to_list() == [11.0, 12.0, 13.0]
    assert list(ours.online_differences(TABLE)) == []


@pytest.mark.parametrize(
    ("url", "connection"),
    [
        ("redis://cache:6380/2", "cache:6380,db=2"),
        ("redis://cache", "cache:6379,db=0"),
        ("rediss://user:secret@cache:6379/0", "cache:6379,db=0,ssl=true,username=user,password=secret"),
    ],
)
def test_a_redis_url_becomes_feasts_own_configuration(
    home: Path, monkeypatch: pytest.MonkeyPatch, url: str, connection: str
) -> None:
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig
    from feast.repo_config import load_repo_config

    monkeypatch.setenv("MLOPS_ONLINE_STORE", url)
    online = load_repo_config(YAML.parent, YAML).online_store
    assert isinstance(online, RedisOnlineStoreConfig)
    assert online.connection_string == connection


@pytest.mark.parametrize(
    ("url", "options", "named"),
    [
        ("redis://cache", {"redis_type": "redis_cluster", "key_ttl_seconds": 60}, "redis_type, key_ttl_seconds"),
        ("sqlite:////tmp/x.db", {"vector_enabled": True}, "vector_enabled"),
    ],
)
def test_options_that_packed_rows_cannot_honour_are_refused(url: str, options: dict[str, Any], named: str) -> None:
    from resources.online.feast_store import HomeOnlineStoreConfig, UnsupportedOptionError

    with pytest.raises(UnsupportedOptionError, match=f"{named} cannot be used.*Leave it out"):
        HomeOnlineStoreConfig(url=url, **options)
