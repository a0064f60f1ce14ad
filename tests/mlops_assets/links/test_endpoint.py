"""The endpoint is one record: it changes whole or not at all, and what follows it answers or says why not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from resources import releases

if TYPE_CHECKING:
    from conftest import Platform

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
