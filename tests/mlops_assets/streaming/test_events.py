"""An event is a row of its source or is refused with the reason; nothing in between."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets import Bool, Float64, Float64Array, Int64, String, UnixTimestamp, source
from mlops_assets.claims import claims, conform
from mlops_assets.streaming.events import Judge
from resources.streams import Message


@source(
    team="sensors",
    key=["name"],
    event_timestamp="at",
    partitions=dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01"),
    stream="everything",
    schema={
        "name": String,
        "at": UnixTimestamp,
        "flag": Bool,
        "count": Int64("Bounded below", minimum=0),
        "value": Float64("Bounded", minimum=-1, maximum=1),
        "needed": Float64("Never null", max_null_share=0),
        "vector": Float64Array("Two numbers", size=2, minimum=0),
    },
)
def everything() -> pl.LazyFrame:
    """A column of each type."""
    raise AssertionError("The stream is where it comes from")


GOOD: dict[str, Any] = {
    "name": "a",
    "at": "2024-01-02T03:04:05.000006+01:00",
    "flag": True,
    "count": 3,
    "value": 0.5,
    "needed": 1,
    "vector": [1, 2.5],
}


def judged(*bodies: Any) -> tuple[pl.DataFrame, list[str]]:
    messages = [
        Message(str(place), body if isinstance(body, bytes) else orjson.dumps(body))
        for place, body in enumerate(bodies)
    ]
    frame, refused = Judge(everything).rows(messages)
    return frame, [letter.reason for letter in refused]


def test_a_good_event_is_the_row_it_says() -> None:
    """Typed as declared, times in UTC; what is left out is null, what is not declared is ignored."""
    frame, refused = judged(GOOD, {"name": "b", "at": "2024-01-03T00:00:00Z", "needed": 2, "unknown": []})
    assert refused == []
    assert dict(frame.schema) == {name: field.polars for name, field in everything.schema.items()}
    moment = datetime(2024, 1, 2, 2, 4, 5, 6, tzinfo=UTC)
    assert frame.row(0) == ("a", moment, True, 3, 0.5, 1.0, [1.0, 2.5])
    assert frame.row(1) == ("b", datetime(2024, 1, 3, tzinfo=UTC), None, None, None, 2.0, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": None}, "name is missing or null"),
        ({"name": 3}, "name is 3, not text"),
        ({"at": "2024-01-02T03:04:05"}, "at is '2024-01-02T03:04:05', a time without a zone"),
        ({"at": 17}, "at is 17, not a time such as"),
        ({"at": "2023-12-31T23:59:59Z"}, "in no partition of source 'sensors/everything'"),
        ({"at": "2024-02-01T00:00:00Z"}, "in no partition of source 'sensors/everything'"),
        ({"flag": 1}, "flag is 1, not true or false"),
        ({"count": 1.5}, "count is 1.5, not a whole number"),
        ({"count": True}, "count is True, not a whole number"),
        ({"count": -1}, "count is -1, outside [0,"),
        ({"count": 2**64 - 1}, "count is 18446744073709551615, outside [0,"),
        ({"value": "0.5"}, "value is '0.5', not a number"),
        ({"value": 1.0001}, "value is 1.0001, outside [-1, 1]"),
        ({"needed": None}, "needed is missing or null"),
        ({"vector": [1]}, "vector is no list of 2 numbers"),
        ({"vector": [1, -1]}, "vector is -1, outside [0,"),
        ({"vector": [1, None]}, "vector is None, not a number"),
    ],
)
def test_a_bad_event_is_refused_with_the_reason_and_the_others_stand(change: dict[str, Any], reason: str) -> None:
    """Between good ones, whose rows are the same as without it."""
    other = {**GOOD, "name": "b", "count": 4.0}
    frame, (found,) = judged(GOOD, {**GOOD, **change}, other)
    assert reason in found
    assert frame.equals(judged(GOOD, other)[0])


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"{", "is no JSON"), (b"", "is no JSON"), (b"[]", "is no JSON object but list"), (b"NaN", "JSON")],
)
def test_what_is_no_object_is_refused(body: bytes, reason: str) -> None:
    """Torn, empty, of another form."""
    frame, (found,) = judged(GOOD, body)
    assert reason in found and frame.height == 1


anything = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(max_size=3),
    st.lists(st.floats(0, 2), max_size=3), st.dates(date(2023, 12, 30), date(2024, 2, 3)).map(str),
    st.integers(0, 3000).map(lambda m: (datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=m)).isoformat()),
)  # fmt: skip


@given(st.lists(st.fixed_dictionaries({name: st.just(GOOD[name]) | anything for name in GOOD}), max_size=6))
def test_what_is_accepted_would_pass_the_sources_own_checks(events: list[dict[str, Any]]) -> None:
    """Every event is either a row or refused; rows conform and are within bounds, alone as together."""
    frame, refused = judged(*events)
    assert frame.height + len(refused) == len(events)
    assert conform(frame.lazy(), everything).height == frame.height
    assert {claim.name for claim in claims(frame, everything) if not claim.passed} <= {"unique_key", "not_empty"}
    alone = [judged(event)[0] for event in events]
    assert not alone or pl.concat(alone).equals(frame)
