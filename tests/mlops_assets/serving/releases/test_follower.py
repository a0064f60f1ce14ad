"""Following the release records: only releases that proved themselves ever get traffic."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from mlops_assets.serving.app import Serving, create_app
from mlops_assets.serving.plan import EmptyStore
from mlops_assets.serving.prediction_log import NoLog
from mlops_assets.serving.releases import failures
from resources.serving_status import directory, statuses

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
    assert [(variant.version, variant.weight) for variant, _ in traffic.shares] == [("1", 100)]
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


def test_a_release_that_fails_twice_is_taken_out_of_the_record(platform: Platform) -> None:
    """Everybody learns what one process found: who, when and why are in the history, and the old one is champion."""
    platform.release(1)
    follower = platform.follow()
    platform.release(2, golden_shift=0.1)
    platform.eventually(lambda: platform.records.read(MODEL).revision == 3)
    record = platform.records.read(MODEL)
    assert (record.champion.version, record.change.action) == ("1", "refused")
    assert record.by.startswith("serving process ") and "GoldenMismatchError" in record.why
    platform.eventually(lambda: platform.state(follower).record == record)
    assert "GoldenMismatchError" in platform.state(follower).refused["flights_late_arrival:2"]


def test_of_many_processes_one_takes_it_out(platform: Platform) -> None:
    """They all find the same at once; the record changes once."""
    platform.release(1)
    for _ in range(4):
        platform.follow()
    platform.release(2, golden_shift=0.1)
    platform.eventually(lambda: platform.records.read(MODEL).change.action == "refused")
    platform.eventually(lambda: all(platform.state(one).record.revision == 3 for one in platform.followers))
    assert [change.action for change in platform.records.history(MODEL)] == ["release", "promote", "refused"]


def test_a_broken_challenger_ends_its_canary(platform: Platform) -> None:
    """The champion has all traffic again, in the record too."""
    platform.release(1)
    follower = platform.follow()
    platform.release(2, steps=(50, 100), golden_shift=0.1)
    platform.eventually(lambda: platform.records.read(MODEL).challenger is None)
    assert platform.records.read(MODEL).champion.weight == 100
    assert platform.versions(follower) == {"1": 100}


def test_a_release_that_comes_late_is_not_refused(platform: Platform) -> None:
    """Its Bento was not there yet when it was first looked for: it is looked for again."""
    platform.release(1)
    follower = platform.follow()
    tag = platform.bento(2)
    platform.bundle_of(tag).rename(platform.root / "on its way")
    platform.records.start_canary(MODEL, tag, "2", [100], **WHO)
    platform.eventually(lambda: tag in platform.state(follower).refused)
    (platform.root / "on its way").rename(platform.bundle_of(tag))
    platform.eventually(lambda: platform.versions(follower) == {"2": 100})
    assert platform.records.read(MODEL).revision == 2
    assert platform.state(follower).refused == {}


def test_a_process_that_can_load_nothing_accuses_nobody(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Bentos are out of its reach: it is not ready, says why, leaves the record alone, and looks for them again."""
    monkeypatch.setattr(failures, "ALONE_SECONDS", 1.0)
    platform.release(1)
    platform.release(2)
    (platform.root / "flights_late_arrival").rename(platform.root / "not mounted")
    follower = platform.follow()
    assert follower.not_ready() == [MODEL]
    time.sleep(1.8)  # its second try
    assert platform.records.read(MODEL).revision == 2
    assert sorted(platform.state(follower).refused) == ["flights_late_arrival:1", "flights_late_arrival:2"]
    (platform.root / "not mounted").rename(platform.root / "flights_late_arrival")
    platform.eventually(lambda: platform.versions(follower) == {"2": 100})
    assert follower.not_ready() == [] and platform.state(follower).refused == {}


def test_a_process_that_cannot_load_what_others_answer_with_stands_aside(platform: Platform) -> None:
    """It serves the release before, and everybody else goes on with the good one."""
    platform.release(1)
    platform.release(2)
    shutil.rmtree(platform.bundle_of("flights_late_arrival:2"))
    other = directory(platform.records.path(MODEL)) / "elsewhere-7.json"
    other.parent.mkdir()
    answers = [{"role": "champion", "release": "flights_late_arrival:2", "version": "2", "weight": 100}]
    said = {"host": "elsewhere", "pid": 7, "revision": 2, "serving": answers, "refused": []}
    other.write_text(json.dumps({**said, "at": datetime.now(UTC).isoformat()}))
    follower = platform.follow()
    assert platform.versions(follower) == {"1": 100}
    time.sleep(1.8)  # its second try
    assert platform.records.read(MODEL).revision == 2


def test_a_process_that_starts_on_a_broken_canary_serves_the_champion(platform: Platform) -> None:
    """And is ready."""
    platform.release(1)
    platform.release(2, steps=(50, 100), golden_shift=0.1)
    follower = platform.follow()
    assert platform.versions(follower) == {"1": 100}
    assert follower.not_ready() == []
    assert platform.state(follower).breaker is None


def test_a_canary_that_fails_is_ended_within_a_second(platform: Platform) -> None:
    """By the breaker, in this process at once and in the record for all; the history says that it was, and why."""
    platform.release(1)
    platform.release(2, steps=(50, 100))
    follower = platform.follow()
    assert platform.versions(follower) == {"1": 50, "2": 50}
    breaker = platform.state(follower).breaker
    assert breaker is not None
    for _ in range(5):
        breaker.observe("challenger", 0.01, True)
    platform.eventually(lambda: platform.versions(follower) == {"1": 100}, seconds=1)
    platform.eventually(lambda: platform.records.read(MODEL).revision == 3, seconds=1)
    change = platform.records.read(MODEL).change
    assert change.action == "circuit breaker" and "5 of 5 requests of the challenger failed" in change.why


def test_the_breaker_takes_out_a_canary_also_where_nobody_can_write(platform: Platform) -> None:
    """The records lie on a disk that takes nothing: this process at least sends it no request more."""
    platform.release(1)
    platform.release(2, steps=(50, 100))
    follower = platform.follow()
    lock = platform.records.path(MODEL).with_suffix(".lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()  # cannot be opened, by whomever
    breaker = platform.state(follower).breaker
    assert breaker is not None
    for _ in range(5):
        breaker.observe("challenger", 0.01, True)
    platform.eventually(lambda: platform.versions(follower) == {"1": 100}, seconds=1)
    assert platform.records.read(MODEL).revision == 2
    lock.rmdir()
    platform.eventually(lambda: platform.records.read(MODEL).change.action == "circuit breaker")
    assert follower.not_ready() == []


def test_only_canaries_are_judged(platform: Platform) -> None:
    """A split is between two releases that somebody wants to compare; a step of a canary has a breaker of its own."""
    platform.release(1)
    platform.release(2, steps=(10, 50, 100))
    follower = platform.follow()
    first = platform.state(follower).breaker
    platform.records.advance(MODEL, **WHO)
    platform.eventually(lambda: platform.versions(follower) == {"1": 50, "2": 50})
    second = platform.state(follower).breaker
    assert first is not None and second is not None and first is not second
    platform.records.split(MODEL, platform.bento(3), "3", 30, **WHO)
    platform.eventually(lambda: platform.versions(follower) == {"1": 70, "3": 30})
    assert platform.state(follower).breaker is None


def test_no_model_waits_for_anothers_load(platform: Platform) -> None:
    """A release whose file hangs keeps only its own model at the old one; a rollback elsewhere is followed at once."""
    for model in (MODEL, "flights/other"):
        platform.release(1, model=model)
    follower = platform.follow()
    for model in (MODEL, "flights/other"):
        platform.release(2, model=model)
    platform.eventually(lambda: all(platform.versions(follower, model) == {"2": 100} for model in follower.models()))
    tag = platform.bento(3)
    slow = platform.bundle_of(tag) / "manifest.json"
    whole = slow.read_bytes()
    slow.unlink()
    os.mkfifo(slow)  # who opens it waits for somebody to write
    platform.records.start_canary(MODEL, tag, "3", [100], **WHO)
    time.sleep(0.5)
    platform.records.rollback("flights/other", **WHO)
    platform.eventually(lambda: platform.versions(follower, "flights/other") == {"1": 100}, seconds=1)
    assert platform.versions(follower) == {"2": 100}
    assert platform.state(follower).record.revision == 2, "it says that it follows what it does not"
    slow.write_bytes(whole)
    platform.eventually(lambda: platform.versions(follower) == {"3": 100})


def test_who_loses_traffic_loses_it_before_the_next_is_loaded(platform: Platform) -> None:
    """A canary gives way to a release that takes its time: no request more for the canary meanwhile."""
    platform.release(1)
    platform.release(2, steps=(50, 100))
    follower = platform.follow()
    tag = platform.bento(3)
    slow = platform.bundle_of(tag) / "manifest.json"
    whole = slow.read_bytes()
    slow.unlink()
    os.mkfifo(slow)
    platform.records.release(MODEL, tag, "3", **WHO)
    platform.eventually(lambda: platform.versions(follower) == {"1": 100}, seconds=1)
    slow.write_bytes(whole)
    platform.eventually(lambda: platform.versions(follower) == {"3": 100})


def test_records_that_cannot_be_seen_leave_what_serves(platform: Platform) -> None:
    """Their disk is away for a while: answers go on, and so does the following when it is back."""
    platform.release(1)
    follower = platform.follow()
    away = platform.root / "away"
    (platform.root / "releases").rename(away)
    time.sleep(0.5)
    assert platform.versions(follower) == {"1": 100} and follower.not_ready() == []
    shutil.rmtree(platform.root / "releases", ignore_errors=True)
    away.rename(platform.root / "releases")
    platform.release(2)
    platform.eventually(lambda: platform.versions(follower) == {"2": 100})


def test_a_process_says_beside_the_record_what_it_does(platform: Platform) -> None:
    """Revision, variants and refusals, in its own file; nothing once it has ended."""
    platform.release(1)
    follower = platform.follow()
    path = platform.records.path(MODEL)
    (status,) = statuses(path)
    assert (status.pid, status.revision) == (os.getpid(), 1)
    assert [(one["role"], one["version"], one["weight"]) for one in status.serving] == [("champion", "1", 100)]
    platform.release(2, golden_shift=0.1)
    platform.eventually(lambda: [one["release"] for one in statuses(path)[0].refused] == ["flights_late_arrival:2"])
    platform.eventually(lambda: statuses(path)[0].revision == 3)
    follower.close()
    assert statuses(path) == []


def test_files_that_are_no_records_are_passed_over(platform: Platform) -> None:
    """A backup, or what an editor left, beside the records."""
    platform.release(1)
    for name in ("late_arrival.bak.json", "Late.json", ".late_arrival.json"):
        (platform.root / "releases" / "flights" / name).write_text("{}")
    follower = platform.follow()
    assert follower.models() == [MODEL]
    platform.release(2)
    platform.eventually(lambda: platform.versions(follower) == {"2": 100})


def test_no_caller_pays_for_a_canary_that_cannot_answer(platform: Platform) -> None:
    """It loads and answers its golden rows, but asks callers for a key that they do not know. The champion answers in
    its place, and the canary is over before long, for everybody."""
    platform.release(1)
    tag = platform.bento(2)
    path = platform.bundle_of(tag) / "plan.json"
    plan = json.loads(path.read_bytes())
    more = {"join_key": "terminal", "dtype": "String", "description": "Where the gate is"}
    path.write_text(json.dumps({**plan, "entities": [*plan["entities"], more]}))
    platform.records.start_canary(MODEL, tag, "2", [50, 100], **WHO)
    follower = platform.follow()
    row = {"dest": "BOS", "distance": 200.0, "carrier": "UA", "seats": 150, "holiday": False}

    async def ask_until_it_ends() -> list[httpx.Response]:
        app = create_app(lambda: Serving(follower, EmptyStore(), NoLog()))
        transport, answers, deadline = httpx.ASGITransport(app), [], time.monotonic() + 10
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://here") as client,
        ):
            while platform.records.read(MODEL).challenger is not None and time.monotonic() < deadline:
                rows = [{**row, "origin": f"N{len(answers)}"}]
                answers.append(await client.post(f"/{MODEL}/predict", json={"rows": rows}))
        return answers

    answers = asyncio.run(ask_until_it_ends())
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["predictions"][0]["version"] for answer in answers} == {"1"}
    change = platform.records.read(MODEL).change
    assert change.action == "circuit breaker" and "requests of the challenger failed" in change.why
    assert platform.versions(follower) == {"1": 100}
