"""A Bento whose features differ online and offline is built, shown with what differs, and not released.

The story is told once on real flights, with the real stores, jobs and serving app; each test looks at one part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
import pytest

from feature_assets.flights.weather import weather_hourly
from mlops_assets.catalog import asset_key
from mlops_assets.demo import departures
from mlops_assets.links.bento import judged
from mlops_assets.parity.report import differences, here
from mlops_assets.promotion import NotPromotableError
from resources.lake import Lake

if TYPE_CHECKING:
    from conftest import Platform, Ran

DAY = datetime(2013, 6, 30, tzinfo=UTC)
CHECK, IN_TIME = "feature_parity", "features_in_time"


@dataclass
class Story:
    """What happened, by what had been done before."""

    platform: Platform
    ran: dict[str, Ran] = field(default_factory=dict)
    released: dict[str, Any] = field(default_factory=dict)
    differences: list[Any] = field(default_factory=list)

    def judge(self, what: str, *links: str) -> Ran:
        ran = self.ran[what] = self.platform.run(*(links or ("bento", "endpoint")))
        self.released[what] = self.platform.published["release"]
        return ran

    def said(self, what: str, check: str = CHECK) -> dg.AssetCheckEvaluation:
        return self.ran[what].checks[check]


@pytest.fixture(scope="module")
def story(module_platform: Platform) -> Story:
    platform, story = module_platform, Story(module_platform)
    story.judge("nothing online")
    online = platform.publish_online(DAY)
    assert online.ok, online.trouble
    story.judge("published")
    with platform.endpoint() as endpoint:
        for at, rows in departures(platform.model, DAY, DAY + timedelta(minutes=59)):
            endpoint.ask(rows, at)
    story.judge("answered")
    spoil_and_mend(story)
    return story


def spoil_and_mend(story: Story) -> None:
    """The day's temperatures are published again in another unit, under a new champion; then as they were."""
    platform, lake = story.platform, story.platform.resources["lake"]
    key = asset_key(weather_hourly)
    right = {day: lake.scan(key, [day]).collect() for day in ("2013-06-29", "2013-06-30")}
    celsius = (pl.col("temp") - 32) / 1.8
    lake.write_partitions({day: rows.with_columns(temp=celsius) for day, rows in right.items()}, key)
    assert platform.run("candidate", "champion", partition="2013-07-01").ok
    story.judge("unit changed")
    story.judge("asked for by itself", "endpoint")
    story.differences = list(here(platform.model).differences)
    with pytest.raises(NotPromotableError, match="version 2: its Bento reads features online that differ"):
        platform.promotion.promote(platform.model, "2", by="ann", why="in a hurry")
    with pytest.raises(NotPromotableError, match="version 2: its Bento"):
        platform.promotion.promote(platform.model, None, by="ann", why="in a hurry")
    lake.write_partitions(right, key)
    story.judge("mended")


def test_the_first_bento_has_nothing_to_replay_and_says_so(story: Story) -> None:
    said = story.said("nothing online")
    assert (
        said.passed and said.description.startswith("nothing to replay") and said.metadata["compared_rows"].value == 0
    )
    assert story.ran["nothing online"].ok


def test_events_are_looked_up_where_no_answer_is_logged(story: Story) -> None:
    """All features of two hundred flights, as the online assets published them through Feast."""
    said = story.said("published")
    assert said.passed and "200 sampled events of 2013-06-30 00:00" in said.description, said.description
    assert said.metadata["compared_rows"].value == 200 and said.metadata["differing_values"].value == 0
    assert said.metadata["compared_features"].value == len(story.platform.model.inputs) - 5


def test_answers_are_replayed_where_they_are_logged(story: Story) -> None:
    said = story.said("answered")
    assert said.passed and "logged answers of 2013-06-30 00:" in said.description, said.description
    assert said.metadata["compared_rows"].value > 10 and said.metadata["late_values"].value == 0
    assert story.said("answered", IN_TIME).passed


def test_a_skew_blocks_the_release_and_is_named_with_both_values(story: Story) -> None:
    """The endpoint asset is not run, the record stands, and the asset's page shows what differs and why."""
    ran, said = story.ran["unit changed"], story.said("unit changed")
    assert not ran.ok and ran.failed == {CHECK} and "endpoint" not in ran.facts and "bento" in ran.facts
    assert story.released["unit changed"] == story.released["answered"]
    assert "temp in" in said.description and "unit change: offline = 0.555556 x online -17.7778" in said.description
    table = said.metadata["differences"].value
    one = next(one for one in story.differences if one.feature == "temp")
    assert f"| temp | {one.online:.10g} | {one.offline:.10g} |" in table and "origin=" in table
    assert said.metadata["differing_features"].value.count("\n") == 2 and {d.feature for d in story.differences} == {
        "temp"
    }


def test_a_refused_bento_is_not_released_in_another_run_either(story: Story) -> None:
    """Nor by hand, as the story tried; until it is judged again and passes."""
    alone = story.ran["asked for by itself"]
    assert not alone.ok and "reads features online that differ from those offline" in alone.trouble
    assert story.released["asked for by itself"] == story.released["answered"]
    assert story.ran["mended"].ok and story.said("mended").passed
    assert {variant.version for variant in story.released["mended"].variants} == {"1", "2"}


def test_what_cannot_be_replayed_does_not_pass(story: Story, tmp_path: Path) -> None:
    """A view that is not offline, a plan that cannot be read: the checks say which, and nothing breaks off."""
    stores, tag = story.platform.resources, story.released["mended"].champion.release
    replay = partial(differences, lake=Lake(root=str(tmp_path / "empty")), store=stores["feast"].packed())
    same, in_time, tables = judged(story.platform.model, stores["bentos"], tag, replay)
    assert not same.passed and same.blocking and "no file in the lake" in same.reason and not tables
    assert not in_time.passed and not in_time.blocking
    stores["bentos"].path(tag).joinpath("plan.json").write_text("{}")
    same, _, _ = judged(story.platform.model, stores["bentos"], tag, replay)
    assert not same.passed and "plan.json cannot be used" in same.reason
