"""A federation learns what one place would have learned, from rows that stay where they are, whoever is away."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import psutil
import pytest

from feature_assets.flights.sources import FLIGHT_COLUMNS, data_file, read_table
from mlops_assets import Entity, Float64, Gate, Int64, ModelPipeline, TimeSplit, labels
from mlops_assets.fields import Bool
from mlops_assets.trainers import FederatedClassifier, TorchClassifier, Trainer, TrainerParameterError, trainer_named
from mlops_assets.trainers.federation import node as nodes
from mlops_assets.trainers.federation.rounds import FederationError
from mlops_assets.training import train, training_arguments
from resources.compute import ComputeResource, UnknownComputeError, Work, local

pytestmark = pytest.mark.slow

CUTOFF = datetime(2013, 2, 1, tzinfo=UTC)
DAY = timedelta(days=1)
NET: dict[str, Any] = {"hidden": [16], "learning_rate": 0.005, "epochs": 30, "patience": 6}
MODEL = "flights/late"
airport = Entity("airport", join_key="origin")


@labels(
    key="flight_id",
    entities=[airport],
    targets={"late": Bool, "delay": Float64},
    request={"distance": Float64, "dep_delay": Float64, "hour": Int64, "air_time": Float64},
)
def arrivals() -> pl.LazyFrame:
    """Arrivals."""
    return pl.LazyFrame()


def pipeline(trainer: Trainer, label: str = "late") -> ModelPipeline:
    gate = Gate("roc_auc", at_least=0.6) if trainer.task == "classification" else Gate("mae", at_most=60)
    split = TimeSplit(holdout=4 * DAY, validation=4 * DAY)
    cutoffs = dg.WeeklyPartitionsDefinition(start_date="2013-01-01")
    return ModelPipeline("late", "flights", arrivals, label, [], trainer, cutoffs, gate, split)


@pytest.fixture(scope="module")
def flights() -> pl.DataFrame:
    """The arrivals of January 2013 at the hours that they were planned for: 26,000 real rows."""
    table = read_table(data_file("flights.csv.zip"), FLIGHT_COLUMNS)
    frame = table.filter(pl.col("month") == 1, pl.col("arr_delay").is_not_null())
    hour = pl.col("sched_dep_time").cast(pl.Int64) // 100
    return frame.with_row_index("flight_id").select(
        pl.col("flight_id").cast(pl.String),
        "origin",
        pl.datetime("year", "month", "day", hour, time_zone="UTC").alias("event_timestamp"),
        *("distance", "dep_delay", "air_time"),
        hour.alias("hour"),
        (pl.col("arr_delay") > 15).alias("late"),
        pl.col("arr_delay").cast(pl.Float64).alias("delay"),
    )


@pytest.fixture(autouse=True)
def one_core_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three nodes share this machine: with every core each, they would wait for each other most of the time."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def north_and_south(home: Path, flights: pl.DataFrame, tmp_path: Path) -> Path:
    """A third of the rows to learn from here, a third with each node; the path of those here, and what judges."""
    learned = pl.col("event_timestamp") < CUTOFF - 8 * DAY
    which = pl.col("flight_id").cast(pl.Int64) % 3
    for at, node in enumerate(("north", "south"), start=1):
        place = nodes.place_of(node, MODEL)
        place.parent.mkdir(parents=True)
        flights.filter((which == at) & learned).write_parquet(place)
    here = tmp_path / "here.parquet"
    flights.filter((which == 0) | ~learned).write_parquet(here)
    return here


def federation(**params: Any) -> FederatedClassifier:
    return FederatedClassifier(**{**NET, "nodes": ["north", "south"], "compute": "local", "at_least": 1, **params})


def trained(trainer: Trainer, rows: Path, out: Path, label: str = "late") -> dict[str, Any]:
    return train(training_arguments(pipeline(trainer, label), CUTOFF, rows, out))


def model_of(told: Mapping[str, Any]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(told["bundle"], "model").iterdir())}


@pytest.fixture
def crossing(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """All that goes to a node and comes back from it."""
    seen: list[tuple[dict[str, Any], dict[str, Any]]] = []
    run = local.run

    def watched(work: Work) -> dict[str, Any]:
        answer = run(work)
        seen.append((dict(work.arguments), answer))
        return answer

    monkeypatch.setattr(local, "run", watched)
    return seen


def test_a_federation_learns_what_one_place_would(north_and_south: Path, flights: pl.DataFrame, tmp_path: Path) -> None:
    """Rows spread evenly over three: its log loss on the same holdout is within 2 % of training on all of them in one
    place, its ROC AUC within 0.005; a third of the rows alone may do as it likes."""
    flights.write_parquet(tmp_path / "all.parquet")
    central = trained(TorchClassifier(**NET), tmp_path / "all.parquet", tmp_path / "central")["metrics"]["holdout"]
    spread = trained(federation(), north_and_south, tmp_path / "spread")["metrics"]["holdout"]
    assert spread["log_loss"] == pytest.approx(central["log_loss"], rel=0.02)
    assert spread["roc_auc"] == pytest.approx(central["roc_auc"], abs=0.005)
    assert central["roc_auc"] > 0.8


def test_values_too(north_and_south: Path, flights: pl.DataFrame, tmp_path: Path) -> None:
    """A regression's target is scaled by the sums of all: within 6 % of the error of one place, which is minimized."""
    flights.write_parquet(tmp_path / "all.parquet")
    regressor = trainer_named("FederatedRegressor", **federation().params)
    central = trained(trainer_named("TorchRegressor", **NET), tmp_path / "all.parquet", tmp_path / "c", "delay")
    spread = trained(regressor, north_and_south, tmp_path / "s", "delay")
    assert spread["metrics"]["holdout"]["rmse"] == pytest.approx(central["metrics"]["holdout"]["rmse"], rel=0.06)


def test_the_scales_are_those_of_all_rows(flights: pl.DataFrame) -> None:
    """Sums of three parts come to the mean and spread of the whole, missing values left out, to 1e-9."""
    x = flights.select("distance", "dep_delay", "air_time").to_numpy().astype(np.float32)
    x[np.random.default_rng(3).random(x.shape) < 0.1] = np.nan
    y = flights["delay"].to_numpy()
    whole, parts = nodes.Scales.of(x, y), [nodes.Scales.of(x[at::3], y[at::3]) for at in range(3)]
    joined = parts[0].with_(parts[1]).with_(parts[2])
    np.testing.assert_array_equal(joined.count, whole.count)
    np.testing.assert_allclose(joined.mean, whole.mean, rtol=1e-9)
    np.testing.assert_allclose(joined.spread, whole.spread, rtol=1e-9)


def test_no_row_leaves_its_node(
    north_and_south: Path, tmp_path: Path, crossing: list[tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """What crosses is named and of one size, however many rows a node has; no path goes out, no key comes back."""
    trained(federation(epochs=2), north_and_south, tmp_path / "many")
    many = {name: len(json.dumps(answer)) for asked, answer in crossing for name in [f"{asked['node']} {len(asked)}"]}
    assert all(set(answer) in ({"count", "mean", "squares"}, {"rows", "state"}) for _, answer in crossing)
    assert str(tmp_path) not in json.dumps([asked for asked, _ in crossing])
    answers = len(crossing)
    for node in ("north", "south"):
        place = nodes.place_of(node, MODEL)
        pl.read_parquet(place).gather_every(20).write_parquet(place)
    crossing.clear()
    trained(federation(epochs=2), north_and_south, tmp_path / "few")
    few = {name: len(json.dumps(answer)) for asked, answer in crossing for name in [f"{asked['node']} {len(asked)}"]}
    assert len(crossing) == answers > 0
    assert few == {name: pytest.approx(size, rel=0.1) for name, size in many.items()}


def test_too_few_rows_tell_nothing(north_and_south: Path, tmp_path: Path) -> None:
    """A node that has fewer rows than `min_rows` answers no question about them; with enough others it goes on."""
    place = nodes.place_of("south", MODEL)
    pl.read_parquet(place).head(30).write_parquet(place)
    told = trained(federation(epochs=2), north_and_south, tmp_path / "one")
    assert told["metrics"]["holdout"]["roc_auc"] > 0.6
    with pytest.raises(
        FederationError, match=r"needs 2 nodes.*south failed: Node 'south' has 30 rows .* fewer than 100"
    ):
        trained(federation(at_least=2), north_and_south, tmp_path / "two")


def test_rows_of_the_holdouts_time_are_not_learned_from(
    north_and_south: Path, flights: pl.DataFrame, tmp_path: Path
) -> None:
    """A node that has newer rows as well, those that judge among them, gives the very same model."""
    told = trained(federation(epochs=2), north_and_south, tmp_path / "as_it_was")
    place = nodes.place_of("north", MODEL)
    newer = flights.filter(pl.col("event_timestamp") >= CUTOFF - 4 * DAY)
    pl.concat([pl.read_parquet(place), newer.with_columns(late=~pl.col("late"))]).write_parquet(place)
    assert model_of(trained(federation(epochs=2), north_and_south, tmp_path / "with_newer")) == model_of(told)


def test_a_node_that_drops_out_is_survived(
    north_and_south: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """South's disk is gone from the third round on: the others go on, the log says without whom and why."""
    lost, run = nodes.place_of("south", MODEL), local.run

    def going(work: Work) -> dict[str, Any]:
        if work.arguments.get("round") == 2:
            lost.unlink(missing_ok=True)
        return run(work)

    monkeypatch.setattr(local, "run", going)
    with caplog.at_level(logging.WARNING):
        told = trained(federation(epochs=5), north_and_south, tmp_path / "out")
    assert told["metrics"]["holdout"]["roc_auc"] > 0.8
    assert "goes on without node south, which failed: Node 'south' has no rows of flights/late" in caplog.text


def test_a_node_that_is_late_is_left_out_and_asked_again(
    north_and_south: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """South hangs in the second round: nobody waits for longer than was said, and it is back once it has woken up."""
    hangs, run = threading.Event(), local.run
    answered: list[tuple[str, int | None]] = []

    def slow(work: Work) -> dict[str, Any]:
        at = work.arguments.get("round")
        if work.arguments["node"] == "south" and at == 1:
            hangs.wait(60)
        if work.arguments["node"] == "north" and at == 3:
            hangs.set()
            time.sleep(1)
        answer = run(work)
        answered.append((work.arguments["node"], at))
        return answer

    monkeypatch.setattr(local, "run", slow)
    with caplog.at_level(logging.WARNING):
        trained(federation(epochs=6, wait_seconds=10), north_and_south, tmp_path / "out")
    assert "without node south, which did not answer within 10 s" in caplog.text
    assert "without node south, which is still at an earlier round" in caplog.text
    answered = answered[: answered.index(("north", None), 2)]  # those of the first fit
    assert ("south", 0) in answered and ("south", 2) not in answered and ("south", 5) in answered


def test_a_training_that_was_killed_goes_on_to_the_same_model(
    north_and_south: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint knows the round: broken off after the third, the model is the one that it would have been."""
    whole = trained(federation(epochs=6), north_and_south, tmp_path / "whole")
    run = local.run

    def dies(work: Work) -> dict[str, Any]:
        if work.arguments.get("round") == 3:
            raise OSError("the network is down")
        return run(work)

    arguments = training_arguments(
        pipeline(federation(epochs=6, at_least=2)), CUTOFF, north_and_south, tmp_path / "again"
    )
    arguments |= {"checkpoint": {"seconds": None, "rounds": 1}}
    monkeypatch.setattr(local, "run", dies)
    with pytest.raises(FederationError):
        train(arguments)
    monkeypatch.setattr(local, "run", run)
    again = train(arguments)
    assert model_of(again) == model_of(whole)


@pytest.fixture
def in_a_run(home: Path) -> Callable[..., Any]:
    """Do something as an asset does it on the compute of this process."""

    def run(work: str, arguments: Mapping[str, Any]) -> Any:
        got: list[Any] = []

        @dg.asset
        def candidate(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult[None]:
            got.append(compute.run(work, arguments, context))
            return dg.MaterializeResult()

        with dg.DagsterInstance.ephemeral() as instance:
            dg.materialize([candidate], instance=instance, resources={"compute": ComputeResource()})
        return got[0]

    return run


def test_nodes_are_processes_of_their_own_and_one_is_killed(
    north_and_south: Path, tmp_path: Path, in_a_run: Callable[..., Any]
) -> None:
    """By the compute `subprocess`, from a real run: kill -9 of one node in its round is survived, and what it says is
    logged in the run."""
    trainer = federation(compute="subprocess", epochs=3, hidden=[8])
    arguments = training_arguments(pipeline(trainer), CUTOFF, north_and_south, tmp_path / "out")
    killed: list[int] = []

    def kill() -> None:
        mine = psutil.Process()
        while not killed:
            for child in mine.children(recursive=True):
                try:
                    if "resources.compute._worker" in child.cmdline() and time.time() - child.create_time() > 0.5:
                        os.kill(child.pid, signal.SIGKILL)
                        killed.append(child.pid)
                        return
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    told = in_a_run("mlops_assets.training:train", arguments)
    thread.join()
    assert killed
    assert told["framework"] == "federated" and told["metrics"]["holdout"]["roc_auc"] > 0.7


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"nodes": ["../north"]}, "nodes"),
        ({"nodes": ["north", "north"]}, "twice"),
        ({"nodes": ["north"], "at_least": 2}, "2 of 1 nodes"),
    ],
)
def test_a_federation_that_cannot_be_is_refused_when_it_is_declared(params: dict[str, Any], says: str) -> None:
    with pytest.raises(TrainerParameterError, match=says):
        federation(**params)


def test_a_compute_that_is_none_is_named() -> None:
    with pytest.raises(UnknownComputeError, match="no compute of kind 'moon'"):
        federation(compute="moon")
