"""What goes wrong lies within the days replayed, one after the other, however few they are."""

from __future__ import annotations

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.year.incidents import Incidents
from mlops_assets.year.journal import Day, Journal
from mlops_assets.year.rivals import weekly_cutoffs

FIRST = date(2013, 4, 1)


@given(days=st.integers(11, 275))
def test_incidents_come_one_after_the_other(days: int) -> None:
    """The duplicate is of a day that has come, the correction of one long over, and days are left at the end."""
    last = FIRST + timedelta(days=days - 1)
    plan = Incidents.between(FIRST, last)
    assert FIRST < plan.outage < plan.back < plan.duplicate < plan.correction < plan.bad_release < last
    assert plan.delivered_twice < plan.duplicate and plan.back < plan.duplicate
    assert plan.correction - plan.corrected >= timedelta(days=30)
    assert sum(plan.out(FIRST + timedelta(days=i)) for i in range(days)) == 3


def test_the_journal_goes_on_after_half_a_line(tmp_path) -> None:
    """A replay that was killed while it wrote a day lives that day again."""
    journal = Journal(tmp_path / "year.jsonl")
    journal.write(Day("2013-04-01", 974, "1", "v1 100 %", notes=("outage",)))
    with journal.path.open("a") as lines:
        lines.write('{"day": "2013-04-0')
    assert [one.day for one in journal.read()] == ["2013-04-01"]
    journal.write(Day("2013-04-02", 979, "1", "v1 100 %"))
    assert [one.day for one in journal.read()] == ["2013-04-01", "2013-04-02"]


def test_weekly_trainings_are_of_the_mondays_after_the_first() -> None:
    assert weekly_cutoffs(FIRST, date(2013, 4, 22)) == [date(2013, 4, 8), date(2013, 4, 15), date(2013, 4, 22)]
