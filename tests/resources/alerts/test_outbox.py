"""The outbox: told once an episode, together within a group, and by one process at a time, whatever dies."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resources.alerts import Alert, outbox
from resources.alerts.outbox import DELIVERED, GIVEN_UP, LEASE_SECONDS, WAITING

pytestmark = pytest.mark.usefixtures("database")
HOUR, DAY = 3600.0, 86_400.0
NOW = 1_700_000_000.0
DRIFT = Alert("late_arrival drifts", "12 columns", "warning", group="flights/late_arrival", key="drift")


def put(alert: Alert = DRIFT, now: float = NOW, channels: tuple[str, ...] = ("webhook",)) -> bool:
    return outbox.put(alert, channels, now, window=5.0, repeat=4 * HOUR)


def said(now: float) -> list[str]:
    """What is delivered now, message by message."""
    found = []
    while (claim := outbox.claim("webhook", now)) is not None:
        found.append(claim.message.text)
        outbox.delivered(claim, now)
    return found


def test_an_episode_is_told_once_and_again_after_a_silence_with_how_often_it_happened() -> None:
    """Three more within four hours are counted; the first one after them is told with all four."""
    assert [put(now=NOW + hours * HOUR) for hours in (0, 1, 2, 3, 4, 5)] == [True, False, False, False, True, False]
    first, again = said(NOW + DAY)
    assert "times" not in first and "(4 times more; it began 2023-11-14 22:13 UTC)" in again
    (lasting,) = outbox.open_keys()
    assert (lasting.key, lasting.times, lasting.since, lasting.last) == ("drift", 6, NOW, NOW + 5 * HOUR)


def test_what_was_resolved_is_told_at_once_when_it_returns() -> None:
    """Its count begins anew; resolving twice, or what never was, says so."""
    put()
    assert outbox.resolve("drift", NOW + 1) and not outbox.resolve("drift", NOW + 2) and not outbox.resolve("x", NOW)
    assert outbox.open_keys() == []
    assert put(now=NOW + 60) and outbox.open_keys()[0].times == 1


def test_a_warning_that_becomes_an_error_is_told() -> None:
    """Once: it stays one, and a warning after it is no news."""
    worse = Alert("late_arrival drifts", "all columns", "error", group=DRIFT.group, key="drift")
    assert [put(), put(worse, NOW + 1), put(worse, NOW + 2), put(DRIFT, NOW + 3)] == [True, True, False, False]


def test_what_comes_together_for_a_group_is_one_message() -> None:
    """Within the window; another group, an alert without one, and what comes later are messages of their own."""
    for number, late in enumerate((0.0, 1.0, 4.9)):
        put(Alert(f"column {number}", "moved", group="flights"), NOW + late)
    put(Alert("of another", "x", group="books"), NOW)
    put(Alert("of none", "x"), NOW)
    put(Alert("later", "moved", group="flights"), NOW + 5.1)
    assert said(NOW) == ["of none: x"]
    assert said(NOW + 60) == ["column 0: moved\ncolumn 1: moved\ncolumn 2: moved", "of another: x", "later: moved"]


def test_a_message_that_was_claimed_takes_no_more() -> None:
    """Every channel tells the same."""
    put(channels=("webhook", "slack"))
    claim = outbox.claim("webhook", NOW + 5)
    put(Alert("late", "x", group=DRIFT.group), NOW + 4)
    other = outbox.claim("slack", NOW + 5)
    assert claim and other and claim.message == other.message and len(claim.message.told) == 1


def test_a_delivery_is_one_process_s_until_its_lease_ends() -> None:
    """Who died holding it is followed by another, and what the dead says after that counts no more."""
    put()
    first = outbox.claim("webhook", NOW + 5)
    assert first and outbox.claim("webhook", NOW + 6) is None
    second = outbox.claim("webhook", NOW + 5 + LEASE_SECONDS)
    assert second and second.message.id == first.message.id and second.attempts == 2
    outbox.given_up(first, "too late", NOW + 99)
    assert outbox.last(1)[0].deliveries[0].state == WAITING
    outbox.delivered(second, NOW + 100)
    assert outbox.last(1)[0].deliveries[0].state == DELIVERED


def test_many_claimers_share_the_messages() -> None:
    """Eight threads at once: each of forty messages is claimed once."""
    for number in range(40):
        put(Alert(f"alert {number}", "x"))

    def claim_all(_: int) -> list[str]:
        found = []
        while (claim := outbox.claim("webhook", NOW)) is not None:
            found.append(claim.message.title)
        return found

    with ThreadPoolExecutor(8) as pool:
        claimed = [title for titles in pool.map(claim_all, range(8)) for title in titles]
    assert sorted(claimed) == sorted(f"alert {number}" for number in range(40))


def test_attempts_pause_longer_and_longer() -> None:
    """2, 4, 8 seconds; never more than ten minutes."""
    put()
    at, waits = NOW + 5, []
    for _ in range(12):
        claim = outbox.claim("webhook", at)
        assert claim is not None
        outbox.postponed(claim, "503", at)
        due = outbox.next_due("webhook")
        assert due is not None
        waits.append(due - at)
        at = due
    assert waits[:3] == [2, 4, 8] and max(waits) == waits[-1] == 600
    assert all(later >= earlier for earlier, later in pairwise(waits))


def test_what_nobody_delivers_is_given_up_visibly() -> None:
    """After its time, with the last error, or with the reason that no process knew the address."""
    put(channels=("webhook", "slack"))
    claim = outbox.claim("webhook", NOW + 5)
    assert claim is not None
    outbox.postponed(claim, "503", NOW + 5)
    assert outbox.tidy(NOW + DAY - 1, DAY) == 0 and outbox.tidy(NOW + DAY + 1, DAY) == 2
    stand = {one.channel: (one.state, one.error) for one in outbox.last(1)[0].deliveries}
    assert stand["webhook"] == (GIVEN_UP, "503") and stand["slack"][0] == GIVEN_UP
    assert "no process that knew" in str(stand["slack"][1]) and said(NOW + 2 * DAY) == []


def test_what_is_long_over_is_forgotten_and_what_lasts_is_not() -> None:
    put()
    put(Alert("over", "x"))
    outbox.resolve("over", NOW)
    outbox.tidy(NOW + 91 * DAY, DAY)
    assert outbox.last(9) == [] and [one.key for one in outbox.open_keys()] == ["drift"]


def test_a_clock_that_was_set_back_delays_no_delivery() -> None:
    """What was put off by a clock of tomorrow is due today."""
    put()
    claim = outbox.claim("webhook", NOW + DAY)
    assert claim is not None
    outbox.postponed(claim, "503", NOW + DAY)
    assert said(NOW) == [DRIFT.title + ": " + DRIFT.text]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(moves=st.lists(st.tuples(st.booleans(), st.integers(0, 7200)), max_size=25))
def test_no_happening_is_lost_and_none_is_told_twice(moves: list[tuple[bool, int]]) -> None:
    """Whenever it is told, all that happened in the episode was told; never twice within the silence."""
    key = uuid4().hex
    now, happened, told, last_told = NOW, 0, 0, -HOUR * 9
    for resolved, wait in moves:
        now += wait
        if resolved:
            outbox.resolve(key, now)
            happened, told, last_told = 0, 0, -HOUR * 9
            continue
        happened += 1
        if put(Alert(key, "x"), now, channels=()):
            told += (
                next(one.message for one in outbox.last(9_999) if (one.at, one.message.title) == (now, key))
                .told[0]
                .times
            )
            assert told == happened and now - last_told >= 4 * HOUR
            last_told = now
        else:
            assert now - last_told < 4 * HOUR
