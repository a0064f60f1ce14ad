"""The history of a model: champion and traffic in one order of time, told in versions."""

from __future__ import annotations

import time
from dataclasses import astuple
from datetime import date
from pathlib import Path

import pytest

from mlops_assets.catalog import gather
from mlops_assets.history import Event, between, brief, events
from resources.champions import ChampionStore
from resources.decisions import DecisionStore
from resources.releases import ReleaseStore

MODEL = gather().model("flights/late_arrival")


class Registry:
    """An alias in memory."""

    version: str | None = None

    def alias(self, name: str, alias: str) -> str | None:
        return self.version

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self.version = version


@pytest.fixture
def stores(tmp_path: Path) -> tuple[ReleaseStore, ChampionStore]:
    return ReleaseStore(tmp_path / "releases"), ChampionStore(tmp_path / "champions")


def test_a_model_without_a_past_has_no_history(stores):
    assert events(MODEL, *stores) == []


def test_champion_and_traffic_are_told_in_one_order(stores):
    """Who did what, from which versions to which, with their shares, and why."""
    releases, champions = stores
    registry = Registry()

    def crown(version: str) -> None:
        champions.move(registry, MODEL.id, MODEL.registered_name, version, by="run 1", why=f"passed as of {version}")

    crown("1")
    releases.start_canary(MODEL.id, "late:a", "1", [10, 100], by="run 1", why="first")
    crown("2")
    releases.start_canary(MODEL.id, "late:b", "2", [10, 100], by="run 2", why="new")
    releases.rollback(MODEL.id, by="ann", why="slower")
    told = events(MODEL, releases, champions)
    assert [event.at for event in told] == sorted(event.at for event in told)
    # What happened within a millisecond may be told in either order.
    assert sorted(astuple(event)[1:6] for event in told) == sorted([
        ("run 1", "champion", "none", "version 1", "passed as of 1"),
        ("run 1", "release", "none", "version 1 100 %", "first"),
        ("run 1", "champion", "version 1", "version 2", "passed as of 2"),
        ("run 2", "start canary", "version 1 100 %", "version 1 90 %, version 2 10 %", "new"),
        ("ann", "rollback", "version 1 90 %, version 2 10 %", "version 1 100 %", "slower"),
    ])  # fmt: skip
    assert told[-1] == Event(
        told[-1].at, "ann", "rollback", "version 1 90 %, version 2 10 %", "version 1 100 %", "slower"
    )


def test_other_models_are_not_told(stores):
    releases, champions = stores
    releases.start_canary("flights/arrival_delay", "delay:a", "1", [100], by="ann", why="first")
    assert events(MODEL, releases, champions) == []


NOTHING = {"by": "sensors.retraining"}


def decided(*outcomes: str, month: int = 8) -> None:
    """A decision a day; what it says differs from day to day."""
    for number, outcome in enumerate(outcomes, 1):
        day = date(2013, month, number)
        DecisionStore().record(MODEL.id, "retrain", outcome, [f"drift of {day}: stable"], day=day, **NOTHING)


def test_decisions_stand_between_the_moves(stores, home):
    """A refusal to retrain, a first release, another refusal: told in their order, with outcome and reasons."""
    releases, champions = stores
    decided("no")
    time.sleep(0.002)
    releases.start_canary(MODEL.id, "late:a", "1", [100], by="ann", why="first")
    time.sleep(0.002)
    decided("retrain", month=9)
    told = events(MODEL, releases, champions, DecisionStore().history(MODEL.id))
    assert [(event.what, event.after) for event in told] == [
        ("retrain", "no"),
        ("release", "version 1 100 %"),
        ("retrain", "retrain"),
    ]
    assert told[2].day == date(2013, 9, 1) and told[2].why == "drift of 2013-09-01: stable"


def test_what_nothing_came_of_is_one_line_in_brief(stores, home):
    """From when to when, how often, and why the last time; what something came of stays a line of its own."""
    decided("no", "no", "no", "retrain", "no")
    first, asked, after = brief(events(MODEL, *stores, DecisionStore().history(MODEL.id)))
    assert (first.what, first.times) == ("retrain, 2013-08-01 to 2013-08-03", 3)
    assert first.why == "3 answers; the last: drift of 2013-08-03: stable"
    assert (asked.after, after.after, after.day) == ("retrain", "no", date(2013, 8, 5))


def test_a_month_can_be_asked_about(stores, home):
    decided("no", month=7)
    decided("no", "retrain", month=8)
    told = events(MODEL, *stores, DecisionStore().history(MODEL.id))
    august = between(told, date(2013, 8, 1), date(2013, 8, 31))
    assert [event.day for event in august] == [date(2013, 8, 1), date(2013, 8, 2)]


def test_answers_about_one_day_are_told_of_that_day(stores, home):
    """A report that waited for another one, and then for nothing: not "from that day to that day"."""
    for reason in ("waits for the quality report", "answered"):
        DecisionStore().record(MODEL.id, "retrain", "no", [reason], day=date(2013, 8, 1), **NOTHING)
    (line,) = brief(events(MODEL, *stores, DecisionStore().history(MODEL.id)))
    assert (line.what, line.day, line.times) == ("retrain", date(2013, 8, 1), 2)
