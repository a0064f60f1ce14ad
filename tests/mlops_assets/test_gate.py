"""A candidate is promoted for what its predictions show, and refused with the numbers."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets import Float64, Gate
from mlops_assets.claims import Claim
from mlops_assets.gate import CHAMPION, Unjudged, judge, measure_latency
from mlops_assets.input_schema import Column, InputSchema

GATE = Gate("roc_auc", at_least=0.7, slices=["carrier"], slice_min_rows=50, slice_tolerance=0.1, latency_ms=5)


def holdout(n: int = 600, skill: float = 2.0, champion: float | None = None) -> pl.DataFrame:
    """Predictions that rank the labels the better, the larger the skill."""
    random = np.random.default_rng(1)
    late = random.random(n) < 0.4
    columns = {"late": late, "carrier": random.choice(["AA", "UA", "DL"], n), "prediction": _guess(late, skill, 2)}
    return pl.DataFrame(columns | ({CHAMPION: _guess(late, champion, 3)} if champion is not None else {}))


def _guess(late: np.ndarray, skill: float, seed: int) -> np.ndarray:
    return 1 / (1 + np.exp(-(skill * (late - 0.5) + np.random.default_rng(seed).normal(size=len(late)))))


def verdicts(frame: pl.DataFrame, gate: Gate = GATE, latency_ms: float = 1.0) -> dict[str, Claim]:
    return {verdict.name: verdict for verdict in judge(gate, "late", frame, latency_ms)}


def test_a_good_first_candidate_passes_everything() -> None:
    """Without a champion there is nothing to beat, and the verdict says so."""
    found = verdicts(holdout())
    assert list(found) == ["clears_floor", "beats_champion", "worst_slice", "latency"]
    assert all(verdict.passed for verdict in found.values())
    assert found["beats_champion"].reason == "there is no champion yet"


def test_a_candidate_below_the_floor_is_refused() -> None:
    """The refusal gives the value and the floor."""
    verdict = verdicts(holdout(skill=0.0))["clears_floor"]
    assert not verdict.passed and verdict.numbers["candidate"] < 0.6 and "at least 0.7" in verdict.reason


def test_an_errors_floor_is_a_ceiling() -> None:
    """A metric that is better when smaller must stay at or below `at_most`."""
    frame = pl.DataFrame({"late": [1.0, 2.0, 3.0], "prediction": [2.0, 3.0, 4.0]})
    assert verdicts(frame, Gate("mae", at_most=1.0))["clears_floor"].passed
    assert not verdicts(frame, Gate("mae", at_most=0.99))["clears_floor"].passed


def test_a_class_is_right_or_wrong() -> None:
    """Of several classes the floor is a share of right answers, and a slice of one class alone is judged too."""
    truth = np.arange(400) % 4
    said = np.where(truth == 3, np.where(np.arange(400) % 8 == 3, 2, 3), truth).astype(float)
    frame = pl.DataFrame({"late": truth, "carrier": np.where(truth == 3, "AA", "UA"), "prediction": said})
    gate = Gate("top1_accuracy", at_least=0.87, slices=["carrier"], slice_min_rows=50, slice_tolerance=0.1)
    found = verdicts(frame, gate)
    assert found["clears_floor"].passed and found["clears_floor"].numbers["candidate"] == 0.875
    assert not found["worst_slice"].passed and found["worst_slice"].numbers["worst"] == 0.5


@pytest.mark.parametrize(("champion", "margin", "passed"), [(1.0, 0.0, True), (3.0, 0.0, False), (1.0, 0.4, False)])
def test_the_champion_is_beaten_on_the_same_rows(champion: float, margin: float, passed: bool) -> None:
    """By at least the margin, which is written beside the gain."""
    gate = Gate("roc_auc", at_least=0.5, beats_champion_by=margin)
    verdict = verdicts(holdout(champion=champion), gate)["beats_champion"]
    assert verdict.passed is passed and verdict.numbers["margin"] == margin
    assert verdict.numbers["gain"] == pytest.approx(verdict.numbers["candidate"] - verdict.numbers["champion"])


def test_equalling_the_champion_is_enough_at_margin_zero() -> None:
    """The same predictions again pass a margin of 0: a retrained twin may take over."""
    frame = holdout().with_columns(pl.col("prediction").alias(CHAMPION))
    assert verdicts(frame)["beats_champion"].passed


def test_the_worst_slice_is_named() -> None:
    """One carrier predicted at random fails the gate, with its name, value and rows."""
    frame = holdout(n=900)
    spoilt = frame.with_columns(prediction=pl.when(carrier="DL").then(1 - pl.col("prediction")).otherwise("prediction"))
    verdict = verdicts(spoilt)["worst_slice"]
    rows = frame.filter(carrier="DL").height
    assert not verdict.passed and f"carrier is DL ({rows} rows)" in verdict.reason and verdict.numbers["rows"] == rows


def test_small_and_one_class_slices_are_not_judged() -> None:
    """A slice with too few rows, or without both classes, cannot be the worst."""
    frame = holdout()
    rare = frame.head(10).with_columns(carrier=pl.lit("RARE"), prediction=0.5)
    alone = frame.filter(pl.col("late")).head(80).with_columns(carrier=pl.lit("ONE"), prediction=0.0)
    verdict = verdicts(pl.concat([frame, rare, alone]))["worst_slice"]
    assert "RARE" not in verdict.reason and "ONE" not in verdict.reason and verdict.numbers["slices"] == 3


def test_no_judgeable_slice_is_said() -> None:
    """With no slice of enough rows the claim passes and says why."""
    verdict = verdicts(holdout(n=60), Gate("roc_auc", at_least=0.5, slices=["carrier"], slice_min_rows=500))[
        "worst_slice"
    ]
    assert verdict.passed and "500 usable rows" in verdict.reason


@given(st.floats(0, 100))
def test_latency_is_held_to_its_bound(milliseconds: float) -> None:
    """At the bound it passes, above it fails."""
    assert verdicts(holdout(n=80), latency_ms=milliseconds)["latency"].passed is (milliseconds <= GATE.latency_ms)


def test_latency_is_the_median_of_one_row_answers() -> None:
    """Each row is encoded and predicted alone; the first pass is not counted; no rows is an error."""
    shapes = []

    def predictor(x: np.ndarray) -> np.ndarray:
        shapes.append(x.shape)
        return x[:, 0].astype(np.float64)

    schema = InputSchema((Column("temp", Float64.dtype),))
    assert 0 < measure_latency(predictor, schema, [[1.0], [None]], rounds=3) < 100
    assert shapes == [(1, 1)] * 8
    with pytest.raises(ValueError, match="at least one row"):
        measure_latency(predictor, schema, [])


@pytest.mark.parametrize(("recorded", "passed"), [(0.6, True), (0.99, False)])
def test_a_champion_that_cannot_predict_the_rows_is_met_by_its_own_holdout(recorded: float, passed: bool) -> None:
    """The verdict says that the rows are others, why, and by how much."""
    champion = Unjudged("3", "it reads 'gust', which is gone", recorded)
    verdict = judge(GATE, "late", holdout(), 1.0, champion)[1]
    assert verdict.name == "beats_champion" and verdict.passed is passed
    assert "version 3" in verdict.reason and "'gust', which is gone" in verdict.reason
    assert f"was {recorded:.4f}" in verdict.reason and "other rows" in verdict.reason


def test_a_champion_that_was_never_measured_so_cannot_be_beaten() -> None:
    """Nothing is shown, so nothing is passed; the refusal says what to do, and the gate may waive the comparison."""
    champion = Unjudged("3", "it is a regression of 'delay'", None)
    verdict = judge(GATE, "late", holdout(), 1.0, champion)[1]
    assert not verdict.passed and "beats_champion_by to None" in verdict.reason
    assert judge(Gate("roc_auc", at_least=0.5, beats_champion_by=None), "late", holdout(), 1.0, champion)[1].passed
