"""The three reports of a day over real flights: a broken pipeline, a changed world and a day as usual told apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from mlops_assets import Monitor
from mlops_assets.catalog import asset_key
from mlops_assets.links import drift_report, performance_report, quality_report
from mlops_assets.links.predictions import logged
from mlops_assets.links.reports import Window
from mlops_assets.links.training_set import point_in_time_rows, stored_views
from resources.bentos import UnknownBentoError

if TYPE_CHECKING:
    from conftest import Platform, Ran

    from mlops_assets.monitoring.performance import PerformanceResult

TABLE = "flights/late_arrival/predictions"
FIRST = date(2013, 7, 2)
HEALTHY, OUTAGE, AFTER, SHIFTED = (FIRST + timedelta(days=number) for number in (1, 2, 3, 4))
WEATHER = "flights/weather_hourly"
HOURLY = (WEATHER, "flights/origin_congestion")
REPORTS = ("quality_report", "drift_report", "performance_report")
Change = Callable[[pl.DataFrame], pl.DataFrame]


def as_usual(rows: pl.DataFrame) -> pl.DataFrame:
    return rows


def without_weather(rows: pl.DataFrame) -> pl.DataFrame:
    """The hourly view is not published any more: its rows expired, and nulls stand in for them."""
    from feature_assets.flights.weather import weather_hourly

    said = json.dumps([{"view": WEATHER, "keys": {}, "reason": "expired", "used": "nulls"}])
    gone = [pl.lit(None).alias(name) for name in weather_hourly.schema]
    renamed = pl.col("event_times").str.replace(WEATHER, "nobody", literal=True)
    return rows.with_columns(*gone, event_times=renamed, fallbacks=pl.lit(said))


def another_fleet(rows: pl.DataFrame) -> pl.DataFrame:
    """Longer flights by bigger and older aircraft: sound values, and other ones."""
    return rows.with_columns(
        pl.col("distance", "planned_minutes", "route_air_time_28d") * 1.5,
        pl.col("aircraft_age") + 20,
        pl.col("aircraft_seats") + 150,
        pl.col("carrier_flights_7d", "route_flights_28d") * 5,
    )


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def answered(platform: Platform, day: date, change: Change = as_usual) -> None:
    """The day's prediction log as the platform publishes it: real flights, features as of each, the champion's word."""
    from mlops_assets.training import evaluate

    scan, model = platform.resources["lake"].scan, platform.model
    frames = {name: scan(asset_key(view)) for name, view in stored_views(model).items()}
    rows = point_in_time_rows(model, scan(asset_key(model.labels), [str(day)]), frames)
    release = platform.published["release"].champion.release
    hour = pl.col("at").dt.truncate("1h").dt.strftime("%Y-%m-%dT%H:%M:%S+00:00")
    used = [hour if item.view.id in HOURLY else pl.lit(midnight(day).isoformat()) for item in model.selections]
    times = pl.struct(one.alias(item.view.id) for one, item in zip(used, model.selections, strict=True))
    told = change(
        rows.rename({"event_timestamp": "at", model.labels.key: "request_id"}).with_columns(
            event_times=times.struct.json_encode(),
            fallbacks=pl.lit("[]"),
            latency_ms=pl.lit(2.0),
            release=pl.lit(release),
            version=pl.lit("1"),
            variant=pl.lit("champion"),
        )
    ).with_row_index("seq")
    told = told.with_columns(prediction=evaluate(platform.promotion.bentos.path(release), told))
    platform.resources["lake"].write(logged(model, told), TABLE, str(day))


@pytest.fixture(scope="module")
def watched(module_platform: Platform) -> Platform:
    """Two days as usual, one without weather, one as usual, and one of another fleet."""
    monitor = Monitor(window=timedelta(days=3), min_rows=100, drifted_share=0.2, null_share_rise=0.4)
    platform = module_platform.declared(monitor=monitor)
    assert platform.fill(str(FIRST), str(SHIFTED)).ok
    for day in (FIRST, HEALTHY, AFTER):
        answered(platform, day)
    answered(platform, OUTAGE, without_weather)
    answered(platform, SHIFTED, another_fleet)
    return platform


@pytest.fixture(scope="module")
def reported(watched: Platform) -> Ran:
    """The three reports of the day of the outage, as Dagster runs them."""
    ran = watched.run(*REPORTS, partition=str(OUTAGE))
    assert ran.ok, ran.trouble
    return ran


def window(platform: Platform, day: date, days: int = 3) -> Window:
    """What the reports of a day see: it and the days before."""
    names = [str(day - timedelta(days=back)) for back in range(days)]
    answers = platform.resources["lake"].scan(TABLE, names).collect()
    found = Window.of(platform.model, platform.promotion.bentos, answers, midnight(day))
    assert found is not None
    return found


def performance(seen: Window, platform: Platform, truth: pl.DataFrame | None = None) -> PerformanceResult:
    """Judged at the end of the day."""
    model, as_of = platform.model, midnight(seen.day) + timedelta(days=1)
    known = platform.resources["lake"].scan(asset_key(model.labels)).collect() if truth is None else truth
    return performance_report.judged(
        seen, performance_report.matched_answers(model, seen.sound, known, seen.release, as_of)
    )


def causes(ran: Ran, check: str) -> list[str]:
    said: list[str] = ran.checks[check].metadata["causes"].value  # type: ignore[assignment]
    return said


def test_every_report_says_its_day_verdict_rows_and_causes(reported: Ran) -> None:
    """What whoever decides reads of each of the three checks, and a page that people can open."""
    for link, check in zip(REPORTS, ("pipeline_healthy", "drift", "metric_drop"), strict=True):
        said = reported.checks[check].metadata
        assert said["day"].value == str(OUTAGE)
        assert {"verdict", "rows", "causes"} <= said.keys()
        page = Path(reported.facts[link]["report_file"]).read_text()
        assert causes(reported, check)
        assert all(f"<li>{escape(line)}</li>" in page for line in causes(reported, check))


def test_an_outage_is_the_pipelines_and_its_answers_judge_nobody(reported: Ran) -> None:
    """The view is named; drift and performance leave the day out, and say so beside the metric with it."""
    assert not reported.checks["pipeline_healthy"].passed
    named = causes(reported, "pipeline_healthy")
    assert named[0].startswith(f"pipeline: {WEATHER} had no usable row for 100% of")
    assert named[0].endswith("100% beyond its ttl")
    for link in ("drift_report", "performance_report"):
        facts = reported.facts[link]
        assert facts["rows_left_out"] > 500
        assert f"answers of {OUTAGE} are left out: {WEATHER} had no usable row" in facts["causes"][0]
    facts = reported.facts["performance_report"]
    assert facts["metric_with_left_out"] != facts["metric"]
    assert "predicted" in facts["calibration"]
    assert facts["calibration_error"] > 0


def test_late_rows_are_seen_in_what_the_offline_store_has_by_now(reported: Ran, watched: Platform) -> None:
    """On the day of the outage the weather was there offline; on a day as usual each answer used the newest row."""
    assert reported.facts["quality_report"]["late_share/weather_hourly"] == 1.0
    assert f"rows of {WEATHER} came too late for 100%" in causes(reported, "pipeline_healthy")[1]
    usual = quality_report.judged(window(watched, HEALTHY), watched.resources["lake"])
    assert usual.late[WEATHER] < 0.05


def test_a_day_as_usual_is_healthy(watched: Platform) -> None:
    """A real July day after a June training: nothing of the pipeline is named, and all of it is judged."""
    seen = window(watched, HEALTHY)
    result = quality_report.judged(seen, watched.resources["lake"])
    assert (result.verdict, [cause for cause in result.causes if cause.of == "pipeline"]) == ("healthy", [])
    assert quality_report.pipeline_healthy(result).passed
    assert seen.left_out == 0
    assert performance(seen, watched).rows > 1000


def test_after_the_repair_the_pipeline_is_healthy_and_the_rest_is_judged_anew(watched: Platform) -> None:
    """The outage's day stays left out as long as the window reaches it."""
    seen = window(watched, AFTER)
    assert quality_report.judged(seen, watched.resources["lake"]).verdict == "healthy"
    assert list(seen.spoilt) == [OUTAGE]
    assert seen.drift.rows == seen.answers.height - seen.left_out > 1000


def test_a_changed_world_is_named_with_its_columns(watched: Platform) -> None:
    """Another fleet for a day: drift by columns that are sound and moved, and the prediction's own verdict."""
    seen = window(watched, SHIFTED, days=1)
    claim = drift_report.no_drift(seen.drift, drift_report.causes_of(seen))
    assert not claim.passed
    assert all(cause.startswith("world: ") for cause in claim.numbers["causes"])
    assert any("carrier_flights_7d moved up, mean" in cause and "usual" in cause for cause in claim.numbers["causes"])
    assert claim.numbers["prediction_verdict"] in ("drift", "stable")
    assert "over what was usual while training" in seen.drift.rule


def test_labels_that_are_all_pending_or_of_one_class_give_no_verdict(watched: Platform) -> None:
    """Nothing that is not known yet counts as on time; a day on which all were late has no AUC, and is no drop."""
    seen = window(watched, HEALTHY, days=1)
    truth = watched.resources["lake"].scan(asset_key(watched.model.labels)).collect()
    nobody = performance(seen, watched, truth.clear())
    assert (nobody.verdict, nobody.rows, nobody.maturity.pending) == ("not enough rows", 0, seen.sound.height)
    all_late = performance(seen, watched, truth.with_columns(late=pl.lit(True)))
    assert (all_late.verdict, all_late.metric) == ("not enough rows", None)
    assert all_late.rows > 500
    assert performance_report.no_drop(all_late, []).passed


def test_an_older_bundle_is_judged_by_the_limit_and_one_that_is_gone_is_named(platform: Platform) -> None:
    """Without what was usual the rule says nothing of it; without the Bento nothing can be said at all."""
    assert platform.fill(str(FIRST), str(FIRST)).ok
    answered(platform, FIRST)
    release = platform.published["release"].champion.release
    bundle = platform.promotion.bentos.path(release)
    (bundle / "usual.json").unlink()
    assert "usual" not in window(platform, FIRST, days=1).drift.rule
    shutil.rmtree(bundle.parents[1])
    with pytest.raises(UnknownBentoError, match=f"No Bento '{release}'"):
        window(platform, FIRST, days=1)
