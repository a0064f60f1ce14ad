"""Decisions, on both databases: one line each, however often asked for; what one rests on moves with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date

import pytest

from resources.decisions import DecisionStore, Remembered, StaleMemoryError

MODEL = "flights/late_arrival"
STORE = DecisionStore()
DAY = date(2013, 7, 10)


def no(*reasons: str, day: date = DAY) -> bool:
    return STORE.record(MODEL, "retrain", "no", reasons, day=day, by="test", evidence={"rows": 9_000})


def test_the_same_decision_again_is_no_new_line(database: str) -> None:
    """A sensor that asks every half minute leaves one line that says how often and until when."""
    assert [no("nothing fails") for _ in range(3)] == [True, False, False]
    (line,) = STORE.history(MODEL)
    assert (line.times, line.reasons, line.day, line.evidence) == (3, ("nothing fails",), DAY, {"rows": 9_000})
    assert line.at <= line.until


def test_another_decision_between_makes_a_line_of_its_own(database: str) -> None:
    """No, then yes, then no again for the first reason are three decisions, in their order."""
    no("cools down")
    STORE.record(MODEL, "retrain", "yes", ["drift"], day=DAY, by="test")
    assert no("cools down")
    assert [line.outcome for line in STORE.history(MODEL)] == ["no", "yes", "no"]


def test_kinds_and_models_do_not_mix(database: str) -> None:
    """An alert between two equal decisions to retrain does not part them; another model has lines of its own."""
    no("nothing fails")
    STORE.record(MODEL, "alert", "sent", ["broken"], by="test")
    assert not no("nothing fails")
    assert STORE.record("flights/other", "retrain", "no", ["nothing fails"], day=DAY, by="test")
    assert [line.kind for line in STORE.history(MODEL)] == ["retrain", "alert"]


def test_a_clock_set_back_changes_no_order(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines come in the order of writing, and a decision is never made until before it was made."""
    from datetime import UTC, datetime

    import resources.decisions

    class SetBack(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(2001, 1, 1, tzinfo=UTC)

    no("first")
    monkeypatch.setattr(resources.decisions, "datetime", SetBack)
    no("first")
    no("second")
    first, second = STORE.history(MODEL)
    assert (first.reasons, second.reasons) == (("first",), ("second",))
    assert first.until >= first.at > second.at


def test_of_two_that_decide_from_one_memory_the_second_is_refused(database: str) -> None:
    """Neither its memory nor its decision is written; the error says to decide again."""
    read = STORE.memory(MODEL, "retrain")
    STORE.record(MODEL, "retrain", "yes", ["drift"], by="one", memory=replace(read, value={"answered": "2013-07-10"}))
    with pytest.raises(StaleMemoryError, match="decide again"):
        STORE.record(MODEL, "retrain", "yes", ["drift"], by="two", memory=replace(read, value={"answered": "x"}))
    assert [line.by for line in STORE.history(MODEL)] == ["one"]
    assert STORE.memory(MODEL, "retrain") == Remembered({"answered": "2013-07-10"}, 1)


def test_many_at_once_count_to_the_sum(database: str) -> None:
    """Eight threads that each add one to the memory, asking again when refused, lose none."""

    def add(_: int) -> None:
        while True:
            read = STORE.memory(MODEL, "retrain")
            more = replace(read, value={"count": read.value.get("count", 0) + 1})
            try:
                STORE.record(MODEL, "retrain", "counted", [], by="test", memory=more)
            except StaleMemoryError:
                continue
            return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert STORE.memory(MODEL, "retrain").value == {"count": 40}
    assert STORE.history(MODEL)[0].times == 40
