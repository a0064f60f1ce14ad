"""A model's canary, moved by its rollout sensor: what the sensor may do, and the evidence it is given.

Going back moves the champion alias with the traffic, which only `Promotion` knows how to do; so does what follows
when a serving process took a release out.
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
from sensors.rollout import BY, VariantEvidence, rollout_sensor

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.promotion import Promotion
    from resources.releases import ReleaseRecord, ReleaseStore

LATENCY_QUANTILE = 0.95


class Canary:
    """The verbs of a rollout, by model id."""

    def read(self, model: str) -> ReleaseRecord | None:
        return _releases().read(model)

    def advance(self, model: str, *, by: str, why: str, revision: int) -> ReleaseRecord:
        return _releases().advance(model, by=by, why=why, revision=revision)

    def rollback(self, model: str, *, by: str, why: str, revision: int) -> ReleaseRecord:
        from mlops_assets.catalog import gather

        return _promotion().rollback(gather().model(model), by=by, why=why, revision=revision)


def rollout(model: ModelPipeline) -> dg.SensorDefinition:
    """The sensor that advances the model's canary, or rolls it back."""
    return rollout_sensor(
        model.id,
        Canary(),
        evidence,
        metric_drop=model.monitor.metric_drop,
        higher_is_better=METRICS[model.gate.metric].higher_is_better,
        settle=lambda _: _promotion().settle(model, by=BY),
        moved=partial(moved, model),
    )


def evidence(record: ReleaseRecord) -> Mapping[str, VariantEvidence]:
    """What champion and challenger answered since they have their shares, by the prediction log.

    Where a challenger failed the champion answered instead, and the log says so: that is an error of the challenger
    and no answer of the champion's, whose latency it would spoil. A request that nobody answered is not in the log,
    and labels are not known within a step.
    """
    from mlops_assets.serving.prediction_log import PredictionLog

    answers = PredictionLog().since(record.model, datetime.fromisoformat(record.began), types={})
    return {variant.role: _evidence(answers, variant.release) for variant in record.answering}


def _evidence(answers: pl.DataFrame, release: str) -> VariantEvidence:
    import polars as pl

    own = answers.filter(pl.col("release") == release, pl.col("instead_of").is_null())
    failed = answers.filter(pl.col("instead_of") == release).height
    latency = own["latency_ms"].quantile(LATENCY_QUANTILE)
    return VariantEvidence(own.height + failed, failed, latency)


def _releases() -> ReleaseStore:
    from resources.releases import ReleaseStore

    return ReleaseStore()


def _promotion() -> Promotion:
    from mlops_assets.promotion import Promotion

    return Promotion.here()
