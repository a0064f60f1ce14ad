"""What is old leaves MLflow's database for Parquet, is found as before, and nothing else is touched."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from mlflow.entities import Metric

from resources.mlflow import MlflowResource
from resources.tracking import archive
from resources.tracking.archive import Archived, NoDatabaseError, UnfaithfulArchiveError
from resources.tracking.runs import found

NOW = datetime(2013, 12, 1, tzinfo=UTC)
OLD, RECENT = NOW - timedelta(days=200), NOW - timedelta(days=3)
NAME = "flights.late"


def trained(store: MlflowResource, ended: datetime, values: list[float]) -> str:
    """A run that ended then, with one metric's history and one value of another."""
    client, at = store.client(), round(ended.timestamp() * 1000)
    run = client.create_run(store.experiment("flights/late"), start_time=at - 1000).info.run_id
    client.log_batch(run, [Metric("loss", value, at + step, step) for step, value in enumerate(values)])
    client.log_batch(run, [Metric("auc", 0.7, at, 0)])
    client.set_terminated(run, end_time=at)
    return run


def course(store: MlflowResource, *runs: str) -> list[tuple[Any, ...]]:
    return store.history("loss", runs).select("run_uuid", "step", "value").rows()


def live(store: MlflowResource, run: str) -> int:
    return len(store.client().get_metric_history(run, "loss"))


def test_old_history_moves_and_is_found_as_before(either: MlflowResource) -> None:
    """Of old runs all but the last value of each metric; recent and unfinished ones stay whole."""
    old = [trained(either, OLD + timedelta(days=40 * n), [0.5, math.nan, 0.25 + n, 0.125]) for n in range(3)]
    recent = trained(either, RECENT, [3.0, 2.0, 1.0])
    open_run = either.client().create_run(either.experiment("flights/late"), start_time=0).info.run_id
    either.client().log_batch(open_run, [Metric("loss", value, value, value) for value in range(3)])
    everything = [*old, recent, open_run]
    before, metrics = course(either, *everything), [run.metrics for run in found(either)]
    assert len(before) == 3 * 4 + 3 + 3
    moved = either.archive(NOW)
    assert moved == Archived(points=9, runs=3, versions=0, files=3)
    assert [live(either, run) for run in everything] == [1, 1, 1, 3, 3]
    assert repr(course(either, *everything)) == repr(before) and repr([run.metrics for run in found(either)]) == repr(
        metrics
    )
    assert either.archive(NOW) == Archived(0, 0, 0, 0)
    assert len(list((archive.root() / "metrics").glob("*/*.parquet"))) == 3


def test_what_is_logged_to_an_archived_run_joins_it(store: MlflowResource) -> None:
    """A second archiving of the same runs adds to their file and loses nothing of it."""
    run = trained(store, OLD, [0.5, 0.4, 0.3])
    store.archive(NOW)
    at = round(OLD.timestamp() * 1000)
    store.client().log_batch(run, [Metric("loss", value, at + step, step) for step, value in ((5, 0.2), (6, 0.1))])
    whole = [(run, 0, 0.5), (run, 1, 0.4), (run, 2, 0.3), (run, 5, 0.2), (run, 6, 0.1)]
    assert course(store, run) == whole
    assert store.archive(NOW).points == 2
    assert course(store, run) == whole and live(store, run) == 1


def test_a_kill_between_file_and_deletion_loses_and_doubles_nothing(
    store: MlflowResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(store, OLD, [0.5, 0.4, 0.3])
    publish = archive._publish

    def killed(frame: pl.DataFrame, path: Path) -> None:
        publish(frame, path)
        raise SystemExit(9)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(archive, "_publish", killed)
        store.archive(NOW)
    whole = [(run, 0, 0.5), (run, 1, 0.4), (run, 2, 0.3)]
    assert live(store, run) == 3 and course(store, run) == whole
    store.archive(NOW)
    assert live(store, run) == 1 and course(store, run) == whole


def test_nothing_is_deleted_that_cannot_be_read_back(store: MlflowResource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that gives back something else than was written to it."""
    run = trained(store, OLD, [0.5, 0.4, 0.3])
    with monkeypatch.context() as patched, pytest.raises(UnfaithfulArchiveError, match="Nothing was deleted"):
        patched.setattr(pl, "read_parquet", lambda _: pl.DataFrame({"run_uuid": ["other"]}))
        store.archive(NOW)
    assert live(store, run) == 3 and list(archive.root().rglob("*.parquet")) == []


def registered(store: MlflowResource, versions: int) -> None:
    client = store.client()
    client.create_registered_model(NAME)
    for number in range(1, versions + 1):
        tags = {"gate": "passed", "n": str(number)} | ({"bento": "flights:x"} if number == 3 else {})
        client.create_model_version(NAME, f"file:///a/{number}", run_id=None, tags=tags)
    client.set_registered_model_alias(NAME, "champion", "2")


def test_old_versions_move_unless_they_are_named_or_were_released(either: MlflowResource) -> None:
    """The newest stay, an aliased one and one with a Bento; the others keep their tags, and the count goes on."""
    registered(either, 9)
    assert either.archive(NOW, versions=4).versions == 3
    assert [version.version for version in either.versions(NAME)] == ["9", "8", "7", "6", "3", "2"]
    told = archive.archived_versions(NAME)
    assert [(row["version"], row["tags"]["n"], row["source"]) for row in told] == [
        (version, str(version), f"file:///a/{version}") for version in (5, 4, 1)
    ]
    assert either.alias(NAME, "champion") == "2" and either.archive(NOW, versions=4).versions == 0
    assert either.client().create_model_version(NAME, "file:///a/10").version in ("10", 10)
    assert either.archive(NOW, versions=4).versions == 1
    assert [row["version"] for row in archive.archived_versions(NAME)] == [6, 5, 4, 1]


def test_a_server_without_its_database_cannot_be_archived(home: Path) -> None:
    with pytest.raises(NoDatabaseError, match="MLOPS_MLFLOW_DATABASE"):
        MlflowResource(tracking_uri="http://127.0.0.1:9").archive(NOW)
