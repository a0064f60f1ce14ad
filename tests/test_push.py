"""An event starts its run within a second, once, over real processes: web server, daemon, code server, queue.

The slow cases (the sensor looks every 30 seconds) are all begun at once and waited for together.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC

import dagster as dg
import pytest

from benchmarks.push import CODE, await_success, event, platform, runs_of
from resources.environment import DAGSTER_URL, PROJECT
from resources.events import LAUNCH_SECONDS, Event, Inbox, launch, push, web_server

pytestmark = pytest.mark.slow

RACED, NOBODY, DIED, AWAY, TWICE = map(event, ("raced", "nobody pushed", "pusher died", "server away", "pushed twice"))
DRIFTS = (
    CODE
    + """
from dataclasses import dataclass
from datetime import timedelta
from sensors.retraining import Retraining, retraining_sensor

@dataclass(frozen=True)
class Limits:
    cooldown: timedelta = timedelta(days=7)
    min_rows: int = 500

daily = dg.DailyPartitionsDefinition(start_date="2013-07-01", end_date="2013-08-01")
weekly = dg.WeeklyPartitionsDefinition(start_date="2013-07-01", end_date="2013-08-05", day_offset=1)
REPORT, CANDIDATE = dg.AssetKey(["flights", "late", "drift_report"]), dg.AssetKey(["flights", "late", "candidate"])

@dg.asset(key=REPORT, partitions_def=daily, check_specs=[dg.AssetCheckSpec("drift", asset=REPORT)])
def drift_report(context):
    yield dg.MaterializeResult()
    said = {"day": context.partition_key, "verdict": "drift", "rows": 9_000}
    yield dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, metadata=said)
    WATCHED.push(context.instance)

@dg.asset(key=CANDIDATE, partitions_def=weekly)
def candidate() -> None: ...

job = dg.define_asset_job("flights__late__train", selection=dg.AssetSelection.assets(CANDIDATE))
check = dg.AssetCheckKey(REPORT, "drift")
WATCHED = Retraining("flights/late", job.name, [check], CANDIDATE, [CANDIDATE], weekly, Limits())
sensors = [retraining_sensor(WATCHED, job)]
defs = dg.Definitions.merge(defs, dg.Definitions([drift_report, candidate], jobs=[job], sensors=sensors))
"""
)
REPORT = Event("a report", "data", assets=("flights/late/drift_report",), partition="2013-07-10")
DRIFT = Event("flights/late:2013-07-10:2013-07-08", "drift")  # as the decision names it
DIES = """
import json, os, sys
from resources.events import Event, Inbox
assert Inbox().put(Event(**json.loads(sys.argv[1]))) and Inbox().claim(json.loads(sys.argv[1])["id"], "one that dies")
os._exit(9)
"""


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLOPS_HOME", str(tmp_path_factory.mktemp("push")))
        monkeypatch.setenv("MLOPS_ENV", "local")
        with platform(DRIFTS) as instance:
            happened(instance, monkeypatch)
            yield instance


def happened(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that goes wrong, at once; then until each event has had its run."""
    server = web_server()
    assert server
    inbox = Inbox()
    inbox.put(NOBODY)
    ended = subprocess.run([sys.executable, "-c", DIES, json.dumps(asdict(DIED))], cwd=PROJECT, check=False)
    assert ended.returncode == 9
    with monkeypatch.context() as away:
        away.setenv(DAGSTER_URL, "http://127.0.0.1:9")
        assert push(AWAY) is None
    assert push(REPORT)
    inbox.put(RACED)
    with ThreadPoolExecutor(6) as pool:  # three that ask for a run whatever was claimed, three that push
        launched = [pool.submit(launch, server, RACED) for _ in range(3)]
        pushed = [pool.submit(push, TWICE) for _ in range(3)]
        assert len({one.result() for one in launched}) == 3 and all(one.result() for one in launched)
        [one.result() for one in pushed]
    await_success(instance, [RACED, NOBODY, DIED, AWAY, TWICE, DRIFT], seconds=240)


def statuses(instance: dg.DagsterInstance, which: object) -> list[str]:
    return sorted(record.dagster_run.status.value for record in runs_of(instance, which))  # type: ignore[arg-type]


@pytest.mark.parametrize("which", [NOBODY, DIED, AWAY, TWICE], ids=lambda one: one.id)
def test_each_event_has_one_run(instance: dg.DagsterInstance, which: object) -> None:
    """Left to the sensor, taken over from a pusher that was killed after its claim, pushed by three at once."""
    assert statuses(instance, which) == ["SUCCESS"]


def test_of_several_runs_of_one_event_one_is_let_in(instance: dg.DagsterInstance) -> None:
    """Past every claim, three runs are created at once for an event that the sensor polls for too."""
    *others, last = statuses(instance, RACED)
    assert len(others) >= 2 and {*others} == {"CANCELED"} and last == "SUCCESS"
    (begun,) = [one for one in runs_of(instance, RACED) if one.dagster_run.status == dg.DagsterRunStatus.SUCCESS]
    assert Inbox().read(RACED.id).run_id == begun.dagster_run.run_id


def test_a_push_is_answered_with_its_run_at_once(instance: dg.DagsterInstance) -> None:
    """Far within the time that a poll would take; the run is queued when push returns."""
    at = time.monotonic()
    run_id = push(event("prompt"))
    assert time.monotonic() - at < LAUNCH_SECONDS / 2
    assert run_id and instance.get_run_by_id(run_id)
    assert push(event("prompt")) == run_id


def test_drift_starts_its_training_as_its_report_ends(instance: dg.DagsterInstance) -> None:
    """Decided in the report's own run, from the check that it just said, and pushed: the sensor did not ask for it."""
    (training,) = runs_of(instance, DRIFT)
    assert training.dagster_run.job_name == "flights__late__train"
    assert training.dagster_run.tags["dagster/partition"] == "2013-07-08"
    assert "dagster/tick_id" not in training.dagster_run.tags
    said = instance.get_records_for_run(
        runs_of(instance, REPORT)[0].dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    )
    took = training.create_timestamp.replace(tzinfo=UTC).timestamp() - said.records[0].timestamp
    assert took < 5, "a second, where the machine has nothing else to do"


def test_nothing_is_started_again_later(instance: dg.DagsterInstance) -> None:
    """The sensor went on looking while the others ran: each event still has the runs it had."""
    names = [one.id for one in (NOBODY, DIED, AWAY, TWICE)]
    assert [len(runs_of(instance, event)) for event in (NOBODY, DIED, AWAY, TWICE)] == [1] * len(names)
