"""Retraining: reads what the checks said, decides (`retraining_decision`), records, and starts what was asked for.

A decision and what it remembers are written in one transaction, compared and set, so that neither a lost cursor nor a
second daemon asks twice; every answer, also no, is in the history. A yes becomes an event of the inbox. A report starts
it at once by push when it ends; the sensor, every half minute, asks for what is still open, and tells people.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Self

import dagster as dg
from dagster._core.storage.asset_check_execution_record import COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES, DagsterRunStatus

from resources.alerts import Alert, AlertResource
from resources.decisions import DecisionStore, Remembered, StaleMemoryError
from resources.events import Event, Inbox, UnknownEventError, push
from sensors.events import due_events, request_of
from sensors.retraining_decision import Asked, Decision, Evidence, Limits, Memory, Signal, retraining_decision, told

MODEL_TAG = "mlops/model"
REASON_TAG = "mlops/reason"
REPORT_DAY_TAG = "mlops/report_day"
EVALUATIONS_READ = 50  # newest evaluations of a check looked at; a month and a half of daily reports
BY = "sensors.retraining"
NOT_NEEDED = "not needed"


class UndatedReportError(LookupError):
    """A check evaluation does not say which day it is about."""

    @classmethod
    def of(cls, check: dg.AssetCheckKey, run_id: str) -> Self:
        return cls(
            f"Check {check.name!r} of {check.asset_key.to_user_string()} (run {run_id}) has no `day` in its metadata "
            'and no partition. Yield it with metadata={"day": "2013-07-10", "verdict": ..., "rows": ...}.'
        )


@dataclass(frozen=True)
class Retraining:
    """What to read about a model, and which job to ask.

    `checks` are causes when they fail, `healthy` says whether the data pipeline is. `candidate`'s materialized
    partitions are the cutoffs trained; a run in progress that selects one of `training`, or is a run of `job`,
    suppresses. `limits` is the model's `Monitor`.
    """

    model_id: str
    job: str
    checks: Sequence[dg.AssetCheckKey]
    candidate: dg.AssetKey
    training: Collection[dg.AssetKey]
    cutoffs: dg.TimeWindowPartitionsDefinition
    limits: Limits
    healthy: dg.AssetCheckKey | None = None

    @property
    def sensor(self) -> str:
        return f"{self.model_id.replace('/', '__')}__retrain"

    def decide(self, instance: dg.DagsterInstance) -> Decision:
        """Decide from what is known now, and write it down; a yes is in the inbox when this returns."""
        store = DecisionStore()
        while True:
            read = store.memory(self.model_id, "retrain")
            memory = Memory.from_json(read.value)
            evidence = self._evidence(instance, memory)
            decision = retraining_decision(self.model_id, evidence, self.limits, memory)
            try:
                self._record(store, decision, evidence, read.revision)
            except StaleMemoryError:
                continue  # what the other decided is evidence too
            if asked := decision.memory.asked:
                Inbox().put(self.event(asked))  # again and again: who decided may have died before it was there
            return decision

    def push(self, instance: dg.DagsterInstance) -> Decision:
        """Decide, and start what is asked for at once."""
        decision = self.decide(instance)
        if decision.retrain and decision.memory.asked:
            push(self.event(decision.memory.asked), BY)
        return decision

    def due(self, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
        """What was asked for and has no run yet, unless its cutoff was trained meanwhile."""
        inbox, instants = Inbox(), cutoff_instants(self.cutoffs)
        trained, requests = newest_trained(instance, self.candidate, instants), []
        for event in due_events(inbox, instance, self.sensor):
            cutoff = instants.get(event.partition or "")
            if cutoff is None or (trained and cutoff <= trained):
                inbox.close(event.id, NOT_NEEDED, f"cutoff {event.partition} was trained, or is none")
            else:
                requests.append(request_of(event))
        return requests

    def event(self, asked: Asked) -> Event:
        """The request as an event; its id comes from the evidence alone."""
        tags = {MODEL_TAG: self.model_id, REASON_TAG: "; ".join(asked.reasons), REPORT_DAY_TAG: str(asked.day)}
        return Event(
            asked.run_key,
            "drift",
            job=self.job,
            partition=asked.cutoff,
            tags=tags,
            subject=self.model_id,
            sensor=self.sensor,
        )

    def _evidence(self, instance: dg.DagsterInstance, memory: Memory) -> Evidence:
        instants = cutoff_instants(self.cutoffs)
        return Evidence(
            [signal for check in self.checks for signal in read_signals(instance, check)],
            instants,
            read_signals(instance, self.healthy) if self.healthy else None,
            newest_trained(instance, self.candidate, instants),
            run_in_progress(instance, self.job, self.training),
            _answer(instance, memory.asked) if memory.asked else "",
        )

    def _record(self, store: DecisionStore, decision: Decision, evidence: Evidence, revision: int) -> None:
        newest = {signal.check: told(signal) for signal in sorted(evidence.signals, key=lambda signal: signal.day)}
        rests_on = {
            "signals": list(newest.values()),
            "pipeline": told(evidence.health) if evidence.health else None,
            "trained": evidence.trained.isoformat() if evidence.trained else None,
            "running": evidence.running,
            "cutoff": decision.cutoff,
        }
        store.record(
            self.model_id,
            "retrain",
            decision.outcome,
            decision.reasons,
            day=decision.day,
            by=BY,
            evidence=rests_on,
            memory=Remembered(decision.memory.to_json(), revision),
        )


def retraining_sensor(
    retraining: Retraining,
    job: dg.JobDefinition | dg.UnresolvedAssetJobDefinition,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Ask `job` for a training as of a cutoff when a report fails, and tell people of it, or of a broken pipeline."""

    @dg.sensor(
        name=retraining.sensor,
        job=job,
        default_status=default_status,
        description=f"Retrains {retraining.model_id} once an episode of drift or of a falling metric.",
        tags={MODEL_TAG: retraining.model_id},
    )
    def sensor(context: dg.SensorEvaluationContext, alerts: AlertResource) -> dg.SensorResult:
        decision = retraining.decide(context.instance)
        tell(retraining, decision, alerts)
        if requests := retraining.due(context.instance):
            return dg.SensorResult(run_requests=requests)
        return dg.SensorResult(skip_reason=f"{retraining.model_id}: {'; '.join(decision.reasons)}")

    return sensor


def tell(retraining: Retraining, decision: Decision, alerts: AlertResource) -> None:
    """Alert people of a request, and of a broken pipeline day by day until it is healthy; each once, also after a kill.

    The resource tells what lasts once an episode, whoever sends it how often.
    """
    store, model, asked = DecisionStore(), retraining.model_id, decision.memory.asked
    read = store.memory(model, "alert")
    broken = str(decision.day) if decision.outcome == "broken pipeline" else ""
    news = {"broken": broken, "asked": asked.run_key if asked else ""}
    if news == {"broken": "", "asked": "", **read.value}:
        return
    said = list[Alert]()
    if broken and broken != read.value.get("broken"):
        said.append(broken_pipeline_alert(retraining, decision, alerts))
    if asked and asked.run_key != read.value.get("asked"):
        said.append(retraining_alert(retraining, asked, alerts))
    for alert in said:
        alerts.send(alert)
    if not broken and read.value.get("broken"):
        alerts.resolve(broken_key(model))
    outcome = "told" if said else "pipeline healthy again"
    try:
        store.record(
            model,
            "alert",
            outcome,
            [f"{alert.title}: {alert.text}" for alert in said],
            day=decision.day,
            by=BY,
            memory=Remembered(news, read.revision),
        )
    except StaleMemoryError:
        return  # another daemon told the same


def broken_key(model_id: str) -> str:
    return f"{model_id}: broken pipeline"


def broken_pipeline_alert(retraining: Retraining, decision: Decision, alerts: AlertResource) -> Alert:
    pages = [check.asset_key for check in (retraining.healthy, *retraining.checks) if check]
    return Alert(
        title=f"The data pipeline of {retraining.model_id} is broken",
        text="; ".join(decision.reasons),
        link=alerts.asset_link(pages[0]),
        suggestion="Mend what is named and materialize the tables and the quality report of the day again. "
        "Until then nothing is retrained.",
        group=retraining.model_id,
        key=broken_key(retraining.model_id),
        links={key.path[-1]: alerts.asset_link(key) for key in pages},
    )


def retraining_alert(retraining: Retraining, asked: Asked, alerts: AlertResource) -> Alert:
    pages = [check.asset_key for check in retraining.checks]
    return Alert(
        title=f"{retraining.model_id} is retrained as of {asked.cutoff}",
        text="; ".join(asked.reasons),
        severity="warning",
        link=alerts.asset_link(retraining.candidate),
        suggestion=f"Nothing to do: the gate judges the candidate. `mlops history {retraining.model_id}` says why.",
        group=retraining.model_id,
        key=asked.run_key,
        links={key.path[-1]: alerts.asset_link(key) for key in pages},
    )


def _answer(instance: dg.DagsterInstance, asked: Asked) -> str:
    """What became of a request; nothing to say while its run is on its way, or went well."""
    try:
        run_id = Inbox().read(asked.run_key).run_id
    except UnknownEventError:
        return ""
    run = instance.get_run_by_id(run_id) if run_id else None
    ended_badly = run and run.status in (DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
    return f"its run {run_id} ended as {run.status.value}: start it again by hand" if run and ended_badly else ""


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
    causes = said.get("causes") or ()
    named = tuple(map(str, json.loads(causes) if isinstance(causes, str) else causes))
    return Signal(check.name, date.fromisoformat(day), evaluation.passed, said["verdict"], said["rows"], named)


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
