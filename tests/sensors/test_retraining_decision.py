"""The decision to retrain: one request an episode, from evidence alone, with its reasons, also when it is no."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.retraining_decision import (
    Decision,
    Evidence,
    Memory,
    Signal,
    cutoff_within,
    known_until,
    retraining_decision,
)

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


def quality(day: date, broken: bool = False, verdict: str = "healthy") -> Signal:
    said = "broken pipeline" if broken else verdict
    causes = ("weather_hourly: 80 % of the answers found no usable row",) if broken else ()
    return Signal("pipeline_healthy", day, not broken, said, 9_000, causes)


def decide(
    *signals: Signal,
    pipeline: Sequence[Signal] | None = None,
    trained: datetime | None = None,
    running: str | None = None,
    memory: Memory = FRESH,
    limits: Limits = LIMITS,
) -> Decision:
    return retraining_decision(MODEL, Evidence(signals, MONDAYS, pipeline, trained, running), limits, memory)


WEDNESDAY = date(2013, 7, 10)
DAY = timedelta(days=1)


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


# -- the pipeline


def test_a_broken_pipeline_is_never_answered_by_a_retraining() -> None:
    """It is told with its causes, beside what failed because of it."""
    decision = decide(drift(WEDNESDAY), drop(WEDNESDAY), pipeline=[quality(WEDNESDAY, broken=True)])
    assert (decision.outcome, decision.retrain, decision.day) == ("broken pipeline", False, WEDNESDAY)
    assert decision.reasons[:2] == (
        "pipeline_healthy of 2013-07-10: broken pipeline (9000 rows)",
        "weather_hourly: 80 % of the answers found no usable row",
    )
    assert decision.reasons[2] == "drift of 2013-07-10: drift (9000 rows), not judged"


def test_a_broken_pipeline_is_told_before_anything_drifts() -> None:
    assert (
        decide(drift(WEDNESDAY, failed=False), pipeline=[quality(WEDNESDAY, broken=True)]).outcome == "broken pipeline"
    )


def test_a_failure_of_a_broken_day_is_no_cause_after_the_repair() -> None:
    """The pipeline is healthy on Thursday, whose own reports are still to come."""
    pipeline = [quality(WEDNESDAY, broken=True), quality(WEDNESDAY + DAY)]
    decision = decide(drift(WEDNESDAY), pipeline=pipeline)
    assert not decision.retrain and "the pipeline was broken" in decision.reasons[0]


def test_what_still_fails_after_the_repair_is_judged_anew() -> None:
    pipeline = [quality(WEDNESDAY, broken=True), quality(WEDNESDAY + DAY)]
    assert decide(drift(WEDNESDAY), drift(WEDNESDAY + DAY), pipeline=pipeline).retrain


def test_a_day_that_was_mended_and_reported_again_counts_as_healthy() -> None:
    assert decide(drift(WEDNESDAY), pipeline=[quality(WEDNESDAY, broken=True), quality(WEDNESDAY)]).retrain


def test_a_failing_report_waits_for_the_quality_of_its_day() -> None:
    """The reports of a day end in any order; the failure is kept meanwhile, and judged by what the other says."""
    waiting = decide(drift(WEDNESDAY), pipeline=[quality(WEDNESDAY - DAY)])
    assert (waiting.outcome, waiting.reasons[-1]) == ("wait", "waits for the quality report of 2013-07-10")
    healthy, broken = ([quality(WEDNESDAY - DAY), quality(WEDNESDAY, broken)] for broken in (False, True))
    assert decide(drift(WEDNESDAY), pipeline=healthy, memory=waiting.memory).retrain
    assert decide(drift(WEDNESDAY), pipeline=broken, memory=waiting.memory).memory.latched == ()


@pytest.mark.parametrize(
    ("pipeline", "outcome"),
    [
        ([], "retrain"),
        ([quality(WEDNESDAY - 4 * DAY)], "retrain"),
        ([quality(WEDNESDAY - 3 * DAY)], "wait"),
        ([quality(WEDNESDAY, verdict="not enough rows")], "retrain"),
        (None, "retrain"),
    ],
)
def test_a_quality_report_that_stays_out_holds_nothing_up(pipeline: list[Signal] | None, outcome: str) -> None:
    """Three days it is waited for; a day with too few rows says nothing of the pipeline."""
    assert decide(drift(WEDNESDAY - 4 * DAY, failed=False), drift(WEDNESDAY), pipeline=pipeline).outcome == outcome


def test_what_was_latched_before_the_pipeline_broke_is_kept() -> None:
    """A failure during a run was the world's; the broken days after it do not make it forgotten."""
    latched = decide(drift(WEDNESDAY), pipeline=[quality(WEDNESDAY)], running="run-1").memory
    broken = [quality(WEDNESDAY), quality(WEDNESDAY + DAY, broken=True)]
    during = decide(drift(WEDNESDAY + DAY), pipeline=broken, memory=latched)
    assert during.outcome == "broken pipeline" and during.memory.latched == latched.latched
    after = [*broken, quality(WEDNESDAY + 2 * DAY)]
    assert decide(drift(WEDNESDAY + 2 * DAY, failed=False), pipeline=after, memory=during.memory).retrain


# -- any history

BEGIN = date(2013, 4, 10)


@dataclass(frozen=True)
class Moment:
    """What a day brings: what drift and metric reports say (None is no report), the pipeline, whether a run goes on."""

    drift: bool | None
    drop: bool | None
    broken: bool | None
    running: bool
    rows: int


moments = st.lists(
    st.builds(
        Moment,
        st.sampled_from([True, True, False, None]),
        st.sampled_from([True, False, False, None]),
        st.sampled_from([True, False, False, False, None]),
        st.booleans(),
        st.sampled_from([400, 600, 9_000]),
    ),
    max_size=18,
)


@dataclass
class Replayed:
    """A tick after each report, in the order drift, metric, quality; what is asked for is trained at once."""

    limits: Limits
    reports: list[Signal] = field(default_factory=list)
    pipeline: list[Signal] = field(default_factory=list)
    memory: Memory = FRESH
    trained: datetime | None = None
    ticks: list[tuple[Moment, Decision]] = field(default_factory=list)

    def live(self, days: Iterable[Moment]) -> list[tuple[Moment, Decision]]:
        for number, moment in enumerate(days):
            day = BEGIN + number * DAY
            self.tick(moment)
            if moment.drift is not None:
                self.reports.append(drift(day, moment.drift, moment.rows))
                self.tick(moment)
            if moment.drop is not None:
                self.reports.append(drop(day, moment.drop, moment.rows))
                self.tick(moment)
            if moment.broken is not None:
                self.pipeline.append(quality(day, moment.broken))
                self.tick(moment)
        return self.ticks

    def tick(self, moment: Moment) -> None:
        running = "x" if moment.running else None
        decision = decide(
            *self.reports,
            pipeline=self.pipeline,
            trained=self.trained,
            running=running,
            memory=Memory.from_json(json.loads(json.dumps(self.memory.to_json()))),
            limits=self.limits,
        )
        self.memory = decision.memory
        if decision.retrain and decision.cutoff:
            self.trained = MONDAYS[decision.cutoff]
        self.ticks.append((moment, decision))


@settings(max_examples=80)
@given(moments, st.integers(0, 21))
def test_any_history_keeps_the_rules(days: list[Moment], cooldown: int) -> None:
    """Never twice one key, never within the cooldown, never beyond what is known, on few rows, or during a run."""
    limits = Limits(timedelta(days=cooldown))
    replayed = Replayed(limits).live(days)
    yes = [(moment, decision) for moment, decision in replayed if decision.retrain]
    assert len({decision.run_key for _, decision in yes}) == len(yes)
    for moment, decision in yes:
        assert not moment.running
        assert decision.cutoff and decision.day and MONDAYS[decision.cutoff] <= known_until(decision.day)
        assert all("(400 rows)" not in reason for reason in decision.reasons), "never on fewer than 500 rows"
    for (_, one), (_, other) in pairwise(yes):
        assert one.day and other.day and other.day - one.day >= limits.cooldown
        assert MONDAYS[other.cutoff or ""] > MONDAYS[one.cutoff or ""]


@settings(max_examples=80)
@given(moments)
def test_no_history_retrains_for_a_broken_pipeline(days: list[Moment]) -> None:
    """No request rests on a report of a broken day, nor comes on one, where the quality report is not days behind."""
    known = [replace(moment, broken=bool(moment.broken)) if n % 3 == 0 else moment for n, moment in enumerate(days)]
    broken = {BEGIN + number * DAY for number, moment in enumerate(known) if moment.broken}
    for _, decision in Replayed(Limits(timedelta(0))).live(known):
        if decision.retrain:
            assert decision.day not in broken
            assert not any(str(day) in reason for day in broken for reason in decision.reasons)


@settings(max_examples=80)
@given(moments, st.integers(0, 14))
def test_no_failure_is_lost(days: list[Moment], cooldown: int) -> None:
    """A failure that stands on a quiet, healthy week's end is asked for, or was answered within the cooldown."""
    limits = Limits(timedelta(days=cooldown))
    replayed = Replayed(limits)
    replayed.live([*days, *[Moment(True, None, False, False, 9_000)] * (cooldown + 14)])
    last = BEGIN + (len(days) + cooldown + 13) * DAY
    asked = [decision.day for _, decision in replayed.ticks if decision.retrain and decision.day]
    assert asked and last - max(asked) <= max(limits.cooldown, timedelta(7)) + 7 * DAY


@settings(max_examples=100)
@given(moments, st.integers(1, 5))
def test_asking_again_changes_nothing(days: list[Moment], times: int) -> None:
    """Duplicate ticks, another daemon, a clock set back: the same evidence gives the same answer, a yes a no."""
    replayed = Replayed(LIMITS)
    replayed.live(days)
    quiet = Moment(None, None, None, False, 0)
    for _ in range(times):
        replayed.tick(quiet)
    answers = [decision for _, decision in replayed.ticks[-times:]]
    first = answers[0]
    assert not any(decision.retrain for decision in answers[1:])
    assert first.retrain or all(decision == first for decision in answers)
