"""Training keeps time's order, judges what will be served, and names what is wrong with its rows."""

from __future__ import annotations

import json
import logging
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets import (
    Bool,
    Entity,
    Float64,
    Gate,
    Int64,
    IntRange,
    ModelPipeline,
    Search,
    String,
    TimeSplit,
    feature_view,
    labels,
)
from mlops_assets.checkpoints import take_up
from mlops_assets.input_schema import InputError
from mlops_assets.manifest import made_from
from mlops_assets.trainers import SERVING_GRAPH, LightGBMRegressor, Trainer, XGBoostClassifier, trainer_named
from mlops_assets.training import TrainingDataError, evaluate, split, train, training_arguments
from resources.hardware import NoSuchDeviceError, this_machine

CUTOFF = datetime(2013, 4, 1, tzinfo=UTC)
DAY = timedelta(days=1)
airport = Entity("airport", join_key="origin")


@labels(key="flight_id", entities=[airport], targets={"late": Bool, "delay": Float64}, request={"distance": Int64})
def arrivals() -> pl.LazyFrame:
    """Arrivals."""
    return pl.LazyFrame()


@feature_view(entities=[airport], schema={"temp": Float64("Air"), "sky": String, "dead": Float64})
def weather() -> pl.LazyFrame:
    """Weather."""
    return pl.LazyFrame()


def pipeline(trainer: Trainer | None = None, **changes) -> ModelPipeline:
    return ModelPipeline(
        **{
            "name": "late_arrival",
            "team": "flights",
            "labels": arrivals,
            "label": "late",
            "features": [weather],
            "trainer": trainer or XGBoostClassifier(n_estimators=20),
            "cutoffs": dg.WeeklyPartitionsDefinition(start_date="2013-01-01"),
            "split": TimeSplit(holdout=7 * DAY, validation=7 * DAY),
            "gate": Gate("roc_auc", at_least=0.6, slices=["origin"]),
            **changes,
        }
    )


def flights(days: int = 60, each: int = 40) -> pl.DataFrame:
    """A learnable training set of the days before the cutoff."""
    random, n = np.random.default_rng(5), days * each
    temp = random.normal(50, 15, n)
    delay = temp - 50 + random.normal(0, 8, n)
    return pl.DataFrame(
        {
            "flight_id": [f"f{at}" for at in range(n)],
            "origin": random.choice(["EWR", "JFK", "LGA"], n),
            "event_timestamp": [CUTOFF - (at + 1) * (DAY / each) for at in range(n)],
            "distance": random.integers(100, 3000, n),
            "temp": np.where(random.random(n) < 0.1, np.nan, temp),
            "sky": random.choice(["clear", "rain", None], n),
            "dead": pl.Series([None] * n, dtype=pl.Float64),
            "late": delay > 0,
            "delay": delay,
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )


def arguments(tmp_path: Path, frame: pl.DataFrame | None = None, model: ModelPipeline | None = None) -> dict:
    (flights() if frame is None else frame).write_parquet(tmp_path / "set.parquet")
    return training_arguments(model or pipeline(), CUTOFF, tmp_path / "set.parquet", tmp_path / "out")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One training with a search of three trials."""
    search = Search(trials=3, space={"max_depth": IntRange(2, 4), "grow_policy": ["depthwise", "lossguide"]}, seed=11)
    return train(arguments(tmp_path_factory.mktemp("trained"), model=pipeline(search=search)))


def test_it_says_what_it_was_trained_on_and_what_that_took(trained: dict) -> None:
    """The device and why it is no better one, memory, processor, throughput, heat: measured where the work ran."""
    device, used, cpu = trained["device"], trained["usage"], this_machine().devices["cpu"]
    assert (device["kind"], device["name"], device["memory_gb"]) == ("cpu", cpu.name, cpu.memory_gb)
    assert device["reason"].startswith("no cuda: ")
    assert used["hardware/peak_memory_gb"] > 0.05 and used["hardware/cpu_percent"] > 0
    learned = (trained["rows"]["train"] + trained["rows"]["validation"]) * trained["params"]["n_estimators"]
    assert used["hardware/rows_per_second"] == pytest.approx(learned / trained["seconds"]["fit"], rel=0.01)
    assert trained["thermal"] in {"nominal", "fair", "serious", "critical", "unknown"}
    assert trained["machine"]["cpu_count"] >= 1 and trained["made_from"]["device"] == "cpu"


@pytest.mark.parametrize("accelerator", ["cuda", "mps", "mlx"])
def test_a_required_accelerator_that_is_missing_is_named_before_a_row_is_read(accelerator: str, tmp_path: Path) -> None:
    """There is no training set at all, and nothing is made: the machine is looked at first."""
    if accelerator in this_machine().devices:
        pytest.skip(f"this machine has {accelerator}")
    trainer = trainer_named("NetClassifier")
    model = pipeline(trainer, accelerator=accelerator)
    given = training_arguments(model, CUTOFF, tmp_path / "nothing.parquet", tmp_path / "out")
    with pytest.raises(
        NoSuchDeviceError, match=f"'{accelerator}' is required, and this machine has none: .*Found: cpu"
    ):
        train(given)
    assert not (tmp_path / "out").exists()


def test_the_device_that_is_found_makes_the_model_not_the_one_that_is_wished_for(tmp_path: Path) -> None:
    """What "auto" made on a CPU is what "cpu" would make: that training has ended, and is told, not done again."""
    trainer = trainer_named("LightGBMClassifier", n_estimators=5)
    best, cpu = (arguments(tmp_path, model=pipeline(trainer, accelerator=wished)) for wished in ("auto", "cpu"))
    assert made_from(best) == made_from(cpu)
    assert train(best) == train(cpu)


def test_work_of_another_device_is_not_taken_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a machine with a GPU left half done is begun anew on one without: it would be neither's model."""
    given = arguments(tmp_path)
    take_up(tmp_path / "out", {**made_from(given), "device": "cuda"})
    left = tmp_path / "out" / "checkpoints" / "final.checkpoint"
    left.parent.mkdir()
    left.touch()
    with caplog.at_level(logging.WARNING, logger="mlops_assets"):
        train(given)
    assert "holds a training with other device: this one starts over" in caplog.text
    assert not left.exists()


def test_arguments_survive_json(tmp_path: Path) -> None:
    """What goes out is JSON: the far side reads the very same."""
    given_arguments = arguments(
        tmp_path, model=pipeline(search=Search(2, {"max_depth": IntRange(2, 4), "gamma": [0, 1]}))
    )
    assert json.loads(json.dumps(given_arguments)) == given_arguments
    assert given_arguments["split"]["cutoff"] == "2013-04-01T00:00:00+00:00"


def test_the_result_is_json_and_says_what_was_done(trained: dict) -> None:
    """Best parameters, every metric on both parts, rows, seconds and importance by column."""
    assert json.loads(json.dumps(trained)) == trained
    assert trained["rows"] == {"train": 46 * 40, "validation": 280, "holdout": 280}
    assert trained["metrics"]["holdout"].keys() == {"roc_auc", "average_precision", "log_loss", "brier", "accuracy"}
    assert trained["metric"]["holdout"] == trained["metrics"]["holdout"]["roc_auc"] > 0.8
    assert max(trained["importance"], key=trained["importance"].get) == "temp"
    assert trained["params"]["max_depth"] == trained["best_params"]["max_depth"]


def test_the_best_trial_wins_and_each_is_on_record(trained: dict) -> None:
    """The journal holds each trial in order; the best value's parameters are the ones that were refitted."""
    trials = [json.loads(line) for line in Path(trained["trials"]).read_text().splitlines()]
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert {trial["state"] for trial in trials} == {"COMPLETE"}
    best = max(trials, key=lambda trial: trial["value"])
    assert best["params"] == trained["best_params"] and best["value"] == trained["metric"]["validation"]


def test_the_bundle_answers_as_it_was_judged(trained: dict) -> None:
    """The golden rows, taken as JSON, and the holdout, taken as a frame, predict what was written down."""
    bundle = Path(trained["bundle"])
    (bundle / "manifest.json").write_text(json.dumps({"framework": trained["framework"]}))
    holdout = pl.read_parquet(trained["holdout"])
    np.testing.assert_array_equal(evaluate(bundle, holdout), holdout["prediction"])
    golden = json.loads((bundle / "golden.json").read_text())
    schema = json.loads((bundle / "schema.json").read_text())
    names = [column["name"] for column in schema["columns"]]
    frame = pl.DataFrame(golden["rows"], schema=holdout.select(names).schema, orient="row")
    assert names == ["distance", "temp", "sky", "dead"] and len(golden["rows"]) == 20
    np.testing.assert_array_equal(evaluate(bundle, frame), golden["predictions"])


def test_the_baseline_is_what_the_model_learned_from(trained: dict) -> None:
    """Inputs and predictions of rows before the holdout only, bounded in number."""
    baseline = pl.read_parquet(Path(trained["bundle"]) / "baseline.parquet")
    assert baseline.columns == ["distance", "temp", "sky", "dead", "prediction"]
    assert baseline.height == trained["rows"]["train"] + trained["rows"]["validation"]
    assert baseline["prediction"].is_between(0, 1).all()


def test_the_holdout_is_the_last_days_before_the_cutoff(trained: dict) -> None:
    """Every row of the holdout part, once, with its key, label and slices."""
    holdout = pl.read_parquet(trained["holdout"])
    wanted = flights().filter(pl.col("event_timestamp") >= CUTOFF - 7 * DAY).sort("event_timestamp")
    columns = ["flight_id", "event_timestamp", "late", "origin"]
    assert holdout.columns[:4] == columns and holdout.select(columns).equals(wanted.select(columns))


def test_one_trial_takes_the_trainers_own_parameters(tmp_path: Path) -> None:
    """Without a search nothing is drawn, and a regression model of another framework goes the same way."""
    model = pipeline(LightGBMRegressor(n_estimators=30), label="delay", gate=Gate("mae", at_most=20))
    result = train(arguments(tmp_path, model=model))
    assert result["best_params"] == {} and result["framework"] == "lightgbm" and result["task"] == "regression"
    assert result["params"]["n_estimators"] <= 30 and result["metrics"]["holdout"]["r2"] > 0.3


@pytest.mark.parametrize("name", ["XGBoostClassifier", "TorchClassifier", "MLXClassifier", "KerasClassifier"])
def test_what_was_judged_is_what_will_serve(name: str, tmp_path: Path) -> None:
    """The golden rows and the holdout were answered by the very graph that the bundle serves from."""
    small = (
        {"n_estimators": 20} if name == "XGBoostClassifier" else {"hidden": [16], "epochs": 8, "learning_rate": 0.01}
    )
    result = train(arguments(tmp_path, model=pipeline(trainer_named(name, **small))))
    model, holdout = Path(result["bundle"]) / "model", pl.read_parquet(result["holdout"])
    assert (model / SERVING_GRAPH).is_file() and result["metrics"]["holdout"]["roc_auc"] > 0.8
    (Path(result["bundle"]) / "manifest.json").write_text(json.dumps({"framework": result["framework"]}))
    np.testing.assert_array_equal(evaluate(Path(result["bundle"]), holdout), holdout["prediction"])
    (model / SERVING_GRAPH).unlink()
    by_library = evaluate(Path(result["bundle"]), holdout)
    assert 0 < np.abs(by_library - holdout["prediction"]).max() < 1e-5, "the library rounds otherwise, and no more"


def test_the_same_arguments_give_the_same_model(tmp_path: Path) -> None:
    """A second run, also with the rows in another order, writes the same predictions."""
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    search = Search(trials=3, space={"max_depth": IntRange(2, 5)})
    one = train(arguments(first, model=pipeline(search=search)))
    other = train(arguments(second, flights().sample(fraction=1, shuffle=True, seed=1), pipeline(search=search)))
    assert one["best_params"] == other["best_params"] and one["metrics"] == other["metrics"]
    assert pl.read_parquet(one["holdout"]).equals(pl.read_parquet(other["holdout"]))


def test_training_shows_its_progress(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line a trial with its metric and seconds, and the rows at the start."""
    with caplog.at_level(logging.INFO, logger="mlops_assets"):
        train(arguments(tmp_path))
    assert any("'holdout': 280" in line for line in caplog.messages)
    assert any(line.startswith("trial 0: roc_auc 0.") and " s " in line for line in caplog.messages)


instants = st.integers(-40 * 86_400, 10 * 86_400).map(lambda seconds: CUTOFF + timedelta(seconds=seconds))


@given(st.lists(instants, max_size=30), st.none() | st.integers(15, 60))
def test_parts_never_overlap_and_keep_times_order(times: list[datetime], window: int | None) -> None:
    """Each row before the cutoff and within the window is in one part, and every part ends before the next begins."""
    frame = pl.DataFrame(
        {"event_timestamp": times, "flight_id": [str(at) for at in range(len(times))]},
        schema={"event_timestamp": pl.Datetime("us", "UTC"), "flight_id": pl.String},
    )
    days = {"holdout_seconds": 7 * 86_400, "validation_seconds": 7 * 86_400}
    window_seconds = window and window * 86_400
    parts = split(
        frame, {"key": "flight_id", "split": {"cutoff": CUTOFF.isoformat(), **days, "window_seconds": window_seconds}}
    )
    start = CUTOFF - timedelta(days=window) if window else datetime.min.replace(tzinfo=UTC)
    edges = [start, CUTOFF - 14 * DAY, CUTOFF - 7 * DAY, CUTOFF]
    for part, low, high in zip(parts.by_name.values(), edges, edges[1:], strict=False):
        assert sorted(part["event_timestamp"]) == sorted(at for at in times if low <= at < high)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (flights().head(7 * 40), r"the train part \(0 rows.*is empty"),
        (flights().filter(pl.col("event_timestamp") < CUTOFF - 7 * DAY), "the holdout part.*is empty"),
        (flights().with_columns(late=pl.lit(True)), r"train part.*classes \[1.0\].*'late'"),
        (
            flights().with_columns(late=pl.when(pl.col("flight_id") != "f9").then("late")),
            "holdout part.*1 labels 'late'",
        ),
        (flights().with_columns(late=pl.lit(math.nan)), "1840 labels 'late' that are null, NaN or infinite"),
        (flights().with_columns(late=pl.lit("yes")), "label 'late' as String"),
        (flights().drop("temp", "origin"), "lacks the columns origin, temp"),
    ],
    ids=["no train", "no holdout", "one class", "null label", "NaN label", "text label", "columns"],
)
def test_unusable_rows_are_named_before_anything_is_trained(frame: pl.DataFrame, words: str, tmp_path: Path) -> None:
    """The error names the model, the part and the column; no bundle appears."""
    with pytest.raises(TrainingDataError, match=f"flights/late_arrival.*{words}"):
        train(arguments(tmp_path, frame))
    assert not (tmp_path / "out" / "bundle").exists()


def test_an_infinite_value_names_its_column(tmp_path: Path) -> None:
    """Infinity in a feature stops training; an earlier bundle in the same place stays whole."""
    result = train(arguments(tmp_path))
    before = (Path(result["bundle"]) / "golden.json").read_text()
    with pytest.raises(InputError, match=r"'temp'.*infinite"):
        train(arguments(tmp_path, flights().with_columns(temp=pl.lit(math.inf))))
    assert (Path(result["bundle"]) / "golden.json").read_text() == before


def test_a_failing_trial_is_on_record(tmp_path: Path) -> None:
    """The trainer's own error ends the training, and the journal says which parameters did it."""
    search = Search(trials=2, space={"max_depht": IntRange(2, 4)})
    with pytest.raises(ValueError, match="max_depht"):
        train(arguments(tmp_path, model=pipeline(search=search)))
    (line,) = (tmp_path / "out" / "trials.jsonl").read_text().splitlines()
    trial = json.loads(line)
    assert trial["state"] == "FAIL" and trial["value"] is None and "max_depht" in trial["params"]
