"""Rollout: a canary goes on, waits, or goes back, by what both variants did since its step began.

The decision compares the challenger with the champion over the same time, never with a fixed number, so
that a slow day of the whole world rolls nothing back. It is made on a minimum of requests; only errors
that could no longer be made good within that minimum end a canary earlier. The limits are those that the release
record carries, to which the serving process holds the canary too; a metric only the sensor knows. An A/B split is
nobody's but a person's to change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import dagster as dg

from resources.release_record import Limits
from resources.releases import ReleaseRecord, StaleReleaseError

Action = Literal["advance", "hold", "roll back"]
BY = "sensors.rollout"
LATENCY_SLACK_MS = 5.0  # of an answer of a millisecond or two, the ratio alone would judge the machine
METRIC_DROP = 0.03
FEWEST_ERRORS = 3  # fewer may be one caller who asks again; they hold a canary, and end none


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
class RolloutDecision:
    """What to do with a canary's step, and why."""

    action: Action
    reasons: tuple[str, ...]


class Releases(Protocol):
    """What of `resources.releases.ReleaseStore` a rollout uses."""

    def read(self, model: str) -> ReleaseRecord | None: ...

    def advance(self, model: str, *, by: str, why: str, revision: int) -> ReleaseRecord: ...

    def rollback(self, model: str, *, by: str, why: str, revision: int) -> ReleaseRecord: ...


AssetEvent = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation
Evidence = Callable[[ReleaseRecord], Mapping[str, VariantEvidence]]


def rollout_decision(
    champion: VariantEvidence,
    challenger: VariantEvidence,
    limits: Limits,
    *,
    metric_drop: float = METRIC_DROP,
    higher_is_better: bool = True,
) -> RolloutDecision:
    """Judge one step of a canary. A metric that is not known yet is no reason, neither way."""
    too_many = _too_many_errors(champion, challenger, limits)
    if too_many and challenger.errors >= FEWEST_ERRORS:
        return RolloutDecision("roll back", (too_many,))
    for name, variant in (("challenger", challenger), ("champion", champion)):
        if variant.requests < limits.min_requests:
            return RolloutDecision("hold", (f"{name} has {variant.requests} of {limits.min_requests} requests",))
    if too_many:
        return RolloutDecision("hold", (f"{too_many}, and fewer than {FEWEST_ERRORS} prove nothing",))
    found = (
        _slower(champion, challenger, limits.max_latency_ratio),
        _worse(champion, challenger, metric_drop, higher_is_better),
    )
    if worse := tuple(filter(None, found)):
        return RolloutDecision("roll back", worse)
    return RolloutDecision("advance", (_fine(champion, challenger),))


def _too_many_errors(champion: VariantEvidence, challenger: VariantEvidence, limits: Limits) -> str | None:
    """More than the champion's share and the limit allow, of the requests so far or of the minimum if that is more."""
    allowed = champion.error_share + limits.max_error_share
    if challenger.errors <= allowed * max(challenger.requests, limits.min_requests):
        return None
    return f"{challenger.errors} of {challenger.requests} requests failed, {allowed:.1%} allowed"


def _slower(champion: VariantEvidence, challenger: VariantEvidence, ratio: float) -> str | None:
    if champion.latency_ms is None or challenger.latency_ms is None:
        return None
    allowed = champion.latency_ms * ratio + LATENCY_SLACK_MS
    return f"takes {challenger.latency_ms:.1f} ms, {allowed:.1f} allowed" if challenger.latency_ms > allowed else None


def _worse(
    champion: VariantEvidence, challenger: VariantEvidence, allowed: float, higher_is_better: bool
) -> str | None:
    if champion.metric is None or challenger.metric is None:
        return None
    drop = (champion.metric - challenger.metric) * (1 if higher_is_better else -1)
    return f"metric {challenger.metric:.4f} against {champion.metric:.4f}" if drop > allowed else None


def _fine(champion: VariantEvidence, challenger: VariantEvidence) -> str:
    known = champion.metric is not None and challenger.metric is not None
    metric = f"metric {challenger.metric:.4f}" if known else "metric not known yet"
    return f"{challenger.requests} requests, {challenger.error_share:.1%} failed, {metric}"


def rollout_sensor(
    model_id: str,
    releases: Releases,
    evidence: Evidence,
    *,
    metric_drop: float = METRIC_DROP,
    higher_is_better: bool = True,
    settle: Callable[[str], object] = lambda _: None,
    moved: Callable[[ReleaseRecord], Sequence[AssetEvent]] = lambda _: (),
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Move the running canary of a model by the record of `releases`.

    `evidence(record)` gives what each role ("champion", "challenger") did since the step began. The store compares
    and sets, so two daemons move a canary once; every move has its reasons in the history. `settle(model_id)` is
    called once for each revision that the sensor did not see before, to bring others after what a serving process
    refused. `moved` says how a move is told to Dagster.
    """

    @dg.sensor(
        name=f"{model_id.replace('/', '__')}__rollout",
        default_status=default_status,
        description=f"Advances the canary of {model_id} step by step, or rolls it back.",
        tags={"mlops/model": model_id},
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        record = releases.read(model_id)
        if record is None:
            return dg.SensorResult(skip_reason=f"{model_id}: nothing is released, so no canary is running")
        events: list[AssetEvent] = []
        if record.revision != _seen(context.cursor):
            settle(model_id)
            events += moved(record) if record.change.refused else ()
        cursor: dict[str, Any] = {"revision": record.revision}
        if record.canary is None:
            told = f"{model_id}: no canary is running{_taken_out(record)}"
            return dg.SensorResult(skip_reason=told, cursor=json.dumps(cursor), asset_events=events)
        decision = _decision(record, evidence(record), metric_drop, higher_is_better)
        told = f"{model_id}: {decision.action} at {record.canary.weight} %: {'; '.join(decision.reasons)}"
        try:
            after = _carried_out(releases, record, decision)
        except StaleReleaseError as error:
            told, after = str(error), None
        cursor |= asdict(decision)
        return dg.SensorResult(
            skip_reason=told, cursor=json.dumps(cursor), asset_events=[*events, *(moved(after) if after else ())]
        )

    return sensor


def _seen(cursor: str | None) -> int | None:
    """The revision that the tick before found; whatever it did with it is in the history."""
    return json.loads(cursor).get("revision") if cursor else None


def _taken_out(record: ReleaseRecord) -> str:
    change = record.change
    return "".join(f"; {one.release} was taken out by {change.by}: {change.why}" for one in change.refused)


def _decision(
    record: ReleaseRecord, seen: Mapping[str, VariantEvidence], metric_drop: float, higher_is_better: bool
) -> RolloutDecision:
    champion, challenger = (seen.get(role, VariantEvidence()) for role in ("champion", "challenger"))
    return rollout_decision(
        champion,
        challenger,
        record.limits or Limits(),
        metric_drop=metric_drop,
        higher_is_better=higher_is_better,
    )


def _carried_out(releases: Releases, record: ReleaseRecord, decision: RolloutDecision) -> ReleaseRecord | None:
    """The record after the move; None where nothing is to be moved."""
    verbs = {"advance": releases.advance, "roll back": releases.rollback}
    if decision.action == "hold":
        return None
    return verbs[decision.action](record.model, by=BY, why="; ".join(decision.reasons), revision=record.revision)
