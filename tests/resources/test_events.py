"""The inbox on both databases: an event is there once, is claimed by one, and belongs to one run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from resources.events import REFUSED, Event, Inbox, UnknownEventError

DAY = Event(
    "delivery 7", "data", ("flights/raw",), partition="2013-07-10", config={"ops": {"raw": {"config": {"n": 1}}}}
)
inbox = Inbox()


def test_an_event_comes_out_as_it_went_in(database: str) -> None:
    assert inbox.put(DAY) and not inbox.put(replace(DAY, partition="2013-07-11"))
    (received,) = inbox.open("events")
    assert received.event == DAY and received.run_id is None and inbox.open("another sensor") == []


def test_claims_runs_and_news_each_have_one_winner(database: str) -> None:
    """Of eight at once, whoever is first; what they tell without an id is one event."""
    inbox.put(DAY)
    told = replace(DAY, id="", subject="flights/raw[2013-07-10]")
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: inbox.claim(DAY.id, f"pusher {n}"), range(8)))
        given = list(pool.map(lambda n: inbox.give(DAY.id, f"run {n}"), range(8)))
        news = set(pool.map(lambda _: inbox.news(told).id, range(8)))
    assert claims.count(True) == given.count(True) == len(news) == 1


@pytest.mark.parametrize("outcome", [REFUSED, "not needed"])
def test_what_is_closed_without_a_run_gets_none(database: str, outcome: str) -> None:
    """Nobody claims it, and a run of it that comes late is not let in."""
    inbox.put(DAY)
    inbox.close(DAY.id, outcome, "no such asset")
    assert inbox.due("events", "sensor") == [] and not inbox.claim(DAY.id, "push") and not inbox.give(DAY.id, "run")
    assert inbox.read(DAY.id).why == "no such asset"


def test_what_is_released_is_due_at_once(database: str) -> None:
    inbox.put(DAY)
    assert inbox.claim(DAY.id, "push") and inbox.due("events", "sensor") == []
    inbox.release(DAY.id)
    assert inbox.due("events", "sensor") == [DAY]


def test_an_unknown_event_is_named(database: str) -> None:
    with pytest.raises(UnknownEventError, match="'delivery 9'"):
        inbox.read("delivery 9")
