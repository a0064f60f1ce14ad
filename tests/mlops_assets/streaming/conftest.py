"""The sensors team, events of it, and what a batch run would make of them."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest

Event = dict[str, Any]
START = datetime(2024, 3, 1, tzinfo=UTC)


def _sensors() -> ModuleType:
    """`sensors.py`, which is a program as well."""
    if "sensors_of_tests" not in sys.modules:
        spec = importlib.util.spec_from_file_location("sensors_of_tests", Path(__file__).with_name("sensors.py"))
        assert spec and spec.loader
        module = sys.modules["sensors_of_tests"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["sensors_of_tests"]


@dataclass(frozen=True)
class Sensors:
    """The declarations, and the tables as a batch run makes them."""

    module: ModuleType

    @property
    def catalog(self) -> Any:
        return self.module.CATALOG

    def event(self, sensor: str, hour: float, value: float | None, count: int = 1) -> Event:
        return {"sensor": sensor, "at": START + timedelta(hours=hour), "value": value, "count": count}

    def events(self, seed: int, count: int) -> list[Event]:
        """Readings of three sensors in ten days, some days without any, in order of time; values are small integers."""
        chance = random.Random(seed)
        hours = sorted(hour for hour in chance.choices(range(240), k=count) if hour // 24 not in (3, 4, 7))
        return [self.event(chance.choice("abc"), hour, float(chance.randint(-9, 9))) for hour in hours]

    def disturbed(self, events: Sequence[Event], seed: int) -> list[Event]:
        """The same events late, out of order, and some of them twice."""
        chance = random.Random(seed)
        doubled = [*events, *chance.sample(list(events), len(events) // 4)]
        if seed % 2:
            chance.shuffle(doubled)
            return doubled
        return sorted(doubled, key=lambda event: event["at"] + timedelta(hours=chance.choice([0, 1, 5, 60])))

    def batch(self, events: Sequence[Event]) -> dict[str, pl.DataFrame]:
        """Every table computed at once from the distinct events, up to the end of the newest event's day."""
        from mlops_assets.claims import conform
        from mlops_assets.links.table import computed

        source = self.module.readings
        distinct = {(event["sensor"], event["at"]): event for event in events}
        rows = conform(pl.LazyFrame(list(distinct.values()), {k: f.polars for k, f in source.schema.items()}), source)
        newest: Any = rows["at"].max()
        window = (datetime(2024, 1, 1, tzinfo=UTC), newest.replace(hour=0) + timedelta(days=1))
        tables = {"readings": rows}
        for view in self.module.VIEWS:
            inputs = {name: tables[name].lazy() for name in view.inputs}
            tables[view.name] = conform(computed(view, inputs, window), view)
        return tables

    def lake(self) -> dict[str, pl.DataFrame]:
        """Every table as it lies in the lake."""
        from mlops_assets.catalog import asset_key
        from resources.lake import Lake

        tables = (self.module.readings, *self.module.VIEWS)
        return {table.name: Lake().scan(asset_key(table)).collect() for table in tables}

    def online(self, keys: str = "abc") -> dict[str, list[tuple[int, Mapping[str, Any]] | None]]:
        """Every view as the endpoint reads it."""
        from resources.online.packed_store import PackedStore, online_store_url

        store = PackedStore.open(online_store_url())
        names = {view.name: f"sensors__{view.name}" for view in self.module.VIEWS}
        found = {name: store.read(table, [(key,) for key in keys]) for name, table in names.items()}
        store.close()
        return found

    def newest(self, tables: Mapping[str, pl.DataFrame], keys: str = "abc") -> dict[str, list[Any]]:
        """The newest row per key of each view at the time of the newest event, as `online` shows it."""
        at: Any = tables["readings"]["at"].max()
        return {view.name: [_newest(tables[view.name], key, at) for key in keys] for view in self.module.VIEWS}


def _newest(rows: pl.DataFrame, key: str, at: datetime) -> tuple[int, dict[str, Any]] | None:
    known = rows.filter((pl.col("sensor") == key) & (pl.col("event_timestamp") <= at)).sort("event_timestamp")
    if known.is_empty():
        return None
    last = known.row(-1, named=True)
    moment = last.pop("event_timestamp")
    del last["sensor"]
    return round(moment.timestamp() * 1e6), last


@pytest.fixture(autouse=True)
def dagster_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ingestors tell Dagster under the home of the test, and other tests get theirs back."""
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))


@pytest.fixture(scope="session")
def sensors() -> Sensors:
    return Sensors(_sensors())


def assert_same_tables(found: Mapping[str, pl.DataFrame], wanted: Mapping[str, pl.DataFrame]) -> None:
    from polars.testing import assert_frame_equal

    for name, rows in wanted.items():
        assert_frame_equal(found[name], rows, check_exact=True)


@pytest.fixture(scope="session")
def same_tables() -> Any:
    """Row for row and in order, to the last bit."""
    return assert_same_tables
