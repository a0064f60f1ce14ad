"""The upstream delivers what happened: whole days, once or again, corrected, or not at all, and tells of each."""

from __future__ import annotations

from datetime import date

import polars as pl
import pytest

from feature_assets.flights.sources import raw_flights
from mlops_assets.year.upstream import CORRECTED_BY, NotDeliveredError, Upstream, delivered
from resources.events import Inbox

DAY, NEXT = date(2013, 3, 4), date(2013, 3, 5)


@pytest.fixture
def upstream(home) -> Upstream:
    return Upstream.here()


def test_a_delivered_day_is_what_the_source_would_have_said(upstream: Upstream) -> None:
    """The same rows, in the same order."""
    from mlops_assets.year.callers import midnight

    upstream.deliver(DAY)
    expected = raw_flights.compute((midnight(DAY), midnight(NEXT))).collect()
    assert upstream.read("raw_flights", DAY, NEXT).collect().equals(expected)
    assert delivered(raw_flights).compute((midnight(DAY), midnight(NEXT))).collect().equals(expected)


def test_a_day_that_did_not_come_is_an_error_and_no_empty_table(upstream: Upstream) -> None:
    upstream.deliver(DAY)
    with pytest.raises(NotDeliveredError, match="2013-03-05"):
        upstream.read("raw_flights", DAY, date(2013, 3, 6))


def test_a_day_delivered_twice_lies_there_unchanged_and_is_told_twice(upstream: Upstream) -> None:
    upstream.deliver(DAY)
    file = upstream.root / "raw_flights" / f"{DAY}.parquet"
    before = file.read_bytes()
    upstream.deliver(DAY, "again")
    assert file.read_bytes() == before
    assert sorted(one.event.kind for one in Inbox().open("events")) == ["again", "new data"]


def test_a_correction_changes_one_carriers_outcomes_and_nothing_else(upstream: Upstream) -> None:
    upstream.deliver(DAY)
    before = upstream.read("raw_flights", DAY, NEXT).collect()
    changed = upstream.correct(DAY)
    after = upstream.read("raw_flights", DAY, NEXT).collect()
    moved = (after["arr_delay"] - before["arr_delay"]).fill_null(0.0)
    assert changed == (moved != 0).sum() > 50 and set(moved.unique()) == {0.0, CORRECTED_BY}
    assert set(after.filter(moved != 0)["carrier"]) == {"UA"}
    untouched = pl.all().exclude("arrival", "arr_delay")
    assert after.select(untouched).equals(before.select(untouched))
