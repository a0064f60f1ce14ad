"""Following the release records: only releases that proved themselves ever get traffic."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Platform

MODEL = "flights/late_arrival"
WHO = {"by": "ada", "why": "a test"}


def test_a_new_release_is_followed(platform: Platform) -> None:
    """The write of the record is all it takes; who stopped following says so."""
    platform.release(1)
    follower = platform.follow()
    assert platform.versions(follower) == {"1": 100}
    platform.release(2)
    platform.eventually(lambda: platform.versions(follower) == {"2": 100})
    follower.close()
    assert follower.not_ready() == [MODEL]


def test_a_model_released_later_is_found(platform: Platform) -> None:
    """Without a list of names, whatever gets a record is served."""
    follower = platform.follow()
    assert follower.served(MODEL) is None
    assert follower.not_ready() == []
    platform.release(1)
    platform.eventually(lambda: MODEL in follower.models())


def test_only_the_named_models_are_followed(platform: Platform) -> None:
    """A named model without a release is known, has no traffic, and does not keep the process unready."""
    platform.release(1)
    follower = platform.follow("flights/minutes_late")
    assert follower.models() == ["flights/minutes_late"]
    assert platform.state(follower, "flights/minutes_late").traffic is None
    assert follower.not_ready() == []


@pytest.mark.parametrize("broken", [{"golden_shift": 0.1}, {"of": "flights/other"}])
def test_a_broken_release_is_refused_and_the_old_one_serves_on(platform: Platform, broken: dict[str, Any]) -> None:
    """It fails golden, or it is of another model: no traffic, and the reason is told."""
    platform.release(1)
    follower = platform.follow()
    platform.release(2, **broken)
    platform.eventually(lambda: bool(platform.state(follower).refused))
    assert platform.versions(follower) == {"1": 100}
    assert list(platform.state(follower).refused) == ["flights_late_arrival:2"]
    platform.release(3)
    platform.eventually(lambda: platform.versions(follower) == {"3": 100})
    assert platform.state(follower).refused == {}


def test_a_broken_challenger_leaves_everything_to_the_champion(platform: Platform) -> None:
    """Its share of the traffic goes back to the champion."""
    platform.release(1)
    platform.release(2, steps=(50, 100), golden_shift=0.1)
    follower = platform.follow()
    traffic = platform.state(follower).traffic
    assert traffic is not None
    assert {traffic.choose(MODEL, [n])[0].version for n in range(100)} == {"1"}
    assert list(platform.state(follower).refused) == ["flights_late_arrival:2"]


def test_a_process_that_starts_on_a_broken_champion_serves_the_one_before(platform: Platform) -> None:
    """A restarted worker answers as one that was running does."""
    platform.release(1)
    platform.release(2, golden_shift=0.1)
    follower = platform.follow()
    assert platform.versions(follower) == {"1": 100}
    assert follower.not_ready() == []


def test_with_nothing_to_serve_the_process_is_not_ready(platform: Platform) -> None:
    """The first release is broken, or its Bento is gone: 503 and a reason, not a crash."""
    platform.release(1, golden_shift=0.1)
    follower = platform.follow()
    assert follower.not_ready() == [MODEL]
    assert "GoldenMismatchError" in platform.state(follower).refused["flights_late_arrival:1"]


def test_a_record_broken_by_hand_changes_nothing(platform: Platform) -> None:
    """It is reported, and the release that serves goes on."""
    platform.release(1)
    follower = platform.follow()
    platform.records.path(MODEL).write_text("{")
    platform.eventually(lambda: "record" in platform.state(follower).refused)
    assert platform.versions(follower) == {"1": 100}


def test_rollback_needs_no_loading(platform: Platform) -> None:
    """The release before stays in memory: even without its files a rollback is followed."""
    platform.release(1)
    follower = platform.follow()
    platform.release(2)
    platform.eventually(lambda: platform.versions(follower) == {"2": 100})
    shutil.rmtree(platform.bundle_of("flights_late_arrival:1"))
    platform.records.rollback(MODEL, **WHO)
    platform.eventually(lambda: platform.versions(follower) == {"1": 100})
    assert platform.state(follower).refused == {}


def test_releases_that_are_no_longer_needed_give_their_memory_back(platform: Platform) -> None:
    """What serves and what a rollback returns to is kept; nothing else."""
    platform.release(1)
    follower = platform.follow()
    for version in (2, 3, 4):
        platform.release(version)
        platform.eventually(lambda expected=str(version): platform.versions(follower) == {expected: 100})  # type: ignore[misc]
    assert follower._shelf.tags() == {"flights_late_arrival:3", "flights_late_arrival:4"}
