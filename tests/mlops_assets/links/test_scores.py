"""Batch scores: one for every event of the day, what the endpoint would answer; or an error that says what lacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from mlops_assets.demo import departures
from mlops_assets.links.online import publish_online
from mlops_assets.links.training_set import point_in_time_rows, stored_views
from resources.environment import PROJECT

if TYPE_CHECKING:
    from conftest import Platform

DAY, TABLE = "2013-06-30", "flights/late_arrival/scores"
HOUR = timedelta(hours=1)
SCORE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import conftest
with conftest._opened(Path(sys.argv[2])) as platform:
    print("begins", flush=True)
    platform.run("scores", partition=sys.argv[3], config={"rows": int(sys.argv[4])})
"""


def scored(platform: Platform) -> pl.DataFrame:
    frame: pl.DataFrame = platform.resources["lake"].scan(TABLE, [DAY]).collect()
    return frame


def chunks(platform: Platform) -> list[Path]:
    """What a run that broke off has left."""
    return sorted((platform.home / "work" / "scores" / "flights" / "late_arrival" / DAY).glob("*/[0-9]*.parquet"))


def test_every_event_of_the_day_has_one_score_and_again_the_same(platform: Platform) -> None:
    """By the champion, between 0 and 1; a second run is the same table byte for byte, however many rows it takes."""
    lake = platform.resources["lake"]
    first = platform.run("scores", partition=DAY)
    assert first.ok and not first.failed, first.trouble
    published = lake.path(TABLE, DAY).read_bytes()
    rows, events = scored(platform), lake.scan("flights/arrivals", [DAY]).collect()
    assert sorted(rows["flight_id"]) == sorted(events["flight_id"])
    assert rows["event_timestamp"].is_sorted()
    assert rows["prediction"].is_between(0, 1).all() and set(rows["version"]) == {"1"}
    assert platform.run("scores", partition=DAY).ok and lake.path(TABLE, DAY).read_bytes() == published
    small = platform.run("scores", partition=DAY, config={"rows": 60})
    assert small.ok and scored(platform).equals(rows)
    assert not chunks(platform) and not list(lake.path(TABLE, DAY).parent.glob(".*.tmp"))


def test_post_processing_is_beside_the_prediction(platform: Platform) -> None:
    """What an answer says of a flight, its score says too."""
    assert platform.run("scores", partition=DAY).ok
    rows = scored(platform)
    assert rows.schema["likely_late"] == pl.Boolean and rows.schema["risk"] == pl.String
    assert set(rows["risk"]) >= {"low", "raised"}
    assert rows.select((pl.col("likely_late") == (pl.col("prediction") >= 0.35)).all()).item()


def test_a_score_is_what_the_endpoint_answers(platform: Platform) -> None:
    """By features: every event of the day. By keys: every flight of three hours, each asked about at its minute."""
    ran = platform.run("scores", partition=DAY)
    assert ran.ok, ran.trouble
    stores, model = platform.resources, platform.model
    rows = {row["flight_id"]: row for row in scored(platform).to_dicts()}
    frames = {name: stores["lake"].scan(_key(view)) for name, view in stored_views(model).items()}
    joined = point_in_time_rows(model, stores["lake"].scan("flights/arrivals", [DAY]), frames)
    noon = datetime.fromisoformat(f"{DAY}T12:00:00+00:00")
    assert platform.publish_online(noon.replace(hour=0)).ok
    hourly = [view for view in platform.catalog.views if view.ttl and view.ttl < timedelta(days=1)]
    by_keys: list[dict[str, Any]] = []
    with platform.endpoint() as endpoint:
        given = [
            {"flight_id": row["flight_id"], "features": {name: row[name] for name in model.inputs}}
            for row in joined.to_dicts()
        ]
        by_features = endpoint.ask(given, noon)
        for now in (noon + number * HOUR for number in range(3)):
            for view in hourly:
                publish_online(stores["feast"], stores["lake"], view, now)
            for at, batch in departures(model, now, now + HOUR):
                by_keys += endpoint.ask(batch, at)
    known = [answer for answer in by_keys if answer["request_id"] in rows]  # a cancelled flight never arrives
    assert len(by_features) == len(rows) and len(known) > 100
    for answer in (*by_features, *known):
        row = rows[answer["request_id"]]
        assert answer["prediction"] == pytest.approx(row["prediction"], abs=1e-9)
        assert (answer["likely_late"], answer["risk"]) == (row["likely_late"], row["risk"])
        assert (answer["release"], answer["version"]) == (row["release"], row["version"])


def test_computed_features_are_those_of_the_release(platform: Platform) -> None:
    """Another trainer, features on demand, small chunks: still what the endpoint answers for the same inputs."""
    from mlops_assets import Gate, TimeSplit
    from mlops_assets.catalog import gather

    day = timedelta(days=1)
    model = gather().model("flights/departure_delay")
    assert model.on_demand
    declared = model.with_(split=TimeSplit(5 * day, 3 * day), gate=Gate("mae", at_most=100))
    other = replace(platform, model=declared)
    for ran in (other.train(), other.run("scores", partition=DAY, config={"rows": 50})):
        assert ran.ok, ran.trouble
    lake = other.resources["lake"]
    frames = {name: lake.scan(_key(view)) for name, view in stored_views(other.model).items()}
    joined = point_in_time_rows(other.model, lake.scan("flights/arrivals", [DAY]), frames).to_dicts()
    given = [
        {"flight_id": row["flight_id"], "features": {name: row[name] for name in other.model.inputs}} for row in joined
    ]
    with other.endpoint() as endpoint:
        answers = endpoint.ask(given, datetime.fromisoformat(f"{DAY}T12:00:00+00:00"))
    rows = lake.scan("flights/departure_delay/scores", [DAY]).collect()
    said = dict(rows.select("flight_id", "prediction").iter_rows())
    assert len(answers) == rows.height > 500
    assert all(answer["prediction"] == pytest.approx(said[answer["request_id"]], abs=1e-9) for answer in answers)


def _key(view: Any) -> Any:
    from mlops_assets.catalog import asset_key

    return asset_key(view)


def kill_while_scoring(platform: Platform, rows: int, after: int) -> int:
    """Score in a process of its own and kill -9 it when that many chunks are finished; how many there are then."""
    tests = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", SCORE, tests, str(platform.home), DAY, str(rows)]
    process = subprocess.Popen(
        command, cwd=PROJECT, env={**os.environ}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(chunks(platform)) < after:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(chunks(platform))


def test_a_killed_run_goes_on_where_it_stopped(platform: Platform) -> None:
    """kill -9: nothing is published, finished chunks are taken up, and the table is the one of a run in peace."""
    assert platform.run("scores", partition=DAY, config={"rows": 20}).ok
    path = platform.resources["lake"].path(TABLE, DAY)
    peaceful = path.read_bytes()
    path.unlink()
    left = kill_while_scoring(platform, 20, after=5)
    assert left >= 5 and not path.exists()
    resumed = platform.run("scores", partition=DAY, config={"rows": 20})
    assert resumed.ok and resumed.facts["scores"]["kept_from_a_run_that_broke_off"] == left
    assert path.read_bytes() == peaceful and not chunks(platform)


def test_chunks_of_other_data_or_another_release_are_never_taken(platform: Platform) -> None:
    """An event less: everything is scored anew. What lies under another key is deleted, whatever it says."""
    lake = platform.resources["lake"]
    assert kill_while_scoring(platform, 20, after=3) >= 3
    events = lake.scan("flights/arrivals", [DAY]).collect()
    lake.write(events.head(-1), "flights/arrivals", DAY)
    again = platform.run("scores", partition=DAY, config={"rows": 20})
    assert again.ok and again.facts["scores"]["kept_from_a_run_that_broke_off"] == 0
    assert scored(platform).height == events.height - 1

    assert kill_while_scoring(platform, 20, after=3) >= 3
    (directory,) = {chunk.parent for chunk in chunks(platform)}
    for chunk in directory.glob("[0-9]*.parquet"):
        pl.read_parquet(chunk).with_columns(prediction=pl.lit(9.0)).write_parquet(chunk)
    directory.rename(directory.with_name("of-another-release"))
    assert platform.run("scores", partition=DAY, config={"rows": 20}).ok
    assert scored(platform)["prediction"].max() < 1 and not chunks(platform)


def test_a_day_without_events_is_an_empty_table(platform: Platform) -> None:
    """Nothing departed: no score, no failed check, the same columns."""
    lake = platform.resources["lake"]
    assert platform.run("scores", partition=DAY).ok
    schema = scored(platform).schema
    lake.write(lake.scan("flights/arrivals", [DAY]).collect().clear(), "flights/arrivals", DAY)
    ran = platform.run("scores", partition=DAY)
    assert ran.ok and not ran.failed and scored(platform).height == 0 and scored(platform).schema == schema


def test_batch_scores_name_what_the_champion_reads_and_nobody_declares(platform: Platform) -> None:
    """And what to do about it; without any release they say that there is none."""
    fewer = [item for item in platform.model.selections if item.view.name != "aircraft_use"]
    ran = platform.declared(features=fewer).run("scores", partition=DAY)
    assert not ran.ok and "reads aircraft_age" in ran.trouble and "Train and release a candidate" in ran.trouble
    ran = platform.declared(name="untrained").run("scores", partition=DAY)
    assert not ran.ok and "model 'flights/untrained' has no release to score with" in ran.trouble


def test_a_release_of_before_says_what_is_declared_now_as_null(platform: Platform) -> None:
    """A column that the declaration has gained is there, empty, so that days of either release are one table."""
    from mlops_assets import Float64, PostProcessing

    more = PostProcessing("more", "flights", {"minutes": Float64("A guess")}, lambda prediction: prediction * 60)
    ran = platform.declared(postprocess=more).run("scores", partition=DAY)
    assert ran.ok, ran.trouble
    assert scored(platform)["minutes"].null_count() == scored(platform).height > 0
    assert "risk" not in scored(platform).columns
