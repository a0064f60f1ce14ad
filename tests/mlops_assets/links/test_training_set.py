"""A training set that sees the future is not published: each leak fails the check that is named for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from feature_assets.flights.aircraft import aircraft_use
from feature_assets.flights.weather import weather_hourly
from mlops_assets.catalog import asset_key
from mlops_assets.links import training_set
from mlops_assets.links.training_set import known_by, nothing_after, null_rates, point_in_time_rows, proof, stored_views
from resources import point_in_time

if TYPE_CHECKING:
    from conftest import Platform

CUTOFF, KEY = "2013-07-01", "flights/late_arrival/training_set"
MOMENT = datetime(2013, 7, 1, tzinfo=UTC)
LEAK, PROOF = "nothing_after_the_cutoff", "point_in_time_proof"
honest_join = point_in_time.point_in_time_join


def frames(platform: Platform) -> dict[str, pl.LazyFrame]:
    """What the asset is given: the spine and every view of the model."""
    scan = platform.resources["lake"].scan
    views = {name: scan(asset_key(view)) for name, view in stored_views(platform.model).items()}
    return {"spine": scan("flights/arrivals"), **views}


def without_a_time_bound(spine: pl.LazyFrame, views: Any) -> pl.LazyFrame:
    """The newest row of each key, whenever it came: what a plain join on the latest table does."""
    for view in views:
        ordered, keys = view.frame.sort("event_timestamp"), list(view.keys)
        newest = ordered.unique(keys, keep="last") if keys else ordered.last()
        seen = {view.matched_at: "event_timestamp"} if view.matched_at else {}
        columns = newest.select(*keys, **seen, **{output: name for name, output in view.features.items()})
        on = {"left_on": list(view.keys.values()), "right_on": keys, "how": "left"} if keys else {"how": "cross"}
        spine = spine.join(columns, **on)
    return spine


def an_hour_ahead(spine: pl.LazyFrame, views: Any) -> pl.LazyFrame:
    """Right but for an offset, such as a time zone taken for another."""
    ahead = spine.with_columns(pl.col("event_timestamp") + timedelta(hours=1))
    return honest_join(ahead, views).with_columns(pl.col("event_timestamp") - timedelta(hours=1))


def without_ttl(spine: pl.LazyFrame, views: Any) -> pl.LazyFrame:
    """A value is used however old it is."""
    return honest_join(spine, [dataclasses.replace(view, ttl=None) for view in views])


def dropping_events(spine: pl.LazyFrame, views: Any) -> pl.LazyFrame:
    """An inner join: an event whose features are missing is lost, as in Feast's dask store."""
    return honest_join(spine, views).drop_nulls("temp")


def doubling_events(spine: pl.LazyFrame, views: Any) -> pl.LazyFrame:
    """Two rows match: the event counts twice."""
    joined = honest_join(spine, views)
    return pl.concat([joined, joined.head(1)])


@pytest.mark.parametrize(
    "join",
    [without_a_time_bound, an_hour_ahead, without_ttl, dropping_events, doubling_events],
    ids=lambda j: j.__name__,
)
def test_a_wrong_join_fails_the_proof_and_publishes_nothing(
    join: Callable[..., pl.LazyFrame], platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with it; the training set of before stands, and no model is trained on the wrong one."""
    lake = platform.resources["lake"]
    nothing = lake.scan(asset_key(weather_hourly)).collect().clear()
    lake.write_partitions({f"2013-06-{day}": nothing for day in range(15, 25)}, asset_key(weather_hourly))
    before = lake.path(KEY, CUTOFF).read_bytes()
    monkeypatch.setattr(point_in_time, "point_in_time_join", join)
    ran = platform.train(CUTOFF)
    assert not ran.ok and ran.failed - {"null_rates"} == {PROOF} and not ran.facts
    assert lake.path(KEY, CUTOFF).read_bytes() == before
    assert platform.published["versions"] == ["1"]


def test_a_row_moved_to_the_past_fails_the_proof(platform: Platform) -> None:
    """Features that a tampered copy shows an hour early are not those of the published view."""
    given = frames(platform)
    early = pl.col("event_timestamp") - timedelta(hours=1)
    tampered = {**given, "view_weather_hourly": given["view_weather_hourly"].with_columns(event_timestamp=early)}
    spine = known_by(given["spine"], MOMENT, None)
    claim = proof(platform.model, point_in_time_rows(platform.model, spine, tampered), spine, given)
    assert not claim.passed and "temp" in claim.reason and "carrier_mean_delay_7d" not in claim.reason
    assert proof(platform.model, point_in_time_rows(platform.model, spine, given), spine, given).passed


def test_a_label_known_after_the_cutoff_fails_the_leak_check(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spine that forgets when its labels became known is refused, with an example of what it let in."""
    monkeypatch.setattr(
        training_set, "known_by", lambda spine, cutoff, _: spine.filter(pl.col("event_timestamp") < cutoff)
    )
    ran = platform.train(CUTOFF)
    assert not ran.ok and ran.failed == {LEAK} and "label_known_at" in ran.checks[LEAK].description
    assert platform.published["versions"] == ["1"]


def test_an_event_after_the_cutoff_fails_the_leak_check(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its label is, by a fault of the table, older than the event."""
    lake = platform.resources["lake"]
    spoilt = lake.scan("flights/arrivals", ["2013-06-30"]).with_columns(
        event_timestamp=pl.lit(MOMENT + timedelta(hours=1)), label_known_at=pl.lit(MOMENT)
    )
    lake.write(spoilt, "flights/arrivals", "2013-06-30")
    known = pl.col("label_known_at") <= MOMENT
    monkeypatch.setattr(training_set, "known_by", lambda spine, *_: spine.filter(known))
    assert platform.train(CUTOFF).failed == {LEAK}


def test_what_is_known_by_a_cutoff(platform: Platform) -> None:
    """Event before it, label at it or before; a window takes only the newest. The check agrees on every row."""
    spine = frames(platform)["spine"]
    known = known_by(spine, MOMENT, None).collect()
    everything = spine.collect()
    assert 0 < everything.height - known.height < 400, "those in the air at the cutoff"
    assert nothing_after(known, MOMENT).passed and not nothing_after(everything, MOMENT).passed
    recent = known_by(spine, MOMENT, timedelta(days=3)).collect()
    assert recent["event_timestamp"].min() >= MOMENT - timedelta(days=3) and 0 < recent.height < known.height


def test_the_same_rows_are_the_same_version(platform: Platform) -> None:
    """Materializing again changes no byte and no data version, whatever order the tables' rows come in."""
    lake = platform.resources["lake"]
    before = lake.path(KEY, CUTOFF).read_bytes()
    lake.write(lake.scan("flights/arrivals", ["2013-06-20"]).reverse(), "flights/arrivals", "2013-06-20")
    first, second = platform.run("training_set", partition=CUTOFF), platform.run("training_set", partition=CUTOFF)
    assert first.ok and second.ok
    assert first.facts["training_set"]["content_hash"] == second.facts["training_set"]["content_hash"]
    assert lake.path(KEY, CUTOFF).read_bytes() == before


def test_views_without_rows_are_told_and_trained_without(platform: Platform) -> None:
    """Their features, numbers and text, are null: a failed warning names them, and the model learns from the others."""
    lake = platform.resources["lake"]
    for view in (weather_hourly, aircraft_use):
        nothing = lake.scan(asset_key(view)).collect().clear()
        lake.write_partitions(dict.fromkeys(lake.partitions(asset_key(view)), nothing), asset_key(view))
    ran = platform.run("training_set", "candidate", partition=CUTOFF)
    assert ran.ok, ran.trouble
    assert ran.failed == {"null_rates"} and platform.published["versions"] == ["2", "1"]
    assert all(name in ran.checks["null_rates"].description for name in ("temp", "aircraft_manufacturer"))
    assert ran.facts["training_set"]["dagster/row_count"] > 10_000


def test_a_cutoff_before_all_data_names_what_to_materialize(platform: Platform) -> None:
    """No table at all, and tables without a label known by then: both say which asset to fill."""
    unfilled = platform.run("training_set", partition="2013-02-04")
    assert not unfilled.ok and "Materialize 'flights/arrivals" in unfilled.trouble
    lake = platform.resources["lake"]
    nothing = lake.scan("flights/arrivals").collect().clear()
    lake.write_partitions(dict.fromkeys(lake.partitions("flights/arrivals"), nothing), "flights/arrivals")
    unlabelled = platform.run("training_set", partition=CUTOFF)
    assert not unlabelled.ok and "no labelled event known by 2013-07-01" in unlabelled.trouble
    assert "Materialize labels 'flights/arrivals'" in unlabelled.trouble


def test_null_rates_name_what_is_nearly_always_missing() -> None:
    """Up to nine rows in ten may lack a value; beyond that the warning gives the column and its share."""
    rows = pl.DataFrame({"a": [1.0] + [None] * 9, "b": [None] * 10})
    claim = null_rates(rows, ("a", "b"))
    assert not claim.passed and not claim.blocking and "'b': '100%'" in claim.reason and "'a'" not in claim.reason
