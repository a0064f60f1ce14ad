"""kill -9 of a run's worker at each link of the chain: nothing half done is seen, and running it again mends all.

The first half kills a link before what it made can be seen: all is as it was. The second half kills between two steps
that cannot be one: what is seen is one or the other, and the next run completes it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import FIRST_CUTOFF
from faults.dying import Do, Kill, ended, kill_during
from faults.seen import agreed, noticed, online_alike, seen, told_versions, unfinished

if TYPE_CHECKING:
    from conftest import Platform

pytestmark = pytest.mark.slow

DAY, NEXT_DAY, THIRD_DAY = "2013-07-01", "2013-07-02", "2013-07-03"
EVENING = datetime(2013, 7, 1, 22, tzinfo=UTC)


def table(name: str, day: str) -> Do:
    return Do("run", name, partition=day, model=False)


def of_model(link: str, partition: str | None = None) -> Do:
    return Do("run", link, partition=partition)


CANDIDATE, CHAMPION, BENTO, ENDPOINT = (
    of_model("candidate", FIRST_CUTOFF),
    of_model("champion"),
    of_model("bento"),
    of_model("endpoint"),
)
ONLINE = Do("publish_online", EVENING, "weather_hourly")
# By link: what was done before, what is killed, and where.
UNSEEN: dict[str, tuple[list[Do], Do, Kill]] = {
    "raw source": ([], table("raw_flights", THIRD_DAY), Kill("os:replace", "raw_flights")),
    "feature view": ([], table("offline/weather_hourly", NEXT_DAY), Kill("os:replace", "weather_hourly")),
    "labels": ([], table("arrivals", NEXT_DAY), Kill("os:replace", "arrivals")),
    "online view": ([], ONLINE, Kill("resources.online.packed_store:_older")),
    "training set": ([], of_model("training_set", FIRST_CUTOFF), Kill("os:replace", "training_set")),
    "candidate": ([], CANDIDATE, Kill("mlops_assets.training:_publish")),
    "champion": ([], CHAMPION, Kill("resources.champions:ChampionStore._append")),
    "bento": ([CHAMPION], BENTO, Kill("os:rename", "bentos")),
    "endpoint": ([CHAMPION, BENTO], ENDPOINT, Kill("resources.releases:_publish")),
    "predictions": ([], of_model("predictions", DAY), Kill("os:replace", "predictions")),
    "scores": ([], of_model("scores", DAY), Kill("os:replace", "scores")),
    "drift report": ([], of_model("drift_report", DAY), Kill("os:replace", "drift.html")),
    "performance report": ([], of_model("performance_report", DAY), Kill("os:replace", "performance.html")),
    "quality report": ([], of_model("quality_report", DAY), Kill("os:replace", "quality.html")),
}


@pytest.mark.parametrize("link", UNSEEN)
def test_a_worker_killed_before_it_publishes_changed_nothing(shop: Platform, link: str) -> None:
    """All that readers, callers and people see is as it was; the same run again succeeds and leaves nothing behind."""
    before, work, kill = UNSEEN[link]
    succeeded(shop, before)
    was, begun = seen(shop), unfinished(shop.home)
    kill_during(shop.home, work, kill)
    assert seen(shop) == was
    noticed(shop)
    for left in unfinished(shop.home) - begun:
        long_ago(shop.home / left)
    succeeded(shop, [work])
    assert unfinished(shop.home) <= begun
    assert not shop.mlflow_runs("RUNNING")
    agreed(shop)


def no_more_versions_than_trainings(shop: Platform) -> None:
    """The killed one and the one after it made a single version, in a single MLflow run that ended well."""
    assert shop.published["versions"] == ["3", "2", "1"]
    assert [run.info.status for run in shop.mlflow_runs()] == ["FINISHED"] * 3


def the_second_is_champion(shop: Platform) -> None:
    assert shop.published["alias"] == "2" == shop.published["moves"][-1].after


def one_bento_a_version(shop: Platform) -> None:
    versions = shop.promotion.mlflow.versions(shop.model.registered_name)
    assert {version.tags["bento"] for version in versions} == set(shop.published["bentos"])
    assert len(shop.published["bentos"]) == 2


def the_canary_began_once(shop: Platform) -> None:
    assert [change.action for change in shop.published["changes"]] == ["release", "start canary"]


HALFWAY: dict[str, tuple[list[Do], Do, Kill, Callable[[Platform], None]]] = {
    "candidate, logged but not registered": (
        [],
        CANDIDATE,
        Kill("resources.mlflow:MlflowResource.log_directory", after=True),
        no_more_versions_than_trainings,
    ),
    "candidate, registered but not told to Dagster": (
        [],
        CANDIDATE,
        Kill("resources.mlflow:MlflowResource.register", after=True),
        no_more_versions_than_trainings,
    ),
    "champion, written down but not moved": (
        [],
        CHAMPION,
        Kill("resources.champions:ChampionStore._append", after=True),
        the_second_is_champion,
    ),
    "bento, built but unknown to the registry": (
        [CHAMPION],
        BENTO,
        Kill("os:rename", "bentos", after=True),
        one_bento_a_version,
    ),
    "endpoint, moved but not in the history": (
        [CHAMPION, BENTO],
        ENDPOINT,
        Kill("resources.releases:_publish", after=True),
        the_canary_began_once,
    ),
    "online view, published but not told to Dagster": (
        [],
        ONLINE,
        Kill("resources.feast:FeastResource.write_online", after=True),
        online_alike,
    ),
}


@pytest.mark.parametrize("moment", HALFWAY)
def test_a_worker_killed_between_two_steps_is_completed_by_the_next_run(shop: Platform, moment: str) -> None:
    """Nothing is done twice, nothing is left undone, and the stores agree."""
    before, work, kill, law = HALFWAY[moment]
    succeeded(shop, before)
    kill_during(shop.home, work, kill)
    noticed(shop)
    succeeded(shop, [work])
    law(shop)
    agreed(shop)
    assert not shop.mlflow_runs("RUNNING")


def test_a_training_killed_at_any_moment_is_completed_by_the_next(shop: Platform) -> None:
    """The whole job, killed at random moments one after the other: each version is one that Dagster was told of."""
    chance, work = random.Random(20131107), Do("train")
    codes = []
    for _ in range(4):
        codes.append(ended(shop.home, work, within=chance.uniform(0.5, 6)))
        noticed(shop)
    assert -9 in codes
    succeeded(shop, [work])
    assert told_versions(shop) == set(shop.published["versions"])
    assert not shop.mlflow_runs("RUNNING")
    agreed(shop)


def succeeded(shop: Platform, works: list[Do]) -> None:
    for work in works:
        ran = work(shop)
        assert ran.ok, ran.trouble


def long_ago(path: Path) -> None:
    """As if it had been left the day before yesterday."""
    os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
