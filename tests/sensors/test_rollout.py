"""A canary moves by what both variants did, never on too few requests, and each move is told in the history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.releases import ReleaseStore
from sensors.rollout import RolloutLimits, VariantEvidence, rollout_decision, rollout_sensor

MODEL = "flights/late_arrival"
GOOD = VariantEvidence(requests=1_000, errors=1, latency_ms=4.0, metric=0.71)
LIMITS = RolloutLimits()


def test_a_canary_as_good_as_the_champion_goes_on() -> None:
    """Equal evidence advances; so does one whose metric is not known yet, and the reason says so."""
    assert rollout_decision(GOOD, GOOD).action == "advance"
    unknown = rollout_decision(GOOD, replace(GOOD, metric=None))
    assert unknown.action == "advance" and "metric not known yet" in unknown.reasons[0]


@pytest.mark.parametrize(
    ("challenger", "why"),
    [
        (replace(GOOD, errors=20), "20 of 1000 requests failed, 1.1% allowed"),
        (replace(GOOD, latency_ms=11.5), "takes 11.5 ms, 11.0 allowed"),
        (replace(GOOD, metric=0.67), "metric 0.6700 against 0.7100"),
    ],
    ids=["errors", "latency", "metric"],
)
def test_a_worse_canary_goes_back_and_says_why(challenger: VariantEvidence, why: str) -> None:
    """Each of the three is reason enough."""
    decision = rollout_decision(GOOD, challenger)
    assert (decision.action, decision.reasons) == ("roll back", (why,))


def test_the_metric_knows_its_direction() -> None:
    """Of an error a higher one is worse."""
    champion, challenger = replace(GOOD, metric=10.0), replace(GOOD, metric=10.5)
    assert rollout_decision(champion, challenger, higher_is_better=False).action == "roll back"
    assert rollout_decision(challenger, champion, higher_is_better=False).action == "advance"


def test_a_bad_day_of_the_whole_world_rolls_nothing_back() -> None:
    """Both fail and are slow alike: that is not the canary's doing."""
    day = replace(GOOD, errors=300, latency_ms=900.0, metric=0.5)
    assert rollout_decision(day, day).action == "advance"


def test_errors_beyond_repair_end_a_canary_before_the_minimum() -> None:
    """Three of ten may still be one per cent of two hundred and more; two may not."""
    assert rollout_decision(GOOD, VariantEvidence(requests=10, errors=3)).action == "roll back"
    assert rollout_decision(GOOD, VariantEvidence(requests=10, errors=2)).action == "hold"


evidence = st.builds(
    VariantEvidence,
    requests=st.integers(0, 400),
    errors=st.just(0),
    latency_ms=st.none() | st.floats(0, 1_000),
    metric=st.none() | st.floats(0, 1),
)


@given(evidence, evidence)
def test_without_errors_too_few_requests_always_hold(champion: VariantEvidence, challenger: VariantEvidence) -> None:
    """Whatever latency and metric say, on fewer than the minimum of either variant nothing moves."""
    few = min(champion.requests, challenger.requests) < LIMITS.min_requests
    assert (rollout_decision(champion, challenger).action == "hold") is few


def test_the_sensor_takes_a_canary_to_the_end(tmp_path: Path) -> None:
    """Hold on too few, step by step on good evidence of each step, then it is champion and the sensor rests."""
    store = ReleaseStore(tmp_path)
    store.start_canary(MODEL, "flights_late_arrival:one", "1", [10, 50, 100], by="test", why="first")
    store.start_canary(MODEL, "flights_late_arrival:two", "2", [10, 50, 100], by="test", why="better")
    asked: list[datetime] = []
    seen: dict[str, VariantEvidence] = {}

    def read(model: str, since: datetime) -> Mapping[str, VariantEvidence]:
        asked.append(since)
        return seen

    sensor = rollout_sensor(MODEL, store, read)

    def tick() -> str:
        with dg.DagsterInstance.ephemeral() as instance:
            return sensor.evaluate_tick(dg.build_sensor_context(instance)).skip_message or ""

    assert tick() == f"{MODEL}: hold at 10 %: challenger has 0 of 200 requests"
    seen.update(champion=GOOD, challenger=GOOD)
    assert "advance at 10 %" in tick()
    record = store.read(MODEL)
    assert record and record.challenger and record.challenger.weight == 50
    assert "advance at 50 %" in tick()
    record = store.read(MODEL)
    assert record and record.challenger is None and record.champion.version == "2"
    assert tick() == f"{MODEL}: no canary is running"
    assert asked == sorted(asked) and asked[-1] > asked[0] and asked[0].tzinfo == UTC
    assert [(change.action, change.by) for change in store.history(MODEL)[2:]] == [
        ("advance canary", "sensors.rollout"),
        ("promote", "sensors.rollout"),
    ]


def test_the_sensor_rolls_a_bad_canary_back(tmp_path: Path) -> None:
    """The champion has all traffic again, and the history says why."""
    store = ReleaseStore(tmp_path)
    store.start_canary(MODEL, "flights_late_arrival:one", "1", [10, 100], by="test", why="first")
    store.start_canary(MODEL, "flights_late_arrival:two", "2", [10, 100], by="test", why="better")
    bad = {"champion": GOOD, "challenger": replace(GOOD, errors=500)}
    with dg.DagsterInstance.ephemeral() as instance:
        rollout_sensor(MODEL, store, lambda model, since: bad).evaluate_tick(dg.build_sensor_context(instance))
    record = store.read(MODEL)
    assert record and (record.champion.version, record.champion.weight, record.challenger) == ("1", 100, None)
    assert "500 of 1000 requests failed" in record.why


def test_a_move_that_came_second_changes_nothing(tmp_path: Path) -> None:
    """Somebody promoted between the look and the move: the tick says who won and the record stands."""
    store = ReleaseStore(tmp_path)
    store.start_canary(MODEL, "flights_late_arrival:one", "1", [10, 100], by="test", why="first")
    store.start_canary(MODEL, "flights_late_arrival:two", "2", [10, 100], by="test", why="better")

    class Overtaken(ReleaseStore):
        def change(self, model: str, expected_revision: int, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            ReleaseStore(tmp_path).promote(MODEL, by="a person", why="now")
            return super().change(model, expected_revision, *args, **kwargs)  # type: ignore[arg-type]

    with dg.DagsterInstance.ephemeral() as instance:
        sensor = rollout_sensor(MODEL, Overtaken(tmp_path), lambda model, since: {"champion": GOOD, "challenger": GOOD})
        said = sensor.evaluate_tick(dg.build_sensor_context(instance)).skip_message
    assert said and "a person did 'promote'" in said
    assert [change.by for change in store.history(MODEL)] == ["test", "test", "a person"]
