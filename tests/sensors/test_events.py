"""Events become runs, one each: by push or by the sensor, whoever of them dies, comes late or comes twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

import resources.events
from resources.alerts import AlertResource
from resources.environment import DAGSTER_URL
from resources.events import EVENT_TAG, REFUSED, STARTED, TAKEOVER_SECONDS, Event, Inbox, push
from sensors.events import events_sensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

daily = dg.DailyPartitionsDefinition(start_date="2013-01-01", end_date="2014-01-01")


@dg.asset(key=["flights", "raw"], partitions_def=daily)
def raw() -> None: ...


@dg.asset(key=["flights", "champion"])
def champion() -> None: ...


defs = dg.Definitions(
    assets=[raw, champion],
    sensors=[events_sensor],
    resources={"alerts": AlertResource()},
    executor=dg.in_process_executor,
)
DAY = Event("delivery 7", "data", ("flights/raw",), partition="2013-07-10")
inbox = Inbox()


@pytest.fixture
def instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.delenv(DAGSTER_URL, raising=False)
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def tick(instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    with dg.build_sensor_context(instance, definitions=defs, resources={"alerts": AlertResource()}) as context:
        return list(events_sensor.evaluate_tick(context).run_requests or [])


def runs(instance: dg.DagsterInstance, request: dg.RunRequest) -> None:
    """What the daemon makes of a request."""
    job = defs.resolve_implicit_global_asset_job_def()
    what = {"partition_key": request.partition_key, "asset_selection": request.asset_selection}
    assert job.execute_in_process(instance=instance, tags=request.tags, **what).success


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    import time

    now = time.time
    monkeypatch.setattr(resources.events.time, "time", lambda: now() + seconds)


def test_what_push_could_not_start_is_asked_for_at_the_next_tick(instance: dg.DagsterInstance) -> None:
    """Without a web server an event waits for the sensor, which asks for its run once and sees it begin."""
    assert push(DAY) is None
    (request,) = tick(instance)
    assert (request.run_key, request.partition_key) == (DAY.id, "2013-07-10")
    assert request.asset_selection == [dg.AssetKey(["flights", "raw"])] and request.tags[EVENT_TAG] == DAY.id
    assert tick(instance) == []
    runs(instance, request)
    assert tick(instance) == [] and inbox.read(DAY.id).outcome == STARTED


def test_an_event_is_one_however_often_it_is_pushed(instance: dg.DagsterInstance) -> None:
    """Before its run, while it waits, and long after it."""
    assert [inbox.put(DAY), inbox.put(DAY)] == [True, False]
    (request,) = tick(instance)
    push(DAY)
    assert tick(instance) == []
    runs(instance, request)
    tick(instance)
    push(DAY)
    assert tick(instance) == []


@pytest.mark.parametrize("shift", [TAKEOVER_SECONDS + 1, -TAKEOVER_SECONDS - 1], ids=["late", "clock set back"])
def test_a_pusher_that_died_between_claim_and_launch_is_replaced(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    """After the stated time, and not before; a clock that was set back only makes it sooner."""
    inbox.put(DAY)
    assert inbox.claim(DAY.id, "a pusher that dies")
    assert tick(instance) == []
    later(monkeypatch, shift)
    assert [request.run_key for request in tick(instance)] == [DAY.id]


def test_of_two_runs_of_one_event_the_second_is_not_let_in(instance: dg.DagsterInstance) -> None:
    """The first has it for ever, also where the other only came late; the same run may ask again."""
    inbox.put(DAY)
    assert [inbox.give(DAY.id, run) for run in ("one", "two", "one")] == [True, False, True]
    assert not inbox.give("never put in", "one")
    assert not inbox.claim(DAY.id, "anyone")


def test_a_run_that_was_created_and_never_queued_is_replaced(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its submitter died in between: after the stated time the event is asked for anew, and the old run is out."""
    inbox.put(DAY)
    inbox.claim(DAY.id, "push")
    half = create_run_for_test(instance, resources.events.ASSET_JOB, status=dg.DagsterRunStatus.NOT_STARTED)
    assert inbox.give(DAY.id, half.run_id)
    assert tick(instance) == []
    later(monkeypatch, TAKEOVER_SECONDS + 1)
    assert [request.run_key for request in tick(instance)] == [DAY.id]
    assert inbox.give(DAY.id, "another") and not inbox.give(DAY.id, half.run_id)


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (replace(DAY, assets=("flights/none",)), "no asset 'flights/none'"),
        (replace(DAY, partition="2031-01-01"), "no partition '2031-01-01'"),
        (replace(DAY, partition=None), "names no partition"),
        (replace(DAY, assets=("flights/champion",)), "no partition '2013-07-10'"),
        (replace(DAY, assets=()), "names no asset"),
    ],
)
def test_an_impossible_event_is_refused_and_holds_up_no_other(
    instance: dg.DagsterInstance, event: Event, why: str
) -> None:
    """It is closed with its reason; what came after it gets its run at the same tick."""
    inbox.put(event)
    inbox.put(Event("approval", "approval", ("flights/champion",)))
    assert [request.run_key for request in tick(instance)] == ["approval"]
    refused = inbox.read(event.id)
    assert refused.outcome == REFUSED and why in refused.why
    assert not inbox.give(event.id, "a late run")


def test_news_without_an_id_are_told_apart_by_what_was_started(instance: dg.DagsterInstance) -> None:
    """Told twice before the run begins, it is one; a correction after it is another."""
    told = replace(DAY, id="", subject="flights/raw[2013-07-10]")
    first = inbox.news(told)
    assert inbox.news(told) == first
    (request,) = tick(instance)
    runs(instance, request)
    tick(instance)
    second = inbox.news(told)
    assert (first.id, second.id) == ("flights/raw[2013-07-10]#1", "flights/raw[2013-07-10]#2")


def test_many_claimants_one_winner(instance: dg.DagsterInstance) -> None:
    """Pushers and sensors at once, each event has one."""
    events = [replace(DAY, id=f"delivery {number}") for number in range(5)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(inbox.put, events * 4))
        claimed = list(pool.map(lambda event: inbox.claim(event.id, "push"), events * 4))
        polled = list(pool.map(lambda _: inbox.due("events", "poll"), range(4)))
    assert sum(claimed) + sum(map(len, polled)) == 5
