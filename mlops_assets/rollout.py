"""A model's canary, moved by its rollout sensor: what the sensor may do, the evidence it is given, and who is told.

Going back moves the champion alias with the traffic, which only `Promotion` knows how to do; so does what follows
when a serving process took a release out. Every decision is kept with its numbers; people are alerted of a step back.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import spec
from mlops_assets.links.endpoint import moved
from mlops_assets.metrics import METRICS
from resources.release_record import Limits
from sensors.rollout import BY, Compared, RolloutDecision, Terms, VariantEvidence, rollout_sensor

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
        compare=partial(compared, model),
        terms=Terms(model.monitor.metric_drop, model.serve.max_changed, model.serve.hold),
        decided=partial(decided, model),
        settle=lambda _: _promotion().settle(model, by=BY),
        moved=partial(moved, model),
    )


def evidence(record: ReleaseRecord) -> Mapping[str, VariantEvidence]:
    """What champion and challenger answered since they have their shares, by the prediction log.

    Where a challenger failed the champion answered instead, and the log says so: that is an error of the challenger
    and no answer of the champion's, whose latency it would spoil. A request that nobody answered is not in the log.
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


def compared(model: ModelPipeline, record: ReleaseRecord) -> Compared:
    """Champion and challenger on the requests of the step; with a problem in its place where that cannot be done."""
    from mlops_assets import comparison
    from mlops_assets.serving.prediction_log import PredictionLog
    from mlops_assets.trainers import UnsafeModelFileError
    from resources.artifacts.manifest import DamagedArtifactError, UnreadableManifestError, verified
    from resources.bentos import BentoStore, UnknownBentoError
    from resources.environment import resources_for
    from resources.lake import SchemaDriftError, UnreadableFileError

    unread = (DamagedArtifactError, UnreadableManifestError, UnknownBentoError, UnsafeModelFileError, OSError)
    unknown = (SchemaDriftError, UnreadableFileError)
    pair = record.champion, record.challenger or record.champion
    try:
        both = [comparison.Bundle.at(one.release, verified(BentoStore().path(one.release))) for one in pair]
        types = comparison.input_types(both)
        answers = PredictionLog().since(model.id, datetime.fromisoformat(record.began), types)
        rows = comparison.same_rows(answers, *both)
        rows = comparison.with_truth(rows, model, resources_for()["lake"])
    except comparison.IncomparableError as problem:
        return Compared(problem=str(problem))
    except (*unread, *unknown) as problem:
        return Compared(problem=str(problem), broken=True)
    least = (record.limits or Limits()).min_requests
    return comparison.compare(rows, METRICS[model.gate.metric], least)


def decided(model: ModelPipeline, record: ReleaseRecord, decision: RolloutDecision, by: str) -> None:
    """Keep a decision about a canary and, if it is to go back, tell people. A hold is told in words that stay the same,
    so that waiting is one line of the history.
    """
    from resources.decisions import DecisionStore

    step = f"at {record.canary.weight} %" if record.canary else f"revision {record.revision}"
    reasons = [f"{step}: waits for {decision.waits_for}"] if decision.waits_for else [f"{step}: {decision.reasons[0]}"]
    DecisionStore().record(
        model.id,
        "rollout",
        decision.action,
        [*reasons, *decision.reasons[1:]],
        by=by,
        evidence={"revision": record.revision, "told": list(decision.reasons)},
    )
    if decision.action == "roll back":
        _alert(model, record, decision, by)


def _alert(model: ModelPipeline, record: ReleaseRecord, decision: RolloutDecision, by: str) -> None:
    from resources.alerts import Alert
    from resources.environment import resources_for

    alerts = resources_for()["alerts"]
    out = record.change.refused or ((record.challenger,) if record.challenger else ())
    versions = ", ".join(f"version {one.version}" for one in out)
    alert = Alert(
        title=f"{model.id} {versions} was rolled back",
        text="; ".join(decision.reasons),
        link=alerts.asset_link(spec.link_key(model, "endpoint")),
        suggestion=f"`mlops history {model.id}` says who answers now; {by} took it out, and it stays out",
        group=model.id,
        key=f"rollback of {model.id} {versions} revision {record.revision}",
    )
    alerts.send(alert)


def _releases() -> ReleaseStore:
    from resources.releases import ReleaseStore

    return ReleaseStore()


def _promotion() -> Promotion:
    from mlops_assets.promotion import Promotion

    return Promotion.here()
