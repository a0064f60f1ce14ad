"""Performance: only what is known is judged, nothing is lost from the count, and few rows say nothing."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.monitoring.performance import (
    Maturity,
    PerformanceResult,
    UnusableLabelsError,
    calibration,
    match,
    maturity_of,
    performance,
)

NOON = datetime(2013, 7, 10, 12, tzinfo=UTC)
WEEK = timedelta(days=7)
TIMES = pl.Datetime("us", "UTC")


def labels(*rows: tuple[str, datetime, datetime | None, bool | None]) -> pl.DataFrame:
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "flight_id": pl.String,
        "event_timestamp": TIMES,
        "label_known_at": TIMES,
        "late": pl.Boolean,
    }
    return pl.DataFrame(list(rows), schema=schema, orient="row")


def predictions(*rows: tuple[str, float]) -> pl.DataFrame:
    frame = pl.DataFrame(list(rows), schema={"flight_id": pl.String, "prediction": pl.Float64}, orient="row")
    return frame.with_columns(at=pl.lit(NOON - timedelta(hours=5), TIMES), version=pl.lit("3"))


def matched(asked: pl.DataFrame, known: pl.DataFrame, as_of: datetime = NOON) -> pl.DataFrame:
    return match(asked, known, key="flight_id", label="late", as_of=as_of, window=WEEK, maturity=timedelta(days=2))


def scored(truth: np.ndarray, prediction: np.ndarray, **columns: object) -> pl.DataFrame:
    """Matured predictions, as `match` returns them."""
    return pl.DataFrame(
        {
            "truth": truth.astype(float),
            "prediction": prediction,
            "state": pl.Series(["matured"] * len(truth), dtype=pl.String),
            **columns,
        }
    )


def judged(
    frame: pl.DataFrame, metric: str = "roc_auc", reference: float = 0.7, **options: object
) -> PerformanceResult:
    return performance(frame, metric, reference, **{"limit": 0.03, **options})  # type: ignore[arg-type]


def test_a_prediction_is_matured_pending_or_unlabelled() -> None:
    """Landed; still in the air; cancelled and known to be; old and never heard of; not in the labels at all."""
    before, old = NOON - timedelta(hours=4), NOON - timedelta(days=3)
    known = labels(
        ("landed", before, NOON - timedelta(hours=1), True),
        ("lands-at-noon", before, NOON, False),
        ("in-the-air", before, NOON + timedelta(hours=1), True),
        ("cancelled", before, NOON - timedelta(hours=2), None),
        ("silent", old, None, None),
    )
    names = [*known["flight_id"], "unheard-of"]
    states = dict(
        matched(predictions(*((name, 0.5) for name in names)), known).select("flight_id", "state").iter_rows()
    )
    assert states == {
        "landed": "matured",
        "lands-at-noon": "matured",
        "in-the-air": "pending",
        "cancelled": "unlabelled",
        "silent": "unlabelled",
        "unheard-of": "pending",
    }


def test_what_is_not_known_yet_cannot_be_read() -> None:
    """The truth of a pending prediction is absent, not merely unused."""
    known = labels(("in-the-air", NOON - timedelta(hours=1), NOON + timedelta(hours=1), True))
    row = matched(predictions(("in-the-air", 0.9)), known).row(0, named=True)
    assert (row["state"], row["truth"]) == ("pending", None)
    assert "label_known_at" not in row


@pytest.mark.parametrize(
    ("before", "inside"), [(WEEK, True), (WEEK + timedelta(microseconds=1), False), (timedelta(0), False)]
)
def test_the_window_is_closed_at_its_start_and_open_at_its_end(before: timedelta, inside: bool) -> None:
    """An event exactly one window ago counts, one at the moment itself does not."""
    known = labels(("a", NOON - before, NOON, True))
    assert matched(predictions(("a", 0.5)), known).height == inside


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(-240, 48), st.none() | st.integers(-240, 240), st.none() | st.booleans()), max_size=40
    ),
    st.integers(0, 240),
)
def test_states_add_up_and_maturity_only_grows(events: list[tuple[int, int | None, bool | None]], later: int) -> None:
    """Every prediction of the window has one state; what has matured never goes back as time passes."""
    known = labels(
        *(
            (str(i), NOON + timedelta(hours=at), None if known is None else NOON + timedelta(hours=known), late)
            for i, (at, known, late) in enumerate(events)
        )
    )
    asked = predictions(*((name, 0.5) for name in known["flight_id"]))
    now = match(asked, known, key="flight_id", label="late", as_of=NOON, window=2 * WEEK, maturity=WEEK)
    counts = maturity_of(now)
    assert counts.matured + counts.pending + counts.unlabelled == now.height == sum(at < 0 for at, _, _ in events)
    then = match(
        asked, known, key="flight_id", label="late", as_of=NOON + timedelta(hours=later), window=4 * WEEK, maturity=WEEK
    )
    matured_now, matured_then = (set(f.filter(state="matured")["flight_id"]) for f in (now, then))
    assert matured_now <= matured_then


def test_every_answer_counts_even_of_one_event() -> None:
    """A flight that was asked about twice is two predictions, each with its own version."""
    known = labels(("a", NOON - timedelta(hours=2), NOON, True))
    assert maturity_of(matched(predictions(("a", 0.2), ("a", 0.8)), known)) == Maturity(2, 0, 0)


def test_labels_that_cannot_be_joined_are_refused() -> None:
    """Two labels of one key, or a missing column, are named."""
    doubled = labels(("a", NOON, NOON, True), ("a", NOON, NOON, False))
    with pytest.raises(UnusableLabelsError, match=r"'flight_id' have more than one label, e.g. \['a'\]"):
        matched(predictions(("a", 0.5)), doubled)
    with pytest.raises(UnusableLabelsError, match="The labels lack late"):
        matched(predictions(("a", 0.5)), doubled.drop("late"))
    with pytest.raises(UnusableLabelsError, match="The predictions lack event_timestamp or at"):
        matched(predictions(("a", 0.5)).drop("at"), labels())


@pytest.fixture
def noisy() -> tuple[np.ndarray, np.ndarray]:
    """A thousand probabilities that are right more often than not."""
    rng = np.random.default_rng(5)
    probability = rng.random(1_000)
    return rng.random(1_000) < probability, probability


def test_the_drop_knows_the_direction_of_the_metric(noisy: tuple[np.ndarray, np.ndarray]) -> None:
    """A lower AUC and a higher error are both a drop; better than the holdout is a negative one."""
    truth, probability = noisy
    auc = judged(scored(truth, probability)).metric
    assert auc is not None
    assert judged(scored(truth, probability), reference=auc + 0.05).drop == pytest.approx(0.05)
    assert judged(scored(truth, probability), reference=auc + 0.05).verdict == "metric drop"
    assert judged(scored(truth, probability), reference=auc - 0.05).drop == pytest.approx(-0.05)
    assert judged(scored(truth, probability), reference=auc + 0.02).verdict == "steady"
    minutes = np.arange(1_000.0)
    assert judged(scored(minutes, minutes + 5), "mae", reference=4.0).drop == pytest.approx(1.0)


@pytest.mark.parametrize("rows", [0, 1, 499])
def test_too_few_matured_rows_give_no_verdict(rows: int) -> None:
    """However bad they are, and whatever is still pending."""
    wrong = scored(np.arange(rows) % 2 == 0, (np.arange(rows) % 2).astype(float))
    pending = pl.DataFrame(
        {"truth": [None] * 900, "prediction": [0.5] * 900, "state": ["pending"] * 900}, schema=wrong.schema
    )
    result = judged(pl.concat([wrong, pending]))
    assert (result.verdict, result.metric, result.drop, result.maturity) == (
        "not enough rows", None, None, Maturity(rows, 900, 0)
    )  # fmt: skip
    assert "metric" not in result.numbers()


def test_one_class_alone_gives_no_verdict() -> None:
    """A week in which every flight was late has no AUC; that is not a failing model."""
    result = judged(scored(np.ones(600), np.full(600, 0.9)))
    assert (result.metric, result.verdict) == (None, "not enough rows")


def test_slices_and_versions_tell_who_lost(noisy: tuple[np.ndarray, np.ndarray]) -> None:
    """A carrier whose predictions are noise is named; a small one is listed without a metric."""
    truth, probability = noisy
    rng = np.random.default_rng(6)
    carrier = np.where(np.arange(1_000) < 400, "AA", np.where(np.arange(1_000) < 990, "UA", "OO"))
    broken = np.where(carrier == "AA", rng.random(1_000), probability)
    result = judged(
        scored(truth, broken, carrier=carrier, version=["3"] * 500 + ["4"] * 500), slices=["carrier"], reference=0.8
    )
    assert [(s.value, s.rows) for s in result.slices] == [("UA", 590), ("AA", 400), ("OO", 10)]
    assert [loss.score.value for loss in result.losses] == ["AA"]
    assert result.slices[2].metric is None
    assert {(s.group, s.value, s.rows) for s in result.versions} == {("version", "3", 500), ("version", "4", 500)}
    assert result.table().height == 5


def test_a_calibrated_model_lies_on_the_diagonal() -> None:
    """Ten bins, 1.0 in the last; observed shares follow the predicted ones, and a shifted model's do not."""
    rng = np.random.default_rng(7)
    probability = rng.random(50_000)
    truth = rng.random(50_000) < probability
    cells = calibration(scored(truth, probability))
    assert [cell.low for cell in cells] == pytest.approx([i / 10 for i in range(10)])
    assert sum(cell.rows for cell in cells) == 50_000
    assert all(math.isclose(cell.predicted, cell.observed, abs_tol=0.03) for cell in cells)
    result = judged(scored(truth, np.clip(probability + 0.2, 0, 1)))
    assert result.calibration_error is not None and result.calibration_error > 0.1
    assert calibration(scored(np.ones(1), np.ones(1)))[0].low == 0.9
    assert judged(scored(probability, probability), "mae", reference=1.0).calibration_error is None


def test_the_order_of_rows_never_changes_the_numbers(noisy: tuple[np.ndarray, np.ndarray]) -> None:
    """Shuffled predictions give the same report."""
    truth, probability = noisy
    frame = scored(truth, probability, version=[str(i % 3) for i in range(1_000)])
    order = random.Random(8).sample(range(1_000), 1_000)
    one, other = judged(frame), judged(frame[order])
    assert (one.metric, one.versions, one.maturity) == (other.metric, other.versions, other.maturity)
    assert [c.observed for c in one.calibration] == pytest.approx([c.observed for c in other.calibration])
