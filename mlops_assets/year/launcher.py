"""Runs executed in the daemon's own process, and what each of them cost.

A line a run lies in `runs.jsonl` under MLOPS_HOME: its assets and its seconds of CPU, those of its processes included.
"""

from __future__ import annotations

import json
import resource
from typing import Any

from dagster import DagsterEventType
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.launcher import LaunchRunContext
from dagster._core.launcher.sync_in_memory_run_launcher import SyncInMemoryRunLauncher

from resources.environment import home

RUNS = "runs.jsonl"


class TimedLauncher(SyncInMemoryRunLauncher):
    """Dagster's launcher for runs in the same process, timed."""

    def launch_run(self, context: LaunchRunContext) -> None:
        began, run = cpu_seconds(), context.dagster_run
        super().launch_run(context)
        assets = sorted(key.to_user_string() for key in run.asset_selection or ())
        told = {"run": run.run_id, "job": run.job_name, "assets": assets, "cpu_seconds": cpu_seconds() - began}
        with (home() / RUNS).open("a") as lines:
            lines.write(json.dumps(told) + "\n")
        if self._interrupted(run.run_id):
            raise KeyboardInterrupt

    def _interrupted(self, run_id: str) -> bool:
        """A signal ends the run that is executed, and would else end nothing more."""
        failed = self._instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE)
        errors = [log.get_dagster_event().step_failure_data.error for log in failed]
        return any(error and error.cls_name == DagsterExecutionInterruptedError.__name__ for error in errors)


def launched() -> list[dict[str, Any]]:
    """Every run so far, in the order in which they ended."""
    path = home() / RUNS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
