"""A day is published again when, and only when, its log grew after its table."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sensors.late_answers import QUIET_SECONDS, SAME_SECONDS, late_days

moments = st.floats(0, 10_000)


@given(
    written=st.dictionaries(st.sampled_from("abc"), moments), published=st.dictionaries(st.sampled_from("abc"), moments)
)
def test_a_late_day_is_published_quiet_and_newer_in_the_log(
    written: dict[str, float], published: dict[str, float]
) -> None:
    """Never one without a table, nor one that is being written to; always one that grew after its table."""
    now = 9_000.0
    late = late_days(written, published.get, now)
    for day, at in written.items():
        if day not in published or at >= now - QUIET_SECONDS or at <= published[day] - SAME_SECONDS:
            assert day not in late
        elif at > published[day]:
            assert late[day] == at
