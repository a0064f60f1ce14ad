"""A model's canary, moved by its rollout sensor: what the sensor may do, and the evidence it is given.

Going back moves the champion alias with the traffic, which only `Promotion` knows how to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from mlops_assets.declarations import ModelPipeline
from mlops_assets.links.endpoint import moved
from mlops_assets.metrics import METRICS
from sensors.rollout import RolloutLimits, VariantEvidence, rollout_sensor

if TYPE_CHECKING:
    from resources.releases import ReleaseRecord

MIN_REQUESTS = 50
LATENCY_QUANTILE = 0.95


class Canary:
    """The verbs of a rollout, by model id."""

    def read(self, model: str) -> ReleaseRecord | None:
        from resources.releases import ReleaseStore

        return ReleaseStore().read(model)

    def advance(self, model: str, *, by: str, why: str) -> ReleaseRecord:
        from resources.releases import ReleaseStore

        return ReleaseStore().advance(model, by=by, why=why)

    def rollback(self, model: str, *, by: str, why: str) -> ReleaseRecord:
        from mlops_assets.catalog import gather
        from mlops_assets.promotion import Promotion

        return Promotion.here().rollback(gather().model(model), by=by, why=why)


def rollout(model: ModelPipeline) -> dg.SensorDefinition:
    """The sensor that advances the model's canary, or rolls it back."""
    return rollout_sensor(
        model.id,
        Canary(),
        evidence,
        RolloutLimits(min_requests=MIN_REQUESTS, metric_drop=model.monitor.metric_drop),
        higher_is_better=METRICS[model.gate.metric].higher_is_better,
        moved=partial(moved, model),
    )


def evidence(model: str, since: datetime) -> Mapping[str, VariantEvidence]:
    """What each variant answered since a moment, by the prediction log.

    Errors are not in the log (a failed request has no answer) and labels are not known within a step:
    the decision rests on latency until both are.
    """
    import polars as pl

    from mlops_assets.serving.prediction_log import PredictionLog

    answers = PredictionLog().since(model, since)
    by_variant = answers.group_by("variant").agg(
        requests=pl.len(), latency_ms=pl.col("latency_ms").quantile(LATENCY_QUANTILE)
    )
    return {row["variant"]: VariantEvidence(row["requests"], 0, row["latency_ms"]) for row in by_variant.to_dicts()}
