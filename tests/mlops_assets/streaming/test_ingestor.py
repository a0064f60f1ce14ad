"""From the stream into both stores: exactly what a batch would publish, through kills, crowds and lost servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from mlops_assets.catalog import Catalog, UnknownDeclarationError
from mlops_assets.streaming import ingest, produce
from mlops_assets.streaming.dead_letters import dead_letter_path
from mlops_assets.streaming.ingestor import NotStreamedError
from resources.environment import PROJECT

if TYPE_CHECKING:
    from conftest import Sensors

READINGS = "sensors/readings"


@pytest.fixture(autouse=True)
def no_dagster(home: Path) -> None:
    """No ingestor needs one: a file lies where Dagster's home would be."""
    home.mkdir(parents=True)
    (home / "dagster").write_text("in the way")


def quiet(_line: str) -> None:
    """Progress is nobody's business here."""


def take(sensors: Sensors, **options: Any) -> Any:
    """Everything that is in the stream."""
    options = {"once": True, "max_wait": 0.0, "tell_every": 1e9, "say": quiet, "catalog": sensors.catalog, **options}
    return ingest(READINGS, **options)


@pytest.mark.parametrize("seed", [1, 2])
def test_both_stores_hold_what_a_batch_would_publish(home: Path, sensors: Sensors, same_tables: Any, seed: int) -> None:
    """After shuffled, late and repeated events in many batches; a row online is the newest whose time has come."""
    events = sensors.events(seed, 150)
    arriving = sensors.disturbed(events, seed)
    for start in range(0, len(arriving), 60):
        produce(READINGS, arriving[start : start + 60], sensors.catalog)
        done = take(sensors, limit=25)
    assert done.refused == 0 and done.held_back == {}
    wanted = sensors.batch(arriving)
    same_tables(sensors.lake(), wanted)
    assert sensors.online() == sensors.newest(wanted)


def test_plain_feast_reads_what_the_stream_wrote(home: Path, sensors: Sensors) -> None:
    """The same rows in Feast's own format."""
    from resources.feast import FeastResource

    produce(
        READINGS, [sensors.event("a", 1, 2.0), sensors.event("a", 3, 4.0), sensors.event("b", 2, 1.0)], sensors.catalog
    )
    take(sensors)
    keys = [("a",), ("b",), ("c",)]
    answers = FeastResource().read_online("sensors__recent", keys, ["mean_6h", "n_6h"])
    assert answers == [{"mean_6h": 3.0, "n_6h": 2.0}, {"mean_6h": 1.0, "n_6h": 1.0}, {"mean_6h": None, "n_6h": None}]


def test_bad_events_are_laid_aside_with_the_reason_and_stop_no_other(home: Path, sensors: Sensors) -> None:
    """Each is named by its offset, once, however often it is given; the good ones beside it are published."""
    good = [sensors.event("a", hour, 1.0) for hour in range(3)]
    bad = [{**good[0], "value": 1000}, {**good[0], "at": "yesterday"}, {**good[0], "sensor": None}]
    produce(READINGS, [good[0], bad[0], good[1], bad[1], bad[2], good[2]], sensors.catalog)
    for _ in range(2):  # again from the beginning, as after a crash
        assert (take(sensors).refused, sensors.lake()["readings"].height) == (3, 3)
        for offset in home.rglob("*.offset"):
            offset.write_text("0")
    letters = [orjson.loads(line) for line in dead_letter_path(sensors.module.readings).read_bytes().splitlines()]
    assert [letter["reason"] for letter in letters] == [
        "value is 1000, outside [-100, 100]",
        "at is 'yesterday', not a time such as 2013-06-01T12:00:00Z",
        "sensor is missing or null",
    ]
    assert orjson.loads(letters[0]["event"])["value"] == 1000
    assert len({letter["offset"] for letter in letters}) == 3


def test_a_correction_replaces_the_row_and_everything_computed_from_it(home: Path, sensors: Sensors) -> None:
    """Online too, where an event of the same time counts as news when it says something else."""
    produce(READINGS, [sensors.event("a", 1, 2.0)], sensors.catalog)
    take(sensors)
    produce(READINGS, [sensors.event("a", 1, 7.0)], sensors.catalog)
    take(sensors)
    assert sensors.lake()["readings"]["value"].to_list() == [7.0]
    assert sensors.online("a") == sensors.newest(sensors.lake(), "a")


def test_a_row_is_not_online_before_its_time(home: Path, sensors: Sensors) -> None:
    """The midnight that ends the day of the newest event is published by the first event after it."""
    produce(READINGS, [sensors.event("a", 1, 2.0)], sensors.catalog)
    take(sensors)
    assert sensors.online("a")["totals"] == [None]
    produce(READINGS, [sensors.event("b", 24.0, 3.0)], sensors.catalog)
    take(sensors)
    assert sensors.online("a")["totals"][0][1] == {"total_2d": 2.0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_stop_ends_the_ingestor_after_the_batch_in_hand(
    home: Path, sensors: Sensors, number: signal.Signals
) -> None:
    """What was read is published and committed; the process has its own handlers back."""
    before = signal.getsignal(number)
    left = produce(READINGS, sensors.events(seed=3, count=30), sensors.catalog) - 10
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 1:
            os.kill(os.getpid(), number)

    done = take(sensors, once=False, limit=10, say_every=0.0, say=say)
    assert (done.events, done.batches) == (10, 1)
    assert "sensors/readings: 10 events" in said[0] and f"about {left} to go" in said[-1]
    assert signal.getsignal(number) is before
    assert take(sensors).events == left


def test_what_cannot_be_ingested_is_named(home: Path, sensors: Sensors) -> None:
    """With what exists, before anything is read."""
    with pytest.raises(UnknownDeclarationError, match=r"no source 'sensors/reading' .known: sensors/readings"):
        ingest("sensors/reading", catalog=sensors.catalog)
    still = replace(sensors.module.readings, stream=None)
    with pytest.raises(NotStreamedError, match=r"declares no stream .those that do: none"):
        produce(READINGS, [], Catalog.of([still, sensors.module.recent]))


# -- kills and crowds


@contextmanager
def killable() -> Iterator[Callable[..., list[int]]]:
    """Starts ingestors at once, each killed at its step, and gives their exit statuses."""
    program = [sys.executable, str(Path(__file__).with_name("sensors.py"))]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin and process.stdout
        lines = process.stdout

        def start(*steps: int) -> list[int]:
            print(*steps, file=process.stdin, flush=True)
            return [int(word) for word in lines.readline().split()]

        yield start
        process.stdin.close()


def test_kill_9_anywhere_loses_nothing_and_doubles_nothing(home: Path, sensors: Sensors, same_tables: Any) -> None:
    """Real processes die before and after every kind of deed; the last one finds everything in order.

    Then four at once, one of which dies: they are harmless to each other.
    """
    events = sensors.events(seed=7, count=170)
    arriving = [*sensors.disturbed(events, seed=7), {"sensor": "a", "at": "never"}]
    first, second = arriving[:150], arriving[150:]
    with killable() as start:
        produce(READINGS, first, sensors.catalog)
        steps = iter(range(1, 200, 6))
        ended = []
        while (status := start(next(steps))[0]) == -signal.SIGKILL:
            ended.append(status)
        assert status == 0 and len(ended) > 8
        wanted = sensors.batch(first)
        same_tables(sensors.lake(), wanted)
        assert sensors.online() == sensors.newest(wanted)
        produce(READINGS, second, sensors.catalog)
        assert sorted(start(0, 0, 9, 0)) in ([0, 0, 0, 0], [-9, 0, 0, 0])
        assert start(0) == [0]
    wanted = sensors.batch([event for event in arriving if event["at"] != "never"])
    same_tables(sensors.lake(), wanted)
    assert sensors.online() == sensors.newest(wanted)
    assert len(dead_letter_path(sensors.module.readings).read_bytes().splitlines()) == 1
