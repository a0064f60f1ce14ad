"""Champion and challenger are compared on the very same rows, by what was known, and chance is told by an interval."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.comparison import (
    CHALLENGER,
    CHAMPION,
    TRUTH,
    Bundle,
    IncomparableError,
    changed,
    compare,
    interval,
    same_rows,
    with_truth,
)
from mlops_assets.metrics import METRICS
from mlops_assets.rollout import compared
from mlops_assets.serving.answers import Answers, FrameInputs, Question
from mlops_assets.serving.prediction_log import PredictionLog
from mlops_assets.trainers import XGBoostClassifier
from resources.decisions import Decided, DecisionStore

if TYPE_CHECKING:
    from conftest import Platform

    from resources.release_record import ReleaseRecord

AUC, MAE = METRICS["roc_auc"], METRICS["mae"]
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


def drawn(count: int, noise: tuple[float, float], seed: int = 1) -> pl.DataFrame:
    """Rows of a classifier: the truth, and two predictions of it, each with so much noise."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, count).astype(float)
    champion, challenger = (np.clip(truth * 0.3 + generator.normal(0.35, size, count), 0, 1) for size in noise)
    at = [NOON + timedelta(minutes=n) for n in range(count)]
    return pl.DataFrame({"at": at, CHAMPION: champion, CHALLENGER: challenger, TRUTH: truth})


# -- the numbers ------------------------------------------------------------------------------------


def test_a_real_difference_is_told_from_chance() -> None:
    """Surely better, surely worse, and neither; equal models do not differ at all."""
    better, worse, same = (compare(drawn(600, noise), AUC, 50) for noise in ((0.4, 0.2), (0.2, 0.4), (0.3, 0.3)))
    assert better.interval[0] > 0 and better.gain > 0
    assert worse.interval[1] < 0 and worse.gain < 0 and worse.challenger < worse.champion
    assert same.interval[0] < 0 < same.interval[1]
    equal = drawn(600, (0.3, 0.3)).with_columns(pl.col(CHAMPION).alias(CHALLENGER))
    told = compare(equal, AUC, 50)
    assert (told.gain, told.interval, told.changed, told.psi) == (0.0, (0.0, 0.0), 0.0, 0.0)


def test_an_interval_of_the_same_rows_is_narrower_than_one_of_different_rows() -> None:
    """What the comparison is for: two alike models that saw other halves of the traffic would seem to differ."""
    rows = drawn(600, (0.3, 0.3)).with_columns((pl.col(CHAMPION) + 0.001).clip(0, 1).alias(CHALLENGER))
    truth, champion, challenger = (rows[name].to_numpy() for name in (TRUTH, CHAMPION, CHALLENGER))
    low, high = interval(truth, champion, challenger, AUC)
    generator = np.random.default_rng(0)
    halves = [np.array_split(generator.permutation(600), 2) for _ in range(50)]
    apart = [AUC.compute(truth[a], champion[a]) - AUC.compute(truth[b], challenger[b]) for a, b in halves]
    assert high - low < np.std(apart) / 3


@settings(max_examples=10)
@given(st.integers(0, 1_000))
def test_who_is_called_champion_only_turns_the_sign(seed: int) -> None:
    """And the same rows give the same numbers: the draws are seeded."""
    rows = drawn(120, (0.3, 0.4), seed)
    truth, champion, challenger = (rows[name].to_numpy() for name in (TRUTH, CHAMPION, CHALLENGER))
    low, high = interval(truth, champion, challenger, AUC)
    assert interval(truth, challenger, champion, AUC) == pytest.approx((-high, -low))
    assert interval(truth, champion, challenger, AUC) == (low, high)


def test_an_error_is_better_when_it_is_lower() -> None:
    """Of a regression: the gain is positive where the challenger errs less, and far apart is a changed decision."""
    truth = np.arange(200.0)
    rows = drawn(200, (0.1, 0.1)).with_columns(
        pl.Series(TRUTH, truth), pl.Series(CHAMPION, truth + 5), pl.Series(CHALLENGER, truth + 2)
    )
    told = compare(rows, MAE, 50)
    assert (told.champion, told.challenger, told.gain) == (5.0, 2.0, 3.0) and told.interval == (3.0, 3.0)
    assert changed(truth, truth + 20, MAE) == 0.0 and changed(truth, truth + 40, MAE) == 1.0


def test_of_classes_another_one_is_another_decision() -> None:
    """By name, not by how far apart their numbers are, and the answers as a whole class by class."""
    truth = np.arange(200.0) % 10
    champion, challenger = np.where(truth == 9, 8.0, truth), np.where(truth == 3, 4.0, truth)
    rows = drawn(200, (0.1, 0.1)).with_columns(
        pl.Series(TRUTH, truth), pl.Series(CHAMPION, champion), pl.Series(CHALLENGER, challenger)
    )
    told = compare(rows, METRICS["top1_accuracy"], 50)
    assert told.changed == pytest.approx(0.2) and told.champion == told.challenger == pytest.approx(0.9)
    assert told.gain == 0 and told.psi is not None and told.psi > 0.2


def test_what_is_not_known_is_not_judged() -> None:
    """Few labels, or one class alone: no gain, but what the predictions say, and how long the step lasts."""
    rows = drawn(300, (0.3, 0.4))
    few = rows.with_columns(pl.when(pl.int_range(pl.len()) < 49).then(pl.col(TRUTH)).alias(TRUTH))
    told = compare(few, AUC, 50)
    assert (told.rows, told.labels, told.gain, told.interval) == (300, 49, None, None)
    assert told.changed == pytest.approx(((rows[CHAMPION] >= 0.5) != (rows[CHALLENGER] >= 0.5)).mean())
    assert told.psi > 0 and told.seconds == 299 * 60
    one_class = rows.with_columns(pl.lit(1.0).alias(TRUTH))
    assert compare(one_class, AUC, 50).gain is None
    nothing = compare(rows.clear(), AUC, 50)
    assert (nothing.rows, nothing.labels, nothing.changed, nothing.psi, nothing.seconds) == (0, 0, None, None, 0.0)


# -- the rows ---------------------------------------------------------------------------------------


def logged(
    model: str, record: ReleaseRecord, rows: pl.DataFrame, names: Sequence[str], at: datetime = NOON, ids: str = "id"
) -> None:
    """Rows answered in turn by champion and challenger, with their inputs as they were used."""
    writer = PredictionLog().writer()
    for turn, variant in enumerate(record.answering):
        own = rows.gather_every(len(record.answering), turn)
        question = Question(at, own[ids].to_list(), {})
        inputs, said = FrameInputs(own.select(names)), [0.5] * own.height
        writer.write(Answers(model, variant, question, names, inputs, said, latency_ms=2.0))
    writer.close()


@pytest.fixture(scope="module")
def trained(module_platform: Platform) -> tuple[Platform, ReleaseRecord]:
    """A second version of fewer trees, so that the two differ, and the record of its canary."""
    smaller = module_platform.declared(trainer=XGBoostClassifier(n_estimators=5, learning_rate=0.2))
    ran = smaller.train("2013-07-01")
    assert ran.ok, ran.trouble
    record = module_platform.published["release"]
    assert len(record.answering) == 2
    return module_platform, record


@pytest.fixture
def canary(trained: tuple[Platform, ReleaseRecord]) -> Platform:
    """Version 2 answers a share beside version 1, and nothing was asked yet."""
    platform, first = trained
    shutil.rmtree(platform.home / "predictions", ignore_errors=True)
    now, model = platform.published["release"], platform.model.id
    if now.variants != first.variants:
        steps = {"steps": first.steps, "limits": first.limits}
        platform.promotion.releases.change(model, now.revision, first.variants, by="a test", why="again", **steps)
    return platform


def rollouts(model: str) -> list[Decided]:
    return [one for one in DecisionStore().history(model) if one.kind == "rollout"]


def known_rows(platform: Platform, count: int) -> pl.DataFrame:
    """The first flights of the last day of June, with the features and the labels that training reads."""
    path = platform.resources["lake"].path("flights/late_arrival/training_set", "2013-07-01")
    last = (
        pl.read_parquet(str(path))
        .sort("event_timestamp", "flight_id")
        .filter(pl.col("event_timestamp") >= datetime(2013, 6, 30, tzinfo=UTC))
    )
    return last.head(count)


def test_a_canary_is_judged_by_what_both_predict_of_every_request_and_by_what_was_known(canary: Platform) -> None:
    """Through the real log, Bentos and labels: the metric is that of both bundles on all labelled rows, those alone
    whose label was known at the newest moment asked about; every decision is kept."""
    from mlops_assets.training import evaluate

    model, record, rows = canary.model, canary.published["release"], known_rows(canary, 400)
    noon = datetime(2013, 6, 30, 20, tzinfo=UTC)
    logged(model.id, record, rows, model.inputs, noon, "flight_id")
    told = compared(model, record)
    known = rows.filter(pl.col("label_known_at") <= noon)
    assert (
        not told.problem
        and told.changed > 0
        and (told.rows, told.labels) == (400, known.height)
        and 100 < known.height < 400
    )
    for name, variant in (("champion", record.champion), ("challenger", record.challenger)):
        said = evaluate(canary.promotion.bentos.path(variant.release), known).to_numpy()
        expected = AUC.compute(known["late"].cast(pl.Float64).to_numpy(), said)
        assert getattr(told, name) == pytest.approx(expected, abs=1e-9), name
    tick = canary.tick("rollout").skip_reason.skip_message
    assert "on the same" in tick and f"{known.height} labelled requests" in tick
    kept = rollouts(model.id)[-1]
    assert kept.outcome in ("advance", "roll back") and kept.evidence["told"][-1] == str(told)


def test_a_step_waits_for_labels_as_long_as_it_is_declared_to(canary: Platform) -> None:
    """Asked about before most had landed: too few labels are known. It waits in one line of the history, then goes
    on."""
    patient = canary.declared(serve=replace(canary.model.serve, hold=timedelta(hours=3)))
    model, record, rows = patient.model, patient.published["release"], known_rows(patient, 300)
    dawn = datetime(2013, 6, 30, 4, tzinfo=UTC)
    logged(model.id, record, rows.head(200), model.inputs, dawn, "flight_id")
    for _ in range(2):
        assert "31 labels known" in patient.tick("rollout").skip_reason.skip_message
    assert patient.published["release"] == record
    kept = rollouts(model.id)[-1]
    assert (kept.outcome, kept.reasons, kept.times) == ("hold", ("at 40 %: waits for labels",), 2)
    logged(model.id, record, rows.tail(100), model.inputs, dawn + timedelta(hours=3), "flight_id")
    assert "advance at 40 %" in patient.tick("rollout").skip_reason.skip_message


def bundle(release: str, **changes: Any) -> Bundle:
    return replace(Bundle(release, Path("nowhere"), "classification", "late", {"x": pl.Float64()}), **changes)


def test_two_that_read_different_features_are_compared_on_the_requests_that_hold_both(canary: Platform) -> None:
    """A challenger with one feature less: its own lines lack that one, the champion's hold all; no null stands in."""
    model, record, rows = canary.model, canary.published["release"], known_rows(canary, 100)
    logged(model.id, record, rows, model.inputs, NOON, "flight_id")
    whole = Bundle.at(record.champion.release, canary.promotion.bentos.path(record.champion.release))
    dropped, *kept = whole.inputs
    less = Bundle.at(record.challenger.release, canary.promotion.bentos.path(record.challenger.release))
    fewer = replace(less, inputs={name: less.inputs[name] for name in kept})
    answers = PredictionLog().since(model.id, datetime(2000, 1, 1, tzinfo=UTC), dict(whole.inputs))
    assert same_rows(answers, whole, fewer).height == 50
    assert same_rows(answers, whole, less).height == 100
    other = replace(fewer, inputs={**fewer.inputs, "new": pl.Float64()})
    with pytest.raises(IncomparableError, match=f"each reads what the other does not \\({dropped}, new\\)"):
        same_rows(answers, whole, other)


@pytest.mark.parametrize("change", [{"label": "delay"}, {"task": "regression"}])
def test_models_of_different_things_are_not_compared(change: dict[str, str]) -> None:
    answers = pl.DataFrame({"release": ["a"], "request_id": ["1"], "at": [NOON], "x": [1.0]})
    with pytest.raises(IncomparableError, match=f"one's {next(iter(change))} is not the other's"):
        same_rows(answers, bundle("a"), bundle("b", **change))


def test_a_bundle_that_cannot_be_read_holds_the_canary(canary: Platform) -> None:
    """Gone, or not what was saved: it is named, and not taken for two that are too different."""
    record = canary.published["release"]
    gone = replace(record.champion, release=f"{record.champion.release}gone")
    told = compared(canary.model, replace(record, variants=(gone, record.challenger)))
    assert "gone" in told.problem and told.broken and told.gain is None
    schema = canary.promotion.bentos.path(record.champion.release) / "schema.json"
    aside = schema.rename(schema.parents[1] / "aside")
    told = compared(canary.model, record)
    aside.rename(schema)
    assert "schema.json" in told.problem and told.broken and told.gain is None


def test_without_a_table_of_labels_nothing_is_known(canary: Platform) -> None:
    rows = pl.DataFrame({"at": [NOON], "request_id": ["1"]})
    far = rows.with_columns(pl.lit(datetime(2014, 1, 1, tzinfo=UTC)).alias("at"))
    for asked in (rows.with_columns(request_id=pl.lit("unheard of")), far):
        assert with_truth(asked, canary.model, canary.resources["lake"])[TRUTH].to_list() == [None]


def test_a_bundle_says_what_it_needs(canary: Platform) -> None:
    """The inputs of its own schema, in the types that the log is read with."""
    path = canary.promotion.bentos.path(canary.published["release"].champion.release)
    found = Bundle.at("a", path)
    assert list(found.inputs) == [
        column["name"] for column in json.loads((path / "schema.json").read_text())["columns"]
    ]
    assert (found.task, found.label, found.inputs["distance"]) == ("classification", "late", pl.Float64())
