"""Automation over several ticks: what arrives is followed once, what is broken is not, and no tick asks for a flood.

The laws are shown on small assets that carry the conditions of `links.spec`, at a clock of the test's own,
and then on the real definitions with real flights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor
from dagster._serdes import deserialize_value, serialize_value

from mlops_assets.links import spec

TRAILING_DAYS = 3
daily = dg.DailyPartitionsDefinition("2024-01-01")
weekly = dg.WeeklyPartitionsDefinition("2024-01-01", day_offset=1, end_offset=1)
WINDOW = dg.TimeWindowPartitionMapping(start_offset=1 - TRAILING_DAYS, allow_nonexistent_upstream_partitions=True)
HISTORY = dg.TimeWindowPartitionMapping(start_offset=-520, end_offset=-1, allow_nonexistent_upstream_partitions=True)
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class Content(dg.Config):
    """What an asset publishes, and whether its blocking check holds."""

    version: str = "1"
    passes: bool = True


def daily_asset(name: str, deps: Sequence[Any], condition: dg.AutomationCondition[Any] | None) -> dg.AssetsDefinition:
    return asset(name, deps, condition, partitions_def=daily, backfill_policy=dg.BackfillPolicy.single_run())


def asset(
    name: str, deps: Sequence[Any], condition: dg.AutomationCondition[Any] | None, **options: Any
) -> dg.AssetsDefinition:
    @dg.asset(
        name=name,
        deps=deps,
        automation_condition=condition,
        check_specs=[dg.AssetCheckSpec("holds", asset=name, blocking=True)],
        **options,
    )
    def publish(config: Content) -> dg.MaterializeResult:
        return dg.MaterializeResult(
            data_version=dg.DataVersion(config.version),
            check_results=[dg.AssetCheckResult(check_name="holds", passed=config.passes)],
        )

    return publish


SOURCE = daily_asset("source", [], None)
REGISTRY = asset("registry", [], None)
VIEW = daily_asset("view", [dg.AssetDep(SOURCE, partition_mapping=WINDOW), REGISTRY], spec.on_whole_window())
ONLINE = asset("online", [VIEW], spec.on_arrival())
ENDPOINT = asset("endpoint", [], None)
LOGGED = daily_asset("logged", [ENDPOINT], spec.after_midnight())
TRUTH = daily_asset("truth", [], None)
REPORT = daily_asset(
    "report",
    [dg.AssetDep(item, partition_mapping=WINDOW) for item in (LOGGED, TRUTH)],
    spec.on_recent_arrival(timedelta(days=TRAILING_DAYS)),
)
TRAINING = asset(
    "training", [dg.AssetDep(VIEW, partition_mapping=HISTORY)], spec.at_each_cutoff(), partitions_def=weekly
)
CANDIDATE = asset("candidate", [TRAINING], spec.on_arrival(), partitions_def=weekly)
CHAMPION = asset("champion", [CANDIDATE], spec.on_arrival())
ASSETS = {
    item.key.to_user_string(): item
    for item in (SOURCE, REGISTRY, VIEW, ONLINE, ENDPOINT, LOGGED, TRUTH, REPORT, TRAINING, CANDIDATE, CHAMPION)
}
Requested = dict[str, set[str | None]]


@dataclass
class World:
    """Some definitions, an instance, a clock, and the automation's cursor between ticks."""

    instance: dg.DagsterInstance
    now: datetime
    defs: dg.Definitions
    cursor: AssetDaemonCursor | None = None

    def tick(self, **passed: float) -> Requested:
        """Let time pass and evaluate every condition; what is requested, by asset."""
        self.now += timedelta(**passed) if passed else timedelta(seconds=30)
        result = dg.evaluate_automation_conditions(
            self.defs, self.instance, evaluation_time=self.now, cursor=self.cursor
        )
        self.cursor = result.cursor
        keys = {item.key for item in result.results if isinstance(item.key, dg.AssetKey)}
        asked = {key.to_user_string(): set(result.get_requested_partitions(key)) for key in keys}
        assert result.total_requested == sum(map(len, asked.values()))
        return {name: partitions for name, partitions in asked.items() if partitions}

    def publish(self, name: str, first: str | None = None, last: str | None = None, **content: Any) -> bool:
        """Materialize an asset, for a day, for a range of days in one run, or as a whole."""
        ranged = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first}
        return dg.materialize(
            [ASSETS[name]],
            instance=self.instance,
            partition_key=first if ASSETS[name].partitions_def is weekly else None,
            tags={key: value for key, value in ranged.items() if value and ASSETS[name].partitions_def is daily},
            run_config={**QUIET, "ops": {name: {"config": content}}},
            raise_on_error=False,
        ).success

    def carry_out(self, requested: Requested, **content: Any) -> None:
        """Run what was requested."""
        for name, partitions in requested.items():
            for partition in sorted(partitions, key=str):
                self.publish(name, partition, **content)

    def settle(self, **content: Any) -> list[Requested]:
        """Tick and run what is requested until nothing is; every tick that asked for something."""
        ticks = []
        while (requested := self.tick()) and len(ticks) < 20:
            ticks.append(requested)
            self.carry_out(requested, **content)
        return ticks


@pytest.fixture
def world() -> Iterator[World]:
    """Days 1 to 9 of January 2024 are there and followed up; it is the afternoon of Wednesday the 10th."""
    with dg.DagsterInstance.ephemeral() as instance:
        world = World(instance, datetime(2024, 1, 10, 15, tzinfo=UTC), dg.Definitions(assets=list(ASSETS.values())))
        for name in ("registry", "endpoint"):
            world.publish(name)
        for name in ("source", "view", "truth"):
            world.publish(name, "2024-01-01", "2024-01-09")
        assert world.tick() == {}, "the first tick only looks"
        world.now += timedelta(hours=10)  # the 10th is over and may arrive
        yield world


def test_a_new_day_is_followed_once(world: World):
    """It makes the view of that day, then the online view; no later window asks for a day that has not come."""
    world.publish("source", "2024-01-10")
    assert world.settle() == [
        {"view": {"2024-01-10"}, "logged": {"2024-01-10"}},
        {"online": {None}, "report": {"2024-01-10"}},
    ]
    assert world.tick() == {}


def test_what_was_requested_is_not_requested_again_while_it_waits_or_after_it_failed(world: World):
    """A request that has not run yet, or whose run failed, stands; only news asks anew."""
    world.publish("source", "2024-01-10")
    assert world.tick()["view"] == {"2024-01-10"}
    assert [world.tick() for _ in range(3)] == [{}, {}, {}]
    world.publish("source", "2024-01-10", version="2")
    assert world.tick()["view"] == {"2024-01-10"}


def test_a_failed_blocking_check_holds_back_also_after_its_run(world: World):
    """However many ticks pass, nothing is built on it; when it is mended, the day is followed, once."""
    world.publish("source", "2024-01-10", version="bad", passes=False)
    asked = [world.tick() for _ in range(4)]
    assert not any("view" in requested for requested in asked)
    world.publish("source", "2024-01-10", version="good")
    assert world.tick()["view"] == {"2024-01-10"}
    assert "view" not in world.tick()


def test_a_refused_candidate_never_reaches_the_champion(world: World):
    """The gate is a blocking check: the candidate is kept, and the next one that passes goes on."""
    world.publish("candidate", "2024-01-08", version="1", passes=False)
    assert not any("champion" in requested for requested in (world.tick(), world.tick()))
    world.publish("candidate", "2024-01-08", version="2")
    assert world.tick()["champion"] == {None}


def test_a_correction_recomputes_the_windows_that_hold_it(world: World):
    """News of the 7th concern the windows of the 7th to the 9th, which are there, and no other."""
    world.publish("source", "2024-01-07", version="corrected")
    assert world.tick()["view"] == {"2024-01-07", "2024-01-08", "2024-01-09"}


def test_an_input_with_the_same_content_is_no_news(world: World):
    """A registry that is read anew every day, and did not change, recomputes no history."""
    world.publish("registry")
    assert "view" not in world.tick()
    world.publish("registry", version="2")
    assert world.tick()["view"] == {f"2024-01-0{day}" for day in range(1, 10)}


def test_a_window_with_a_hole_waits_for_it(world: World):
    """The 11th came before the 10th: its window would be two days instead of three."""
    world.now += timedelta(days=1)
    world.publish("source", "2024-01-11")
    assert "view" not in world.tick()
    world.publish("source", "2024-01-10")
    assert world.tick()["view"] == {"2024-01-10", "2024-01-11"}


def test_the_log_of_a_day_is_collected_after_midnight_whether_or_not_the_endpoint_changed(world: World):
    """Once a day; reports follow from the first day on, without a week of earlier ones, later in the same run."""
    assert world.settle() == [{"logged": {"2024-01-10"}}, {"report": {"2024-01-10"}}]
    assert [world.tick(hours=20), world.tick(hours=3, minutes=1)] == [{}, {}], "at 00:03 the day is still written down"
    assert world.tick(minutes=5) == {"logged": {"2024-01-11"}, "report": {"2024-01-11"}}
    assert world.tick(hours=20) == {}


def test_a_report_follows_the_truth_that_comes_later_and_waits_while_there_is_none(world: World):
    """What became known of a day makes that day's report again; a window without any truth makes none at all."""
    world.settle()
    world.publish("truth", "2024-01-10")
    assert world.tick() == {"report": {"2024-01-10"}}
    world.now = datetime(2024, 2, 1, 3, tzinfo=UTC)
    assert world.tick() == {"logged": {"2024-01-31"}}


def test_an_older_day_of_the_log_makes_no_report_of_days_that_know_nothing_new(world: World):
    """Reports are of the newest days; a log collected again for another day is not reported on by itself."""
    world.settle()
    world.publish("logged", "2024-01-03", version="again")
    assert "report" not in world.tick()


def test_a_cutoff_is_trained_from_its_first_moment_and_once(world: World):
    """On Monday the 15th at 00:00 that day's cutoff is there; it waits for Sunday's features and is asked for once."""
    for day in range(10, 14):
        world.publish("source", f"2024-01-{day}")
        world.publish("view", f"2024-01-{day}")
    world.now = datetime(2024, 1, 15, tzinfo=UTC)
    assert "training" not in world.tick()
    world.publish("source", "2024-01-14")
    ticks = world.settle()
    assert [tick["training"] for tick in ticks if "training" in tick] == [{"2024-01-15"}]
    assert [tick["candidate"] for tick in ticks if "candidate" in tick] == [{"2024-01-15"}]
    assert sum("champion" in tick for tick in ticks) == 1


def test_a_new_release_scores_no_past_day_again():
    """Events and features are a reason to score a recent day; who answers by now is none, but there must be someone."""
    scores = daily_asset("scores", [SOURCE, ENDPOINT], spec.on_recent_arrival(timedelta(days=3), ENDPOINT.key))
    with dg.DagsterInstance.ephemeral() as instance:
        defs = dg.Definitions(assets=[SOURCE, ENDPOINT, scores])
        world = World(instance, datetime(2024, 1, 11, 3, tzinfo=UTC), defs)
        world.publish("source", "2024-01-01", "2024-01-09")
        world.tick()
        world.publish("source", "2024-01-10")
        assert world.tick() == {}, "there is no release to score with"
        world.publish("endpoint", version="1")
        world.publish("source", "2024-01-09", version="2")
        assert world.tick()["scores"] >= {"2024-01-09"}
        world.publish("endpoint", version="2")
        assert world.tick() == {}
        world.publish("source", "2024-01-02", version="2")
        assert world.tick() == {}, "an old day"


@pytest.mark.parametrize("first_tick", ["before", "after"])
def test_a_year_that_arrives_at_once_trains_no_more_than_the_newest_cutoff(first_tick: str):
    """366 days of views and 53 cutoffs behind them: whether the daemon starts before or after, there is no flood."""
    with dg.DagsterInstance.ephemeral() as instance:
        world = World(instance, datetime(2024, 12, 31, 15, tzinfo=UTC), dg.Definitions(assets=list(ASSETS.values())))
        if first_tick == "before":
            assert world.tick() == {}
        for name in ("source", "view"):
            world.publish(name, "2024-01-01", "2024-12-30")
        ticks = world.settle()
        asked = {name: set().union(*(tick.get(name, set()) for tick in ticks)) for name in ASSETS}
        assert asked["training"] <= {"2024-12-30"} and asked["candidate"] <= {"2024-12-30"}
        assert sum(len(partitions) for tick in ticks for partitions in tick.values()) <= 4


# -- the real definitions -----------------------------------------------------------------------------

VIEWS = (
    *("aircraft_embedding", "aircraft_embedding_cold_start", "aircraft_use", "aircraft_use_cold_start"),
    *("carrier_punctuality", "origin_congestion", "route_punctuality", "weather_hourly"),
)
LINKS = ("raw_flights", "raw_weather", "raw_planes", "arrivals")


@pytest.fixture
def flights(home: object) -> Iterator[World]:
    """The real definitions, watched from before the first twelve days of 2013 are filled, years later."""
    from mlops_assets.definitions import defs

    with dg.DagsterInstance.ephemeral() as instance:
        world = World(instance, datetime(2026, 1, 1, 15, tzinfo=UTC), defs)
        assert world.tick() == {}
        yield world


def fill(world: World, first: str, last: str, *names: str) -> None:
    """Run the tables' job, or some assets alone, for a range of days."""
    alone = [dg.AssetKey(["flights", *name.split("/")]) for name in names]
    job = world.defs.resolve_implicit_global_asset_job_def() if alone else world.defs.resolve_job_def("flights__tables")
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    assert job.execute_in_process(QUIET, world.instance, tags=tags, asset_selection=alone or None).success


def test_the_real_tables_follow_a_day_once_and_nothing_floods(flights: World):
    """A backfill, then a day of flights alone, then of weather: each asks for what stands on it, that day, once.

    Stand-ins are asked for with their views, and wait for no day before the first.
    """
    fill(flights, "2013-01-01", "2013-01-12")
    online = {f"flights/online/{view}": {None} for view in VIEWS}
    assert flights.tick() == online, "the backfill's own run computed all else; no day beyond it, no cutoff, no report"
    assert flights.tick() == {}

    fill(flights, "2013-01-13", "2013-01-13", "raw_flights", "raw_planes")
    asked = flights.tick()
    on_flights = [f"offline/{view}" for view in VIEWS if view != "weather_hourly"] + ["arrivals"]
    assert asked == {f"flights/{name}": {"2013-01-13"} for name in on_flights}, "the registry did not change"
    assert flights.tick() == {}

    fill(flights, "2013-01-13", "2013-01-13", *on_flights)
    assert flights.tick() == {name: {None} for name in online if "weather" not in name}
    fill(flights, "2013-01-13", "2013-01-13", "raw_weather")
    assert flights.tick() == {"flights/offline/weather_hourly": {"2013-01-13"}}
    assert flights.tick() == {}


def test_the_daemon_can_evaluate_every_condition():
    """It gets them from the code location in writing; a condition of our own kind it would not know."""
    from mlops_assets.definitions import defs

    conditions = [spec.automation_condition for spec in defs.resolve_all_asset_specs() if spec.automation_condition]
    assert len(conditions) > 20
    assert all(deserialize_value(serialize_value(condition)) == condition for condition in conditions)


def test_a_daemon_that_starts_after_the_work_asks_for_nothing(flights: World):
    """What `make demo` left is no news to the `make up` that follows it."""
    fill(flights, "2013-01-01", "2013-01-12")
    flights.cursor = None
    assert [flights.tick() for _ in range(3)] == [{}, {}, {}]
    midnight = flights.tick(hours=10)
    assert {name.rsplit("/", 1)[-1] for name in midnight} <= {"predictions", "drift_report", "quality_report"}
    newest = {"flights": {"2014-01-01"}, "vision": {"2024-01-25"}}
    assert all(partitions == newest[name.partition("/")[0]] for name, partitions in midnight.items())
