"""From an answer back to the rows it was made of, and from a partition forward: the two ways agree."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from mlops_assets.cli import app
from mlops_assets.partition_lineage import UnknownPartitionError, touched_by
from mlops_assets.receipts import UnknownRequestError, receipts
from mlops_assets.records import Records
from mlops_assets.serving.prediction_log import PredictionLog
from mlops_assets.used_rows import partition_at, read_tables, trained_on, used
from resources.bentos import BentoStore
from resources.mlflow import MlflowResource
from resources.releases import ReleaseStore

if TYPE_CHECKING:
    from conftest import Endpoint, Platform

CUTOFF = "2013-07-01"
AT = datetime(2013, 7, 1, 12, tzinfo=UTC)
TRIP = {"dest": "ATL", "tailnum": "N303DQ", "distance": 500.0, "planned_minutes": 100.0, "weekday": 1}
CARRIERS = ("DL", "UA", "AA", "B6", "EV", "MQ", "US", "9E")


def asked(moment: datetime) -> list[dict[str, Any]]:
    """Flights that fall to champion and challenger alike."""
    return [
        {**TRIP, "flight_id": f"{moment:%d %H} {origin} {carrier}", "origin": origin, "carrier": carrier,
         "departure_hour": moment.hour}
        for origin in ("EWR", "JFK")
        for carrier in CARRIERS
    ]  # fmt: skip


def ask(endpoint: Endpoint, moment: datetime) -> list[dict[str, Any]]:
    return endpoint.ask(asked(moment), moment)


@dataclass(frozen=True)
class Story:
    """A platform whose champion answered, then shares its traffic with a canary."""

    platform: Platform
    answers: dict[str, dict[str, Any]]

    def records(self, **other: Any) -> Records:
        of = self.platform.resources
        stores = (of["lake"], PredictionLog(), of["releases"], of["bentos"], of["mlflow"])
        return replace(Records(self.platform.catalog, *stores, self.platform.instance), problems=[], **other)

    def receipt(self, request_id: str, **other: Any) -> dict[str, Any]:
        (found,) = receipts(request_id, self.records(**other))
        return found

    @property
    def tables(self) -> dict[str, Any]:
        return read_tables(self.platform.model)


@pytest.fixture(scope="module")
def story(module_platform: Platform) -> Story:
    platform, told = module_platform, []
    assert platform.publish_online(AT - timedelta(hours=12)).ok
    with platform.endpoint() as endpoint:
        told += ask(endpoint, AT - timedelta(hours=10))
    assert platform.train(CUTOFF).ok
    with platform.endpoint() as endpoint:
        told += ask(endpoint, AT)
    return Story(platform, {answer["request_id"]: answer for answer in told})


def test_a_receipt_names_everything_the_answer_stands_on(story: Story) -> None:
    """Release and revision, Bento, version, MLflow and Dagster runs, the training set's content, every partition."""
    published, shares = story.platform.published, set()
    for request_id, answer in story.answers.items():
        receipt = story.receipt(request_id)
        release, model, training = receipt["release"], receipt["model"], receipt["training_set"]
        assert receipt["request"]["prediction"] == answer["prediction"]
        assert receipt["bento"]["tag"] == answer["release"] in published["bentos"]
        assert model["version"] == answer["version"] in published["versions"]
        assert model["mlflow_run_id"] in {run.info.run_id for run in story.platform.mlflow_runs("FINISHED")}
        assert model["mlflow_run_id"] in model["mlflow_url"]
        assert story.platform.instance.get_run_by_id(model["dagster_run_id"]).is_success
        assert story.platform.instance.get_run_by_id(training["dagster_run_id"]).is_success
        assert (training["partition"], training["rows"]) == (CUTOFF, 18864)
        assert training["made_by"].keys() == story.tables.keys()
        for (run_id,) in training["made_by"].values():
            assert story.platform.instance.get_run_by_id(run_id).is_success
        assert release["revision"] in {change.revision for change in published["changes"]}
        assert answer["release"] in {variant["release"] for variant in release["traffic"]}
        looked = {view["view"] for view in receipt["views"]}
        assert looked | {one["view"] for one in answer["fallbacks"]} == {*story.tables} - {
            "flights/arrivals", "flights/aircraft_use_cold_start",
        }  # fmt: skip
        for view in receipt["views"]:
            assert view["partition"] in view["path"]
            assert story.platform.instance.get_run_by_id(view["dagster_run_id"]).is_success
        shares.add((answer["variant"], release["revision"]))
    assert shares == {("champion", 1), ("champion", 2), ("challenger", 2)}, "the revision by which each was answered"


def test_the_rows_a_training_set_used_are_those_of_its_own_join(story: Story) -> None:
    """By partition in one go, or a partition at a time; every event saw the row that its features came from."""
    model, lake = story.platform.model, story.platform.resources["lake"]
    whole = trained_on(model, CUTOFF, lake)
    rows = lake.scan(f"{model.id}/training_set", [CUTOFF]).collect()
    for name, table in story.tables.items():
        for partition, count in [*whole[name].items()][::7]:
            assert used(model, table, CUTOFF, lake, partition) == {partition: count}
    assert sum(whole["flights/arrivals"].values()) == rows.height
    assert sum(whole["flights/weather_hourly"].values()) == rows.height - rows["temp"].null_count()
    cold = rows["aircraft_use__cold_start_used"].sum()
    assert sum(whole["flights/aircraft_use"].values()) == rows.height - cold
    assert 0 < sum(whole["flights/aircraft_use_cold_start"].values()) <= cold


def test_what_a_partition_touched_leads_back_to_it(story: Story) -> None:
    """The round trip: every answer and every release named for a partition has a receipt that names the partition."""
    records, seen = story.records(), set()
    for name in ("flights/carrier_punctuality", "flights/aircraft_use", "flights/weather_hourly"):
        for partition in ("2013-06-12", "2013-06-29", "2013-06-30"):
            (model,) = [
                one
                for one in touched_by(story.tables[name], partition, records)["models"]
                if one["model"] == story.platform.model.id
            ]
            for answers in model["answers"]:
                for request_id in answers["request_ids"]:
                    receipt = story.receipt(request_id)
                    assert (name, partition) in {(view["view"], view["partition"]) for view in receipt["views"]}
                    assert (receipt["bento"]["tag"], receipt["model"]["version"]) == (
                        answers["release"], answers["version"],
                    )  # fmt: skip
                    seen.add(request_id)
            for training in model["training_sets"]:
                assert set(training["versions"]) == {"1", "2"}
                for release in training["releases"]:
                    of = next(key for key, one in story.answers.items() if one["release"] == release["release"])
                    made_of = story.receipt(of)["training_set"]["made_of"]
                    assert made_of[name][partition] == training["rows"]
    assert seen


def test_every_answer_that_used_a_partition_is_counted(story: Story) -> None:
    """By the receipts of all answers: as many, of each release, as lineage says, and none of another view's."""
    expected: dict[tuple[str, str, str], int] = {}
    for request_id, answer in story.answers.items():
        for view in story.receipt(request_id)["views"]:
            of = (view["view"], view["partition"], answer["release"])
            expected[of] = expected.get(of, 0) + 1
    assert expected
    found = {
        (name, partition, one["release"]): one["answers"]
        for name, partition, _ in expected
        for model in touched_by(story.tables[name], partition, story.records())["models"]
        for one in model["answers"]
    }
    assert found == expected


@pytest.mark.parametrize("away", ["MLflow", "Dagster", "Bentos", "history", "all"])
def test_a_receipt_is_given_whatever_is_down(story: Story, away: str, tmp_path: Any) -> None:
    """A store that is away is named, or was not needed; what the others know is told."""
    nowhere = {
        "MLflow": {"mlflow": MlflowResource(tracking_uri="http://127.0.0.1:9", retries=0)},
        "Dagster": {"instance": None},
        "Bentos": {"bentos": BentoStore(tmp_path / "bentos")},
        "history": {"releases": ReleaseStore(tmp_path / "releases")},
    }
    gone = [*nowhere] if away == "all" else [away]
    request_id = next(iter(story.answers))
    whole, receipt = (
        story.receipt(request_id),
        story.receipt(request_id, **{k: v for of in gone for k, v in nowhere[of].items()}),
    )
    assert receipt["request"] == whole["request"]
    if away in ("MLflow", "Dagster"):
        assert receipt["model"]["mlflow_run_id"] == whole["model"]["mlflow_run_id"]
        assert receipt["training_set"]["made_of"] == whole["training_set"]["made_of"]
    if away == "Bentos":
        assert receipt["bento"]["path"] is None
        assert receipt["model"]["cutoff"] == CUTOFF
        assert any(problem.startswith("the Bento") for problem in receipt["remarks"])
    if away == "history":
        assert receipt["release"] == {}
        assert any(problem.startswith("the release history") for problem in receipt["remarks"])
    if away == "all":
        assert receipt["training_set"] == {}
        assert any("MLflow at http://127.0.0.1:9 did not answer" in problem for problem in receipt["remarks"])
    assert [view["partition"] for view in receipt["views"]] == [view["partition"] for view in whole["views"]]


def test_a_bento_that_is_gone_is_made_up_for_by_the_registry(story: Story, tmp_path: Any) -> None:
    """Without Dagster's events too: MLflow knows the version's run, its cutoff and the training set's content."""
    request_id = next(iter(story.answers))
    whole = story.receipt(request_id)
    told = story.receipt(request_id, bentos=BentoStore(tmp_path), instance=None)
    same = ("cutoff", "mlflow_run_id", "mlflow_url", "dagster_run_id", "training_set_hash")
    assert {name: told["model"][name] for name in same} == {name: whole["model"][name] for name in same}


def test_a_log_that_was_put_away_leaves_its_answers_explained(story: Story) -> None:
    """From the published table: the same receipt, and the same answers of a partition."""
    request_id = next(iter(story.answers))
    name = "flights/carrier_punctuality"
    partition = partition_at(story.tables[name], AT - timedelta(days=1))
    before, touched = story.receipt(request_id), touched_by(story.tables[name], partition, story.records())
    assert story.platform.run("predictions", partition=f"{AT:%Y-%m-%d}").ok
    both = touched_by(story.tables[name], partition, story.records())
    elsewhere = story.platform.home / "put away"
    shutil.move(story.platform.home / "predictions", elsewhere)
    after, alone = story.receipt(request_id), touched_by(story.tables[name], partition, story.records())
    shutil.move(elsewhere, story.platform.home / "predictions")
    assert both["models"] == touched["models"] == alone["models"]
    assert {**after, "request": None} == {**before, "request": None}
    assert {k: v for k, v in after["request"].items() if k != "inputs"} == {
        k: v for k, v in before["request"].items() if k != "inputs"
    }
    assert {k: v for k, v in after["request"]["inputs"].items() if v is not None} == {
        k: v for k, v in before["request"]["inputs"].items() if v is not None
    }


def test_what_is_not_known_is_said_with_what_is(story: Story) -> None:
    """An id that nobody answered, a partition that no table has."""
    with pytest.raises(UnknownRequestError, match="looked at: flights/"):
        story.receipt("nobody")
    with pytest.raises(UnknownPartitionError, match="2013-06-10 to 2013-06-30"):
        touched_by(story.tables["flights/weather_hourly"], "yesterday", story.records())


def test_what_stood_in_is_said_not_to_be_logged(story: Story) -> None:
    """A stand-in's rows are traced into training sets; of an answer, only that one was used."""
    name = "flights/aircraft_use_cold_start"
    touched = touched_by(story.tables[name], "2013-06-20", story.records())
    (model,) = [one for one in touched["models"] if one["model"] == story.platform.model.id]
    assert model["training_sets"]
    assert model["answers"] == []
    assert any(f"which row of {name}" in remark for remark in touched["remarks"])


def test_a_source_says_which_tables_it_feeds(story: Story) -> None:
    """Through a rolling window one day reaches many; only those that are published are named."""
    sources = story.platform.catalog.tables
    weather = touched_by(sources["flights/raw_weather"], "2013-06-20", story.records())
    assert weather["feeds"] == {"flights/weather_hourly": ["2013-06-20"]}
    assert weather["models"] == []
    flights = touched_by(sources["flights/raw_flights"], "2013-06-29", story.records())["feeds"]
    assert flights["flights/carrier_punctuality"] == ["2013-06-29", "2013-06-30"]


def test_the_commands_print_what_the_functions_say(story: Story) -> None:
    """For a person one line a link; for a program the whole document."""

    def mlops(*words: str) -> str:
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    request_id, answer = next(iter(story.answers.items()))
    said = mlops("explain", request_id)
    for word in (answer["release"], "version 1", "flights/late_arrival/training_set", "flights/weather_hourly"):
        assert word in said
    (document,) = json.loads(mlops("explain", request_id, "--model", "flights/late_arrival", "--json"))
    assert document == json.loads(json.dumps(story.receipt(request_id)))
    partition = ("flights/carrier_punctuality", "--partition", "2013-06-30")
    assert request_id in mlops("lineage", *partition)
    touched = json.loads(mlops("lineage", *partition, "--json"))
    assert touched["partition"] == "2013-06-30"


def test_dagster_that_breaks_is_one_line(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its storage may be away in the middle of a receipt."""
    request_id = next(iter(story.answers))

    def refuse(*_: Any, **__: Any) -> None:
        raise dg.DagsterInvariantViolationError("the storage\nis away")

    monkeypatch.setattr(dg.DagsterInstance, "fetch_materializations", refuse)
    receipt = story.receipt(request_id)
    assert receipt["remarks"] == ["Dagster's events: the storage is away"]
    assert receipt["model"]["mlflow_run_id"]


def test_a_dagster_that_cannot_be_opened_costs_its_part_alone(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its database does not answer: the command ends well, and says so."""

    def refuse() -> None:
        raise ConnectionError("no answer from db:5432")

    monkeypatch.setattr(dg.DagsterInstance, "get", refuse)
    request_id = next(iter(story.answers))
    result = CliRunner().invoke(app, ["explain", request_id, "--json"], catch_exceptions=False)
    (document,) = json.loads(result.stdout)
    assert (result.exit_code, document["remarks"]) == (0, ["Dagster: no answer from db:5432"])
    assert document["training_set"]["made_of"]
    result = CliRunner().invoke(app, ["explain", request_id], catch_exceptions=False)
    assert "Note: Dagster: no answer from db:5432" in result.stderr
