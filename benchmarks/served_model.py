"""The model that the serving benchmarks serve: XGBoost, 100 trees, ten inputs, which rows bring or two views hold.

Written as a training writes it, built into a Bento, released, and its features published through Feast and packed,
all under MLOPS_HOME.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mlops_assets.fields import Float64
from mlops_assets.input_schema import InputSchema
from mlops_assets.serving.plan import FeaturePlan, PlannedEntity, ViewRead
from mlops_assets.trainers import XGBoostClassifier, load_predictor
from resources.bentos import BentoStore
from resources.releases import ReleaseStore

MODEL = "bench/score"
INPUTS = tuple(f"f{number}" for number in range(10))
VIEWS = {"bench__first": INPUTS[:5], "bench__second": INPUTS[5:]}
KEYS = 10_000
PUBLISHED = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Bundle:
    """A whole bundle, as a Bento carries it."""

    directory: Path

    @property
    def native(self) -> Path:
        """XGBoost's own file."""
        return self.directory / "model" / "model.ubj"

    @property
    def onnx(self) -> Path:
        """What ONNX Runtime serves."""
        return self.directory / "model" / "serving.onnx"

    def booster(self) -> Any:
        """XGBoost's own model, on one thread as the servers have it."""
        import xgboost as xgb

        return xgb.Booster({"nthread": 1}, model_file=self.native)

    def release(self, version: str) -> str:
        """Build its Bento and give it all traffic; returns the tag."""
        tag = self.build(version)
        ReleaseStore().start_canary(MODEL, tag, version, [100], by="benchmark", why="to be measured")
        return tag

    def build(self, version: str) -> str:
        return BentoStore().build(self.directory, MODEL, {"version": version, "run_id": version})


def features(rows: int, seed: int = 0) -> pl.DataFrame:
    """Rows of the ten inputs; float32 numbers, so that every server reads the very same."""
    numbers = np.random.default_rng(seed).normal(size=(rows, len(INPUTS))).astype(np.float32)
    return pl.DataFrame(numbers.astype(np.float64), schema=list(INPUTS), orient="row")


def bundle(directory: Path, trees: int = 100, seed: int = 0, shift: float = 0.0) -> Bundle:
    """Train and write one; with a `shift` it states golden predictions that it does not give, so it is broken."""
    frame, trainer = features(5_000, seed), XGBoostClassifier(n_estimators=trees, max_depth=6)
    schema = InputSchema.fit(frame, {name: Float64(f"Input {name}") for name in INPUTS})
    x = schema.encode_frame(frame)
    y = (x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2]) + x[:, 3] > 0).astype(np.float64)
    trainer.save(trainer.fit(x, y, None, None, {}, seed), directory / "model")
    predict = load_predictor("xgboost", directory / "model")
    golden = frame.head(20)
    stated = (predict(schema.encode(golden.rows())) + shift).tolist()
    manifest = {"model": MODEL, "task": "classification", "framework": "xgboost", "label": "hit", "run_id": str(seed)}
    parts: dict[str, Any] = {
        "manifest": manifest,
        "schema": schema.to_json(),
        "plan": plan().to_json(),
        "golden": {"rows": [list(row) for row in golden.rows()], "predictions": stated},
    }
    for name, part in parts.items():
        (directory / f"{name}.json").write_text(json.dumps(part))
    frame.with_columns(prediction=pl.Series(predict(x))).write_parquet(directory / "baseline.parquet")
    return Bundle(directory)


def plan() -> FeaturePlan:
    views = tuple(ViewRead(table.replace("__", "/"), table, ("key",), names, None) for table, names in VIEWS.items())
    return FeaturePlan(MODEL, "request_id", (PlannedEntity("key", "String", "Whom it is about"),), (), views, INPUTS)


def key(number: int) -> str:
    return f"N{number:06d}"


def publish(rows: int = KEYS) -> pl.DataFrame:
    """Fill the online store of MLOPS_HOME through the platform's Feast resource; returns what was published."""
    from resources.feast import FeastResource
    from resources.online.packed_store import online_store_url

    held, feast = features(rows, seed=7), FeastResource(online_store=online_store_url())
    feast.apply(_feast_objects())
    store = feast.store()
    store._get_provider().update_infra(  # noqa: SLF001  makes the tables, as `feast apply` does
        "mlops_assets", [], store.list_feature_views(), [], [], partial=True
    )
    keys = pl.Series("key", [key(number) for number in range(rows)])
    times = pl.Series("event_timestamp", [PUBLISHED], dtype=pl.Datetime("us", "UTC")).new_from_index(0, rows)
    for table, names in VIEWS.items():
        feast.write_online(table, held.select(names).with_columns(keys, times))
    return held


def _feast_objects() -> list[Any]:
    from feast import Entity, FeatureView, Field, FileSource
    from feast.types import Float64 as Number
    from feast.types import String
    from feast.value_type import ValueType

    entity = Entity(name="key", join_keys=["key"], value_type=ValueType.STRING)
    sources = {name: FileSource(name=name, path="none.parquet", timestamp_field="event_timestamp") for name in VIEWS}
    views = [
        FeatureView(
            name=table,
            entities=[entity],
            ttl=timedelta(0),
            schema=[Field(name="key", dtype=String), *(Field(name=name, dtype=Number) for name in names)],
            source=sources[table],
        )
        for table, names in VIEWS.items()
    ]
    return [entity, *sources.values(), *views]
