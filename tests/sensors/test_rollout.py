"""A canary moves by what both variants did, never on too few requests, and each move is told in the history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.releases import Limits, ReleaseRecord, ReleaseStore
from sensors.rollout import (
    Compared,
    RolloutDecision,
    Terms,
    VariantEvidence,
    comparison_decision,
    rollout_decision,
    rollout_sensor,
)

MODEL = "flights/late_arrival"
GOOD = VariantEvidence(requests=1_000, errors=1, latency_ms=4.0)
LIMITS = Limits(max_error_share=0.01, max_latency_ratio=1.5, min_requests=200)
WHO = {"by": "test", "why": "a test"}


UNLABELLED = Compared(rows=1_000, labels=20, metric_name="roc_auc", changed=0.1, psi=0.05, seconds=3_600)
LABELLED = replace(UNLABELLED, labels=800, champion=0.71, challenger=0.715, gain=0.005, interval=(-0.01, 0.02))


def decided(champion: VariantEvidence, challenger: VariantEvidence) -> RolloutDecision:
    return rollout_decision(champion, challenger, LIMITS)


def test_a_canary_as_good_as_the_champion_goes_on() -> None:
    """Equal evidence advances, and the reason says on how many requests."""
    assert decided(GOOD, GOOD) == RolloutDecision("advance", ("1000 requests, 0.1% failed",))


@pytest.mark.parametrize(
    ("challenger", "why"),
    [
        (replace(GOOD, errors=20), "20 of 1000 requests failed, 1.1% allowed"),
        (replace(GOOD, latency_ms=11.5), "takes 11.5 ms, 11.0 allowed"),
    ],
    ids=["errors", "latency"],
)
def test_a_worse_canary_goes_back_and_says_why(challenger: VariantEvidence, why: str) -> None:
    """Each of the two is reason enough."""
    decision = decided(GOOD, challenger)
    assert (decision.action, decision.reasons) == ("roll back", (why,))


# -- on the same requests ----------------------------------------------------------------------------


def test_a_challenger_that_is_surely_and_materially_worse_goes_back() -> None:
    """The numbers and the rows are told; a small loss, or one that may be chance, is no reason."""
    worse = replace(LABELLED, challenger=0.65, gain=-0.06, interval=(-0.09, -0.02))
    decision = comparison_decision(worse, Terms(metric_drop=0.03))
    assert decision.action == "roll back"
    assert decision.reasons[0].startswith(
        "roc_auc 0.6500 against 0.7100 on the same 800 labelled requests: -0.0600, surely in [-0.0900, -0.0200]"
    )
    assert comparison_decision(worse, Terms(metric_drop=0.07)).action != "roll back", "allowed"
    assert comparison_decision(replace(worse, interval=(-0.12, 0.01)), Terms()).action != "roll back", "chance"


def test_labels_that_leave_it_open_are_waited_for_and_then_it_goes_on() -> None:
    """A greater drop than allowed is not ruled out: more labels would tell, as long as the declaration waits."""
    few = replace(LABELLED, gain=0.0, interval=(-0.2, 0.2))
    held = comparison_decision(few, Terms(patience=timedelta(hours=2)))
    assert (held.action, held.waits_for) == ("hold", "labels") and "waits up to 2:00:00 for labels" in held.reasons[0]
    after = comparison_decision(replace(few, seconds=7_200), Terms(patience=timedelta(hours=2)))
    assert after.action == "advance" and "a drop of 0.03 is not ruled out" in after.reasons[0]
    assert comparison_decision(few, Terms()).action == "advance", "nothing waits by default"
    assert comparison_decision(LABELLED, Terms(patience=timedelta(days=9))).action == "advance", "it is ruled out"


@pytest.mark.parametrize(("share", "then"), [(0.1, "advance"), (0.5, "advance"), (0.6, "roll back")])
def test_without_labels_who_decides_very_much_otherwise_goes_back_after_the_wait(share: float, then: str) -> None:
    """Until then both wait alike, and how many requests are decided otherwise is told."""
    said = replace(UNLABELLED, changed=share)
    terms = Terms(max_changed=0.5, patience=timedelta(hours=2))
    assert comparison_decision(said, terms).action == "hold"
    after = comparison_decision(replace(said, seconds=7_200), terms)
    assert after.action == then and f"20 labels known; {share:.1%} decided otherwise" in after.reasons[0]


def test_what_cannot_be_compared_is_judged_by_errors_and_latency_and_said() -> None:
    decision = comparison_decision(Compared(problem="they read other features"), Terms())
    assert (decision.action, decision.reasons) == ("advance", ("not compared: they read other features",))


def test_what_is_damaged_holds_a_canary() -> None:
    """Nobody is given more traffic unseen because a file cannot be read."""
    decision = comparison_decision(Compared(problem="model.ubj was changed", broken=True), Terms())
    assert decision.action == "hold" and "model.ubj was changed" in decision.reasons[0] and decision.waits_for


compared = st.builds(
    Compared,
    champion=st.just(0.7),
    challenger=st.just(0.7),
    gain=st.floats(-1, 1),
    interval=st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(lambda pair: (min(pair), max(pair))),
    changed=st.floats(0, 1),
    seconds=st.floats(0, 10_000),
)


@given(compared, st.builds(Terms, patience=st.timedeltas(timedelta(0), timedelta(hours=3))))
def test_labels_end_a_canary_only_when_they_surely_show_a_loss(said: Compared, terms: Terms) -> None:
    """However much is decided otherwise and however long it waited; and no wait outlasts the patience."""
    decision, interval = comparison_decision(said, terms), said.interval or (0, 0)
    if decision.action == "roll back":
        assert interval[1] < 0 and (said.gain or 0) < -terms.metric_drop
    if decision.action == "hold":
        assert said.seconds < terms.patience.total_seconds()


# -- both by themselves -------------------------------------------------------------------------------


def test_a_bad_day_of_the_whole_world_rolls_nothing_back() -> None:
    """Both fail and are slow alike: that is not the canary's doing."""
    day = replace(GOOD, errors=300, latency_ms=900.0)
    assert decided(day, day).action == "advance"


def test_errors_beyond_repair_end_a_canary_before_the_minimum() -> None:
    """Three of ten may still be one per cent of two hundred and more; two may not."""
    assert decided(GOOD, VariantEvidence(requests=10, errors=3)).action == "roll back"
    assert decided(GOOD, VariantEvidence(requests=10, errors=2)).action == "hold"


def test_a_failure_or_two_hold_a_canary_and_end_none() -> None:
    """Of fifty requests one is over one per cent, and may be one caller's; more requests or a third one decide."""
    limits = Limits(max_error_share=0.01, min_requests=50)
    seen = {errors: rollout_decision(GOOD, VariantEvidence(50, errors, 4.0), limits).action for errors in (0, 1, 2, 3)}
    assert seen == {0: "advance", 1: "hold", 2: "hold", 3: "roll back"}
    assert rollout_decision(GOOD, VariantEvidence(400, 2, 4.0), limits).action == "advance"


evidence = st.builds(
    VariantEvidence,
    requests=st.integers(0, 400),
    errors=st.just(0),
    latency_ms=st.none() | st.floats(0, 1_000),
)


@given(evidence, evidence)
def test_without_errors_too_few_requests_always_hold(champion: VariantEvidence, challenger: VariantEvidence) -> None:
    """Whatever the latency says, on fewer than the minimum of either variant nothing moves."""
    few = min(champion.requests, challenger.requests) < LIMITS.min_requests
    assert (decided(champion, challenger).action == "hold") is few


def in_canary(root: Path, steps: list[int], **options: Any) -> ReleaseStore:
    """A champion of version 1 and a canary of version 2."""
    store = ReleaseStore(root)
    store.start_canary(MODEL, "flights_late_arrival:one", "1", steps, by="test", why="first")
    store.start_canary(MODEL, "flights_late_arrival:two", "2", steps, by="test", why="better", limits=LIMITS, **options)
    return store


def said(sensor: dg.SensorDefinition, cursor: str | None = None) -> tuple[str, str | None]:
    """What a tick says, and the cursor it leaves."""
    with dg.DagsterInstance.ephemeral() as instance:
        result = sensor.evaluate_tick(dg.build_sensor_context(instance, cursor=cursor))
    return result.skip_message or "", result.cursor


def test_the_sensor_takes_a_canary_to_the_end(tmp_path: Path) -> None:
    """Hold on too few, step by step on good evidence of each step, then it is champion and the sensor rests."""
    store = in_canary(tmp_path, [10, 50, 100])
    asked: list[datetime] = []
    seen: dict[str, VariantEvidence] = {}

    def read(record: ReleaseRecord) -> Mapping[str, VariantEvidence]:
        asked.append(datetime.fromisoformat(record.began))
        return seen

    sensor = rollout_sensor(MODEL, store, read)
    assert said(sensor)[0] == f"{MODEL}: hold at 10 %: challenger has 0 of 200 requests"
    seen.update(champion=GOOD, challenger=GOOD)
    assert "advance at 10 %" in said(sensor)[0]
    record = store.read(MODEL)
    assert record and record.challenger and record.challenger.weight == 50
    assert "advance at 50 %" in said(sensor)[0]
    record = store.read(MODEL)
    assert record and record.challenger is None and record.champion.version == "2"
    assert said(sensor)[0] == f"{MODEL}: no canary is running"
    assert asked == sorted(asked) and asked[-1] > asked[0] and asked[0].tzinfo == UTC
    assert [(change.action, change.by) for change in store.history(MODEL)[2:]] == [
        ("advance canary", "sensors.rollout"),
        ("promote", "sensors.rollout"),
    ]


def test_the_sensor_rolls_a_bad_canary_back(tmp_path: Path) -> None:
    """The champion has all traffic again, and the history says why."""
    store = in_canary(tmp_path, [10, 100])
    bad = {"champion": GOOD, "challenger": replace(GOOD, errors=500)}
    said(rollout_sensor(MODEL, store, lambda record: bad))
    record = store.read(MODEL)
    assert record and (record.champion.version, record.champion.weight, record.challenger) == ("1", 100, None)
    assert "500 of 1000 requests failed" in record.why


def test_the_sensor_judges_by_the_limits_of_the_record(tmp_path: Path) -> None:
    """Those that the serving process holds the canary to as well, whatever was declared since."""
    few = {"champion": replace(GOOD, requests=20), "challenger": replace(GOOD, requests=20, errors=0, latency_ms=24.0)}
    patient = ReleaseStore(tmp_path / "patient")
    for version, limits in (("1", None), ("2", Limits(max_latency_ratio=5.0, min_requests=20))):
        patient.start_canary(MODEL, f"b:{version}", version, [10, 100], **WHO, limits=limits)
    assert "advance at 10 %" in said(rollout_sensor(MODEL, patient, lambda record: few))[0]
    strict = in_canary(tmp_path / "strict", [10, 100])
    assert "has 20 of 200 requests" in said(rollout_sensor(MODEL, strict, lambda record: few))[0]


def test_a_comparison_is_made_only_where_nothing_else_decides(tmp_path: Path) -> None:
    """It reads every row of the step: not on too few requests, nor where errors end the canary already."""
    asked: list[int] = []
    seen: dict[str, VariantEvidence] = {"champion": GOOD, "challenger": replace(GOOD, requests=3)}

    def compare(record: ReleaseRecord) -> Compared:
        asked.append(record.revision)
        return replace(LABELLED, gain=-0.2, interval=(-0.3, -0.1))

    store = in_canary(tmp_path, [10, 100])
    sensor = rollout_sensor(MODEL, store, lambda record: seen, compare=compare)
    said(sensor)
    assert asked == [] and (record := store.read(MODEL)) and record.challenger
    seen["challenger"] = GOOD
    assert "roll back at 10 %: roc_auc" in said(sensor)[0] and asked == [2]


def test_every_decision_that_stands_is_told_with_whose_it_is(tmp_path: Path) -> None:
    """Holds in words that stay the same, what a serving process did by its name; none that was overtaken."""
    store, told = in_canary(tmp_path, [10, 100]), []
    seen = {"champion": GOOD, "challenger": replace(GOOD, requests=3)}
    sensor = rollout_sensor(
        MODEL,
        store,
        lambda record: seen,
        decided=lambda record, made, by: told.append((made.action, made.waits_for, by)),
    )
    _, cursor = said(sensor)
    seen["challenger"] = replace(GOOD, requests=7)
    said(sensor, cursor)
    assert told == [("hold", "requests", "sensors.rollout")] * 2
    store.refuse(MODEL, 2, "flights_late_arrival:two", by="serving pod-1", why="no model file")
    said(sensor, cursor)
    assert told[2:] == [("roll back", "", "serving pod-1")]


def test_a_split_is_nobodys_but_a_persons_to_change(tmp_path: Path) -> None:
    """Evidence that would promote or end a canary leaves an A/B split as it stands."""
    store = in_canary(tmp_path, [10, 100])
    split = store.split(MODEL, "flights_late_arrival:two", "2", 50, **WHO)
    for challenger in (GOOD, replace(GOOD, errors=900)):
        sensor = rollout_sensor(MODEL, store, lambda record, it=challenger: {"champion": GOOD, "challenger": it})
        assert said(sensor)[0] == f"{MODEL}: no canary is running"
        assert store.read(MODEL) == split


def test_what_a_serving_process_took_out_is_settled_once(tmp_path: Path) -> None:
    """The next tick tells those that keep the registry, says who and why, and the tick after does nothing more."""
    store, settled, shown = in_canary(tmp_path, [10, 100]), [], []
    sensor = rollout_sensor(
        MODEL, store, lambda record: {}, settle=settled.append, moved=lambda record: shown.append(record) or ()
    )
    _, cursor = said(sensor)
    store.refuse(MODEL, 2, "flights_late_arrival:two", by="serving pod-1", why="no model file")
    told, cursor = said(sensor, cursor)
    assert told == (
        f"{MODEL}: no canary is running; flights_late_arrival:two was taken out by serving pod-1: no model file"
    )
    assert said(sensor, cursor)[1] == cursor
    assert (len(settled), shown) == (2, [store.read(MODEL)])


def test_a_settling_that_fails_is_tried_again(tmp_path: Path) -> None:
    """The registry is down: the tick fails and keeps its cursor, so that the next one settles."""
    store, tries = in_canary(tmp_path, [10, 100]), []

    def settle(model: str) -> None:
        tries.append(model)
        raise ConnectionError("MLflow is down")

    with pytest.raises(ConnectionError, match="MLflow is down"):
        said(rollout_sensor(MODEL, store, lambda record: {}, settle=settle))
    assert tries == [MODEL]


def test_a_move_that_came_second_changes_nothing(tmp_path: Path) -> None:
    """Somebody promoted between the look and the move: the tick says who won and the record stands."""
    store = in_canary(tmp_path, [10, 100])

    class Overtaken(ReleaseStore):
        def advance(self, model: str, *, by: str, why: str, revision: int | None = None) -> ReleaseRecord:
            ReleaseStore(tmp_path).promote(MODEL, by="a person", why="now")
            return super().advance(model, by=by, why=why, revision=revision)

    sensor = rollout_sensor(MODEL, Overtaken(tmp_path), lambda record: {"champion": GOOD, "challenger": GOOD})
    assert "a person did 'promote'" in said(sensor)[0]
    assert [change.by for change in store.history(MODEL)] == ["test", "test", "a person"]
