"""Quality: what the pipeline did not deliver is named with its number, and a day that is only unlike is healthy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets import Float64, Monitor, String
from mlops_assets.monitoring.quality import Asked, Figures, QualityResult, figures, quality

DAY = date(2013, 7, 1)
WEATHER, FLEET = "flights/weather", "flights/fleet"
ASKED = Asked(
    fields={"temp": Float64("Temperature", minimum=-60, maximum=140), "carrier": String("Carrier")},
    categories={"carrier": ["AA", "UA"]},
    views={WEATHER: 3 * 3600.0, FLEET: None},
    null_shares={"temp": 0.02, "carrier": 0.0},
    reads={},
)
MONITOR = Monitor(min_rows=500)


def answers(
    day: date = DAY,
    rows: int = 700,
    *,
    temp: Sequence[float | None] = (70.0,),
    carrier: Sequence[str] = ("AA", "UA"),
    missing: float = 0.0,
    reason: str = "expired",
    age: timedelta = timedelta(minutes=30),
    fleet_age: timedelta = timedelta(hours=12),
    latency: float = 2.0,
    asked_again: int = 0,
) -> pl.DataFrame:
    """A day of the prediction log's table; `missing` is the share of answers that the weather had no row for."""
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    gone = round(missing * rows)
    fallback = json.dumps([{"view": WEATHER, "keys": {"origin": "EWR"}, "reason": reason, "used": "nulls"}])
    used = {WEATHER: (noon - age).isoformat(), FLEET: (noon - fleet_age).isoformat()}
    without = {FLEET: used[FLEET]}
    return pl.DataFrame(
        {
            "request_id": [str(max(0, number - asked_again)) for number in range(rows)],
            "at": pl.Series([noon] * rows, dtype=pl.Datetime("us", "UTC")),
            "release": ["new"] * rows,
            "latency_ms": [latency] * rows,
            "temp": pl.Series([temp[number % len(temp)] for number in range(rows)], dtype=pl.Float64),
            "carrier": [carrier[number % len(carrier)] for number in range(rows)],
            "fallbacks": [fallback] * gone + ["[]"] * (rows - gone),
            "event_times": [json.dumps(without)] * gone + [json.dumps(used)] * (rows - gone),
        }
    )


def days(*today_and_before: pl.DataFrame | None) -> list[Figures]:
    """Four days as usual, then those given."""
    usual = [answers(DAY - timedelta(days=back), age=timedelta(minutes=28 + back)) for back in (4, 3, 2, 1)]
    rows = [*usual, *(frame for frame in today_and_before if frame is not None)]
    return [figures(frame["at"][0].date() if frame.height else DAY, frame, ASKED) for frame in rows]


def judged(today: pl.DataFrame, **options: Any) -> QualityResult:
    return quality(days(today), ASKED, MONITOR, **options)


def test_a_day_like_the_days_before_is_healthy() -> None:
    """And its numbers are plain, with names that stay."""
    result = judged(answers())
    assert (result.verdict, result.causes, result.rows) == ("healthy", (), 3500)
    numbers = result.numbers()
    assert numbers["volume"] == 700
    assert numbers["volume_before"] == 700.0
    assert numbers["age_seconds/weather"] == 1800.0
    assert numbers["null_share/temp"] == 0.0
    assert all(isinstance(value, float | int | str) for value in numbers.values())


BROKEN = {
    "an input gone": ({"temp": [None]}, "temp is missing in 100% of 700 answers, in training 2%"),
    "some of it gone": ({"temp": [None, 70.0, 71.0, 72.0, 73.0]}, "temp is missing in 20%"),
    "another unit": ({"temp": [290.0, 70.0]}, "temp is out of its bounds [-60, 140] in 50% of 700 answers"),
    "other names": ({"carrier": ["aa", "ua"]}, "carrier is a category that training never saw in 100%"),
    "no usable row": ({"missing": 0.8}, "flights/weather had no usable row for 80% of 700 answers, 80% beyond its ttl"),
    "old rows": ({"age": timedelta(minutes=170)}, "rows of flights/weather were 2.8 h old, 0.5 h on the days before"),
    "old rows without a ttl": ({"fleet_age": timedelta(days=3)}, "rows of flights/fleet were 72.0 h old, 12.0 h"),
    "hardly anybody asked": ({"rows": 100}, "100 answers in the day, 700 on the days before"),
    "too many asked": ({"rows": 3000}, "3000 answers in the day, 700 on the days before"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_the_pipeline_did_is_named(what: str) -> None:
    """One cause, the pipeline's, with its number."""
    given_, said = BROKEN[what]
    result = judged(answers(**given_))  # type: ignore[arg-type]
    assert result.verdict == "broken pipeline"
    (cause,) = result.causes
    assert cause.of == "pipeline"
    assert said in cause.said


HEALTHY: dict[str, dict[str, Any]] = {
    "a hot day": {"temp": [105.0]},
    "a few nulls": {"temp": [None, *[70.0] * 12]},
    "a newcomer": {"carrier": [*["AA"] * 30, "ZZ"]},
    "some new keys": {"missing": 0.4, "reason": "no row"},
    "rows two hours late, that are still in time": {"age": timedelta(minutes=80)},
    "a quiet Saturday": {"rows": 200},
}


@pytest.mark.parametrize("what", HEALTHY)
def test_a_day_that_is_only_unlike_is_healthy(what: str) -> None:
    """The world may move; that is the drift report's to say."""
    result = judged(answers(**HEALTHY[what]))
    assert (result.verdict, result.causes) == ("healthy", ())


def test_callers_and_machines_are_named_and_break_nothing() -> None:
    """Twice the same requests, and answers that took five times as long."""
    result = judged(answers(asked_again=350, latency=10.0))
    assert [cause.of for cause in result.causes] == ["callers", "machine"]
    assert "50% of 700 answers were asked for again" in result.causes[0].said
    assert "answers took 10.0 ms (95th percentile), 2.0 ms on the days before" in result.causes[1].said
    assert result.verdict == "healthy"


def test_rows_that_came_too_late_are_the_pipelines() -> None:
    """What the offline store has by now, and the online store had not."""
    result = judged(answers(), late={WEATHER: 0.7, FLEET: 0.1})
    assert [str(cause) for cause in result.causes] == [
        "pipeline: rows of flights/weather came too late for 70% of 700 answers: the offline store has newer ones"
    ]


def test_a_day_without_any_answers_is_no_silence() -> None:
    """An endpoint that nobody reaches: 700 answers a day before, and none today."""
    result = judged(answers().clear())
    assert result.verdict == "broken pipeline"
    assert result.numbers()["volume"] == 0
    assert result.columns().is_empty()


def test_only_what_concerns_most_answers_spoils_a_day() -> None:
    """A fifth of one input is an alert; a view that is gone makes the day's answers say nothing of the world."""
    (some,) = judged(answers(temp=[None, 70.0, 71.0, 72.0, 73.0])).causes
    (most,) = judged(answers(missing=0.8)).causes
    assert (some.spoils, most.spoils) == (False, True)


@settings(max_examples=25)
@given(rows=st.integers(1, 99), missing=st.floats(0, 1), temp=st.sampled_from([None, 1e6, 70.0]))
def test_too_few_answers_are_never_a_verdict(rows: int, missing: float, temp: float | None) -> None:
    """Whatever is wrong with them: fewer than `min_rows` in the window."""
    alone = [figures(DAY, answers(rows=rows, missing=missing, temp=[temp]), ASKED)]
    assert quality(alone, ASKED, MONITOR).verdict == "not enough rows"


def test_a_release_that_does_not_read_an_input_says_nothing_about_it() -> None:
    """The old release's answers have no `temp`; the new one's are whole."""
    rows = pl.concat([answers(rows=300, temp=[None]).with_columns(release=pl.lit("old")), answers(rows=300)])
    asked = Asked(**{**vars(ASKED), "reads": {"old": ["carrier"], "new": ["temp", "carrier"]}})
    temp = figures(DAY, rows, asked).columns[0]
    assert (temp.rows, temp.null_share) == (300, 0.0)


def test_the_tables_show_every_input_and_view() -> None:
    """By name, with what was there in training and the declared ttl."""
    result = judged(answers(temp=[None, 70.0]), late={WEATHER: 0.25})
    inputs = {row["column"]: row for row in result.columns().iter_rows(named=True)}
    assert inputs["temp"] == {
        "column": "temp",
        "null_share": 0.5,
        "null_share_training": 0.02,
        "outside_share": 0.0,
        "unknown_share": 0.0,
    }
    views = {row["view"]: row for row in result.views().iter_rows(named=True)}
    assert views[WEATHER]["ttl_hours"] == 3.0
    assert views[WEATHER]["late_share"] == 0.25
    assert views[FLEET]["ttl_hours"] is None
