"""Dagster's launcher for one machine, which also knows whether a run's process is still alive.

Dagster's own leaves that to the code server that started the process. When both are gone (a power cut, the platform
killed) the run would stay "started" for ever: it would keep its pool slots, and no retraining would begin beside it.
"""

from __future__ import annotations

from datetime import datetime

import psutil
from dagster import DagsterEventType, DagsterRun
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

CLOCK_SECONDS = 5.0


class WatchedRunLauncher(DefaultRunLauncher):
    """Named in `dagster.yaml` as `run_launcher`; run monitoring asks it."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """A run that told no process of its own, one within another program say, is left alone."""
        told = self._process(run.run_id)
        if told is None or alive(*told):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        pid, at = told
        since = f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}"
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, f"process {pid}, started at {since}, is gone")

    def _process(self, run_id: str) -> tuple[int, float] | None:
        """The process that the run said it is, and when it said so."""
        for entry in reversed(self._instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT)):
            event = entry.get_dagster_event()
            pid = event.engine_event_data.metadata.get("pid")
            if pid is not None and (event.message or "").startswith("Started process for run"):
                return int(str(pid.value)), entry.timestamp
        return None


def alive(pid: int, told_at: float) -> bool:
    """Whether it is still the process that said so then: a number is given to another process one day."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= told_at + CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return False
