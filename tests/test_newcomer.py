"""An airframe that nobody has seen: its stand-ins from the tables to the answer, the log and any Feast client."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from feature_assets.flights.aircraft import aircraft_use
from feature_assets.flights.embedding import aircraft_embedding
from mlops_assets import Serve
from mlops_assets.catalog import asset_key
from mlops_assets.links.training_set import point_in_time_rows, stored_views

if TYPE_CHECKING:
    from conftest import Platform, Ran

DAY, AT = "2013-06-30", datetime(2013, 6, 30, 12, tzinfo=UTC)
COLD = (aircraft_use, aircraft_embedding)
NOBODY = "N0NE"


@dataclass(frozen=True)
class Story:
    platform: Platform
    trained: Ran
    published: Ran
    logged: Ran
    asked: list[dict[str, Any]]
    answers: list[dict[str, Any]]

    def rows(self, table: Any, *partitions: str) -> pl.DataFrame:
        frame: pl.DataFrame = self.platform.resources["lake"].scan(table, list(partitions) or None).collect()
        return frame


@pytest.fixture(scope="module")
def story(module_platform: Platform) -> Story:
    """The model with the embedding, asked about a real flight of a known airframe, and of one that is new."""
    model = module_platform.model
    platform = module_platform.declared(features=[*model.features, aircraft_embedding], serve=Serve([100]))
    trained, published = platform.train(), platform.publish_online(AT)
    spine = platform.resources["lake"].scan("flights/arrivals", [DAY]).filter(pl.col("event_timestamp") > AT)
    known = platform.resources["lake"].scan(asset_key(aircraft_embedding)).select("tailnum").unique()
    columns = [model.labels.key, *model.labels.join_keys, *model.labels.request]
    (flight,) = (
        spine.join(known, on="tailnum").sort("flight_id").head(1).select(*dict.fromkeys(columns)).collect().to_dicts()
    )
    asked = [flight, {**flight, "tailnum": NOBODY, "flight_id": "new"}]
    with platform.endpoint() as endpoint:
        answers = endpoint.ask(asked, AT)
    return Story(platform, trained, published, platform.run("predictions", partition=DAY), asked, answers)


def test_every_step_of_it_happened(story: Story) -> None:
    for ran in (story.trained, story.published, story.logged):
        assert ran.ok, ran.trouble
    assert not story.published.failed, "no check of an online view failed, those of views without keys included"


def test_a_new_airframe_is_answered_by_its_cold_starts_and_the_answer_says_so(story: Story) -> None:
    """Of both views, with the reason; the known airframe's answer has none of it."""
    known, new = ({f["view"]: (f["reason"], f["used"]) for f in answer["fallbacks"]} for answer in story.answers)
    assert {view.id for view in COLD} <= new.keys() and not {view.id for view in COLD} & known.keys()
    assert {new[view.id] for view in COLD} == {("no row", "cold start")}
    assert 0 < story.answers[1]["prediction"] < 1


def test_the_answer_used_what_training_would_have(story: Story) -> None:
    """What the log says was used is, value for value, the point-in-time join for an unknown key at that moment."""
    model, lake = story.platform.model, story.platform.resources["lake"]
    spine = pl.DataFrame(story.asked).with_columns(event_timestamp=pl.lit(AT)).lazy()
    frames = {name: lake.scan(asset_key(view)) for name, view in stored_views(model).items()}
    offline = point_in_time_rows(model, spine, frames).sort("flight_id")
    logged = story.rows("flights/late_arrival/predictions", DAY).sort("request_id")
    for name in model.inputs:
        assert logged[name].to_list() == offline[name].to_list(), name
    assert offline["aircraft_embedding__cold_start_used"].to_list() == [False, True]
    assert len(logged["embedding"][1]) == 8 and logged["aircraft_manufacturer"][1]


def test_the_log_and_the_training_set_count_the_fallbacks(story: Story) -> None:
    """By view and kind, as numbers to plot; the receipt names what was used."""
    answered, trained = story.logged.facts["predictions"], story.trained.facts["training_set"]
    assert answered["fallback_share/aircraft_use/cold_start"] == 0.5
    assert answered["fallback_share/aircraft_use/nulls"] == 0.0
    assert 0 < trained["fallback_share/aircraft_embedding/cold_start"] < 0.9
    assert story.logged.checks["fallback_rate"].passed, "of two answers nothing is claimed"
    (receipt,) = story.rows("flights/late_arrival/predictions", DAY).filter(pl.col("tailnum") == NOBODY)["fallbacks"]
    assert {fallback["used"] for fallback in json.loads(receipt) if fallback["view"] == aircraft_use.id} == {
        "cold start"
    }


def test_the_candidate_says_whether_its_cold_starts_help(story: Story) -> None:
    """A check with its numbers, in Dagster and in MLflow; whatever it says, it holds no candidate back."""
    check, facts = story.trained.checks["cold_start_helps"], story.trained.facts["candidate"]
    gain = check.metadata["stand_ins"].value - check.metadata["nulls"].value
    assert check.passed == (gain > 0) and check.severity.value == "WARN" and "held out as new" in check.description
    run = story.platform.promotion.mlflow.client().get_run(facts["mlflow_run_id"])
    assert run.data.metrics["cold_start_stand_ins"] == facts["cold_start/stand_ins"]
    assert run.data.metrics["cold_start_rows"] == facts["cold_start/rows"] > 100
    assert "cold_start_helps" in facts["gate"]


@pytest.mark.parametrize("view", COLD, ids=lambda view: view.name)
def test_a_stand_in_is_a_feast_view_like_any_other(view: Any, story: Story) -> None:
    """Plain Feast reads it for any key, beside the view that has no row of it, and finds the row in the lake."""
    store, stand_in = story.platform.resources["feast"].store(), view.stand_in
    tables = {what: f"{item.team}__{item.name}" for what, item in (("own", view), ("cold", stand_in))}
    names = [f"{tables[what]}:{name}" for name in view.schema for what in tables]
    history = story.rows(asset_key(stand_in)).sort("event_timestamp")
    wanted = history.filter(pl.col("event_timestamp") <= AT).row(-1, named=True)
    online = store.get_online_features(names, [{"tailnum": NOBODY}], full_feature_names=True).to_dict()
    for name in view.schema:
        assert online[f"{tables['own']}__{name}"] == [None] and online[f"{tables['cold']}__{name}"] == [wanted[name]]
    moments = [AT - timedelta(days=7), AT]
    asked = pl.DataFrame({"event_timestamp": moments}).to_pandas()
    alone = [f"{tables['cold']}:{name}" for name in view.schema]
    offline = pl.from_pandas(store.get_historical_features(asked, alone).to_df()).sort("event_timestamp")
    expected = [history.filter(pl.col("event_timestamp") <= moment).tail(1) for moment in moments]
    assert offline.select(*stand_in.schema).to_dicts() == pl.concat(expected).select(*stand_in.schema).to_dicts()
    assert offline.height == 2 and offline.row(0) != offline.row(1)
