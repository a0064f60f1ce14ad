"""The run queue: Dagster's own, where runs have turns (`fair_queue`), and of one event's only the first is let in.

Web server and daemon each submit runs, and neither knows of the other's: a push that took long and the sensor that
took its event over would start it twice. Both come through here. A second attempt of a run (a retry, a re-execution)
has the first as its root and is let in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.storage.dagster_run import DagsterRunStatus

from resources.events import EVENT_TAG, Inbox
from resources.fair_queue import place

if TYPE_CHECKING:
    import dagster as dg
    from dagster._core.run_coordinator import SubmitRunContext


LOOK_EVERY_SECONDS = 0.5


class RunQueue(QueuedRunCoordinator):
    """Named in dagster.yaml."""

    @property
    def dequeue_interval_seconds(self) -> float:  # type: ignore[override]  # the setting takes whole seconds alone
        """A run that was pushed is launched within a second; looking costs a few milliseconds."""
        return LOOK_EVERY_SECONDS

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        run = context.dagster_run
        event = run.tags.get(EVENT_TAG)
        if event is None or run.root_run_id or Inbox().give(event, run.run_id):
            if run.status == DagsterRunStatus.NOT_STARTED:
                self._instance.add_run_tags(run.run_id, place(self._instance, run))
            return super().submit_run(context)
        self._instance.report_run_canceled(run, f"Event {event!r} has another run, or is not of this platform.")
        return self._instance.get_run_by_id(run.run_id) or run
