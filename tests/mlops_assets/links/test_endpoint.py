"""The endpoint is one record: it changes whole or not at all, and what follows it answers or says why not."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from mlops_assets.links.endpoint import followed, reported
from mlops_assets.links.spec import link_key
from resources import releases
from resources.serving_status import StatusFile

if TYPE_CHECKING:
    from conftest import Platform

    from resources.releases import ReleaseRecord

CUTOFF = "2013-07-01"
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
ROW: dict[str, Any] = {
    "flight_id": "UA1",
    "origin": "EWR",
    "dest": "SFO",
    "carrier": "UA",
    "tailnum": "N10156",
    "distance": 2565.0,
    "planned_minutes": 370.0,
    "departure_hour": 8.0,
    "weekday": 1.0,
}


@contextmanager
def reporting(platform: Platform, report: Callable[[ReleaseRecord], dict[str, Any]]) -> Iterator[None]:
    """A serving process that reports: `report` is what it does with each record, and says."""
    store, done = platform.promotion.releases, threading.Event()
    status = StatusFile(store.path(platform.model.id))

    def follow() -> None:
        while not done.wait(0.05):
            record = store.current(platform.model.id)
            status.write({"serving": [asdict(one) for one in record.variants], "refused": [], **report(record)})

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        status.remove()


def test_materializing_again_changes_no_traffic(platform: Platform) -> None:
    """Neither the record nor its history; during a canary neither its step."""
    before = platform.published
    assert platform.run("endpoint").ok and platform.published == before
    assert platform.train(CUTOFF).ok
    during = platform.published
    assert during["release"].challenger.weight == 40
    assert platform.run("champion", "bento", "endpoint").ok and platform.published == during


def test_a_release_that_breaks_off_leaves_the_old_one_serving(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full as the record is written: the old release answers on, and running again completes."""
    assert platform.run("candidate", "champion", "bento", partition=CUTOFF).ok
    before = platform.published

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with platform.endpoint() as endpoint:
        with monkeypatch.context() as patched:
            patched.setattr(releases, "_publish", full)
            ran = platform.run("endpoint")
        assert not ran.ok and "No space left on device" in ran.trouble
        assert platform.published == before and endpoint.serving == {"1"}
        assert endpoint.ask([ROW], NOON)[0]["version"] == "1"
        assert platform.run("endpoint").ok
        endpoint.follow(platform.published["release"])
        assert endpoint.serving == {"1", "2"}


def test_its_page_says_what_the_serving_processes_make_of_it(platform: Platform) -> None:
    """It waits until they follow, not for one that does not, and says so where none reports."""
    ran = platform.run("endpoint")
    assert ran.facts["endpoint"]["serving"] == "no serving process reports; one that starts follows the record"
    with reporting(platform, lambda record: {"revision": record.revision}):
        assert platform.train(CUTOFF).ok
    materialized = platform.instance.get_latest_materialization_event(link_key(platform.model, "endpoint"))
    shown = materialized.asset_materialization.metadata
    assert f"-{os.getpid()} | 2 | champion version 1 60 %, challenger version 2 40 %" in str(shown["serving"].value)


def test_a_process_that_does_not_follow_is_not_waited_for_long(platform: Platform) -> None:
    """It is shown where it stands."""
    releases, record = platform.promotion.releases, platform.published["release"]
    status = StatusFile(releases.path(platform.model.id))
    status.write({"revision": 0, "serving": [], "refused": [{"release": record.champion.release, "reason": "full"}]})
    began = time.monotonic()
    now, (seen,) = followed(releases, record, seconds=0.3)
    assert 0.3 <= time.monotonic() - began < 2 and now == record
    assert f"{seen.process} | 0 | nothing | {record.champion.release}: full" in str(reported([seen]).value)


def test_a_release_that_is_refused_at_once_fails_the_run_and_leaves_no_trace_of_a_promotion(
    platform: Platform,
) -> None:
    """Its Bento lost a file: traffic and alias are where they were, the check says who refused it and why, no request
    fails, and it does not come back by itself."""
    assert platform.run("candidate", "champion", "bento", partition=CUTOFF).ok
    bentos = platform.promotion.bentos
    with platform.endpoint() as endpoint:
        (bentos.path(bentos.list()[-1]) / "plan.json").write_text("{}")
        ran = platform.run("endpoint")
        check, published = ran.checks["champion_released"], platform.published
        assert endpoint.ask([ROW], NOON)[0]["version"] == "1"
    assert not check.passed and "was taken out by serving process" in check.description
    assert f"-{os.getpid()} | 3 | champion version 1 100 %" in str(ran.facts["endpoint"]["serving"])
    assert "plan.json" in ran.facts["endpoint"]["why"] and ran.facts["endpoint"]["revision"] == 3
    assert [(v.version, v.weight) for v in published["release"].variants] == [("1", 100)] and published["alias"] == "1"
    assert [change.action for change in published["changes"]] == ["release", "start canary", "refused"]
    assert platform.run("champion", "endpoint").ok and platform.published == published


def test_without_a_champion_there_is_nothing_to_release(platform: Platform) -> None:
    """The failure names what to materialize first."""
    ran = platform.declared(name="untrained").run("endpoint")
    assert not ran.ok and "model 'flights/untrained' has no champion with a Bento" in ran.trouble


def test_an_unknown_entity_is_answered_without_its_features(platform: Platform) -> None:
    """An airframe and a route that nobody has seen: a prediction, and which view had no row for which key."""
    with platform.endpoint() as endpoint:
        (answer,) = endpoint.ask([{**ROW, "tailnum": "N0", "dest": "XXX", "carrier": "??"}], NOON)
    assert 0 <= answer["prediction"] <= 1
    missing = {fallback["view"]: (fallback["keys"], fallback["reason"]) for fallback in answer["fallbacks"]}
    assert missing["flights/aircraft_use"] == ({"tailnum": "N0"}, "no row")
    assert missing["flights/route_punctuality"] == ({"origin": "EWR", "dest": "XXX"}, "no row")


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"origin": None}, "origin", "null"),
        ({"tailnum": 7}, "tailnum", "7 is not a string"),
        ({"distance": "far"}, "distance", "'far' is not a finite number"),
        ({"distance": -1.0}, "distance", "-1.0 is out of bounds"),
        ({"weekday": 1e39}, "weekday", "1e+39 is not a finite number"),
        ({"temp": 70.0}, "temp", "unknown field"),
    ],
)
def test_a_malformed_row_is_refused_by_name(
    changes: dict[str, Any], field: str, problem: str, module_platform: Platform
) -> None:
    """Nothing of the request is answered or logged; the error says which row and field, and what to send."""
    with module_platform.endpoint() as endpoint:
        answer = endpoint.post([ROW, {**ROW, **changes}], NOON)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["row"], error["field"], error["problem"]) == (1, field, problem) and error["fix"]
    assert not list((module_platform.home / "predictions").rglob("*.jsonl"))


def test_a_malformed_request_is_refused_by_name(module_platform: Platform) -> None:
    """A missing key, a moment without a zone, a body that is no JSON, a model that does not exist."""
    with module_platform.endpoint() as endpoint:

        def refusal(path: str = endpoint.model, **options: Any) -> tuple[int, str | None, str]:
            answer = endpoint.request("POST", f"/{path}/predict", **options)
            (error,) = answer.json()["errors"]
            return answer.status_code, error["field"], error["problem"]

        without = {name: value for name, value in ROW.items() if name != "origin"}
        assert refusal(json={"rows": [without]})[1:] == ("origin", "missing")
        assert refusal(json={"rows": [ROW], "at": "2013-07-01T12:00:00"})[1:] == ("at", "a time without a zone")
        assert refusal(content=b'{"rows": [')[0] == 422
        assert refusal("flights/nobody", json={"rows": [ROW]}) == (404, "model", "unknown model flights/nobody")
