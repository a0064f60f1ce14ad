"""What the daemon makes of dead workers, and of another daemon: real daemons, code servers and run workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psutil
import pytest

from resources.environment import PROJECT, prepare_home

pytestmark = pytest.mark.slow

LONG_RUN = Path(__file__).with_name("long_run.py")
WAIT_SECONDS = 240


@pytest.fixture
def instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """The platform's own dagster.yaml, but that daemons look every second."""
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    config = prepare_home() / "dagster.yaml"
    quick = config.read_text().replace("poll_interval_seconds: 30", "poll_interval_seconds: 1")
    config.write_text(quick.replace("free_slots_after_run_end_seconds: 60", "free_slots_after_run_end_seconds: 1"))
    with dg.DagsterInstance.get() as instance:
        yield instance


@contextmanager
def daemon(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon with its code server; all that it started is killed with it, as by a power cut."""
    with log.open("ab") as output:
        command = [sys.executable, "-m", "dagster._daemon", "run", "-f", str(LONG_RUN)]
        process = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=output, start_new_session=True)
        try:
            yield process
        finally:
            power_cut(process)


def power_cut(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            one.kill()
    process.wait()


def eventually(true: Callable[[], bool], what: str, log: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, f"not within {WAIT_SECONDS} s: {what}. {log.read_text()[-3000:]}"
        time.sleep(0.1)


def begun(home: Path) -> list[int]:
    """The processes that began to materialize, oldest first."""
    return [int(line) for line in (home / "begun").read_text().split()] if (home / "begun").exists() else []


def statuses(instance: dg.DagsterInstance) -> list[str]:
    """The status of each run, oldest first."""
    return [run.status.value for run in reversed(instance.get_runs())]


def test_a_dead_worker_is_found_its_slot_freed_and_its_run_tried_once_more(
    home: Path, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """kill -9 of the worker, of daemon and code server with it: when the platform is back, the run has failed, the pool
    has its slot again, and the second attempt succeeds. Without the slot it would wait for ever.
    """
    log = tmp_path / "daemon.log"
    with daemon(log):
        eventually(lambda: len(begun(home)) == 1, "the run begins", log)
    assert statuses(instance) == ["STARTED"], "nobody was left to notice"
    with daemon(log):
        eventually(lambda: statuses(instance) == ["FAILURE", "STARTED"], "it failed and is tried again", log)
        eventually(lambda: len(begun(home)) == 2, "it got the slot", log)
        (home / "go").touch()
        eventually(lambda: statuses(instance) == ["FAILURE", "SUCCESS"], "the second attempt succeeds", log)
    first, second = reversed(instance.get_runs())
    assert second.parent_run_id == first.run_id and second.tags["dagster/retry_number"] == "1"


def test_a_worker_that_dies_alone_is_tried_again_and_no_more_than_once(
    home: Path, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """The code server, still there, notices; a run that kills each worker is not started for ever."""
    log = tmp_path / "daemon.log"
    with daemon(log):
        for attempt in (1, 2):
            eventually(lambda: len(begun(home)) == attempt, f"attempt {attempt} begins", log)  # noqa: B023
            os.kill(begun(home)[-1], signal.SIGKILL)
        eventually(lambda: statuses(instance) == ["FAILURE"] * 2, "both attempts failed", log)
        time.sleep(3)  # three looks of the daemon
        assert statuses(instance) == ["FAILURE"] * 2


def test_two_daemons_at_once_start_a_run_once(home: Path, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """Sensors tick twice, queue and monitoring are looked after twice: one run, one worker, one materialization."""
    log = tmp_path / "daemon.log"
    (home / "go").touch()
    with daemon(log), daemon(log):
        eventually(lambda: statuses(instance) == ["SUCCESS"], "the run succeeds", log)
        time.sleep(5)  # several ticks of both
    assert statuses(instance) == ["SUCCESS"] and len(begun(home)) == 1
