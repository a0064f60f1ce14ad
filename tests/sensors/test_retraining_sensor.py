"""The retraining sensor over a real event log: ticks after real reports, checks, trainings and runs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from sensors.retraining import MODEL_TAG, REASON_TAG, UndatedReportError, retraining_sensor

MODEL = "flights/late_arrival"
daily = dg.DailyPartitionsDefinition(start_date="2013-01-01", end_date="2014-01-01")
weekly = dg.WeeklyPartitionsDefinition(start_date="2013-01-07", end_date="2014-01-06", day_offset=1)
DRIFT = dg.AssetCheckKey(dg.AssetKey([*MODEL.split("/"), "drift_report"]), "drift")
DROP = dg.AssetCheckKey(dg.AssetKey([*MODEL.split("/"), "performance_report"]), "metric_drop")
CANDIDATE = dg.AssetKey([*MODEL.split("/"), "candidate"])


@dataclass(frozen=True)
class Limits:
    cooldown: timedelta = timedelta(days=7)
    min_rows: int = 500


class Verdict(dg.Config):
    verdict: str
    rows: int = 9_000
    dated: bool = True


def report(check: dg.AssetCheckKey) -> dg.AssetsDefinition:
    """A daily report that yields its check as the real ones do; its verdict is given by the run's config."""
    spec = dg.AssetCheckSpec(check.name, asset=check.asset_key)

    @dg.asset(key=check.asset_key, partitions_def=daily, check_specs=[spec])
    def asset(context: dg.AssetExecutionContext, config: Verdict) -> dg.MaterializeResult:
        day = {"day": context.partition_key} if config.dated else {}
        said = {"verdict": config.verdict, "rows": config.rows, **day}
        passed = config.verdict not in ("drift", "metric drop")
        result = dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, metadata=said)
        return dg.MaterializeResult(check_results=[result])

    return asset


@dg.asset(key=CANDIDATE, partitions_def=weekly)
def candidate() -> None: ...


job = dg.define_asset_job("flights__late_arrival__train", selection=dg.AssetSelection.assets(CANDIDATE))
sensor = retraining_sensor(
    MODEL, job, checks=[DRIFT, DROP], candidate=CANDIDATE, training=[CANDIDATE], cutoffs=weekly, limits=Limits()
)
REPORTS = {check: report(check) for check in (DRIFT, DROP)}
defs = dg.Definitions(assets=[candidate, *REPORTS.values()], jobs=[job], sensors=[sensor])


@dataclass
class Platform:
    """An instance, and the sensor's cursor between ticks."""

    instance: dg.DagsterInstance
    cursor: str | None = None
    reasons: list[str] = field(default_factory=list)

    def reports(self, check: dg.AssetCheckKey, day: str, verdict: str, rows: int = 9_000, dated: bool = True) -> None:
        config = {
            "ops": {
                check.asset_key.to_python_identifier(): {"config": {"verdict": verdict, "rows": rows, "dated": dated}}
            }
        }
        assert dg.materialize([REPORTS[check]], partition_key=day, instance=self.instance, run_config=config).success

    def trains(self, cutoff: str) -> None:
        assert dg.materialize([candidate], partition_key=cutoff, instance=self.instance).success

    def tick(self) -> list[dg.RunRequest]:
        context = dg.build_sensor_context(self.instance, self.cursor, definitions=defs)
        data = sensor.evaluate_tick(context)
        self.cursor = data.cursor
        self.reasons = json.loads(data.cursor or "{}")["decision"]["reasons"]
        assert data.run_requests or data.skip_message, "every tick says something"
        return list(data.run_requests or [])

    def begins(self, job_name: str, assets: frozenset[dg.AssetKey] | None = None) -> dg.DagsterRun:
        return create_run_for_test(self.instance, job_name, status=dg.DagsterRunStatus.STARTED, asset_selection=assets)


@pytest.fixture
def platform() -> Iterator[Platform]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(instance)


def test_a_failing_report_asks_once(platform: Platform) -> None:
    """Nothing reported, a passing report, a failing one, the same again, the next day: one request in all."""
    assert platform.tick() == []
    assert platform.reasons == ["no report yet"]
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


def test_a_lost_cursor_never_changes_the_run_key(platform: Platform) -> None:
    """The same evidence asks under the same key, which Dagster runs once."""
    platform.reports(DRIFT, "2013-07-10", "drift")
    (first,) = platform.tick()
    platform.cursor = None
    (second,) = platform.tick()
    assert first.run_key == second.run_key


def test_a_report_without_a_day_is_an_error_that_says_so(platform: Platform) -> None:
    """It is not taken for today's."""
    platform.reports(DRIFT, "2013-07-10", "drift", dated=False)
    with pytest.raises(Exception, match="has no `day` in its metadata") as caught:
        platform.tick()
    assert isinstance(caught.value.__cause__ or caught.value, UndatedReportError)
