"""Retraining: failing reports become one request, and every decision is told with its reasons.

Reports are daily. One of day D knows the world up to the end of D, and that moment, never the clock, is
what the decision reckons with: the same evidence gives the same answer and the same run key, however
late or often a tick comes. The rules:

- either a drift verdict or a metric drop is a cause; the newest report of each that had enough rows counts;
- one request an episode: a failure that was answered is not asked about again until `cooldown` has passed,
  counted from the report that was answered and from the newest cutoff trained or asked for. A model that
  still fails then is news: the retraining did not help, or its gate refused it, and there is more to learn from;
- nothing is requested while a run of the training assets is in progress. A failure seen meanwhile is latched
  and judged when the run has ended, even if a later report passes;
- the training is as of the newest cutoff that lies within what the report knows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Protocol, Self

import dagster as dg
from dagster._core.storage.asset_check_execution_record import COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

NOT_ENOUGH_ROWS = "not enough rows"
MODEL_TAG = "mlops/model"
REASON_TAG = "mlops/reason"
REPORT_DAY_TAG = "mlops/report_day"
EVALUATIONS_READ = 50  # newest evaluations of a check looked at; a month and a half of daily reports


class Limits(Protocol):
    """What a `Monitor` says about retraining."""

    @property
    def cooldown(self) -> timedelta: ...

    @property
    def min_rows(self) -> int: ...


class UndatedReportError(LookupError):
    """A check evaluation does not say which day it is about."""

    @classmethod
    def of(cls, check: dg.AssetCheckKey, run_id: str) -> Self:
        return cls(
            f"Check {check.name!r} of {check.asset_key.to_user_string()} (run {run_id}) has no `day` in its metadata "
            'and no partition. Yield it with metadata={"day": "2013-07-10", "verdict": ..., "rows": ...}.'
        )


@dataclass(frozen=True)
class Signal:
    """What one check said about one report day."""

    check: str
    day: date
    passed: bool
    verdict: str
    rows: int

    def enough(self, limits: Limits) -> bool:
        return self.verdict != NOT_ENOUGH_ROWS and self.rows >= limits.min_rows

    def __str__(self) -> str:
        return f"{self.check} of {self.day}: {self.verdict} ({self.rows} rows)"


@dataclass(frozen=True)
class Memory:
    """What the sensor knows from earlier ticks: the report it answered last, with which cutoff, and what is latched."""

    answered: date | None = None
    requested: datetime | None = None
    latched: tuple[Signal, ...] = ()


@dataclass(frozen=True)
class Decision:
    """Whether to retrain and why (not). `run_key` and `cutoff` are given with a yes."""

    retrain: bool
    reasons: tuple[str, ...]
    memory: Memory
    day: date | None = None
    cutoff: str | None = None
    run_key: str | None = None


def retraining_decision(
    model_id: str,
    signals: Sequence[Signal],
    cutoffs: Mapping[str, datetime],
    limits: Limits,
    *,
    trained: datetime | None = None,
    running: str | None = None,
    memory: Memory = Memory(),
) -> Decision:
    """Decide about a model from what its checks said.

    `cutoffs` maps partition keys to their instants, `trained` is the newest cutoff that was trained,
    `running` the id of a run of its training assets in progress.
    """
    newest = _newest([signal for signal in signals if signal.enough(limits)])
    failing = [signal for signal in newest if not signal.passed]
    causes = tuple(failing) or memory.latched
    if not causes:
        return Decision(False, (_nothing_failing(signals, newest),), memory)
    day = max(signal.day for signal in causes)
    reasons = tuple(str(signal) for signal in causes)
    settled = replace(memory, latched=())
    if why := _answered(day, memory, limits) or _cooling(day, trained, memory, limits):
        return Decision(False, (*reasons, why), settled, day)
    cutoff = cutoff_within(day, cutoffs)
    if cutoff is None or (trained and cutoffs[cutoff] <= trained):
        return Decision(False, (*reasons, f"no cutoff after {trained} lies within what the report knows"), settled, day)
    if running:
        return Decision(False, (*reasons, f"waits for run {running}"), replace(memory, latched=causes), day, cutoff)
    answered = Memory(answered=day, requested=cutoffs[cutoff])
    return Decision(True, reasons, answered, day, cutoff, f"{model_id}:{day}:{cutoff}")


def known_until(day: date) -> datetime:
    """The moment up to which a report of `day` knows the world: the end of the day, UTC."""
    return datetime.combine(day, time(), UTC) + timedelta(days=1)


def cutoff_within(day: date, cutoffs: Mapping[str, datetime]) -> str | None:
    """The newest cutoff whose instant a report of `day` already knows."""
    known = [key for key, instant in cutoffs.items() if instant <= known_until(day)]
    return max(known, key=cutoffs.__getitem__, default=None)


def _newest(signals: Sequence[Signal]) -> list[Signal]:
    """Of each check the signal of the latest day; of one day the one that was given last."""
    latest: dict[str, Signal] = {}
    for signal in sorted(signals, key=lambda signal: signal.day):
        latest[signal.check] = signal
    return list(latest.values())


def _nothing_failing(signals: Sequence[Signal], newest: Sequence[Signal]) -> str:
    if newest:
        return "nothing fails; " + ", ".join(map(str, newest))
    return "too few rows; " + ", ".join(map(str, _newest(signals))) if signals else "no report yet"


def _answered(day: date, memory: Memory, limits: Limits) -> str | None:
    if memory.answered is None or day - memory.answered >= max(limits.cooldown, timedelta(days=1)):
        return None
    return f"answered by the request for the report of {memory.answered}"


def _cooling(day: date, trained: datetime | None, memory: Memory, limits: Limits) -> str | None:
    last = max((instant for instant in (trained, memory.requested) if instant), default=None)
    if last is None or known_until(day) >= last + limits.cooldown:
        return None
    return f"cools down until {last + limits.cooldown:%Y-%m-%d %H:%M}, last cutoff {last:%Y-%m-%d %H:%M}"


def retraining_sensor(
    model_id: str,
    job: dg.JobDefinition | dg.UnresolvedAssetJobDefinition,
    *,
    checks: Sequence[dg.AssetCheckKey],
    candidate: dg.AssetKey,
    training: Collection[dg.AssetKey],
    cutoffs: dg.TimeWindowPartitionsDefinition,
    limits: Limits,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Ask `job` for a training as of a cutoff when one of `checks` fails.

    `candidate`'s materialized partitions are the cutoffs trained; a run in progress that selects one of
    `training`, or is a run of `job`, suppresses. `limits` is the model's `Monitor`.
    """

    @dg.sensor(
        name=f"{model_id.replace('/', '__')}__retrain",
        job=job,
        default_status=default_status,
        description=f"Retrains {model_id} once an episode of drift or of a falling metric.",
        tags={MODEL_TAG: model_id},
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        instants = cutoff_instants(cutoffs)
        decision = retraining_decision(
            model_id,
            [signal for check in checks for signal in read_signals(context.instance, check)],
            instants,
            limits,
            trained=newest_trained(context.instance, candidate, instants),
            running=run_in_progress(context.instance, job.name, training),
            memory=_remembered(context.cursor),
        )
        return _tick(model_id, decision)

    return sensor


def _tick(model_id: str, decision: Decision) -> dg.SensorResult:
    cursor = _cursor(decision)
    if not decision.retrain:
        return dg.SensorResult(skip_reason=f"{model_id}: {'; '.join(decision.reasons)}", cursor=cursor)
    tags = {MODEL_TAG: model_id, REASON_TAG: "; ".join(decision.reasons), REPORT_DAY_TAG: str(decision.day)}
    request = dg.RunRequest(run_key=decision.run_key, partition_key=decision.cutoff, tags=tags)
    return dg.SensorResult(run_requests=[request], cursor=cursor)


def cutoff_instants(cutoffs: dg.TimeWindowPartitionsDefinition) -> dict[str, datetime]:
    """Each cutoff's key and instant: the start of its partition."""
    return {key: cutoffs.time_window_for_partition_key(key).start for key in cutoffs.get_partition_keys()}


def read_signals(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> list[Signal]:
    """What a check said about its newest reports, oldest evaluation first."""
    records = instance.event_log_storage.get_asset_check_execution_history(
        check, limit=EVALUATIONS_READ, status=COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
    )
    events = [(record.event, record.run_id) for record in reversed(records)]
    return [
        _signal(event.get_dagster_event().asset_check_evaluation_data, check, run) for event, run in events if event
    ]


def _signal(evaluation: dg.AssetCheckEvaluation, check: dg.AssetCheckKey, run_id: str) -> Signal:
    said: dict[str, Any] = {name: value.value for name, value in evaluation.metadata.items()}
    day = said.get("day") or evaluation.partition
    if day is None:
        raise UndatedReportError.of(check, run_id)
    return Signal(check.name, date.fromisoformat(day), evaluation.passed, said["verdict"], said["rows"])


def newest_trained(
    instance: dg.DagsterInstance, candidate: dg.AssetKey, cutoffs: Mapping[str, datetime]
) -> datetime | None:
    """The newest cutoff that has a candidate, promoted or not."""
    trained = instance.get_materialized_partitions(candidate)
    return max((instant for key, instant in cutoffs.items() if key in trained), default=None)


def run_in_progress(instance: dg.DagsterInstance, job_name: str, assets: Collection[dg.AssetKey]) -> str | None:
    """A queued or running run of the job, or of any of the assets."""
    wanted = set(assets)
    for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        if run.job_name == job_name or wanted & (run.asset_selection or set()):
            return run.run_id
    return None


def _cursor(decision: Decision) -> str:
    """The memory, and beside it the decision for whoever looks at the sensor."""
    told = asdict(decision)
    return json.dumps({"memory": told.pop("memory"), "decision": told}, default=lambda moment: moment.isoformat())


def _remembered(cursor: str | None) -> Memory:
    if not cursor:
        return Memory()
    memory = json.loads(cursor)["memory"]
    return Memory(
        answered=date.fromisoformat(memory["answered"]) if memory["answered"] else None,
        requested=datetime.fromisoformat(memory["requested"]) if memory["requested"] else None,
        latched=tuple(Signal(**{**signal, "day": date.fromisoformat(signal["day"])}) for signal in memory["latched"]),
    )
