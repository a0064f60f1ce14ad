"""A person's word is waited for as a row: it survives every process, is given once, expires, and says who and why."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from resources.approvals import (
    AnonymousDecisionError,
    Approval,
    ApprovalStore,
    DecidedApprovalError,
    UnknownApprovalError,
)
from resources.environment import PROJECT

MODEL = "flights/late_arrival"
DAY = timedelta(days=1)
PERSON = {"by": "ann", "why": "looks right"}


@dataclass
class Clock:
    """A clock that a test moves."""

    now: datetime = field(default_factory=lambda: datetime(2026, 1, 1, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(home: Path, clock: Clock) -> ApprovalStore:
    return ApprovalStore(clock)


def asked(store: ApprovalStore, version: str, model: str = MODEL) -> Approval:
    return store.ask(model, version, expires=DAY, by="run 1", why="passed its gate")


def states(store: ApprovalStore, model: str = MODEL) -> dict[str, str]:
    return {item.version: item.state for item in store.history(model)}


def test_a_question_is_asked_once_and_answered_with_name_and_reason(store):
    """Asked again it is the same question, also after the answer."""
    first = asked(store, "2")
    assert asked(store, "2") == first and store.waiting(MODEL) == [first] == store.waiting()
    approved = store.decide(MODEL, "2", "approved", **PERSON)
    assert (approved.state, approved.by, approved.why, approved.decided_at) == (
        *("approved", "ann", "looks right"),
        "2026-01-01T00:00:00.000+00:00",
    )
    assert asked(store, "2") == approved and store.waiting() == [] and store.approved(MODEL) == {"2"}


def test_the_same_word_twice_is_harmless_and_the_first_stands(store):
    """Two who approve at once, or one who types it twice."""
    asked(store, "2")
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda n: store.decide(MODEL, "2", "approved", by=f"p{n}", why="fine"), range(4)))
    assert len({item.by for item in told}) == 1 and store.read(MODEL, "2") == told[0]


@pytest.mark.parametrize(("first", "second"), [("approved", "refused"), ("refused", "approved")])
def test_a_decision_is_not_turned_round(store, first, second):
    """Who, when and why of the first is told, and what to do instead."""
    asked(store, "2")
    store.decide(MODEL, "2", first, **PERSON)
    command = {"approved": "mlops rollback", "refused": "mlops promote flights/late_arrival --version 2"}[first]
    with pytest.raises(DecidedApprovalError, match=rf"is {first} since 2026.*, by ann \(looks right\).*{command}"):
        store.decide(MODEL, "2", second, by="bob", why="no")
    assert states(store) == {"2": first}


def test_what_expired_cannot_be_given_and_stays_expired(store, clock):
    """Also where nobody marked it yet, and when the clock is set back afterwards."""
    asked(store, "2")
    clock.now += DAY
    with pytest.raises(DecidedApprovalError, match=r"is expired since 2026-01-02.*nobody decided by 2026-01-02"):
        store.decide(MODEL, "2", "approved", **PERSON)
    clock.now -= DAY
    with pytest.raises(DecidedApprovalError):
        store.decide(MODEL, "2", "approved", **PERSON)
    assert states(store) == {"2": "expired"} and store.expire() == []


def test_a_newer_question_supersedes_those_that_wait_and_nothing_else(store):
    """What was decided stands, and another model's questions are its own."""
    asked(store, "9", "flights/other")
    for version in ("1", "2"):
        asked(store, version)
        store.decide(MODEL, version, "approved" if version == "1" else "refused", **PERSON)
    asked(store, "3")
    asked(store, "10")
    assert states(store) == {"1": "approved", "2": "refused", "3": "superseded", "10": "waiting"}
    assert states(store, "flights/other") == {"9": "waiting"}
    store.supersede(MODEL, "4", by="run 2")
    assert states(store)["10"] == "waiting", "4 is older than 10, by number"
    with pytest.raises(DecidedApprovalError, match=r"is superseded since .*, by run 1 \(version 10 came after it"):
        store.decide(MODEL, "3", "approved", **PERSON)


def test_a_promotion_by_hand_is_an_approval_whatever_was_said_before(store):
    """Of a version that nobody asked about, and of one that was refused; the person who did it is on record."""
    asked(store, "2")
    store.decide(MODEL, "2", "refused", **PERSON)
    for version in ("2", "3"):
        store.overrule(MODEL, version, by="bob", why="promoted by hand: now")
    assert states(store) == {"2": "approved", "3": "approved"}
    assert {item.by for item in store.history(MODEL)} == {"bob"}
    assert store.overrule(MODEL, "2", by="eve", why="again").by == "bob"


@pytest.mark.parametrize("person", [{"by": "", "why": "fine"}, {"by": "ann", "why": "  "}])
def test_nobody_decides_without_a_name_or_a_reason(store, person):
    asked(store, "2")
    with pytest.raises(AnonymousDecisionError, match="Say who and why"):
        store.decide(MODEL, "2", "approved", **person)
    assert states(store) == {"2": "waiting"}


def test_a_version_that_nobody_asked_about_says_what_waits(store):
    asked(store, "2")
    with pytest.raises(UnknownApprovalError, match=r"word on version '7' \(waiting: 2\)"):
        store.decide(MODEL, "7", "approved", **PERSON)


def test_the_registry_is_told_of_what_stands_now(store):
    """A decision that comes between the telling and its note is told in its turn."""
    waiting = asked(store, "2")
    assert store.untold(MODEL) == [waiting]
    approved = store.decide(MODEL, "2", "approved", **PERSON)
    store.told(waiting)
    assert store.untold(MODEL) == [approved]
    store.told(approved)
    assert store.untold(MODEL) == []


GIVE = """
from resources.approvals import ApprovalStore
print(ApprovalStore().decide("flights/late_arrival", "2", "approved", by="ann", why="fine").asked_why)
"""


def test_a_question_survives_the_process_that_asked(home):
    """Another process, that was never told, gives the word; a third reads it."""
    ApprovalStore().ask(MODEL, "2", expires=DAY, by="run 1", why="passed its gate")
    other = subprocess.run([sys.executable, "-c", GIVE], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == "passed its gate"
    assert states(ApprovalStore()) == {"2": "approved"}
