"""The decision to retrain: one request an episode, from evidence alone, with its reasons, also when it is no."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.retraining import Decision, Memory, Signal, cutoff_within, known_until, retraining_decision

MODEL = "flights/late_arrival"
WEEK = timedelta(days=7)
MONDAYS = {f"{day:%Y-%m-%d}": day for day in (datetime(2013, 4, 1, tzinfo=UTC) + i * WEEK for i in range(30))}


@dataclass(frozen=True)
class Limits:
    """The part of a `Monitor` that retraining reads."""

    cooldown: timedelta = WEEK
    min_rows: int = 500


FRESH = Memory()
LIMITS = Limits()


def drift(day: date, failed: bool = True, rows: int = 9_000, verdict: str | None = None) -> Signal:
    return Signal("drift", day, not failed, verdict or ("drift" if failed else "stable"), rows)


def drop(day: date, failed: bool = True, rows: int = 9_000) -> Signal:
    return Signal("metric_drop", day, not failed, "metric drop" if failed else "steady", rows)


def decide(
    *signals: Signal,
    trained: datetime | None = None,
    running: str | None = None,
    memory: Memory = FRESH,
    limits: Limits = LIMITS,
) -> Decision:
    return retraining_decision(MODEL, signals, MONDAYS, limits, trained=trained, running=running, memory=memory)


WEDNESDAY = date(2013, 7, 10)


@pytest.mark.parametrize("cause", [drift(WEDNESDAY), drop(WEDNESDAY)], ids=["drift", "metric drop"])
def test_either_cause_is_enough(cause: Signal) -> None:
    """A drift verdict or a metric drop asks for the newest cutoff that the report knows, and says why."""
    decision = decide(cause)
    assert (decision.retrain, decision.cutoff, decision.reasons) == (True, "2013-07-08", (str(cause),))
    assert decision.run_key == "flights/late_arrival:2013-07-10:2013-07-08"


@pytest.mark.parametrize(
    ("signals", "why"),
    [
        ((), "no report yet"),
        ((drift(WEDNESDAY, failed=False), drop(WEDNESDAY, failed=False)), "nothing fails; drift of 2013-07-10: stable"),
        ((drift(WEDNESDAY, rows=499),), "too few rows"),
        ((drift(WEDNESDAY, verdict="not enough rows"),), "too few rows"),
    ],
)
def test_no_is_told_with_its_reason(signals: tuple[Signal, ...], why: str) -> None:
    """Nothing failing, nothing known, or too little known is no cause."""
    decision = decide(*signals)
    assert not decision.retrain and why in decision.reasons[0]


def test_a_report_knows_the_world_up_to_the_end_of_its_day() -> None:
    """Sunday's report ends on Monday 00:00, the cutoff of that Monday; Saturday's does not reach it."""
    assert known_until(date(2013, 7, 14)) == datetime(2013, 7, 15, tzinfo=UTC)
    assert cutoff_within(date(2013, 7, 14), MONDAYS) == "2013-07-15"
    assert cutoff_within(date(2013, 7, 13), MONDAYS) == "2013-07-08"
    assert cutoff_within(date(2013, 3, 30), MONDAYS) is None


def test_the_newest_report_counts_not_the_newest_evaluation() -> None:
    """An old day that is reported again changes nothing, nor does a day with too few rows."""
    assert not decide(drift(WEDNESDAY, failed=False), drift(WEDNESDAY - WEEK)).retrain
    assert decide(drift(WEDNESDAY), drift(WEDNESDAY + timedelta(1), rows=3)).retrain
    assert not decide(drift(WEDNESDAY), drift(WEDNESDAY, failed=False)).retrain, "the same day, reported again"


def test_one_request_an_episode() -> None:
    """Days that go on failing after a request are the same episode, across a new cutoff too."""
    asked = decide(drift(date(2013, 7, 13)))
    assert (asked.retrain, asked.cutoff) == (True, "2013-07-08")
    later = [decide(drift(date(2013, 7, 13) + timedelta(n)), memory=asked.memory) for n in range(8)]
    assert [decision.retrain for decision in later] == [False] * 7 + [True]
    assert "answered by the request for the report of 2013-07-13" in later[1].reasons[-1]


def test_cooldown_is_counted_from_the_newest_training() -> None:
    """A model trained as of Monday is not trained again before the next one, whoever trained it."""
    monday = datetime(2013, 7, 8, tzinfo=UTC)
    early, due = (decide(drift(day), trained=monday) for day in (date(2013, 7, 13), date(2013, 7, 14)))
    assert not early.retrain and "cools down until 2013-07-15" in early.reasons[-1]
    assert (due.retrain, due.cutoff) == (True, "2013-07-15")


def test_a_cutoff_is_never_trained_twice() -> None:
    """Without a cooldown, too, a failing report asks for a training only when there is a later cutoff."""
    monday = datetime(2013, 7, 8, tzinfo=UTC)
    decision = decide(drift(WEDNESDAY), trained=monday, limits=Limits(cooldown=timedelta(0)))
    assert not decision.retrain and "no cutoff after" in decision.reasons[-1]


def test_a_failure_during_a_run_is_latched() -> None:
    """It waits while the run goes on, and is asked for when the run has ended, even if a later report passes."""
    waiting = decide(drift(WEDNESDAY), running="run-1")
    assert not waiting.retrain and waiting.reasons[-1] == "waits for run run-1"
    passing = drift(WEDNESDAY + timedelta(1), failed=False)
    still = decide(passing, running="run-1", memory=waiting.memory)
    assert not still.retrain
    free = decide(passing, memory=still.memory)
    assert (free.retrain, free.run_key) == (True, "flights/late_arrival:2013-07-10:2013-07-08")
    assert not decide(passing, memory=free.memory).retrain


def test_a_latched_failure_is_answered_by_the_training_it_waited_for() -> None:
    """The run in progress trained as of a cutoff that the report had asked for: there is nothing left to ask."""
    waiting = decide(drift(WEDNESDAY), running="run-1")
    ended = decide(drift(WEDNESDAY), trained=datetime(2013, 7, 8, tzinfo=UTC), memory=waiting.memory)
    assert (ended.retrain, ended.memory.latched) == (False, ())


days = st.dates(date(2013, 4, 10), date(2013, 10, 1))
signals = st.lists(
    st.builds(drift, days, st.booleans(), st.integers(400, 600)) | st.builds(drop, days, st.booleans()), max_size=12
)


def replay(reports: Iterable[Signal], busy: Iterable[bool], limits: Limits) -> list[Decision]:
    """A tick after every report, with a run in progress at some of them; what is asked for is trained at once."""
    seen: list[Signal] = []
    memory, trained, decisions = Memory(), None, []
    for report, running in zip(reports, busy, strict=False):
        seen.append(report)
        decision = decide(*seen, trained=trained, running="x" if running else None, memory=memory, limits=limits)
        memory = decision.memory
        trained = MONDAYS[decision.cutoff] if decision.retrain and decision.cutoff else trained
        decisions.append(decision)
    return decisions


@settings(max_examples=150)
@given(signals, st.lists(st.booleans(), min_size=12, max_size=12), st.integers(0, 21))
def test_any_history_keeps_the_rules(reports: list[Signal], busy: list[bool], cooldown: int) -> None:
    """Whatever the reports: never twice one key, never closer than the cooldown, never beyond what is known."""
    limits = Limits(timedelta(days=cooldown))
    yes = [decision for decision in replay(reports, busy, limits) if decision.retrain]
    assert len({decision.run_key for decision in yes}) == len(yes)
    for decision in yes:
        assert decision.cutoff and decision.day and MONDAYS[decision.cutoff] <= known_until(decision.day)
        assert all("(4" not in reason for reason in decision.reasons), "never on fewer than 500 rows"
    for one, other in pairwise(yes):
        assert one.day and other.day and other.day - one.day >= limits.cooldown
        assert MONDAYS[other.cutoff or ""] > MONDAYS[one.cutoff or ""]


@given(signals)
def test_the_same_evidence_gives_the_same_decision(reports: list[Signal]) -> None:
    """Nothing is read from the clock: asking twice gives equal answers, and a yes is followed by a no."""
    first, second = decide(*reports), decide(*reports)
    assert first == second
    assert not decide(*reports, memory=first.memory).retrain or not first.retrain
