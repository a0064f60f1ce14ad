"""Rollout: a canary goes on, waits, or goes back, by what both variants did since its step began.

The decision compares the challenger with the champion over the same time, never with a fixed number, so
that a slow day of the whole world rolls nothing back. Errors and latency come first, on a minimum of requests; only
errors that could no longer be made good within that minimum end a canary earlier. Then both are compared on the same
requests (`Compared`):

- labels of enough of them are known: back where the challenger is surely worse (its whole interval) and by more than
  the allowed drop; on where a greater drop can be ruled out; else undecided, as without labels;
- undecided or without labels: waits for labels as long as `Terms.patience` says, by what was asked about. When that is
  over it goes back if labels are missing and it decides too many requests otherwise than the champion; else it goes on,
  and says what was not shown. Two that cannot be asked alike are judged by errors and latency, which is said too;
  where a bundle or the labels are damaged nothing moves until they are mended.

The limits are those that the release record carries, to which the serving process holds the canary too; the terms of
the comparison only the sensor knows. An A/B split is nobody's but a person's to change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Literal, Protocol

import dagster as dg

from resources.release_record import Limits
from resources.releases import ReleaseRecord, StaleReleaseError

Action = Literal["advance", "hold", "roll back"]
BY = "sensors.rollout"
LATENCY_SLACK_MS = 5.0  # of an answer of a millisecond or two, the ratio alone would judge the machine
FEWEST_ERRORS = 3  # fewer may be one caller who asks again; they hold a canary, and end none


@dataclass(frozen=True)
class VariantEvidence:
    """One variant since the step began. `requests` include the `errors`; `latency_ms` is a high quantile."""

    requests: int = 0
    errors: int = 0
    latency_ms: float | None = None

    @property
    def error_share(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class Compared:
    """Both variants on the same requests of a step, which lasts `seconds` by what was asked about.

    `changed` is the share that they decide otherwise, `psi` how unlike their predictions are. With enough `labels`,
    each one's metric, the challenger's `gain` over the champion (negative when worse) and the interval it is surely in.
    `problem` says why they could not be compared: they are too different or, if `broken`, something is damaged.
    """

    rows: int = 0
    labels: int = 0
    metric_name: str = ""
    champion: float | None = None
    challenger: float | None = None
    gain: float | None = None
    interval: tuple[float, float] | None = None
    changed: float | None = None
    psi: float | None = None
    seconds: float = 0.0
    problem: str = ""
    broken: bool = False

    def __str__(self) -> str:
        if self.gain is None or self.interval is None:
            return f"{self.rows} same requests, {self.labels} labels known; {self._predictions}"
        low, high = self.interval
        return (
            f"{self.metric_name} {self.challenger:.4f} against {self.champion:.4f} on the same {self.labels} labelled "
            f"requests: {self.gain:+.4f}, surely in [{low:+.4f}, {high:+.4f}]; {self._predictions}"
        )

    @property
    def _predictions(self) -> str:
        psi = "" if self.psi is None else f", PSI of the predictions {self.psi:.3f}"
        return f"{self.changed or 0.0:.1%} decided otherwise{psi}"


@dataclass(frozen=True)
class Terms:
    """What a comparison is held to: the allowed drop of the metric, the share of requests that may be decided
    otherwise while no labels are known, and how long a step waits for them.
    """

    metric_drop: float = 0.03
    max_changed: float = 0.5
    patience: timedelta = timedelta(0)


@dataclass(frozen=True)
class RolloutDecision:
    """What to do with a canary's step, and why; `waits_for` is what a hold lacks, in words that stay the same."""

    action: Action
    reasons: tuple[str, ...]
    waits_for: str = ""


class Releases(Protocol):
    """What of `resources.releases.ReleaseStore` a rollout uses."""

    def read(self, model: str) -> ReleaseRecord | None: ...

    def advance(self, model: str, *, by: str, why: str, revision: int) -> ReleaseRecord: ...

    def rollback(self, model: str, *, by: str, why: str, revision: int) -> ReleaseRecord: ...


AssetEvent = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation
Evidence = Callable[[ReleaseRecord], Mapping[str, VariantEvidence]]
Compare = Callable[[ReleaseRecord], Compared]
Decided = Callable[[ReleaseRecord, "RolloutDecision", str], None]


def rollout_decision(champion: VariantEvidence, challenger: VariantEvidence, limits: Limits) -> RolloutDecision:
    """Judge one step of a canary by its errors and its latency."""
    too_many = _too_many_errors(champion, challenger, limits)
    if too_many and challenger.errors >= FEWEST_ERRORS:
        return RolloutDecision("roll back", (too_many,))
    for name, variant in (("challenger", challenger), ("champion", champion)):
        if variant.requests < limits.min_requests:
            few = f"{name} has {variant.requests} of {limits.min_requests} requests"
            return RolloutDecision("hold", (few,), "requests")
    if too_many:
        few = f"{too_many}, and fewer than {FEWEST_ERRORS} prove nothing"
        return RolloutDecision("hold", (few,), "more requests to tell a failure or two from many")
    if slower := _slower(champion, challenger, limits.max_latency_ratio):
        return RolloutDecision("roll back", (slower,))
    return RolloutDecision("advance", (f"{challenger.requests} requests, {challenger.error_share:.1%} failed",))


def comparison_decision(compared: Compared, terms: Terms) -> RolloutDecision:
    """Judge a step that is sound by what both variants predict of the same requests."""
    if compared.broken:
        return RolloutDecision("hold", (f"not compared: {compared.problem}",), "what is damaged to be mended")
    if compared.problem:
        return _without(compared, terms, f"not compared: {compared.problem}", "advance")
    if compared.gain is None or compared.interval is None:
        return _without(compared, terms, str(compared), _unlabelled(compared, terms))
    low, high = compared.interval
    if high < 0 and compared.gain < -terms.metric_drop:
        return RolloutDecision("roll back", (str(compared),))
    if low >= -terms.metric_drop:
        return RolloutDecision("advance", (str(compared),))
    return _without(compared, terms, f"{compared}; a drop of {terms.metric_drop:g} is not ruled out", "advance")


def _unlabelled(compared: Compared, terms: Terms) -> Action:
    """What labels that never came leave to go by: whoever decides very much otherwise would have to be shown right."""
    return "roll back" if (compared.changed or 0.0) > terms.max_changed else "advance"


def _without(compared: Compared, terms: Terms, told: str, then: Action) -> RolloutDecision:
    """Hold while labels may still come, then what is to be done without them."""
    if compared.seconds < terms.patience.total_seconds():
        return RolloutDecision("hold", (f"{told}; waits up to {terms.patience} for labels",), "labels")
    return RolloutDecision(then, (told,))


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


def rollout_sensor(
    model_id: str,
    releases: Releases,
    evidence: Evidence,
    *,
    compare: Compare = lambda _: Compared(),
    terms: Terms = Terms(),
    decided: Decided = lambda *_: None,
    settle: Callable[[str], object] = lambda _: None,
    moved: Callable[[ReleaseRecord], Sequence[AssetEvent]] = lambda _: (),
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Move the running canary of a model by the record of `releases`.

    `evidence(record)` gives what each role ("champion", "challenger") did since the step began; `compare(record)`,
    asked where that would let the canary go on, what both predict of the same requests. The store compares
    and sets, so two daemons move a canary once; every move has its reasons in the history. `decided` is told each
    decision that stands and whose it is, also a serving process's to take a release out. `settle(model_id)` is
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
            if record.change.refused:
                events += moved(record)
                decided(record, RolloutDecision("roll back", (record.why,)), record.by)
        cursor: dict[str, Any] = {"revision": record.revision}
        if record.canary is None:
            told = f"{model_id}: no canary is running{_taken_out(record)}"
            return dg.SensorResult(skip_reason=told, cursor=json.dumps(cursor), asset_events=events)
        decision = decision_of(record, evidence(record), compare, terms)
        told = f"{model_id}: {decision.action} at {record.canary.weight} %: {'; '.join(decision.reasons)}"
        try:
            after = _carried_out(releases, record, decision)
        except StaleReleaseError as error:
            told, after = str(error), None
        else:
            decided(record, decision, BY)
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


def decision_of(
    record: ReleaseRecord, seen: Mapping[str, VariantEvidence], compare: Compare, terms: Terms
) -> RolloutDecision:
    """The whole judgement of a step; the comparison is only made where errors and latency would let it go on."""
    champion, challenger = (seen.get(role, VariantEvidence()) for role in ("champion", "challenger"))
    first = rollout_decision(champion, challenger, record.limits or Limits())
    if first.action != "advance":
        return first
    second = comparison_decision(compare(record), terms)
    return replace(second, reasons=(*first.reasons, *second.reasons) if second.action == "advance" else second.reasons)


def _carried_out(releases: Releases, record: ReleaseRecord, decision: RolloutDecision) -> ReleaseRecord | None:
    """The record after the move; None where nothing is to be moved."""
    verbs = {"advance": releases.advance, "roll back": releases.rollback}
    if decision.action == "hold":
        return None
    return verbs[decision.action](record.model, by=BY, why="; ".join(decision.reasons), revision=record.revision)
