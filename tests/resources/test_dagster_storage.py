"""The pooled event log answers as Dagster's own: for several processes at once, after kills, while it is watched."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.test_utils import instance_for_test

from resources.dagster_storage import PooledSqliteEventLog
from resources.environment import PROJECT

RUN = "00000000-0000-4000-8000-00000000000"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
daily = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-11")
RANGE = {"dagster/asset_partition_range_start": "2024-01-02", "dagster/asset_partition_range_end": "2024-01-05"}


@dg.asset(
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[dg.AssetCheckSpec("whole", asset="rows", blocking=True)],
    tags={"team": "tests"},
)
def rows(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Some days, in one run."""
    keys = context.partition_keys
    return dg.MaterializeResult(
        metadata={"dagster/row_count": len(keys)},
        data_version=dg.DataVersion("of " + keys[0]),
        check_results=[dg.AssetCheckResult(passed=True, check_name="whole", metadata={"holes": 0})],
    )


class Broken(dg.Config):
    broken: bool = False


@dg.asset(deps=[rows], check_specs=[dg.AssetCheckSpec("sound", asset="summary")])
def summary(config: Broken) -> Iterator[Any]:
    """Fails when it is told to."""
    if config.broken:
        raise dg.Failure("broken on purpose", allow_retries=False)
    yield dg.MaterializeResult(metadata={"path": dg.MetadataValue.path("/tmp/x"), "share": 0.5})
    yield dg.AssetCheckResult(passed=False, check_name="sound", severity=dg.AssetCheckSeverity.WARN)


def overrides(kind: str, directory: Path) -> dict[str, Any]:
    if kind == "default":
        return {}
    config = {"base_dir": str(directory / "events")}
    return {"event_log_storage": {"module": "resources.dagster_storage", "class": kind, "config": config}}


def job_of(name: str, selection: list[dg.AssetsDefinition]) -> dg.JobDefinition:
    job = dg.define_asset_job(name, selection=dg.AssetSelection.assets(*selection))
    return dg.Definitions(assets=[rows, summary], jobs=[job], executor=dg.in_process_executor).resolve_job_def(name)


def a_day(instance: dg.DagsterInstance) -> None:
    """A backfill in one run, one of its days again, a summary that works and one that fails."""
    fill, sum_up = job_of("fill", [rows]), job_of("sum_up", [summary])
    broken = {**QUIET, "ops": {"summary": {"config": {"broken": True}}}}
    fill.execute_in_process(QUIET, instance, tags=RANGE, run_id=f"{RUN}1")
    fill.execute_in_process(QUIET, instance, partition_key="2024-01-05", run_id=f"{RUN}2")
    sum_up.execute_in_process(QUIET, instance, run_id=f"{RUN}3")
    sum_up.execute_in_process(broken, instance, run_id=f"{RUN}4", raise_on_error=False)


def told(entry: EventLogEntry) -> tuple[object, ...]:
    """An event without what differs from one run to the next: times and process ids."""
    event = entry.dagster_event
    if event is None:
        return entry.run_id, entry.step_key
    metadata = getattr(event.event_specific_data, "materialization", None)
    return (
        event.event_type,
        entry.run_id,
        entry.step_key,
        event.asset_key,
        event.partition,
        sorted((metadata.metadata.keys()) if metadata else ()),
        metadata.tags.get("dagster/data_version") if metadata else None,
    )


def judged(record: Any) -> tuple[object, ...]:
    """A check's record; the run that failed before its check had only planned it."""
    event = record.event.get_dagster_event()
    evaluated = event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
    passed = event.asset_check_evaluation_data.passed if evaluated else None
    return record.key, record.run_id, record.status, passed


def counted(stats: Any) -> tuple[int, ...]:
    return stats.steps_succeeded, stats.steps_failed, stats.materializations, stats.expectations


def answers(instance: dg.DagsterInstance) -> dict[str, Any]:
    """What Dagster, its UI and our sensors ask an event log after `a_day`."""
    log = instance.event_log_storage
    checks = [dg.AssetCheckKey(rows.key, "whole"), dg.AssetCheckKey(summary.key, "sound")]
    runs = [f"{RUN}{number}" for number in range(1, 5)]
    records = {record.asset_entry.asset_key: record.asset_entry for record in log.get_asset_records()}
    return {
        "events": [[told(record.event_log_entry) for record in log.get_records_for_run(run).records] for run in runs],
        "steps": [[(step.step_key, step.status) for step in log.get_step_stats_for_run(run)] for run in runs],
        "stats": [counted(log.get_stats_for_run(run)) for run in runs],
        "assets": sorted(log.all_asset_keys()),
        "runs of assets": {key: entry.last_run_id for key, entry in records.items()},
        "partitions": sorted(log.get_materialized_partitions(rows.key)),
        "newest": {
            day: told(instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=rows.key, asset_partitions=[day]), limit=1
            ).records[0].event_log_entry)
            for day in ("2024-01-02", "2024-01-05")
        },
        "changed": log.get_updated_data_version_partitions(rows.key, ["2024-01-02", "2024-01-05"], 0),
        "checks": [judged(record) for key in checks for record in log.get_asset_check_execution_history(key, 10)],
        "latest checks": {
            str(key): record.status for key, record in log.get_latest_asset_check_execution_by_key(checks).items()
        },
        "failures": [
            told(record.event_log_entry)
            for record in instance.fetch_run_status_changes(dg.DagsterEventType.RUN_FAILURE, limit=5).records
        ],
    }  # fmt: skip


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with instance_for_test(overrides("PooledSqliteEventLog", tmp_path), temp_dir=str(tmp_path)) as opened:
        yield opened


def test_it_answers_as_dagsters_own(tmp_path_factory: pytest.TempPathFactory):
    """The same runs leave the same events, asset records, checks and partitions in both."""
    found = {}
    for kind in ("default", "PooledSqliteEventLog"):
        directory = tmp_path_factory.mktemp(kind)
        with instance_for_test(overrides(kind, directory), temp_dir=str(directory)) as instance:
            assert isinstance(
                instance.event_log_storage, SqliteEventLogStorage if kind == "default" else PooledSqliteEventLog
            )
            a_day(instance)
            found[kind] = answers(instance)
    expected, ours = found.values()
    assert expected["partitions"] == ["2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05"]
    assert len(expected["failures"]) == 1 and expected["checks"]
    for question, answer in expected.items():
        assert ours[question] == answer, question


def test_what_was_written_is_there_after_a_restart(tmp_path: Path):
    """Another process, another instance: the same answers."""
    with instance_for_test(overrides("PooledSqliteEventLog", tmp_path), temp_dir=str(tmp_path)) as first:
        a_day(first)
        before = answers(first)
    with instance_for_test(overrides("PooledSqliteEventLog", tmp_path), temp_dir=str(tmp_path)) as again:
        assert answers(again) == before


def test_pools_have_slots_and_give_them_back(instance: dg.DagsterInstance):
    """Promotion and training wait for their turn here: the event log holds Dagster's concurrency slots."""
    log = instance.event_log_storage
    assert log.supports_global_concurrency_limits
    log.set_concurrency_slots("training", 1)
    first, second = (log.claim_concurrency_slot("training", f"{RUN}{number}", "step") for number in (1, 2))
    assert (first.is_claimed, second.is_claimed) == (True, False)
    log.free_concurrency_slots_for_run(f"{RUN}1")
    assert log.claim_concurrency_slot("training", f"{RUN}2", "step").is_claimed


def test_a_wiped_asset_is_forgotten(instance: dg.DagsterInstance):
    a_day(instance)
    instance.wipe_assets([summary.key])
    assert instance.event_log_storage.all_asset_keys() == [rows.key]


def test_threads_share_the_store(instance: dg.DagsterInstance):
    """The daemon's sensors run in threads, each with a connection of its own while it needs one."""
    a_day(instance)
    expected, seen = answers(instance), []
    threads = [threading.Thread(target=lambda: seen.append(answers(instance))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 6


# -- processes -------------------------------------------------------------------------------------------

WRITER = """
import sys, time
from dagster._core.events.log import EventLogEntry
from resources.dagster_storage import PooledSqliteEventLog

directory, run, events, start = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
while time.time() < start:
    pass
store = PooledSqliteEventLog(directory)
for number in range(events):
    store.store_event(EventLogEntry(None, "info", str(number), run, time.time()))
    print(number, flush=True)
if len(sys.argv) > 5:
    time.sleep(600)
"""


def writer(directory: Path, run: str, events: int, *more: str, start: float = 0.0) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", WRITER, str(directory), run, str(events), str(start), *more]
    return subprocess.Popen(words, cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def messages(store: PooledSqliteEventLog, run: str) -> list[str]:
    return [record.event_log_entry.user_message for record in store.get_records_for_run(run).records]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_processes_that_start_at_once_share_a_new_store(tmp_path: Path):
    """`mlops up` on a fresh home: webserver, daemon and code server open it at once, and none finds half of it."""
    start = time.time() + 4  # they need about two seconds to import Dagster
    writers = [writer(tmp_path / "events", f"{RUN}{number}", 60, start=start) for number in range(4)]
    ended = [process.communicate(timeout=120) for process in writers]
    assert [process.returncode for process in writers] == [0] * 4, "\n".join(errors[-500:] for _, errors in ended)
    store = PooledSqliteEventLog(str(tmp_path / "events"))
    for number in range(4):
        assert messages(store, f"{RUN}{number}") == [str(event) for event in range(60)]
    store.dispose()


def test_a_killed_writer_loses_nothing_that_was_written(tmp_path: Path):
    """Each event is a transaction of its own; what the process had said was stored is read by the next."""
    process = writer(tmp_path / "events", f"{RUN}1", 100_000)
    stored = [process.stdout.readline() for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    rest, _ = process.communicate(timeout=60)
    known = [line.strip() for line in (*stored, *rest.splitlines()) if line.strip().isdigit()]
    store = PooledSqliteEventLog(str(tmp_path / "events"))
    found = messages(store, f"{RUN}1")
    assert found == [str(event) for event in range(len(found))], "no hole"
    assert len(found) >= len(known) - 1, "the last line may have been cut short by the kill"
    store.store_event(EventLogEntry(None, "info", "after", f"{RUN}1", time.time()))
    assert messages(store, f"{RUN}1")[-1] == "after"
    store.dispose()


def test_a_store_whose_maker_was_killed_is_made_anew(tmp_path: Path):
    """An empty file, as a kill leaves it before the first table, is not taken for a store."""
    (tmp_path / "event_log.db").touch()
    store = PooledSqliteEventLog(str(tmp_path))
    store.store_event(EventLogEntry(None, "info", "first", f"{RUN}1", time.time()))
    assert messages(store, f"{RUN}1") == ["first"]
    store.dispose()


def test_who_watches_a_run_sees_its_events_while_it_goes_on(tmp_path: Path):
    """The run page of the UI: the writer is another process that keeps its connection open, and is not done yet."""
    store, seen = PooledSqliteEventLog(str(tmp_path / "events")), []
    store.watch(f"{RUN}1", None, lambda entry, cursor: seen.append(entry.user_message))
    process = writer(tmp_path / "events", f"{RUN}1", 5, "and stay")
    try:
        wait_until(lambda: len(seen) >= 5)
        assert process.poll() is None
        assert seen == ["0", "1", "2", "3", "4"]
    finally:
        process.kill()
        process.communicate()
        store.dispose()
