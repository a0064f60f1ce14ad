"""The retraining sensor over a real event log: ticks after real reports, checks, trainings and runs."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

import resources.events
from resources.alerts import AlertResource
from resources.decisions import Decided, DecisionStore
from resources.environment import DAGSTER_URL
from resources.events import TAKEOVER_SECONDS, Inbox
from sensors.retraining import MODEL_TAG, REASON_TAG, Retraining, UndatedReportError, retraining_sensor

MODEL = "flights/late_arrival"
daily = dg.DailyPartitionsDefinition(start_date="2013-01-01", end_date="2014-01-01")
weekly = dg.WeeklyPartitionsDefinition(start_date="2013-01-07", end_date="2014-01-06", day_offset=1)
DRIFT = dg.AssetCheckKey(dg.AssetKey([*MODEL.split("/"), "drift_report"]), "drift")
DROP = dg.AssetCheckKey(dg.AssetKey([*MODEL.split("/"), "performance_report"]), "metric_drop")
QUALITY = dg.AssetCheckKey(dg.AssetKey([*MODEL.split("/"), "quality_report"]), "pipeline_healthy")
CANDIDATE = dg.AssetKey([*MODEL.split("/"), "candidate"])


@dataclass(frozen=True)
class Limits:
    cooldown: timedelta = timedelta(days=7)
    min_rows: int = 500


class Verdict(dg.Config):
    verdict: str
    rows: int = 9_000
    dated: bool = True
    causes: list[str] = []  # noqa: RUF012  a pydantic field, copied for each


def report(check: dg.AssetCheckKey) -> dg.AssetsDefinition:
    """A daily report that yields its check as the real ones do; its verdict is given by the run's config."""
    spec = dg.AssetCheckSpec(check.name, asset=check.asset_key)

    @dg.asset(key=check.asset_key, partitions_def=daily, check_specs=[spec])
    def asset(context: dg.AssetExecutionContext, config: Verdict) -> dg.MaterializeResult:
        day = {"day": context.partition_key} if config.dated else {}
        said = {"verdict": config.verdict, "rows": config.rows, "causes": config.causes, **day}
        passed = config.verdict not in ("drift", "metric drop", "broken pipeline")
        result = dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, metadata=said)
        return dg.MaterializeResult(check_results=[result])

    return asset


@dg.asset(key=CANDIDATE, partitions_def=weekly)
def candidate() -> None: ...


job = dg.define_asset_job("flights__late_arrival__train", selection=dg.AssetSelection.assets(CANDIDATE))
WATCHED = Retraining(
    MODEL,
    "flights__late_arrival__train",
    checks=[DRIFT, DROP],
    candidate=CANDIDATE,
    training=[CANDIDATE],
    cutoffs=weekly,
    limits=Limits(),
)
sensor = retraining_sensor(WATCHED, job)
ALERTS = AlertResource()
REPORTS = {check: report(check) for check in (DRIFT, DROP, QUALITY)}
defs = dg.Definitions(assets=[candidate, *REPORTS.values()], jobs=[job], sensors=[sensor])


@dataclass
class Platform:
    """An instance, and the sensor as it is ticked: the daemon keeps no cursor for it."""

    instance: dg.DagsterInstance
    watched: Retraining = WATCHED

    def reports(self, check: dg.AssetCheckKey, day: str, verdict: str, rows: int = 9_000, **said: Any) -> None:
        config = {"verdict": verdict, "rows": rows, **said}
        ops = {"ops": {check.asset_key.to_python_identifier(): {"config": config}}}
        assert dg.materialize([REPORTS[check]], partition_key=day, instance=self.instance, run_config=ops).success

    def trains(self, cutoff: str, request: dg.RunRequest | None = None) -> str:
        tags = request.tags if request else {}
        ran = dg.materialize([candidate], partition_key=cutoff, instance=self.instance, tags=tags)
        assert ran.success
        return ran.run_id

    def tick(self) -> list[dg.RunRequest]:
        asks = retraining_sensor(self.watched, job)
        context = dg.build_sensor_context(self.instance, definitions=defs, resources={"alerts": ALERTS})
        data = asks.evaluate_tick(context)
        assert data.run_requests or data.skip_message, "every tick says something"
        return list(data.run_requests or [])

    @property
    def decided(self) -> Decided:
        return [line for line in DecisionStore().history(MODEL) if line.kind == "retrain"][-1]

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.decided.reasons

    @property
    def alerted(self) -> list[Decided]:
        return [line for line in DecisionStore().history(MODEL) if line.kind == "alert"]

    def begins(self, job_name: str, assets: frozenset[dg.AssetKey] | None = None) -> dg.DagsterRun:
        return create_run_for_test(self.instance, job_name, status=dg.DagsterRunStatus.STARTED, asset_selection=assets)


@pytest.fixture
def platform(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    monkeypatch.delenv(DAGSTER_URL, raising=False)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(instance)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time
    monkeypatch.setattr(resources.events.time, "time", lambda: now() + seconds)


def test_a_failing_report_asks_once(platform: Platform) -> None:
    """Nothing reported, a passing report, a failing one, the same again, the next day: one request in all."""
    assert platform.tick() == []
    assert platform.reasons == ("no report yet",)
    platform.reports(DRIFT, "2013-07-09", "stable")
    assert platform.tick() == []
    platform.reports(DRIFT, "2013-07-10", "drift")
    (request,) = platform.tick()
    assert (request.partition_key, request.run_key) == ("2013-07-08", "flights/late_arrival:2013-07-10:2013-07-08")
    assert request.tags[MODEL_TAG] == MODEL
    assert request.tags[REASON_TAG] == "drift of 2013-07-10: drift (9000 rows)"
    assert platform.tick() == []
    platform.reports(DRIFT, "2013-07-11", "drift")
    platform.reports(DROP, "2013-07-11", "metric drop")
    assert platform.tick() == []


def test_too_few_rows_never_ask(platform: Platform) -> None:
    """Neither by their verdict nor by their count."""
    platform.reports(DRIFT, "2013-07-10", "not enough rows", rows=12)
    platform.reports(DROP, "2013-07-10", "metric drop", rows=499)
    assert platform.tick() == []
    assert "too few rows" in platform.reasons[0]


@pytest.mark.parametrize("how", ["the job", "by hand"])
def test_a_run_in_progress_suppresses_and_the_failure_is_not_forgotten(platform: Platform, how: str) -> None:
    """While the training job, or a run that selects one of its assets, goes on: none. After it: one."""
    started = platform.begins(job.name) if how == "the job" else platform.begins("__ASSET_JOB", frozenset({CANDIDATE}))
    platform.reports(DRIFT, "2013-07-10", "drift")
    assert platform.tick() == []
    assert platform.reasons[-1] == f"waits for run {started.run_id}"
    platform.reports(DRIFT, "2013-07-11", "stable")
    assert platform.tick() == []
    platform.instance.report_run_canceled(started)
    (request,) = platform.tick()
    assert request.run_key == "flights/late_arrival:2013-07-10:2013-07-08"


def test_other_runs_do_not_suppress(platform: Platform) -> None:
    """The daily reports of the same model may be running."""
    platform.begins("__ASSET_JOB", frozenset({DRIFT.asset_key}))
    platform.reports(DRIFT, "2013-07-10", "drift")
    assert len(platform.tick()) == 1


def test_cooldown_after_a_training(platform: Platform) -> None:
    """A model trained as of Monday is asked for again when the next cutoff lies a cooldown later."""
    platform.trains("2013-07-08")
    platform.reports(DROP, "2013-07-13", "metric drop")
    assert platform.tick() == []
    assert "cools down until 2013-07-15" in platform.reasons[-1]
    platform.reports(DROP, "2013-07-14", "metric drop")
    (request,) = platform.tick()
    assert request.partition_key == "2013-07-15"


def test_a_request_that_no_daemon_carried_out_is_made_again_under_the_same_key(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon died after the tick: not at once, for it may be at it, but after the stated time."""
    platform.reports(DRIFT, "2013-07-10", "drift")
    (first,) = platform.tick()
    assert platform.tick() == []
    later(monkeypatch, TAKEOVER_SECONDS + 1)
    (second,) = platform.tick()
    assert first.run_key == second.run_key
    platform.trains("2013-07-08", second)
    later(monkeypatch, 3 * TAKEOVER_SECONDS)
    assert platform.tick() == []


def test_two_daemons_ask_once(platform: Platform) -> None:
    """Eight ticks at once over one database, with no cursor in common: one decision, one request."""
    platform.reports(DRIFT, "2013-07-10", "drift")
    with ThreadPoolExecutor(8) as pool:
        asked = [request for requests in pool.map(lambda _: platform.tick(), range(8)) for request in requests]
    assert [request.run_key for request in asked] == ["flights/late_arrival:2013-07-10:2013-07-08"]
    assert [line.outcome for line in DecisionStore().history(MODEL) if line.kind == "retrain"].count("retrain") == 1


def test_a_cutoff_that_was_trained_by_hand_meanwhile_is_not_asked_for(platform: Platform) -> None:
    """The request lay in the inbox while nobody looked."""
    platform.reports(DRIFT, "2013-07-10", "drift")
    platform.watched.decide(platform.instance)
    platform.trains("2013-07-08")
    assert platform.tick() == []
    assert Inbox().read("flights/late_arrival:2013-07-10:2013-07-08").outcome == "not needed"


def test_every_answer_is_in_the_history_with_what_it_rests_on(platform: Platform) -> None:
    """No, yes, and no because it was answered; ticks that say the same add nothing."""
    platform.reports(DRIFT, "2013-07-09", "stable")
    for _ in range(3):
        platform.tick()
    platform.reports(DRIFT, "2013-07-10", "drift")
    for _ in range(3):
        platform.tick()
    lines = [line for line in DecisionStore().history(MODEL) if line.kind == "retrain"]
    assert [(line.outcome, line.times) for line in lines] == [("no", 3), ("retrain", 1), ("no", 2)]
    assert lines[1].day == date(2013, 7, 10) and lines[1].evidence["cutoff"] == "2013-07-08"
    assert lines[1].evidence["signals"][0]["verdict"] == "drift"
    assert "answered by the request for the report of 2013-07-10" in lines[2].reasons[-1]


def test_a_request_whose_run_failed_says_so(platform: Platform) -> None:
    """It is no reason to ask at once again, but whoever asks why nothing happens is told."""
    platform.reports(DRIFT, "2013-07-10", "drift")
    (request,) = platform.tick()
    run = create_run_for_test(platform.instance, job.name, status=dg.DagsterRunStatus.FAILURE, tags=request.tags)
    assert Inbox().give(str(request.run_key), run.run_id)
    assert platform.tick() == []
    assert f"its run {run.run_id} ended as FAILURE" in platform.reasons[-1]


def test_a_request_is_told_once(platform: Platform, caplog: pytest.LogCaptureFixture) -> None:
    """With what to do and why; also where a report had decided before the sensor looked."""
    platform.reports(DRIFT, "2013-07-10", "drift")
    platform.watched.decide(platform.instance)
    with caplog.at_level(logging.WARNING, logger="resources.alerts"):
        for _ in range(3):
            platform.tick()
    (said,) = [record.getMessage() for record in caplog.records if record.name == "resources.alerts"]
    assert said.startswith("flights/late_arrival is retrained as of 2013-07-08: drift of 2013-07-10")
    assert [line.outcome for line in platform.alerted] == ["told"]


def test_a_broken_pipeline_is_told_and_not_retrained_for_until_it_is_healthy(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Three days broken: one alert, no request; healthy and still drifting: one request."""
    monkeypatch.delenv(DAGSTER_URL, raising=False)
    with dg.DagsterInstance.ephemeral() as instance, caplog.at_level(logging.ERROR, logger="resources.alerts"):
        platform = Platform(instance, replace(WATCHED, healthy=QUALITY))
        for day in ("2013-07-10", "2013-07-11", "2013-07-12"):
            platform.reports(DRIFT, day, "drift")
            platform.reports(QUALITY, day, "broken pipeline", causes=["weather_hourly: no usable row for 80 %"])
            assert platform.tick() == [] and platform.decided.outcome == "broken pipeline"
            assert platform.tick() == []
        platform.reports(QUALITY, "2013-07-13", "healthy")
        assert platform.tick() == []
        platform.reports(DRIFT, "2013-07-13", "drift")
        assert len(platform.tick()) == 1
    broken = [record.getMessage() for record in caplog.records if record.name == "resources.alerts"]
    assert len(broken) == 1 and "weather_hourly: no usable row for 80 %" in broken[0]
    outcomes = [line.outcome for line in platform.alerted]
    assert outcomes == ["told", "told", "told", "pipeline healthy again", "told"], "three days, and the request"


def test_a_report_without_a_day_is_an_error_that_says_so(platform: Platform) -> None:
    """It is not taken for today's."""
    platform.reports(DRIFT, "2013-07-10", "drift", dated=False)
    with pytest.raises(Exception, match="has no `day` in its metadata") as caught:
        platform.tick()
    assert isinstance(caught.value.__cause__ or caught.value, UndatedReportError)
