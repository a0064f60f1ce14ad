"""Online is offline at the same moment, or the gate names what differs, with both values and why.

Real stores: a lake of Parquet partitions, the packed online store, the prediction log, Bentos on disk. Online rows
are published by the functions that the online assets call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets import (
    Bool,
    Entity,
    FeatureView,
    Float64,
    Gate,
    Labels,
    ModelPipeline,
    Parity,
    String,
    feature_view,
    labels,
    on_demand,
)
from mlops_assets.catalog import asset_key
from mlops_assets.links.online import newest_rows, recent
from mlops_assets.parity import Report, alike, differences, feature_parity, features_in_time
from mlops_assets.serving.plan import FeaturePlan, look_up, microseconds
from mlops_assets.serving.prediction_log import Answered, PredictionLog
from mlops_assets.trainers import XGBoostClassifier
from resources.bentos import BentoStore
from resources.lake import Lake, NotMaterializedError
from resources.packed_store import PackedStore

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
START = datetime(2013, 7, 1, tzinfo=UTC)
NOON = START + 12 * HOUR
PLACES = ("EWR", "JFK", "LGA")
KEY, TIME = "place", "event_timestamp"
daily = dg.DailyPartitionsDefinition(start_date="2013-06-01")
cutoffs = dg.WeeklyPartitionsDefinition(start_date="2013-06-03")
place = Entity("place", KEY, description="Where")


def nothing() -> pl.LazyFrame:
    raise AssertionError("parity reads what is published and computes no view")


WIND = {
    "gust": Float64("Strongest gust", unit="mile/hour", max_null_share=1),
    "heat": Float64("Temperature", unit="degree Celsius", max_null_share=1),
    "sky": String("Cloud cover", max_null_share=1),
}
wind = feature_view(team="t", entities=[place], ttl=3 * HOUR, partitions=daily, schema=WIND)(nothing)
wind = replace(wind, name="wind")
crowd = feature_view(team="t", entities=[place], partitions=daily, schema={"queue": Float64("People", unit="person")})
crowd_view = replace(crowd(nothing), name="crowd")
trips = labels(
    team="t",
    key="trip_id",
    entities=[place],
    request={"distance": Float64("How far", unit="mile")},
    targets={"late": Bool("Was it")},
    partitions=daily,
)(nothing)
trips = replace(trips, name="trips")


def model_of(*features: Any, **options: Any) -> ModelPipeline:
    return ModelPipeline(
        name="m",
        team="t",
        labels=trips,
        label="late",
        features=features or (wind, crowd_view),
        trainer=XGBoostClassifier(),
        cutoffs=cutoffs,
        gate=Gate("roc_auc", at_least=0.5),
        **options,
    )


def hourly(first: datetime, count: int, value: Callable[[int, int], float], shift: timedelta = timedelta()) -> Any:
    """Wind rows of every place and hour; every hour has its own values."""
    rows = [
        {KEY: name, TIME: first + i * HOUR + shift, "gust": value(i, j), "heat": 10.0 + i - j, "sky": f"sky {i % 5}"}
        for i in range(count)
        for j, name in enumerate(PLACES)
    ]
    return pl.DataFrame(rows, schema_overrides={TIME: pl.Datetime("us", "UTC")})


def gusts(i: int, j: int) -> float:
    return 5.0 + 3 * i + 100 * j


def queues(first: datetime, count: int) -> pl.DataFrame:
    rows = [{KEY: name, TIME: first + i * DAY, "queue": 7.0 * i + j} for i in range(count) for j, name in enumerate(PLACES)]
    return pl.DataFrame(rows, schema_overrides={TIME: pl.Datetime("us", "UTC")})


@dataclass
class World:
    """A lake, an online store, a log and Bentos in a directory."""

    root: Path
    model: ModelPipeline = field(default_factory=model_of)

    def __post_init__(self) -> None:
        self.lake = Lake(root=str(self.root / "lake"))
        self.store = PackedStore.open(f"sqlite:///{self.root / 'packed.db'}")
        self.log = PredictionLog(self.root / "predictions")
        self.bentos = BentoStore(self.root / "bentoml")
        self.release(FeaturePlan.of(self.model))

    # -- what is published

    def offline(self, view: FeatureView | Labels, rows: pl.DataFrame, written: datetime | None = None) -> None:
        """The rows, by their day; `written` is when, by the clock of the files."""
        days = {}
        for (day,), part in rows.group_by(pl.col(TIME).dt.strftime("%Y-%m-%d"), maintain_order=True):
            days[day] = part.sort(TIME)
        for path in self.lake.write_partitions(days, asset_key(view)).values():
            if written is not None:
                os.utime(path, (written.timestamp(), written.timestamp()))

    def online(self, view: FeatureView, as_of: datetime, rows: pl.DataFrame | None = None) -> None:
        """What offline has as of a moment, as the online asset publishes it, or rows that it should not have."""
        newest = newest_rows(recent(self.lake, view, as_of) if rows is None else rows.lazy(), view, as_of)
        rows_of = ((tuple(row[key] for key in view.join_keys), row) for row in newest.to_dicts())
        packed = [(key, microseconds(row[TIME]), {name: row[name] for name in view.schema}) for key, row in rows_of]
        self.store.write(f"{view.team}__{view.name}", packed)

    def release(self, plan: FeaturePlan, tag: str = "t_m:1") -> None:
        """A Bento as far as its plan."""
        place = self.root / "bentoml" / "bentos" / tag.replace(":", "/")
        (place / "src" / "bundle").mkdir(parents=True)
        (place / "bento.yaml").write_text("")
        (place / "src" / "bundle" / "plan.json").write_text(json.dumps(plan.to_json()))

    # -- requests

    def ask(self, at: datetime, plan: FeaturePlan | None = None, tag: str = "t_m:1") -> None:
        """Every place asked about at a moment and logged, by the endpoint's own look-up and writer."""
        plan = plan or FeaturePlan.of(self.model)
        asked = [{KEY: name, "distance": 100.0} for name in PLACES]
        writer = self.log.writer()
        writer.write(
            [
                Answered("t/m", f"{at:%H%M} {row[KEY]}", at, tag, "1", "champion", {KEY: row[KEY]}, plan.inputs, looked, 0.5)
                for row, looked in zip(asked, look_up(plan, self.store, asked, at), strict=True)
            ]
        )
        writer.close()

    def report(self, model: ModelPipeline | None = None, plan: FeaturePlan | None = None, **options: Any) -> Report:
        plan = plan or FeaturePlan.of(self.model)
        stores = {"lake": self.lake, "store": self.store, "bentos": self.bentos, "log": self.log}
        return differences(model or self.model, plan, **stores, **options)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two days of hourly wind and daily queues, long since offline, and online as of noon of the second day."""
    world = World(tmp_path)
    long_ago = datetime.now(UTC) - DAY
    world.offline(wind, hourly(START - DAY, 48, gusts), written=long_ago)
    world.offline(crowd_view, queues(START - DAY, 3), written=long_ago)
    world.offline(trips, events(START - DAY, 48), written=long_ago)
    return world


def events(first: datetime, count: int) -> pl.DataFrame:
    rows = [
        {"trip_id": f"trip {i} {name}", KEY: name, TIME: first + i * HOUR + timedelta(minutes=7), "distance": 100.0 + i}
        for i in range(count)
        for name in PLACES
    ]
    return pl.DataFrame(rows, schema_overrides={TIME: pl.Datetime("us", "UTC")}).with_columns(
        label_known_at=pl.col(TIME) + DAY, late=pl.lit(False)
    )


def test_smoke(world: World) -> None:
    world.online(wind, NOON)
    world.online(crowd_view, NOON)
    report = world.report()
    print(report)
    assert report.origin == "sampled events" and not report.differences and report.values
    world.ask(NOON + timedelta(minutes=5))
    report = world.report()
    assert report.origin == "logged answers" and not report.differences and report.values == 12
