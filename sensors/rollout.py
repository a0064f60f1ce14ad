"""Rollout: a canary goes on, waits, or goes back, by what both variants did since its step began.

The decision compares the challenger with the champion over the same time, never with a fixed number, so
that a slow day of the whole world rolls nothing back. It is made on a minimum of requests; only errors
that could no longer be made good within that minimum end a canary earlier.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal, Protocol

import dagster as dg

from resources.releases import ReleaseRecord, StaleReleaseError

Action = Literal["advance", "hold", "roll back"]
BY = "sensors.rollout"


@dataclass(frozen=True)
class VariantEvidence:
    """One variant since the step began. `requests` include the `errors`; `latency_ms` is a high quantile.

    `metric` is None while too few labels are known; it is in the unit of the gate's metric.
    """

    requests: int = 0
    errors: int = 0
    latency_ms: float | None = None
    metric: float | None = None

    @property
    def error_share(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class RolloutLimits:
    """How much worse than the champion a canary may be, and on how many requests of each it is judged."""

    min_requests: int = 200
    error_share: float = 0.01
    latency_factor: float = 1.5
    latency_ms: float = 5.0
    metric_drop: float = 0.03


@dataclass(frozen=True)
class RolloutDecision:
    """What to do with a canary's step, and why."""

    action: Action
    reasons: tuple[str, ...]


class Releases(Protocol):
    """What of `resources.releases.ReleaseStore` a rollout uses."""

    def read(self, model: str) -> ReleaseRecord | None: ...

    def advance(self, model: str, *, by: str, why: str) -> ReleaseRecord: ...

    def rollback(self, model: str, *, by: str, why: str) -> ReleaseRecord: ...


AssetEvent = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation
Evidence = Callable[[str, datetime], Mapping[str, VariantEvidence]]


def rollout_decision(
    champion: VariantEvidence,
    challenger: VariantEvidence,
    limits: RolloutLimits = RolloutLimits(),
    *,
    higher_is_better: bool = True,
) -> RolloutDecision:
    """Judge one step of a canary. A metric that is not known yet is no reason, neither way."""
    if too_many := _too_many_errors(champion, challenger, limits):
        return RolloutDecision("roll back", (too_many,))
    for name, variant in (("challenger", challenger), ("champion", champion)):
        if variant.requests < limits.min_requests:
            return RolloutDecision("hold", (f"{name} has {variant.requests} of {limits.min_requests} requests",))
    found = (_slower(champion, challenger, limits), _worse(champion, challenger, limits, higher_is_better))
    if worse := tuple(filter(None, found)):
        return RolloutDecision("roll back", worse)
    return RolloutDecision("advance", (_fine(champion, challenger),))


def _too_many_errors(champion: VariantEvidence, challenger: VariantEvidence, limits: RolloutLimits) -> str | None:
    """More than the champion's share and the limit allow, of the requests so far or of the minimum if that is more."""
    allowed = champion.error_share + limits.error_share
    if challenger.errors <= allowed * max(challenger.requests, limits.min_requests):
        return None
    return f"{challenger.errors} of {challenger.requests} requests failed, {allowed:.1%} allowed"


def _slower(champion: VariantEvidence, challenger: VariantEvidence, limits: RolloutLimits) -> str | None:
    if champion.latency_ms is None or challenger.latency_ms is None:
        return None
    allowed = champion.latency_ms * limits.latency_factor + limits.latency_ms
    return f"takes {challenger.latency_ms:.1f} ms, {allowed:.1f} allowed" if challenger.latency_ms > allowed else None


def _worse(
    champion: VariantEvidence, challenger: VariantEvidence, limits: RolloutLimits, higher_is_better: bool
) -> str | None:
    if champion.metric is None or challenger.metric is None:
        return None
    drop = (champion.metric - challenger.metric) * (1 if higher_is_better else -1)
    return f"metric {challenger.metric:.4f} against {champion.metric:.4f}" if drop > limits.metric_drop else None


def _fine(champion: VariantEvidence, challenger: VariantEvidence) -> str:
    known = champion.metric is not None and challenger.metric is not None
    metric = f"metric {challenger.metric:.4f}" if known else "metric not known yet"
    return f"{challenger.requests} requests, {challenger.error_share:.1%} failed, {metric}"


def rollout_sensor(
    model_id: str,
    releases: Releases,
    evidence: Evidence,
    limits: RolloutLimits = RolloutLimits(),
    *,
    higher_is_better: bool = True,
    moved: Callable[[ReleaseRecord], Sequence[AssetEvent]] = lambda _: (),
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Move the running canary of a model by the record of `releases`.

    `evidence(model_id, since)` gives what each role ("champion", "challenger") did since the step began.
    The store compares and sets, so two daemons move a canary once; every move has its reasons in the history.
    `moved` says how a move is told to Dagster.
    """

    @dg.sensor(
        name=f"{model_id.replace('/', '__')}__rollout",
        default_status=default_status,
        description=f"Advances the canary of {model_id} step by step, or rolls it back.",
        tags={"mlops/model": model_id},
    )
    def sensor(_context: dg.SensorEvaluationContext) -> dg.SensorResult:
        record = releases.read(model_id)
        if record is None or record.challenger is None:
            return dg.SensorResult(skip_reason=f"{model_id}: no canary is running")
        seen = evidence(model_id, datetime.fromisoformat(record.at))
        champion, challenger = (seen.get(role, VariantEvidence()) for role in ("champion", "challenger"))
        decision = rollout_decision(champion, challenger, limits, higher_is_better=higher_is_better)
        told = f"{model_id}: {decision.action} at {record.challenger.weight} %: {'; '.join(decision.reasons)}"
        cursor = json.dumps({"revision": record.revision, **asdict(decision)})
        try:
            after = _carried_out(releases, model_id, decision)
        except StaleReleaseError as error:
            return dg.SensorResult(skip_reason=str(error), cursor=cursor)
        events = moved(after) if after else ()
        return dg.SensorResult(skip_reason=told, cursor=cursor, asset_events=events)

    return sensor


def _carried_out(releases: Releases, model_id: str, decision: RolloutDecision) -> ReleaseRecord | None:
    """The record after the move; None where nothing is to be moved."""
    verbs = {"advance": releases.advance, "roll back": releases.rollback}
    if decision.action == "hold":
        return None
    return verbs[decision.action](model_id, by=BY, why="; ".join(decision.reasons))
