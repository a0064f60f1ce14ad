"""The search of a real training: over workers, with trials given up and processes killed, to the same model."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import psutil
import pytest

from mlops_assets import Bool, Entity, Float64, Gate, IntRange, ModelPipeline, Search, TimeSplit, feature_view, labels
from mlops_assets.checkpoints import Kept, Progress
from mlops_assets.component import SearchSpec
from mlops_assets.declarations import Checkpoint, DeclarationError, FloatRange
from mlops_assets.record import file_hashes, trials_of
from mlops_assets.search import journalled
from mlops_assets.trainers import SklearnClassifier, Trainer, XGBoostClassifier, trainer_named, trainers
from mlops_assets.training import train, training_arguments

CUTOFF, DAY = datetime(2013, 4, 1, tzinfo=UTC), timedelta(days=1)
ENTRYPOINT = "mlops_assets.training:tried"
airport = Entity("airport", join_key="origin")


@labels(key="flight_id", entities=[airport], targets={"late": Bool})
def arrivals() -> pl.LazyFrame:
    """Arrivals."""
    return pl.LazyFrame()


@feature_view(entities=[airport], schema=dict.fromkeys(("temp", "wind", "rain"), Float64))
def weather() -> pl.LazyFrame:
    """Weather."""
    return pl.LazyFrame()


def pipeline(search: Search, trainer: Trainer | None = None) -> ModelPipeline:
    return ModelPipeline(
        name="late_arrival",
        team="flights",
        labels=arrivals,
        label="late",
        features=[weather],
        trainer=trainer or XGBoostClassifier(n_estimators=40, subsample=0.8, early_stopping_rounds=40),
        cutoffs=dg.WeeklyPartitionsDefinition(start_date="2013-01-01"),
        split=TimeSplit(holdout=7 * DAY, validation=7 * DAY),
        search=search,
        gate=Gate("roc_auc", at_least=0.5),
        checkpoint=Checkpoint(every=None, rounds=5),
    )


def flights(days: int = 60, each: int = 40) -> pl.DataFrame:
    random, n = np.random.default_rng(5), days * each
    temp, wind, rain = random.normal(size=(3, n))
    return pl.DataFrame(
        {
            "flight_id": [f"f{at}" for at in range(n)],
            "origin": random.choice(["EWR", "JFK", "LGA"], n),
            "event_timestamp": [CUTOFF - (at + 1) * (DAY / each) for at in range(n)],
            "temp": temp,
            "wind": wind,
            "rain": rain,
            "late": temp + wind * rain + random.normal(size=n) > 0,
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )


def arguments(where: Path, search: Search) -> dict[str, Any]:
    where.mkdir(parents=True, exist_ok=True)
    flights().write_parquet(where / "set.parquet")
    return training_arguments(pipeline(search), CUTOFF, where / "set.parquet", where / "out")


def made(where: Path) -> tuple[Any, Any]:
    """What a training tried, and the files of its model."""
    return trials_of(where / "out"), file_hashes(where / "out" / "bundle" / "model")


SPACE = {"max_depth": IntRange(2, 8), "learning_rate": FloatRange(0.003, 0.5, log=True)}
TWO = Search(trials=10, space=SPACE, workers=2, prune="median")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with a search over two workers, never disturbed."""
    where = tmp_path_factory.mktemp("whole")
    told = train(arguments(where, TWO))
    assert (told["search"]["workers"], told["search"]["trials"], told["search"]["before"]) == (2, 10, 0)
    assert told["search"]["pruned"] == sum(line["state"] == "PRUNED" for line in journalled(where / "out/trials.jsonl"))
    return where


def test_two_workers_try_and_the_best_is_fitted(whole: Path) -> None:
    """The best of those that were complete, by the metric of the gate; trials were given up by their log loss."""
    lines = journalled(whole / "out" / "trials.jsonl")
    assert [line["number"] for line in lines] == list(range(10)) and {"PRUNED"} < {line["state"] for line in lines}
    for line in lines:
        assert [at for at, _ in line["scores"]] == list(range(len(line["scores"])))
        assert (line["state"] == "PRUNED") == (len(line["scores"]) < 40)
        assert max(score for _, score in line["scores"]) < 0  # log loss, turned as the metric counts


def test_a_killed_worker_changes_no_byte_of_the_model(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By SIGKILL from outside, whichever trial it was in: run again from its checkpoint, to the same files."""
    given = arguments(tmp_path, TWO)
    code = f"""
import os, signal, time, psutil
me = psutil.Process({psutil.Process().pid})
while not (found := [one for one in me.children(recursive=True) if {ENTRYPOINT!r} in one.cmdline()]) or not list(
    __import__("pathlib").Path({str(tmp_path / "out" / "checkpoints")!r}).glob("*.checkpoint")
):
    time.sleep(0.02)
found[0].kill()
"""
    killer = subprocess.Popen([sys.executable, "-c", code])
    try:
        train(given)
        assert killer.wait(60) == 0
    finally:
        killer.kill()
    assert [line for line in caplog.messages if "is run again" in line and "SIGKILL" in line]
    assert made(tmp_path) == made(whole)


def test_a_killed_training_goes_on_to_the_same_model(whole: Path, tmp_path: Path) -> None:
    """By SIGKILL with trials running: its workers end too; the next one runs again only what had not ended."""
    given, journal = arguments(tmp_path, TWO), tmp_path / "out" / "trials.jsonl"
    code = f"from mlops_assets.training import train\ntrain({given!r})"
    driver = subprocess.Popen([sys.executable, "-c", code])
    while len(journalled(journal)) < 3:
        assert driver.poll() is None
        time.sleep(0.02)
    workers = [one for one in psutil.Process(driver.pid).children(recursive=True) if ENTRYPOINT in one.cmdline()]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    psutil.wait_procs(workers, timeout=30)
    assert workers and not any(one.is_running() for one in workers)
    kept = {line["number"] for line in journalled(journal)}
    told = train(given)
    assert told["search"]["before"] == len(kept) >= 3 and made(tmp_path) == made(whole)


def test_over_processes_is_what_auto_finds_here(whole: Path, tmp_path: Path) -> None:
    """Where trials ran is no part of what they are: another word for it makes the same trials and files."""
    train(arguments(tmp_path, Search(trials=10, space=SPACE, workers=2, prune="median", over="processes")))
    assert made(tmp_path) == made(whole)


def test_a_record_that_names_no_workers_is_of_one(tmp_path: Path) -> None:
    """What was trained before a search had workers can be made again."""
    one, other = (arguments(tmp_path / name, Search(trials=2, space=SPACE)) for name in ("one", "other"))
    for name in ("workers", "prune", "over"):
        del other["search"][name]
    assert train(one)["search"]["workers"] == train(other)["search"]["workers"] == 1
    assert made(tmp_path / "one") == made(tmp_path / "other")


# -- the scores of the rounds


class BrokenOffError(Exception):
    """Where the process would have died."""


class Breaking(Progress):
    """Ends the fit after its second checkpoint."""

    written = 0

    def reached(self, rounds: int, model: Any, **notes: Any) -> None:
        due = self._due(rounds)
        super().reached(rounds, model, **notes)
        self.written += due
        if self.written == 2:
            raise BrokenOffError


def problem(trainer: Trainer, n: int = 400) -> list[Any]:
    random = np.random.default_rng(3)
    x = random.normal(size=(n, 64)).astype(np.float32)
    y = {"classification": x[:, 0] > 0, "multiclass": np.arange(n) % 3, "regression": x[:, 0]}[trainer.task]
    x[:, 1] = y
    return [x[100:], y[100:].astype(np.float64), x[:100], y[:100].astype(np.float64)]


FITS = {
    "XGBoostClassifier": {"n_estimators": 12},
    "LightGBMRegressor": {"n_estimators": 12},
    "TorchClassifier": {"epochs": 8, "hidden": [8]},
    "MLXRegressor": {"epochs": 8, "hidden": [8]},
}


@pytest.mark.parametrize(("name", "params"), FITS.items(), ids=FITS)
def test_a_fit_that_goes_on_tells_all_of_its_rounds(name: str, params: dict[str, Any], tmp_path: Path) -> None:
    """Whoever may give it up hears the same, in the same order, as if it had never been broken off."""
    trainer = trainer_named(name, **params)

    def told(kind: type[Progress], place: str) -> list[tuple[int, float, bool]]:
        heard: list[tuple[int, float, bool]] = []
        progress = kind(tmp_path / place, {}, None, 3, watch=lambda *one: heard.append(one))
        try:
            trainer.fit(*problem(trainer), {}, 3, progress)
        except BrokenOffError:
            heard.append((-1, 0.0, False))
        return heard

    whole, broken, on = told(Progress, "whole"), told(Breaking, "broken"), told(Progress, "broken")
    assert [at for at, _, _ in whole] == list(range(len(whole))) and len(whole) > 6
    assert broken[:-1] == whole[:6] and broken[-1][0] == -1 and on == whole


@pytest.mark.parametrize("name", [name for name in trainers() if not name.startswith(("Onnx", "Keras"))])
def test_a_trainer_tells_scores_as_it_says(name: str) -> None:
    """One that tells none could never be given up: it says so, and a declaration that prunes is refused."""
    known = {"image": [8, 8], "channels": [4]} if "Image" in name else {}
    short = {"n_estimators": 3} if name.startswith(("XG", "Light")) else {"epochs": 2}
    trainer = trainer_named(name, **({} if name.startswith("Sklearn") else {**short, **known}))
    heard: list[Any] = []
    trainer.fit(*problem(trainer), {}, 3, Progress(watch=lambda *one: heard.append(one)))
    assert bool(heard) == trainer.scores


def test_pruning_where_nothing_is_told_is_refused() -> None:
    """When it is declared, with the trainer's name."""
    with pytest.raises(DeclarationError, match=r"search.prune is 'median' \(allowed: False with SklearnClassifier"):
        pipeline(Search(prune="median"), SklearnClassifier())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"workers": 0}, "workers is 0 .allowed: 1 or more"),
        ({"prune": "mean"}, "prune is 'mean' .allowed: False, median, hyperband"),
        ({"prune": True}, "prune is True .allowed: False, median, hyperband"),
        ({"over": "threads"}, "over is 'threads' .allowed: auto, processes, ray"),
    ],
    ids=str,
)
def test_a_search_that_means_nothing_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        Search(**wrong)


def test_yaml_says_the_same() -> None:
    """Word by word, with the same defaults."""
    spec = {"trials": 10, "seed": 3, "space": {"max_depth": {"type": "int", "low": 2, "high": 8}}}
    found = SearchSpec.model_validate(spec | {"workers": 2, "prune": "median", "over": "ray"}).search()
    assert found == Search(10, {"max_depth": IntRange(2, 8)}, 3, workers=2, prune="median", over="ray")
    assert SearchSpec.model_validate(spec).search() == Search(10, {"max_depth": IntRange(2, 8)}, 3)


def test_a_checkpoint_holds_the_scores_of_those_who_are_watched_alone(tmp_path: Path) -> None:
    """A fit that nobody may give up keeps no scores but its own notes."""
    for watch, kept in ((None, []), (lambda *_: None, [[0, 0.5, False]])):
        progress = Progress(tmp_path / "a", {}, None, 1, watch=watch)
        progress.scored(0, 0.5)
        progress.reached(1, lambda: b"model")
        found = Progress(tmp_path / "a", {}, None, 1).kept()
        assert isinstance(found, Kept) and found.watched == kept
