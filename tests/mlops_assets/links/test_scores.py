"""Batch scores: one for every event of the day, or an error that says what is missing. Parity is in `test_loop`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Platform

DAY, TABLE = "2013-06-30", "flights/late_arrival/scores"


def test_every_event_of_the_day_has_one_score_and_again_the_same(platform: Platform) -> None:
    """By the champion, between 0 and 1; a second run is the same table byte for byte."""
    lake = platform.resources["lake"]
    first = platform.run("scores", partition=DAY)
    assert first.ok and not first.failed
    published = lake.path(TABLE, DAY).read_bytes()
    rows, events = lake.scan(TABLE, [DAY]).collect(), lake.scan("flights/arrivals", [DAY]).collect()
    assert sorted(rows["flight_id"]) == sorted(events["flight_id"])
    assert rows["prediction"].is_between(0, 1).all() and set(rows["version"]) == {"1"}
    assert platform.run("scores", partition=DAY).ok and lake.path(TABLE, DAY).read_bytes() == published


def test_a_day_without_events_is_an_empty_table(platform: Platform) -> None:
    """Nothing departed: no score, no failed check."""
    lake = platform.resources["lake"]
    lake.write(lake.scan("flights/arrivals", [DAY]).collect().clear(), "flights/arrivals", DAY)
    ran = platform.run("scores", partition=DAY)
    assert ran.ok and not ran.failed and lake.scan(TABLE, [DAY]).collect().height == 0


def test_batch_scores_name_what_the_champion_reads_and_nobody_declares(platform: Platform) -> None:
    """And what to do about it; without any release they say that there is none."""
    fewer = [item for item in platform.model.selections if item.view.name != "aircraft_use"]
    ran = platform.declared(features=fewer).run("scores", partition=DAY)
    assert not ran.ok and "reads aircraft_age" in ran.trouble and "Train and release a candidate" in ran.trouble
    ran = platform.declared(name="untrained").run("scores", partition=DAY)
    assert not ran.ok and "model 'flights/untrained' has no release to score with" in ran.trouble
