"""Our searches give what MLflow's own give, in the same order, whatever path they take to it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import product

import pytest

from benchmarks.tracking_backend import run_id, write
from resources.mlflow import MlflowResource
from resources.tracking import runs as asked
from resources.tracking import search
from resources.tracking.runs import Run, UnknownExperimentError
from resources.tracking.search import Query, SearchSyntaxError
from resources.tracking.tables import writing

EXPERIMENTS = {"flights/late": 11, "flights/delay": 12, "empty/one": 13}
SIZES = {11: 60, 12: 8}
WHERE = (
    "",
    "metrics.auc > 0.5",
    "metrics.auc <= 0.9 and metrics.loss != 0.25",
    "metrics.auc = 0.75",
    "metrics.auc != 0.75",
    "params.depth = '3'",
    "params.depth != '3' and tags.team LIKE 'Fl%'",
    "tags.team ILIKE 'fl%' and attributes.status = 'FINISHED'",
    "attributes.run_name = 'run 7'",
    "attributes.start_time > 5 and metrics.auc >= 0.25",
    "metrics.nothing > 0",
)
ORDERS = ((), ("metrics.auc DESC",), ("metrics.auc",), ("metrics.loss DESC",), ("attributes.start_time DESC",))
WAYS_OF_MLFLOW = (("params.depth",), ("metrics.auc", "metrics.loss DESC"), ("attributes.end_time",))


@pytest.fixture
def filled(either: MlflowResource) -> MlflowResource:
    """Runs with equal values and times, NaN, the infinite, missing values, and deleted ones."""
    chance = random.Random(3)
    either.client().search_experiments()
    database = either.owned_database
    assert database is not None
    numbers = [(n, experiment) for experiment, size in SIZES.items() for n in range(size)]
    with writing(database).begin() as connection:
        columns = ("experiment_id", "name", "artifact_location", "lifecycle_stage", "creation_time", "last_update_time")
        rows = [(number, name, "file:///a", "active", 1, 1) for name, number in EXPERIMENTS.items()]
        write(connection, "experiments", columns, rows)
        columns = (
            *("run_uuid", "name", "source_type", "user_id", "status", "start_time", "end_time"),
            *("lifecycle_stage", "artifact_uri", "experiment_id"),
        )
        rows = [
            (run_id(n + 100 * ex), f"run {n}", "LOCAL", "me", "FINISHED" if n % 4 else "FAILED", n // 3, n + 5,
             "deleted" if n % 13 == 12 else "active", "file:///a", ex)
            for n, ex in numbers
        ]  # fmt: skip
        write(connection, "runs", columns, rows)
        rows = []
        for n, ex in numbers:
            if n % 5:
                rows.append(("auc", chance.choice([0.25, 0.5, 0.75, 0.9]), 1, 0, False, run_id(n + 100 * ex)))
            elif n % 2:
                rows.append(("auc", 0.0, 1, 0, True, run_id(n + 100 * ex)))
            if n % 3:
                value = chance.choice([0.0, 0.25, -1.0]) if n % 7 else 0.0
                rows.append(("loss", value, 1, 0, n % 7 == 0, run_id(n + 100 * ex)))
        write(connection, "latest_metrics", ("key", "value", "timestamp", "step", "is_nan", "run_uuid"), rows)
        pair = ("key", "value", "run_uuid")
        write(connection, "params", pair, [("depth", str(n % 4), run_id(n + 100 * e)) for n, e in numbers if n % 6])
        teams = [("team", "Flights" if n % 2 else "fleet", run_id(n + 100 * e)) for n, e in numbers]
        names = [("mlflow.runName", f"run {n}", run_id(n + 100 * e)) for n, e in numbers]
        write(connection, "tags", pair, [*teams, *names])
    return either


def comparable(runs: list[Run]) -> Iterator[tuple[object, ...]]:
    for run in runs:
        numbers = {name: "NaN" if math.isnan(value) else value for name, value in run.metrics.items()}
        yield run.run_id, run.name, run.status, run.started_at, run.ended_at, numbers, run.params, run.tags


@pytest.mark.parametrize("few", [0, 10], ids="few={}".format)
def test_what_is_found_is_what_mlflow_finds(filled: MlflowResource, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conditions with orders, of one experiment, of two and of all, in pages that end within ties: some of all."""
    monkeypatch.setattr(search, "FEW", few)
    of = (["flights/late"], ["flights/delay", "flights/late"], ["empty/one"], None)
    for where, order, experiments, limit in random.Random(few).sample(list(product(WHERE, ORDERS, of, (4, 200))), 40):
        ours = asked.found(filled, experiments, where, order, limit)
        theirs = list(asked._by_api(filled, experiments, where, order, limit))[:limit]
        assert list(comparable(ours)) == list(comparable(theirs)), (where, order, experiments, limit)


def test_what_only_mlflow_can_order_is_asked_of_it(filled: MlflowResource) -> None:
    for order in WAYS_OF_MLFLOW:
        assert Query.of("", order, 10) is None
        found = asked.found(filled, ["flights/late"], "", order, 10)
        assert len(found) == 10


def test_a_mistake_in_the_question_is_told(filled: MlflowResource) -> None:
    with pytest.raises(SearchSyntaxError, match=r"auc >> 3.*--where"):
        asked.found(filled, where="metrics.auc >> 3")
    with pytest.raises(SearchSyntaxError, match="nonsense"):
        asked.found(filled, order_by=["nonsense.auc"])
    with pytest.raises(UnknownExperimentError, match=r"'flights/lat' .known: .*flights/late"):
        asked.found(filled, ["flights/lat"])


def test_a_run_tells_the_version_that_it_became(store: MlflowResource) -> None:
    with store.run("flights/late", "one") as became, store.run("flights/late", "two") as other:
        store.client().log_text(became, "{}", "bundle/manifest.json")
        store.register("flights.late", became, "bundle", {"gate": "passed"})
    versions = {run.run_id: run.version for run in asked.found(store, ["flights/late"])}
    assert versions == {became: "1", other: None}


def test_versions_are_found_by_their_tags(either: MlflowResource) -> None:
    """With all of some tags and none of others, from the newest, beyond a page; the same by the API alone."""
    client, name = either.client(), "flights.late"
    client.create_registered_model(name)
    for number in range(1, 46):
        told = {"gate": "passed" if number % 2 else "refused"} | ({"rolled_back": "true"} if number > 40 else {})
        client.create_model_version(name, "file:///a", tags=told)
    client.delete_model_version(name, "39")
    wanted = [str(number) for number in range(37, 0, -2)]
    for found in (
        either.versions(name, {"gate": "passed"}, {"rolled_back": "true"}),
        list(either._versions_by_api(name, {"gate": "passed"}, {"rolled_back": "true"})),
    ):
        assert [version.version for version in found] == wanted
        assert all(version.tags == {"gate": "passed"} for version in found)
    assert [version.version for version in either.versions(name, limit=3)] == ["45", "44", "43"]
    assert len(either.versions(name)) == 44 and either.versions("flights.none") == []
