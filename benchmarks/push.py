"""From an event to its run: by push over GraphQL, and by the sensor that polls, on one running platform.

Dagster's web server, daemon and code server as `mlops up` starts them, over a home and a code location of their own
with an asset that does nothing. Each event has one run on both sides. The time until a run is created, and until the
queue launched it, is what push and poll differ in; how long its process then takes to start is Dagster's and the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC
from statistics import median
from unittest.mock import patch

import dagster as dg
from rich.table import Table

from benchmarks.harness import Figure, Measurement, fresh_home, require_equal
from mlops_assets.processes import await_ready, dagster_services, free_port, prepare_storage, running
from resources.environment import DAGSTER_URL, home
from resources.events import EVENT_TAG, Event, Inbox, push

PUSHED, POLLED = 20, 6
INTERVAL = 30.0  # of the sensor: the polled events are spread over it
CODE = """
import dagster as dg
from resources.alerts import AlertResource
from sensors.events import events_sensor

@dg.asset(key=["flights", "raw"])
def raw() -> None: ...

defs = dg.Definitions(
    [raw], sensors=[events_sensor], resources={"alerts": AlertResource()}, executor=dg.in_process_executor
)
"""


@dataclass(frozen=True)
class Started:
    """What became of an event: seconds from it to the creation, the launch and the start of its run's work."""

    created: float
    launched: float
    started: float


@contextmanager
def platform(code: str = CODE) -> Iterator[dg.DagsterInstance]:
    """Web server and daemon of a home of its own, ready, with the definitions of `code`."""
    prepare_storage()
    place = home() / "code"
    place.mkdir()
    (place / "location.py").write_text(code)
    (place / "workspace.yaml").write_text(
        "load_from:\n  - python_file: {relative_path: location.py, location_name: mlops_assets}\n"
    )
    port = free_port(20_000 + os.getpid() % 30_000)  # another platform may be about to take the usual one
    services = dagster_services(port, port, port, place / "workspace.yaml")
    with ExitStack() as stack:
        stack.enter_context(patch.dict("os.environ", {DAGSTER_URL: f"http://127.0.0.1:{port}"}))
        started = stack.enter_context(running(services, home() / "logs", say=_quiet))
        await_ready(started, say=_quiet)
        yield stack.enter_context(dg.DagsterInstance.get())


def event(number: object) -> Event:
    return Event(f"event {number}", "data", assets=("flights/raw",))


def runs_of(instance: dg.DagsterInstance, event: Event) -> Sequence[dg.RunRecord]:
    return instance.get_run_records(dg.RunsFilter(tags={EVENT_TAG: event.id}))


def await_success(instance: dg.DagsterInstance, events: Sequence[Event], seconds: float = 300) -> None:
    """Until every event has a run that succeeded."""
    deadline = time.monotonic() + seconds
    waiting = list(events)
    while waiting := [one for one in waiting if not _succeeded(instance, one)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"No successful run within {seconds:g} s: {', '.join(one.id for one in waiting)}")
        time.sleep(0.2)


def measure(pushed: int = PUSHED, polled: int = POLLED) -> Measurement:
    with fresh_home(), platform() as instance:
        push(event("that warms up"))
        await_success(instance, [event("that warms up")])
        by_push = [_timed(instance, event(f"pushed {n}"), push) for n in range(pushed)]
        by_poll = []
        for n in range(polled):
            time.sleep(n * INTERVAL / polled)
            by_poll.append(_timed(instance, event(f"polled {n}"), Inbox().put))
    figures = [
        Figure(f"push.{what}", median(_of(by_push, what)), median(_of(by_poll, what)), "the sensor", target=target)
        for what, target in (("created", 0.1), ("launched", 0.2), ("started", None))
    ]
    table = Table("seconds until its run was", "by", "events", "p50", "max")
    for name, side in (("push", by_push), ("poll", by_poll)):
        for what in ("created", "launched", "started"):
            took = _of(side, what)
            table.add_row(what, name, str(len(took)), f"{median(took):.2f}", f"{max(took):.2f}")
    return Measurement(figures, [table])


def _timed(instance: dg.DagsterInstance, event: Event, tell: Callable[[Event], object]) -> Started:
    """One at a time: a run that waits for a slot is not what is measured."""
    at = time.time()
    tell(event)
    await_success(instance, [event])
    (record, *more) = runs_of(instance, event)
    require_equal(f"the number of runs of {event.id}", 1 + len(more), 1)
    return _started(instance, record, at)


def _started(instance: dg.DagsterInstance, record: dg.RunRecord, at: float) -> Started:
    launch = instance.get_records_for_run(record.dagster_run.run_id, of_type=dg.DagsterEventType.PIPELINE_STARTING)
    created = record.create_timestamp.replace(tzinfo=UTC).timestamp()
    return Started(created - at, launch.records[0].timestamp - at, (record.start_time or 0.0) - at)


def _of(side: Sequence[Started], what: str) -> list[float]:
    return [float(getattr(one, what)) for one in side]


def _succeeded(instance: dg.DagsterInstance, event: Event) -> bool:
    return any(record.dagster_run.status == dg.DagsterRunStatus.SUCCESS for record in runs_of(instance, event))


def _quiet(_line: str) -> None:
    """The services have logs of their own."""
