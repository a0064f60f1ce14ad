"""Dagster's daemons in this process, under a clock that only the year moves.

They are Dagster's own iterations: sensors, automation conditions, backfills and the run queue, over a real instance
and a workspace with our code location. Two things are not as `dagster-daemon` has them: the clock, which is moved as
Dagster's own tests move it, and the launcher, which executes a dequeued run here and now. A process for each of the
year's thousands of runs would spend its hours on imports.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

from dagster import DagsterRunStatus, RunsFilter

if TYPE_CHECKING:
    import dagster as dg
    from dagster._core.workspace.context import IWorkspaceProcessContext
    from sqlalchemy import Engine

LOCATION, MODULE = "mlops_assets", "mlops_assets.year.definitions"
TICK = timedelta(seconds=31)  # a sensor's default interval is 30
MOST_TICKS = 60  # of one moment; more would mean that runs ask for each other for ever
logger = logging.getLogger(__name__)


class RestlessError(RuntimeError):
    """The platform asked for runs without end at one moment."""

    @classmethod
    def of(cls, at: datetime, ticks: int) -> Self:
        return cls(
            f"After {ticks} ticks at {at:%Y-%m-%d %H:%M} runs are still asked for. Look at the last runs' causes."
        )


@dataclass
class Clock:
    """The moment that Dagster takes for now."""

    now: datetime

    def datetime(self) -> datetime:
        return self.now

    def timestamp(self) -> float:
        return self.now.timestamp()

    @contextmanager
    def ruling(self) -> Iterator[Self]:
        """Dagster reads this clock for the time of the block; its events carry its time."""
        from dagster._core.test_utils import get_freezable_log_manager

        with ExitStack() as stack:
            log_manager: Any = get_freezable_log_manager
            stack.enter_context(patch("dagster._time._mockable_get_current_datetime", self.datetime))
            stack.enter_context(patch("dagster._time._mockable_get_current_timestamp", self.timestamp))
            stack.enter_context(patch("dagster._core.log_manager.DagsterLogManager", log_manager()))
            yield self


@dataclass
class Daemon:
    """The daemons over one instance. `spent` is the seconds that each of them took."""

    clock: Clock
    instance: dg.DagsterInstance
    workspace: IWorkspaceProcessContext[Any]
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    ticks: int = 0

    def __post_init__(self) -> None:
        from dagster._daemon.asset_daemon import AssetDaemon
        from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

        self._assets = AssetDaemon(settings={}, pre_sensor_interval_seconds=30)
        self._queue = QueuedRunCoordinatorDaemon(interval_seconds=5)

    def settle(self, *, sensors: bool = True) -> None:
        """Tick until nothing is asked for any more and no backfill goes on."""
        for _ in range(MOST_TICKS):
            if not self.tick(sensors=sensors) and not self._backfilling():
                return
        raise RestlessError.of(self.clock.now, MOST_TICKS)

    def _backfilling(self) -> bool:
        from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus

        going = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING])
        return bool(self.instance.get_backfills_count(going))

    def backfill(self, assets: Sequence[str], first: date, last: date) -> None:
        """Ask for some days of some assets, as the UI's button does."""
        from dagster import AssetKey
        from dagster._core.execution.backfill import PartitionBackfill

        days = [str(first + timedelta(days=i)) for i in range((last - first).days + 1)]
        self.instance.add_backfill(
            PartitionBackfill.from_asset_partitions(
                backfill_id="history",
                asset_graph=self.workspace.create_request_context().asset_graph,
                partition_names=days,
                asset_selection=[AssetKey.from_user_string(name) for name in assets],
                backfill_timestamp=self.clock.timestamp(),
                tags={},
                dynamic_partitions_store=self.instance,
                all_partitions=False,
                title="History",
                description=None,
                run_config=None,
            )
        )

    def tick(self, *, sensors: bool = True) -> int:
        """One round of the daemons, half a minute later; the runs that it launched. Each has a loop of its own."""
        self.clock.now += TICK
        before = self._runs()
        if sensors:
            self._timed("sensors", self._sensors)
            self._timed("runs", self._dequeued)
        self._timed("conditions", self._conditions)
        self._timed("backfills", self._backfills)
        self._timed("runs", self._dequeued)
        self.ticks += 1
        return self._runs() - before

    def _timed(self, name: str, work: Any) -> None:
        began = time.process_time()
        work()
        self.spent[name] += time.process_time() - began

    def _sensors(self) -> None:
        from dagster._daemon.sensor import execute_sensor_iteration

        _through(execute_sensor_iteration(self.workspace, logger, None, None))

    def _conditions(self) -> None:
        self._assets._run_iteration_impl(  # noqa: SLF001  its public loop sleeps by the real clock
            self.workspace, threadpool_executor=None, amp_tick_futures={}, debug_crash_flags={}
        )

    def _backfills(self) -> None:
        from dagster._daemon.backfill import execute_backfill_iteration

        _through(execute_backfill_iteration(self.workspace, logger))

    def _dequeued(self) -> None:
        """The queue's daemon looks every few seconds, and lets some in at a time: until none waits that may go."""
        waiting = 0
        while (now := self._runs(DagsterRunStatus.QUEUED)) and now != waiting:
            waiting = now
            _through(self._queue.run_iteration(self.workspace))

    def _runs(self, *statuses: DagsterRunStatus) -> int:
        return self.instance.get_runs_count(RunsFilter(statuses=statuses) if statuses else None)


def _kept_open(instance: dg.DagsterInstance) -> list[Any]:
    """What Dagster does anew at each of thousands of ticks: open the instance once, record no condition's tree."""
    from dagster import DagsterInstance
    from dagster._core.storage.schedules.sql_schedule_storage import SqlScheduleStorage

    untold = property(lambda _: False)  # the UI's record of each evaluation, a third of what a tick takes
    return [
        patch.object(DagsterInstance, "from_ref", lambda _: nullcontext(instance)),
        patch.object(SqlScheduleStorage, "supports_auto_materialize_asset_evaluations", untold),
    ]


@cache
def _engine(url: str, **_: Any) -> Engine:
    """One pool for a file: Dagster makes an engine for every statement."""
    from sqlalchemy import create_engine, event

    made = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})
    event.listen(made, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=NORMAL"))
    return made


def _through(iteration: Any) -> None:
    """A daemon yields the errors that it caught; the year does not go on with them."""
    for caught in iteration or ():
        if caught is not None and hasattr(caught, "to_string"):
            raise RuntimeError(caught.to_string())


@contextmanager
def daemon(start: datetime) -> Iterator[Daemon]:
    """The daemons of the platform under MLOPS_HOME, at `start`."""
    from dagster import DagsterInstance
    from dagster._core.instance.ref import InstanceRef
    from dagster._core.remote_origin import InProcessCodeLocationOrigin
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget

    from resources.environment import prepare_home

    launcher = {"module": "mlops_assets.year.launcher", "class": "TimedLauncher"}
    reference = InstanceRef.from_dir(str(prepare_home()), overrides={"run_launcher": launcher})
    origin = InProcessCodeLocationOrigin(
        LoadableTargetOrigin(module_name=MODULE, attribute="defs"), location_name=LOCATION
    )
    with ExitStack() as stack:
        clock = stack.enter_context(Clock(start.astimezone(UTC)).ruling())
        for storage in ("runs.sqlite.sqlite_run_storage", "schedules.sqlite.sqlite_schedule_storage"):
            stack.enter_context(patch(f"dagster._core.storage.{storage}.create_engine", _engine))
        instance = stack.enter_context(DagsterInstance.from_ref(reference))
        for patched in _kept_open(instance):
            stack.enter_context(patched)
        context = WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin))
        workspace = stack.enter_context(context)
        for entry in workspace.create_request_context().get_code_location_entries().values():
            if entry.load_error:
                raise RuntimeError(entry.load_error.to_string())
        yield Daemon(clock, instance, workspace)
