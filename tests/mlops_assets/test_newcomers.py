"""Entities are held out as new for good, and a cold start is judged by what it is fed alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest

from mlops_assets import (
    Bool,
    Constant,
    Entity,
    Float64,
    Float64Array,
    Gate,
    MeanOverEntities,
    ModelPipeline,
    Popularity,
    TimeSplit,
    feature_view,
    labels,
    on_demand,
)
from mlops_assets.newcomers import CHECK, Newcomers, helps
from mlops_assets.trainers import XGBoostClassifier
from mlops_assets.training import Task, TrainingDataError, cold_starts, train, training_arguments
from resources.hardware import CPU

CUTOFF, DAY = datetime(2013, 4, 1, tzinfo=UTC), timedelta(days=1)
aircraft = Entity("aircraft", "tailnum")


@labels(key="flight_id", entities=[aircraft], targets={"late": Bool}, request={"distance": Float64})
def arrivals() -> pl.LazyFrame:
    """Arrivals."""
    return pl.LazyFrame()


@feature_view(entities=[aircraft], schema={"habit": Float64, "flown": Float64}, cold_start=Popularity("flown"))
def use() -> pl.LazyFrame:
    """How an airframe is used."""
    return pl.LazyFrame()


@feature_view(entities=[aircraft], schema={"place": Float64Array("Place", size=2)}, cold_start=Constant({}))
def places() -> pl.LazyFrame:
    """Where an airframe is used."""
    return pl.LazyFrame()


@feature_view(entities=[aircraft], schema={"age": Float64})
def registry() -> pl.LazyFrame:
    """What an airframe is."""
    return pl.LazyFrame()


@on_demand(reads=[use[["habit"]], registry[["age"]]], schema={"habit_by_age": Float64})
def worn(habit: pl.Expr, age: pl.Expr) -> pl.Expr:
    """Habit for its age."""
    return habit.fill_null(-1.0) * age


def model(*features: Any, **changes: Any) -> ModelPipeline:
    return ModelPipeline(
        **{
            "name": "late",
            "team": "flights",
            "labels": arrivals,
            "label": "late",
            "features": features or (use, places),
            "trainer": XGBoostClassifier(n_estimators=30, max_depth=3),
            "cutoffs": dg.WeeklyPartitionsDefinition(start_date="2013-01-07"),
            "split": TimeSplit(holdout=14 * DAY, validation=7 * DAY),
            "gate": Gate("roc_auc", at_least=0.5),
            **changes,
        }
    )


def flights(stand_in: float = 0.0, days: int = 60, each: int = 100) -> pl.DataFrame:
    """Lateness depends on the airframe's habit, which is far from what a model takes a null for.

    Half of the airframes are of a kind that is always unpunctual; a model that never saw a null guesses them so.
    """
    random, n = np.random.default_rng(5), days * each
    tail, distance = random.integers(0, 400, n), random.uniform(-1, 1, n)
    habit = np.where(tail % 2, 1.0, -1.0) + random.normal(0, 0.1, n)
    late = np.where(habit > 0, distance, -distance) + random.normal(0, 0.2, n) > 0
    return pl.DataFrame(
        {
            "flight_id": [f"f{number}" for number in range(n)],
            "tailnum": pl.Series([f"N{number}" for number in tail]),
            "event_timestamp": [CUTOFF - (number + 1) * (DAY / each) for number in range(n)],
            "distance": distance,
            "habit": habit,
            "flown": np.ones(n),
            "age": np.full(n, 3.0),
            "place": pl.Series([[0.5, number % 7] for number in range(n)], dtype=pl.List(pl.Float64)),
            "late": late,
            "use__cold_start_used": np.zeros(n, bool),
            "habit__cold_start": np.full(n, stand_in),
            "flown__cold_start": np.ones(n),
            "places__cold_start_used": np.zeros(n, bool),
            "place__cold_start": pl.Series([None] * n, dtype=pl.List(pl.Float64)),
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )


def arguments(tmp_path: Path, frame: pl.DataFrame, of: ModelPipeline | None = None) -> dict[str, Any]:
    frame.write_parquet(tmp_path / "set.parquet")
    return training_arguments(of or model(), CUTOFF, tmp_path / "set.parquet", tmp_path / "out")


def judged(tmp_path: Path, frame: pl.DataFrame, of: ModelPipeline | None = None) -> Mapping[str, Any]:
    return cold_starts(Task.of(arguments(tmp_path, frame, of), {}, CPU), {})


def held_out(rows: pl.DataFrame, of: ModelPipeline | None = None) -> pl.DataFrame:
    newcomers = Newcomers.of(of or model())
    assert newcomers
    return rows.filter(newcomers.mark())


NEW = Newcomers(views=[{"keys": ["tailnum"], "features": {}}], transforms=[]).mark()


# -- who is new


def test_about_a_tenth_of_the_keys_are_new_each_with_all_its_rows() -> None:
    """By the key alone, so in any order and at any time; a row without a key is of nothing, and not new."""
    rows = flights()
    new = held_out(rows)
    tails = set(new["tailnum"])
    assert 20 < len(tails) < 70 and new.height == rows.filter(pl.col("tailnum").is_in(tails)).height
    assert set(held_out(rows.reverse().head(1000))["tailnum"]) <= tails
    assert held_out(rows.with_columns(tailnum=pl.lit(None, pl.String))).is_empty()


def test_a_model_without_cold_starts_holds_out_nobody(tmp_path: Path) -> None:
    """Nothing is asked of its training set, and nothing is fitted or told beside the model."""
    plain = model(registry)
    assert Newcomers.of(plain) is None
    rows = flights().drop("habit__cold_start", "flown__cold_start", "place__cold_start")
    assert train(arguments(tmp_path, rows, plain))["cold_starts"] is None


# -- what they are fed


def test_the_new_are_fed_stand_ins_or_nulls_and_others_are_left_alone() -> None:
    """Every feature of a view with a cold start, arrays too; the caller's own values stay."""
    newcomers, rows = Newcomers.of(model()), flights(stand_in=0.25)
    assert newcomers
    known, new = rows.filter(~newcomers.mark()), rows.filter(newcomers.mark())
    assert newcomers.helped(known).equals(known) and newcomers.unhelped(known).equals(known)
    helped, unhelped = newcomers.helped(new), newcomers.unhelped(new)
    assert set(helped["habit"]) == {0.25} and helped["place"].null_count() == new.height
    assert unhelped.select("habit", "flown", "place").null_count().row(0) == (new.height,) * 3
    assert helped["distance"].equals(new["distance"]) and helped.schema == unhelped.schema == rows.schema


def test_what_is_computed_on_demand_follows() -> None:
    """A feature computed from a stand-in is computed anew, from stand-in and from null."""
    of = model(use, registry, worn)
    newcomers = Newcomers.of(of)
    assert newcomers
    new = held_out(flights(stand_in=0.25), of).with_columns(habit_by_age=pl.lit(9.0))
    assert set(newcomers.helped(new)["habit_by_age"]) == {0.75}
    assert set(newcomers.unhelped(new)["habit_by_age"]) == {-3.0}


# -- the judgement


def test_the_model_has_never_seen_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fitted on exactly the other rows before the holdout."""
    seen = []
    fit = XGBoostClassifier.fit

    def watched(self: Any, x: np.ndarray, *rest: Any) -> Any:
        seen.append(len(x))
        return fit(self, x, *rest)

    monkeypatch.setattr(XGBoostClassifier, "fit", watched)
    rows = flights()
    assert (
        judged(tmp_path, rows)["rows"] == held_out(rows.filter(pl.col("event_timestamp") >= CUTOFF - 14 * DAY)).height
    )
    past = rows.filter(pl.col("event_timestamp") < CUTOFF - 14 * DAY)
    assert seen == [past.height - held_out(past).height]


def test_a_good_stand_in_helps_and_a_bad_one_does_not(tmp_path: Path) -> None:
    """With the airframe's own habit in its place it must help; with the opposite, it must be worse than nulls."""
    rows = flights()
    good = judged(tmp_path, rows.with_columns(pl.col("habit").alias("habit__cold_start")))
    bad = judged(tmp_path, rows.with_columns((-pl.col("habit")).alias("habit__cold_start")))
    assert good["nulls"] == bad["nulls"] and good["stand_ins"] > 0.9 > good["nulls"] > bad["stand_ins"]
    assert helps("roc_auc", good).passed and not helps("roc_auc", bad).passed
    assert not helps("roc_auc", bad).blocking and "with nulls" in helps("roc_auc", bad).reason


def test_an_error_metric_is_better_when_it_is_less() -> None:
    found = {"rows": 10, "stand_ins": 3.0, "nulls": 4.0}
    assert helps("mae", found).passed and helps("mae", found).numbers["gain"] == 1.0
    assert not helps("mae", {**found, "stand_ins": 4.0}).passed, "no better is not better"


def test_training_tells_it_as_json(tmp_path: Path) -> None:
    """One fit more, of the parameters that the search chose; the bundle is that of the model that knows everybody."""
    found = train(arguments(tmp_path, flights()))
    assert json.loads(json.dumps(found["cold_starts"])) == found["cold_starts"]
    assert found["cold_starts"].keys() == {"rows", "stand_ins", "nulls"}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda rows: rows.with_columns(tailnum=pl.lit(None, pl.String)), "the holdout of new keys is empty"),
        (held_out, "what is left to learn from is empty"),
        (lambda rows: rows.with_columns(late=pl.col("late") & ~NEW), "not both 0 and 1"),
    ],
    ids=["nobody new", "nobody known", "one class"],
)
def test_where_there_is_nothing_to_judge_nothing_is_claimed(spoil: Any, words: str, tmp_path: Path) -> None:
    """The claim says why, and passes."""
    found = judged(tmp_path, spoil(flights()))
    claim = helps("roc_auc", found)
    assert claim.name == CHECK and claim.passed and words in claim.reason


def test_a_training_set_of_before_the_cold_start_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"lacks the columns habit__cold_start.*Materialize the training set"):
        train(arguments(tmp_path, flights().drop("habit__cold_start")))


def test_a_view_of_everybody_knows_no_new_key() -> None:
    """Without keys there is nobody to hold out."""

    @feature_view(team="flights", entities=[], schema={"fuel": Float64}, cold_start=MeanOverEntities())
    def market() -> pl.LazyFrame:
        """The market."""
        return pl.LazyFrame()

    assert Newcomers.of(model(market)) is None
