"""The whole loop on six weeks of real flights: each link of the chain, in the order of a model's life.

The story is told once, by the real jobs, sensors, stores and serving app; each test below looks at one
part of it. Only the clock is not real: the days of 2013 are replayed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
import pytest

from mlops_assets.catalog import asset_key
from mlops_assets.demo import departures
from mlops_assets.history import events
from mlops_assets.links.spec import link_key

if TYPE_CHECKING:
    from conftest import Endpoint, Platform, Ran

pytestmark = pytest.mark.slow

SPOILT, BUSY, SECOND_CUTOFF = date(2013, 7, 1), date(2013, 7, 7), "2013-07-08"
HOUR = timedelta(hours=1)


def hour(day: date, number: int) -> datetime:
    return datetime(day.year, day.month, day.day, number, tzinfo=UTC)


@dataclass
class Story:
    """What happened, kept as it was seen at the time."""

    platform: Platform
    asked: dict[date, pl.DataFrame] = field(default_factory=dict)
    answers: dict[date, list[dict[str, Any]]] = field(default_factory=dict)
    ran: dict[str, Ran] = field(default_factory=dict)
    ticks: dict[str, dg.SensorResult] = field(default_factory=dict)
    published: dict[str, dict[str, Any]] = field(default_factory=dict)
    serving: dict[str, set[str]] = field(default_factory=dict)

    def note(self, moment: str, endpoint: Endpoint) -> None:
        self.published[moment], self.serving[moment] = self.platform.published, endpoint.serving

    def live(self, day: date, hours: range, endpoint: Endpoint) -> None:
        """A part of a day: online views at midnight and then by the hour, each flight asked about at its minute."""
        from mlops_assets.links.online import publish_online

        self.ran[f"online {day}"] = self.platform.publish_online(hour(day, 0))
        stores, day_long = self.platform.resources, timedelta(days=1)
        hourly = [view for view in self.platform.catalog.views if view.ttl and view.ttl < day_long]
        rows, answers = [], []
        for now in (hour(day, number) for number in hours):
            for view in hourly:
                publish_online(stores["feast"], stores["lake"], view, now)
            for at, batch in departures(self.platform.model, now, now + HOUR):
                answers += endpoint.ask(batch, at)
                rows += [{**row, "event_timestamp": at} for row in batch]
        self.asked[day], self.answers[day] = pl.DataFrame(rows, infer_schema_length=None), answers

    def logged(self, count: int) -> None:
        """Until the serving process has written down all its answers so far."""
        from mlops_assets.serving.prediction_log import PredictionLog

        log, model = PredictionLog(), self.platform.model.id
        wait_for(lambda: log.since(model, datetime.min.replace(tzinfo=UTC)).height == count)


def wait_for(true: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not happen within 20 seconds"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def story(module_platform: Platform) -> Iterator[Story]:
    platform, story = module_platform, Story(module_platform)
    with platform.endpoint() as endpoint:
        story.note("trained", endpoint)
        lived_and_reported(story, endpoint)
        retrained(story)
        story.note("retrained", endpoint)
        canary(story, endpoint)
        back_and_forward(story, endpoint)
        yield story


def lived_and_reported(story: Story, endpoint: Endpoint) -> None:
    """A day of storms and, when a week has passed, a busy day; each with its reports."""
    platform = story.platform
    story.ran["fill"] = platform.fill(str(SPOILT), str(BUSY))
    story.live(SPOILT, range(16, 20), endpoint)
    story.live(BUSY, range(12, 16), endpoint)
    story.logged(sum(map(len, story.answers.values())))
    story.ran["predictions of the storm"] = platform.run("predictions", partition=str(SPOILT))
    story.ran["report after the storm"] = platform.run("performance_report", partition=str(SPOILT + timedelta(days=2)))
    story.ticks["too early"] = platform.tick("retrain")
    story.ran["reports"] = platform.run(
        "predictions", "scores", "quality_report", "drift_report", "performance_report", partition=str(BUSY)
    )


def retrained(story: Story) -> None:
    """As the sensor asks, with the tags that it gives."""
    platform = story.platform
    story.ticks["asks"], story.ticks["again"] = platform.tick("retrain"), platform.tick("retrain")
    (request,) = story.ticks["asks"].run_requests
    story.ran["second"] = platform.train(request.partition_key, tags=request.tags)
    story.ticks["trained"] = platform.tick("retrain")


def canary(story: Story, endpoint: Endpoint) -> None:
    """Traffic between the ticks of the rollout sensor, until the canary has all of it."""
    story.ticks["no traffic yet"] = story.platform.tick("rollout")
    answered = sum(map(len, story.answers.values()))
    for step in ("first step", "second step"):
        endpoint.follow(story.platform.published["release"])
        story.answers[step] = endpoint.ask(story.asked[BUSY].drop("event_timestamp").to_dicts(), hour(BUSY, 16))
        answered += len(story.answers[step])
        story.logged(answered)
        story.ticks[step] = story.platform.tick("rollout")
        story.note(step, endpoint)
    endpoint.follow(story.platform.published["release"])
    story.note("promoted", endpoint)


def back_and_forward(story: Story, endpoint: Endpoint) -> None:
    promotion, model = story.platform.promotion, story.platform.model
    endpoint.follow(promotion.rollback(model, by="ann", why="to be sure"))
    story.note("rolled back", endpoint)
    endpoint.follow(promotion.promote(model, "2", by="ann", why="it was fine"))
    story.note("forward", endpoint)


def materialized(story: Story, link: str, partition: str | None = None) -> dg.AssetMaterialization:
    found = story.platform.instance.fetch_materializations(
        dg.AssetRecordsFilter(
            link_key(story.platform.model, link), asset_partitions=[partition] if partition else None
        ),
        limit=1,
    )
    return found.records[0].asset_materialization


# -- the story


def test_every_step_of_it_happened(story: Story) -> None:
    for name, ran in story.ran.items():
        assert ran.ok, f"{name}: {ran.trouble}"


def test_a_training_set_carries_its_proofs(story: Story) -> None:
    """Both blocking checks passed, on real rows, and every event and label was known by the cutoff."""
    checks, facts = story.ran["second"].checks, story.ran["second"].facts["training_set"]
    assert checks["point_in_time_proof"].passed and checks["point_in_time_proof"].metadata["rows"].value == 100
    assert checks["nothing_after_the_cutoff"].passed
    rows = pl.read_parquet(facts["path"])
    cutoff = hour(date(2013, 7, 8), 0)
    assert rows["event_timestamp"].max() < cutoff and rows["label_known_at"].max() <= cutoff
    assert rows.height == facts["dagster/row_count"] > 20_000


def test_a_flight_in_the_air_at_the_cutoff_is_in_no_training_set(story: Story) -> None:
    """It departed before the cutoff, but its label was not known: the last rows of the spine are left out."""
    rows = pl.read_parquet(story.ran["second"].facts["training_set"]["path"])
    spine = story.platform.resources["lake"].scan("flights/arrivals", [str(BUSY)]).collect()
    late = spine.filter(pl.col("label_known_at") > hour(date(2013, 7, 8), 0))
    assert late.height and not set(late["flight_id"]) & set(rows["flight_id"])


def test_a_candidate_is_an_mlflow_run_with_its_trials(story: Story) -> None:
    """The run is finished, each trial of the search is a child of it, and its metrics are those of the verdict."""
    facts = story.ran["second"].facts["candidate"]
    run = story.platform.promotion.mlflow.client().get_run(facts["mlflow_run_id"])
    assert run.info.status == "FINISHED" and run.data.metrics["holdout_roc_auc"] == facts["metric"]
    trials = story.platform.trials(run.info.run_id)
    assert len(trials) == facts["trials"] == story.platform.model.search.trials
    assert {trial.info.status for trial in trials} == {"FINISHED"}
    assert all("validation_roc_auc" in trial.data.metrics and "max_depth" in trial.data.params for trial in trials)


def test_links_go_both_ways(story: Story) -> None:
    """From MLflow to the Dagster run, asset, partition and rows; from Dagster to the MLflow run, Bento and reports."""
    second, platform = story.ran["second"], story.platform
    facts = second.facts["candidate"]
    tags = platform.promotion.mlflow.client().get_run(facts["mlflow_run_id"]).data.tags
    assert tags["dagster/run_id"] == second.result.run_id and tags["dagster/partition"] == SECOND_CUTOFF
    assert tags["dagster/asset_key"] == "flights/late_arrival/candidate" and tags["dagster/code_version"]
    assert tags["training_set_hash"] == second.facts["training_set"]["content_hash"]
    assert len(tags["constraints_sha256"]) == 64 and "CPUs" in tags["hardware"] and tags["git_commit"]
    assert f"/runs/{facts['mlflow_run_id']}" in facts["mlflow_run"]
    version = platform.promotion.mlflow.version(platform.model.registered_name, facts["version"])
    assert version.run_id == facts["mlflow_run_id"] and version.tags["bento"] == second.facts["bento"]["tag"]
    assert Path(story.ran["reports"].facts["drift_report"]["report_file"]).is_file()


def test_the_bundle_says_what_it_was_made_of(story: Story) -> None:
    """Its manifest names run, cutoff and rows; the same bundle is in the registry and in the Bento."""
    facts, platform = story.ran["second"].facts, story.platform
    registered = platform.promotion.mlflow.download(platform.model.registered_name, "2")
    packed = platform.promotion.bentos.path(facts["bento"]["tag"])
    manifest = json.loads((packed / "manifest.json").read_text())
    assert manifest == json.loads((registered / "manifest.json").read_text())
    assert manifest["run_id"] == facts["candidate"]["mlflow_run_id"] and manifest["cutoff"] == SECOND_CUTOFF
    assert manifest["training_set"]["hash"] == facts["training_set"]["content_hash"]
    assert manifest["dagster_run_id"] == story.ran["second"].result.run_id


def test_the_first_release_takes_all_traffic_at_once(story: Story) -> None:
    """There was nothing to compare it with: version 1 is champion, in the registry, on record and in answers."""
    seen = story.published["trained"]
    assert seen["alias"] == "1" and [move.after for move in seen["moves"]] == ["1"]
    assert [(v.version, v.weight, v.role) for v in seen["release"].variants] == [("1", 100, "champion")]
    assert story.serving["trained"] == {"1"}
    assert materialized(story, "champion").metadata["version"].value == "2", "the newest one by now"


def test_every_scheduled_flight_was_asked_about_and_answered(story: Story) -> None:
    """Cancelled ones too, each under its own id and by the version of the time; the log lacks none of them."""
    for day in (SPOILT, BUSY):
        asked, answers = story.asked[day], story.answers[day]
        assert [answer["request_id"] for answer in answers] == asked["flight_id"].to_list()
        assert {answer["version"] for answer in answers} == {"1"}
        assert all(0 <= answer["prediction"] <= 1 for answer in answers)
        table = story.platform.resources["lake"].scan("flights/late_arrival/predictions", [str(day)]).collect()
        assert sorted(table["request_id"]) == sorted(asked["flight_id"])
    assert story.ran["reports"].checks["no_gap"].passed


def test_features_online_are_those_of_the_point_in_time_join(story: Story) -> None:
    """What the endpoint looked up at each flight's minute is, value for value, what training would have read."""
    from mlops_assets.links.training_set import point_in_time_rows, stored_views

    platform = story.platform
    scan = platform.resources["lake"].scan
    logged = scan("flights/late_arrival/predictions", [str(BUSY)]).collect().sort("request_id")
    frames = {name: scan(asset_key(view)) for name, view in stored_views(platform.model).items()}
    offline = point_in_time_rows(platform.model, story.asked[BUSY].lazy(), frames).sort("flight_id")
    assert logged.height > 150
    for name in platform.model.inputs:
        assert logged[name].to_list() == offline[name].to_list(), name
    looked_up = [name for name in platform.model.inputs if name not in platform.model.labels.request]
    assert logged.select(looked_up).null_count().sum_horizontal().item() < 0.2 * logged.height * len(looked_up)


def test_batch_scores_equal_the_online_answers(story: Story) -> None:
    """For every flight that has both; those that never arrived have an answer and no score."""
    scan = story.platform.resources["lake"].scan
    logged = scan("flights/late_arrival/predictions", [str(BUSY)]).select(flight_id="request_id", online="prediction")
    both = scan("flights/late_arrival/scores", [str(BUSY)]).join(logged, on="flight_id").collect()
    assert both.height > 150 and set(both["version"]) == {"1"}
    assert (both["prediction"] - both["online"]).abs().max() < 1e-9


def test_cancelled_flights_are_kept_and_never_taken_for_punctual(story: Story) -> None:
    """In `raw_flights` they have no outcome, in the report they are unlabelled: neither pending nor a zero."""
    scan = story.platform.resources["lake"].scan
    asked = story.asked[SPOILT]["flight_id"].implode()
    raw = scan("flights/raw_flights", [str(SPOILT)]).filter(pl.col("flight_id").is_in(asked)).collect()
    lost = raw.filter(pl.col("arrival").is_null())
    assert lost["cancelled"].sum() > 5 and lost["arr_delay"].null_count() == lost.height
    labels = scan("flights/arrivals", [str(SPOILT)]).collect()
    assert not set(lost["flight_id"]) & set(labels["flight_id"])
    report = story.ran["report after the storm"].facts["performance_report"]
    assert report["unlabelled"] == lost.height and report["pending"] == 0
    assert report["rows"] == raw.height - lost.height


def test_the_performance_report_is_the_metric_of_what_is_known(story: Story) -> None:
    """Computed anew from the answers and the labels, it is the same number."""
    from mlops_assets.metrics import METRICS

    scan = story.platform.resources["lake"].scan
    answers = scan("flights/late_arrival/predictions", [str(BUSY)])
    known = scan("flights/arrivals", [str(BUSY)]).filter(pl.col("label_known_at") <= hour(date(2013, 7, 8), 0))
    both = answers.join(known, left_on="request_id", right_on="flight_id").collect()
    metric = METRICS["roc_auc"].compute(both["late"].cast(pl.Float64).to_numpy(), both["prediction"].to_numpy())
    report = story.ran["reports"].facts["performance_report"]
    assert report["metric"] == pytest.approx(metric) and report["rows"] == both.height


def test_july_drifted_away_from_june(story: Story) -> None:
    """The drift check failed as a warning, with a number for every input that had values, and the run went on."""
    check = story.ran["reports"].checks["drift"]
    assert (
        not check.passed and check.severity == dg.AssetCheckSeverity.WARN and check.metadata["day"].value == str(BUSY)
    )
    facts, rows = (
        story.ran["reports"].facts["drift_report"],
        story.platform.resources["lake"].scan("flights/late_arrival/predictions", [str(BUSY)]),
    )
    answered = rows.select(story.platform.model.inputs).collect()
    judged = {name for name in answered.columns if answered[name].null_count() < answered.height}
    assert judged and {f"psi/{name}" for name in judged} <= facts.keys()
    assert facts["release"] == story.published["trained"]["release"].champion.release


def test_the_retraining_sensor_asks_once(story: Story) -> None:
    """Not before a new cutoff lies within what the reports know, then once, with its reasons; never again for it."""
    assert not story.ticks["too early"].run_requests
    (request,) = story.ticks["asks"].run_requests
    assert request.partition_key == SECOND_CUTOFF and "drift" in request.tags["mlops/reason"]
    assert not story.ticks["again"].run_requests and not story.ticks["trained"].run_requests
    assert story.ran["second"].result.dagster_run.tags["mlops/reason"] == request.tags["mlops/reason"]


def test_the_second_candidate_was_judged_against_the_first(story: Story) -> None:
    """On the same holdout rows; it passed, was crowned, and began with the first step of the canary."""
    second, seen = story.ran["second"], story.published["retrained"]
    assert "on the same" in second.checks["beats_champion"].description and not second.failed & set(GATE)
    assert seen["versions"] == ["2", "1"] and seen["alias"] == "2"
    assert [(v.version, v.weight, v.role) for v in seen["release"].variants] == [
        ("1", 60, "champion"),
        ("2", 40, "challenger"),
    ]


GATE = ("clears_floor", "beats_champion", "worst_slice", "latency")


def test_a_canary_goes_on_by_evidence_alone(story: Story) -> None:
    """Without traffic it waits; then each tick gives it its next share, the last one all of it."""
    assert "hold" in story.ticks["no traffic yet"].skip_reason.skip_message
    steps = story.published["first step"], story.published["second step"]
    assert [v.weight for v in steps[0]["release"].variants] == [30, 70]
    assert [(v.version, v.weight) for v in steps[1]["release"].variants] == [("2", 100)]
    assert f" of {story.platform.model.serve.min_requests}" in story.ticks["no traffic yet"].skip_reason.skip_message


def test_a_canary_is_sticky_and_takes_its_share(story: Story) -> None:
    """About its percent of the flights, and who was in it at 40 % is in it at 70 %."""

    def of_challenger(step: str) -> set[str]:
        return {answer["request_id"] for answer in story.answers[step] if answer["version"] == "2"}

    first, second, asked = of_challenger("first step"), of_challenger("second step"), story.asked[BUSY].height
    assert first < second and 0.25 < len(first) / asked < 0.55 and 0.55 < len(second) / asked < 0.85


def test_rollback_and_forward_move_traffic_and_alias_together(story: Story) -> None:
    """The registry, the release record and the answers name the same version at every moment."""
    for moment, version in (("promoted", "2"), ("rolled back", "1"), ("forward", "2")):
        seen = story.published[moment]
        assert seen["alias"] == seen["release"].champion.version == version
        assert story.serving[moment] == {version}


def test_the_history_tells_it_all(story: Story) -> None:
    """Who or what, when, why, from, to: every move in its order, none twice."""
    platform = story.platform
    told = events(platform.model, platform.promotion.releases, platform.promotion.champions)
    assert [event.what for event in told] == [
        *("champion", "release"),
        *("champion", "start canary", "advance canary", "promote"),
        *("rollback", "champion"),
        *("promote", "champion"),
    ]
    assert [event.at for event in told] == sorted(event.at for event in told)
    assert told[6].by == "ann" and told[6].why == "to be sure" and told[6].after == "version 1 100 %"
    assert told[3].by == f"run {story.ran['second'].result.run_id}" and told[4].by == "sensors.rollout"
