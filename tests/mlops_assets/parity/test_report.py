"""Online is offline at the same moment, or the gate names what differs, with both values and why.

Real stores: a lake of Parquet partitions, the packed online store, the prediction log, Bentos on disk. Online rows
are published by the functions that the online assets call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets import (
    Bool,
    Constant,
    Entity,
    FeatureView,
    Float64,
    Gate,
    Labels,
    MeanOverEntities,
    ModelPipeline,
    Parity,
    String,
    feature_view,
    labels,
    on_demand,
)
from mlops_assets.catalog import asset_key
from mlops_assets.links.online import newest_rows, recent
from mlops_assets.parity.report import Report, alike, differences, feature_parity, features_in_time
from mlops_assets.serving.answers import Answers, Question, RowInputs
from mlops_assets.serving.plan import FeaturePlan, look_up, microseconds
from mlops_assets.serving.prediction_log import PredictionLog
from mlops_assets.trainers import XGBoostClassifier
from resources.bentos import BentoStore
from resources.lake import Lake, NotMaterializedError
from resources.online.packed_store import PackedStore
from resources.releases import Variant

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
START = datetime(2013, 7, 1, tzinfo=UTC)
NOON, END = START + 12 * HOUR, START + 23 * HOUR
LONG_AGO = datetime.now(UTC) - DAY
PLACES = ("EWR", "JFK", "LGA")
KEY, TIME = "place", "event_timestamp"
daily = dg.DailyPartitionsDefinition(start_date="2013-06-01")
cutoffs = dg.WeeklyPartitionsDefinition(start_date="2013-06-03")
place = Entity("place", KEY, description="Where")


def nothing() -> pl.LazyFrame:
    raise AssertionError("parity reads what is published and computes no view")


WIND = {
    "gust": Float64("Strongest gust", unit="mile/hour", max_null_share=1),
    "heat": Float64("Temperature", unit="degree Celsius", max_null_share=1),
    "sky": String("Cloud cover", max_null_share=1),
}
wind = feature_view(team="t", entities=[place], ttl=3 * HOUR, partitions=daily, schema=WIND)(nothing)
wind = replace(wind, name="wind")
crowd = feature_view(team="t", entities=[place], partitions=daily, schema={"queue": Float64("People", unit="person")})
crowd_view = replace(crowd(nothing), name="crowd")
trips = labels(
    team="t",
    key="trip_id",
    entities=[place],
    request={"distance": Float64("How far", unit="mile")},
    targets={"late": Bool("Was it")},
    partitions=daily,
)(nothing)
trips = replace(trips, name="trips")


def model_of(*features: Any, **options: Any) -> ModelPipeline:
    return ModelPipeline(
        name="m",
        team="t",
        labels=trips,
        label="late",
        features=features or (wind, crowd_view),
        trainer=XGBoostClassifier(),
        cutoffs=cutoffs,
        gate=Gate("roc_auc", at_least=0.5),
        **options,
    )


def gusts(hour: int, place: int) -> float:
    return 5.0 + 3 * hour + 100 * place


def hourly(until: datetime, value: Callable[[int, int], float] = gusts, shift: timedelta = timedelta()) -> pl.DataFrame:
    """Wind rows of every place and hour up to a moment; every hour has its own values."""
    rows = [
        {
            KEY: name,
            TIME: START - DAY + hour * HOUR + shift,
            "gust": value(hour, index),
            "heat": 10.0 + hour - index,
            "sky": f"sky {hour % 31}",
        }
        for hour in range((until - START + DAY) // HOUR + 1)
        for index, name in enumerate(PLACES)
    ]
    return pl.DataFrame(rows, schema_overrides={TIME: pl.Datetime("us", "UTC")})


def queues() -> pl.DataFrame:
    rows = [
        {KEY: name, TIME: START + day * DAY, "queue": 7.0 * day + index}
        for day in (-1, 0, 1)
        for index, name in enumerate(PLACES)
    ]
    return pl.DataFrame(rows, schema_overrides={TIME: pl.Datetime("us", "UTC")})


def events() -> pl.DataFrame:
    rows = [
        {"trip_id": f"{hour} {name}", KEY: name, TIME: START - DAY + hour * HOUR + 7 * MINUTE, "distance": 100.0 + hour}
        for hour in range(48)
        for name in PLACES
    ]
    return pl.DataFrame(rows, schema_overrides={TIME: pl.Datetime("us", "UTC")}).with_columns(
        label_known_at=pl.col(TIME) + DAY, late=pl.lit(False)
    )


@dataclass
class World:
    """A lake, an online store, a log and Bentos in a directory."""

    root: Path
    model: ModelPipeline = field(default_factory=model_of)

    def __post_init__(self) -> None:
        self.lake = Lake(root=str(self.root / "lake"))
        self.store = PackedStore.open(f"sqlite:///{self.root / 'packed.db'}")
        self.log = PredictionLog(self.root / "predictions")
        self.bentos = BentoStore(self.root / "bentoml")
        self.release(FeaturePlan.of(self.model))

    # -- what is published

    def offline(self, view: FeatureView | Labels, rows: pl.DataFrame, written: datetime | None = None) -> None:
        """The rows, by their day, a file for every day; `written` is when, by the clock of the files."""
        days = {f"{START + number * DAY:%Y-%m-%d}" for number in (-1, 0, 1)}
        parts = {day: rows.filter(pl.col(TIME).dt.strftime("%Y-%m-%d") == day).sort(TIME) for day in days}
        for path in self.lake.write_partitions(parts, asset_key(view)).values():
            if written is not None:
                os.utime(path, (written.timestamp(), written.timestamp()))

    def online(self, view: FeatureView, as_of: datetime, rows: pl.DataFrame | None = None) -> None:
        """What offline has as of a moment, as the online asset publishes it, or rows that it should not have."""
        newest = newest_rows(recent(self.lake, view, as_of) if rows is None else rows.lazy(), view, as_of)
        rows_of = ((tuple(row[key] for key in view.join_keys), row) for row in newest.to_dicts())
        packed = [(key, microseconds(row[TIME]), {name: row[name] for name in view.schema}) for key, row in rows_of]
        self.store.write(f"{view.team}__{view.name}", packed)

    def release(self, plan: FeaturePlan, tag: str = "t_m:1") -> None:
        """A Bento as far as its plan."""
        place = self.root / "bentoml" / "bentos" / tag.replace(":", "/")
        (place / "src" / "bundle").mkdir(parents=True)
        (place / "bento.yaml").write_text("")
        (place / "src" / "bundle" / "plan.json").write_text(json.dumps(plan.to_json()))

    # -- requests

    def ask(self, at: datetime, plan: FeaturePlan | None = None, tag: str = "t_m:1", brought: bool = False) -> None:
        """Every place asked about at a moment and logged, by the endpoint's own look-up and writer.

        `brought`: the callers give the features themselves, and nothing is looked up.
        """
        plan = plan or FeaturePlan.of(self.model)
        asked = [{KEY: name, "distance": 100.0} for name in PLACES]
        ids = [f"{at:%H%M} {name}" for name in PLACES]
        looked = None if brought else look_up(plan, self.store, asked, at)
        values = [[1.0] * len(plan.inputs) for _ in asked] if looked is None else [one.values for one in looked]
        question = Question(at, ids, {KEY: PLACES}, asked)
        champion = Variant(tag, "1", 100)
        answers = Answers("t/m", champion, question, plan.inputs, RowInputs(values), [0.5] * len(ids), looked=looked)
        writer = self.log.writer()
        writer.write(answers)
        writer.close()

    def report(self, model: ModelPipeline | None = None, plan: FeaturePlan | None = None, **options: Any) -> Report:
        plan = plan or FeaturePlan.of(self.model)
        stores = {"lake": self.lake, "store": self.store, "bentos": self.bentos, "log": self.log}
        return differences(model or self.model, plan, **stores, **options)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two days of hourly wind and daily queues, a day ago offline; nothing online yet."""
    world = World(tmp_path)
    world.offline(wind, hourly(END), written=LONG_AGO)
    world.offline(crowd_view, queues(), written=LONG_AGO)
    world.offline(trips, events(), written=LONG_AGO)
    return world


def published(world: World, as_of: datetime = NOON) -> World:
    for view in (wind, crowd_view):
        world.online(view, as_of)
    return world


def kinds(report: Report) -> dict[str, set[str]]:
    """The kinds of causes by feature."""
    return {
        name: {one.cause.kind for one in report.differences if one.feature == name} for name, *_ in report.by_feature
    }


def passes(report: Report, at_most: float = 0.0) -> bool:
    return feature_parity(report, at_most).passed


# -- alike ----------------------------------------------------------------------------------------------------


def test_what_is_published_from_offline_is_alike_whether_it_was_logged_or_is_looked_up(world: World) -> None:
    """The description says which of both, of when, and how much was compared; metadata holds the numbers."""
    published(world)
    claim = feature_parity(world.report(), 0.0)
    assert (
        claim.passed
        and claim.blocking
        and "sampled events of 2013-07-01 12:00, 4 features and 2 event times" in claim.reason
    )
    assert claim.numbers["compared_rows"] == 144 and claim.numbers["compared_values"] == 144 * 6
    world.ask(NOON + 5 * MINUTE)
    claim = feature_parity(world.report(), 0.0)
    assert claim.passed and claim.reason.startswith(
        "3 logged answers of 2013-07-01 12:05, 4 features and 2 event times, 18 values: 0 differ"
    )


def test_without_answers_and_without_anything_online_there_is_nothing_to_replay(world: World) -> None:
    """It says so, and says it in a number too; the same Bento is judged as soon as there is something."""
    claim = feature_parity(world.report(), 0.0)
    assert claim.passed and claim.reason.startswith("nothing to replay") and claim.numbers["compared_rows"] == 0
    assert features_in_time(world.report()).passed
    world.online(crowd_view, NOON)
    report = world.report()
    assert report.requests and not passes(report) and kinds(report) == {key: {"online behind"} for key in WIND}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (None, None, True),
        (None, 0.0, False),
        (float("nan"), None, True),
        (1.0, 1, True),
        (1e9, 1e9 + 100, True),
        (1e9, 1e9 + 2000, False),
        (1e-7, 2e-7, True),
        (1e-6, 3e-6, False),
        (True, True, True),
        (True, False, False),
        ("a", "b", False),
        ([1.0, None], [1.0, None], True),
        ([1.0, 2.0], [1.0, 2.1], False),
        ([1.0], [1.0, 2.0], False),
        ("2013-07-01T12:00:00+00:00", NOON, True),
        ("2013-07-01T12:00:00+01:00", NOON, False),
    ],
)
def test_values_are_alike_when_a_reader_could_not_tell_them_apart(one: Any, other: Any, same: bool) -> None:
    assert alike(one, other, 1e-6) is same and alike(other, one, 1e-6) is same


# -- what it must catch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("declared", "planned"), [(3, 9), (9, 3), (3, None), (None, 3)])
@pytest.mark.parametrize("asked", [True, False], ids=["logged", "sampled"])
def test_a_ttl_difference_is_caught(world: World, declared: int | None, planned: int | None, asked: bool) -> None:
    """The Bento runs with another ttl than is declared: one side shows a row that is too old for the other."""
    old = replace(wind, ttl=planned and planned * HOUR)
    now = model_of(replace(wind, ttl=declared and declared * HOUR), crowd_view)
    plan = FeaturePlan.of(model_of(old, crowd_view))
    world.offline(wind, hourly(START + 6 * HOUR), written=LONG_AGO)
    world.online(replace(wind, ttl=None), NOON)
    world.online(crowd_view, NOON)
    world.release(plan, "t_m:2")
    if asked:
        world.ask(NOON, plan, "t_m:2")
    report = world.report(now, plan, published=NOON)
    assert not passes(report) and kinds(report) == {key: {"TTL"} for key in WIND}
    gust = next(one for one in report.differences if one.feature == "gust" and one.keys == {KEY: "EWR"})
    value = gusts(30, 0)
    longer_online = planned is None or (declared is not None and planned > declared)
    assert (gust.online, gust.offline) == ((value, None) if longer_online else (None, value))


@pytest.mark.parametrize("asked", [True, False], ids=["logged", "sampled"])
@pytest.mark.parametrize("shift", [-4, -2, -1, 3, 5.5])
def test_a_time_zone_error_is_caught(world: World, shift: float, asked: bool) -> None:
    """Local times published as UTC on the online side, whether its rows then look old, expired, or yet to come."""
    world.online(crowd_view, NOON)
    world.online(replace(wind, ttl=None), END, hourly(NOON, shift=shift * HOUR))
    if asked:
        world.ask(NOON)
    report = world.report(published=NOON)
    shown_in = (
        ["wind.event_timestamp"] if -3 <= shift < 0 else WIND
    )  # within its ttl the row still has the right values
    assert not passes(report) and kinds(report) == {name: {"time zone"} for name in shown_in}
    assert all(f"{shift:+g} h from offline's" in one.cause.said for one in report.differences)


def test_a_time_zone_error_of_the_offline_side_is_caught(world: World) -> None:
    """The online rows are right; the lake was filled again with New York's hours taken for UTC."""
    published(world)
    world.offline(wind, hourly(END, shift=-4 * HOUR))
    report = world.report()
    assert not passes(report) and kinds(report) == {key: {"time zone"} for key in WIND}


def test_a_time_zone_whose_clocks_change_is_one_cause(world: World) -> None:
    """Rows of winter and of summer are an hour apart; values are right, until they expire at the wrong moment."""
    unlimited = model_of(replace(wind, ttl=None))
    plan = FeaturePlan.of(unlimited)
    world.release(plan, "t_m:2")
    for at, shift in ((NOON, -5 * HOUR), (NOON + 6 * HOUR, -4 * HOUR)):
        world.online(replace(wind, ttl=None), END, hourly(at, shift=shift))
        world.ask(at, plan, "t_m:2")
    report = world.report(unlimited, plan)
    assert not passes(report) and kinds(report) == {"wind.event_timestamp": {"time zone"}}
    assert "are -5 h or -4 h from offline's, as where clocks change" in str(report.differences[0].cause)


@pytest.mark.parametrize(
    ("online", "said"),
    [
        (pl.col("gust") * 1.609344, "offline = 0.621371 x online"),
        ((pl.col("gust") - 32) / 1.8, "offline = 1.8 x online +32"),
    ],
)
def test_a_unit_change_on_one_side_is_caught(world: World, online: pl.Expr, said: str) -> None:
    """One factor (and offset) over all differing rows; the feature that changed is named and no other."""
    world.online(crowd_view, NOON)
    world.online(wind, NOON, hourly(END).with_columns(gust=online))
    report = world.report()
    assert not passes(report) and kinds(report) == {"gust": {"unit change"}}
    assert {one.cause.said for one in report.differences} == {said}


def test_a_unit_change_is_not_taken_for_lateness(world: World) -> None:
    """The online rows are an hour old too, but they are not what offline has for their hour."""
    world.online(crowd_view, NOON)
    world.online(wind, NOON - HOUR, hourly(END).with_columns(gust=pl.col("gust") * 2))
    world.offline(wind, hourly(END))
    report = world.report(published=NOON)
    assert not passes(report) and kinds(report)["gust"] == {"unit change"}


def test_a_late_row_is_named_and_counted_by_itself(world: World) -> None:
    """It came after the answer: no skew, but what training takes for known was not, and a warning says how often."""
    world.offline(wind, hourly(NOON - HOUR), written=LONG_AGO)
    published(world)
    world.ask(NOON)
    world.offline(wind, hourly(NOON))
    report = world.report()
    parity, in_time = feature_parity(report, 0.0), features_in_time(report)
    assert (
        parity.passed and "9 more were late" in parity.reason and kinds(report) == {key: {"late row"} for key in WIND}
    )
    assert not in_time.passed and not in_time.blocking and "9 were late (50.00%" in in_time.reason
    late = next(one for one in report.late if one.feature == "gust" and one.keys == {KEY: "JFK"})
    assert (late.online, late.offline) == (gusts(35, 1), gusts(36, 1))
    assert "online had the row of 2013-07-01 11:00, offline that of 2013-07-01 12:00" in late.cause.said


def test_a_row_that_was_there_in_time_and_not_published_is_not_late(world: World) -> None:
    """It had been offline for a day when the request was answered: the online store was behind, and that counts."""
    published(world, NOON - HOUR)
    world.ask(NOON)
    report = world.report()
    assert not passes(report) and kinds(report) == {key: {"online behind"} for key in WIND} and not report.late


def test_an_online_store_that_is_far_behind_is_not_excused_by_a_newer_row_that_is_late(world: World) -> None:
    """Today's file is only just there, but yesterday's last row, still valid, had been for a day."""
    world.model = model_of(replace(wind, ttl=2 * DAY))
    world.online(wind, START - 3 * HOUR)
    world.ask(NOON, FeaturePlan.of(model_of(replace(wind, ttl=2 * DAY))), "t_m:2")
    world.release(FeaturePlan.of(world.model), "t_m:2")
    for day in ("2013-07-01", "2013-07-02"):
        os.utime(world.lake.path(asset_key(wind), day))
    report = world.report()
    assert report.origin == "logged answers" and kinds(report) == {key: {"online behind"} for key in WIND}
    assert "online had the row of 2013-06-30 21:00, offline that of 2013-06-30 23:00" in str(
        report.differences[0].cause
    )


def test_a_request_about_the_past_is_told_apart(world: World) -> None:
    """Online knows the newest row only; it refuses one from the future, and offline has the one of then."""
    published(world)
    world.ask(NOON - 2 * HOUR)
    report = world.report()
    assert not passes(report) and kinds(report) == {key: {"asked about the past"} for key in WIND}


def test_a_row_that_offline_does_not_have_is_named(world: World) -> None:
    """It was taken back offline, or never was there."""
    world.online(crowd_view, NOON)
    world.online(wind, NOON, hourly(NOON, lambda hour, index: -1.0).with_columns(sky=pl.lit("green")))
    world.offline(wind, hourly(NOON - HOUR), written=LONG_AGO)
    report = world.report(published=NOON)
    assert not passes(report) and kinds(report) == {key: {"not offline"} for key in WIND}


def test_another_cold_start_is_caught(world: World) -> None:
    """The stand-in of the Bento is not the declared one; or it is, and its newer row was late."""
    later, sooner = (replace(wind, cold_start=Constant({"gust": value})) for value in (2.5, 1.5))
    published(world, START - DAY)
    report = world.report(model_of(later), FeaturePlan.of(model_of(sooner)), published=NOON + 2 * DAY)
    assert not passes(report) and kinds(report) == {"gust": {"cold start"}}
    assert {(one.online, one.offline) for one in report.differences} == {(1.5, 2.5)}
    mean = replace(wind, cold_start=MeanOverEntities())
    world.model = model_of(mean)
    stand_ins = pl.DataFrame(
        [{TIME: START + day * DAY, "gust": 3.0 + day, "heat": 4.0, "sky": "clear"} for day in (0, 1)],
        schema_overrides={TIME: pl.Datetime("us", "UTC")},
    )
    assert mean.stand_in is not None
    world.offline(mean.stand_in, stand_ins)
    world.online(mean.stand_in, START + HOUR)
    at = NOON + 2 * DAY
    assert kinds(world.report(published=at)) == {"gust": {"late row"}} and passes(world.report(published=at))
    world.store.write(
        "t__wind_cold_start", [((), microseconds(START + DAY), {"gust": 9.0, "heat": 4.0, "sky": "clear"})]
    )
    report = world.report(published=at)
    assert not passes(report) and kinds(report) == {"gust": {"cold start"}}


def test_the_newest_row_of_one_key_that_was_dropped_is_caught(world: World) -> None:
    """As Dask's materialization in Feast does (#5228); the keys say whose."""
    published(world, NOON - HOUR)
    world.online(wind, NOON, hourly(END).filter(pl.col(KEY) != "LGA"))
    report = world.report()
    assert not passes(report) and {one.keys[KEY] for one in report.differences} == {"LGA"}


def test_a_correction_after_the_answer_counts(world: World) -> None:
    """Two values of one event: which one training should have had is a question for a person."""
    published(world)
    world.ask(NOON)
    world.offline(wind, hourly(END, lambda hour, index: gusts(hour, index) + 1 + index**2))
    report = world.report()
    assert not passes(report) and kinds(report) == {"gust": {"recomputed"}}


kmh = {"gust_kmh": Float64("Strongest gust", unit="kilometer/hour")}


@on_demand(team="t", reads=[wind, trips], schema=kmh)
def rough(gust: pl.Expr) -> pl.Expr:
    """The gust in the metric system."""
    return gust * 1.609344


stored_kmh = replace(wind, schema={**WIND, **kmh})


@pytest.mark.parametrize("stored_online", [True, False])
def test_an_on_demand_feature_shadowed_by_a_column_is_caught(world: World, stored_online: bool) -> None:
    """Feast #5534: a stored column of its name is read on one side, and computed on the other."""
    rows = hourly(END).with_columns(gust_kmh=(pl.col("gust") * 1.6).round())
    world.offline(wind, rows, written=LONG_AGO)
    world.online(stored_kmh, NOON)
    stored, computed = model_of(stored_kmh[["gust", "gust_kmh"]]), model_of(wind[["gust"]], rough)
    bento, declared = (stored, computed) if stored_online else (computed, stored)
    report = world.report(declared, FeaturePlan.of(bento))
    assert not passes(report) and kinds(report) == {"gust_kmh": {"shadowed"}}
    one = report.differences[0]
    gust = gusts(36, PLACES.index(one.keys[KEY]))
    column, computes = float(round(gust * 1.6)), pytest.approx(gust * 1.609344)
    assert (one.online, one.offline) == ((column, computes) if stored_online else (computes, column))


def test_an_on_demand_feature_differs_because_of_its_input_or_its_function(world: World) -> None:
    """Each is named: an input that is late makes it late, also one that is no input of the model."""
    published(world)
    metric, only = model_of(wind, rough), model_of(rough)
    assert passes(world.report(metric, FeaturePlan.of(metric)))

    @on_demand(team="t", reads=[wind, trips], schema=kmh)
    def rough_(gust: pl.Expr) -> pl.Expr:
        return gust * 1.6

    other = model_of(wind, replace(rough_, name="rough"))
    assert kinds(world.report(other, FeaturePlan.of(metric))) == {"gust_kmh": {"another function"}}
    world.offline(wind, hourly(END, lambda hour, index: 2 * gusts(hour, index)))
    doubled = kinds(world.report(metric, FeaturePlan.of(metric)))
    assert doubled == {"gust": {"unit change"}, "gust_kmh": {"unit change"}}
    world.offline(wind, hourly(END))
    assert kinds(world.report(only, FeaturePlan.of(only), published=NOON + HOUR)) == {"gust_kmh": {"late row"}}


def test_a_view_that_is_never_published_is_named(world: World) -> None:
    """The model was trained on values that it will never be given."""
    published(world)
    offline_only = replace(wind, name="storm", online=False)
    world.offline(offline_only, hourly(END))
    declared = model_of(offline_only, crowd_view)
    assert kinds(world.report(declared, FeaturePlan.of(declared))) == {key: {"never online"} for key in WIND}


def test_a_feature_that_is_declared_no_longer_is_named(world: World) -> None:
    published(world)
    report = world.report(model_of(wind[["gust"]], crowd_view))
    assert not passes(report) and kinds(report) == {key: {"no longer declared"} for key in ["heat", "sky"]}


def test_a_share_that_was_declared_tolerable_passes(world: World) -> None:
    published(world, NOON - HOUR)
    world.online(wind, NOON, hourly(END).filter(pl.col(KEY) != "LGA"))
    report = world.report()
    assert report.share(report.skewed) == pytest.approx(1 / 6)
    assert not passes(report, 0.16) and passes(report, 0.17)


# -- which requests ---------------------------------------------------------------------------------------------


def test_answers_of_a_bento_that_reads_otherwise_say_nothing_of_this_one(world: World) -> None:
    """A skew that the new Bento mends does not hold it up; nor do features that the callers brought."""
    published(world)
    old = FeaturePlan.of(model_of(replace(wind, ttl=None), crowd_view))
    world.release(old, "t_m:0")
    world.ask(NOON + 12 * HOUR, old, "t_m:0")
    world.ask(NOON, tag="t_m:gone")
    world.ask(NOON, brought=True)
    report = world.report()
    assert report.origin == "sampled events" and passes(report)


def test_a_skew_that_was_mended_is_judged_by_what_is_online_now(world: World) -> None:
    """Its logged answers stay wrong; asked to, the gate looks events up anew."""
    published(world, NOON - HOUR)
    world.ask(NOON)
    published(world)
    assert "materialize with now_only" in feature_parity(world.report(), 0.0).reason and not passes(world.report())
    assert passes(world.report(now_only=True)) and world.report(now_only=True).origin == "sampled events"


def test_the_same_requests_are_drawn_each_time_and_no_more_than_declared(world: World) -> None:
    published(world)
    few = model_of(parity=Parity(rows=20))
    drawn = [[request.id for request in world.report(few).requests] for _ in range(2)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 20


def test_events_are_drawn_from_the_nearest_days_that_have_any(world: World) -> None:
    """Not "nothing to replay", because the newest days have no labels yet."""
    published(world)
    world.offline(trips, events().head(6), written=LONG_AGO)
    report = world.report(published=NOON)
    assert len(report.requests) == 6 and {request.at for request in report.requests} == {NOON}


def test_the_tables_of_predictions_are_read_before_the_log(world: World) -> None:
    """Newest day first, until there are enough; the log is asked for what came since the newest table."""
    from mlops_assets.links.predictions import logged

    published(world)
    for at in (NOON, NOON - DAY):
        world.ask(at)
    key = ["t", "m", "predictions"]
    for at in (NOON, NOON - DAY):
        world.lake.write(logged(world.model, world.log.read("t/m", at.date())), key, f"{at:%Y-%m-%d}")
    world.log = PredictionLog(world.root / "emptied")
    report = world.report(model_of(parity=Parity(rows=3)))
    assert {request.at for request in report.requests} == {NOON} and passes(report)
    assert len(world.report().requests) == 6
    world.ask(NOON + 2 * HOUR)
    report = world.report(model_of(parity=Parity(rows=3)))
    assert {request.at for request in report.requests} == {NOON + 2 * HOUR}


def test_only_partitions_that_a_request_can_see_are_read(world: World) -> None:
    """A year of other days costs nothing: what lies there may even be unreadable."""
    published(world)
    for day in ("2013-06-20", "2013-07-20"):
        world.lake.path(asset_key(wind), day).write_text("not Parquet")
    assert passes(world.report())


def test_a_view_that_is_not_offline_is_an_error_that_names_it(world: World) -> None:
    published(world)
    for day in world.lake.partitions(asset_key(wind)):
        world.lake.path(asset_key(wind), day).unlink()
    with pytest.raises(NotMaterializedError, match="t/offline/wind"):
        world.report()


# -- the law --------------------------------------------------------------------------------------------------

numbers = st.none() | st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
moments = st.integers(0, 72).map(lambda number: START - DAY + number * 40 * MINUTE)
histories = st.dictionaries(
    st.tuples(st.sampled_from(PLACES), moments), st.tuples(numbers, numbers), min_size=1, max_size=20
)
ttls = st.sampled_from([None, HOUR, 5 * HOUR, 3 * DAY])


@dataclass
class Drawn:
    """Views `v0`, `v1` ... of two features each, published online as of a moment."""

    world: World
    views: Sequence[FeatureView]
    at: datetime

    @classmethod
    def of(cls, root: str, drawn: Sequence[tuple[timedelta | None, Mapping[Any, Any]]], at: datetime) -> Drawn:
        views = []
        for index, (ttl, _) in enumerate(drawn):
            schema = {f"v{index}_{part}": Float64("A number", max_null_share=1) for part in "ab"}
            cold = Constant({f"v{index}_a": 1.5}) if index else None
            views.append(replace(wind, name=f"v{index}", ttl=ttl, schema=schema, cold_start=cold))
        world = World(Path(root), model_of(*views))
        world.offline(trips, events().head(6))
        for view, (_, history) in zip(views, drawn, strict=True):
            rows = [
                {KEY: key, TIME: when, **dict(zip(view.schema, row, strict=True))}
                for (key, when), row in history.items()
            ]
            floats = dict.fromkeys(view.schema, pl.Float64)
            world.offline(view, pl.DataFrame(rows, schema_overrides={TIME: pl.Datetime("us", "UTC"), **floats}))
            world.online(view, at)
        return cls(world, views, at)

    @property
    def report(self) -> Report:
        return self.world.report(now_only=True, published=self.at)

    def count(self, view: FeatureView) -> int:
        return self.world.store.count(f"t__{view.name}")

    def held(self) -> Iterator[tuple[str, tuple[str], int, dict[str, Any], str]]:
        """Every number that is online."""
        for view in self.views:
            table = f"t__{view.name}"
            for name, row in zip(PLACES, self.world.store.read(table, [(name,) for name in PLACES]), strict=True):
                for feature, value in row[1].items() if row else ():
                    if value is not None:
                        yield table, (name,), row[0], row[1], feature


@settings(max_examples=60)
@given(drawn=st.lists(st.tuples(ttls, histories), min_size=1, max_size=3), at=moments, data=st.data())
def test_published_from_offline_is_alike_and_one_perturbed_value_is_named_alone(
    drawn: Sequence[tuple[timedelta | None, Mapping[Any, Any]]], at: datetime, data: st.DataObject
) -> None:
    """Whatever the views, ttls and rows; then one stored value is moved beyond the tolerance."""
    with TemporaryDirectory() as root:
        here = Drawn.of(root, drawn, at)
        report = here.report
        assert report.differences == () and (report.requests or not any(map(here.count, here.views)))
        if not (held := list(here.held())):
            return
        table, key, event, features, feature = data.draw(st.sampled_from(held))
        moved = features[feature] + data.draw(st.sampled_from([-1, 1])) * 3e-6 * max(1.0, abs(features[feature]))
        here.world.store.write(table, [(key, event, {**features, feature: moved})])
        found = {(one.feature, one.keys[KEY], one.online, one.offline) for one in here.report.differences}
        assert found == {(feature, *key, moved, features[feature])}
        here.world.store.close()
