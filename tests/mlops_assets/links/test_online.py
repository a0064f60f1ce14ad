"""Online at a moment is offline as of that moment; a publication that breaks off is made good by the next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_assets.flights.weather import weather_hourly
from mlops_assets.catalog import asset_key
from mlops_assets.links.online import AsOf, newest_rows, within_ttl
from mlops_assets.links.training_set import view_frames
from resources.online.packed_store import SqlitePackedStore
from resources.point_in_time import naive_join

if TYPE_CHECKING:
    from conftest import Platform

START = datetime(2013, 6, 20, tzinfo=UTC)
AIRPORTS = ("EWR", "JFK")
hours = st.integers(0, 12).map(lambda number: START + timedelta(hours=number))
histories = st.lists(st.tuples(st.sampled_from(AIRPORTS), hours), unique=True, max_size=16)


@given(history=histories, at=hours)
def test_online_at_a_moment_is_offline_as_of_that_moment(history: list[tuple[str, datetime]], at: datetime) -> None:
    """The row published per key is the one that the naive point-in-time join sees then; or both see none."""
    frame = pl.DataFrame(
        [(origin, when, float(when.hour)) for origin, when in history],
        schema={"origin": pl.String, "event_timestamp": pl.Datetime("us", "UTC"), "temp": pl.Float64},
        orient="row",
    ).lazy()
    online = {row["origin"]: row["temp"] for row in newest_rows(frame, weather_hourly, at).to_dicts()}
    spine = pl.DataFrame({"origin": AIRPORTS, "event_timestamp": [at] * len(AIRPORTS)})
    offline = naive_join(spine, view_frames(Reads(weather_hourly[["temp"]]), {"view_weather_hourly": frame}))  # type: ignore[arg-type]
    assert [online.get(origin) for origin in AIRPORTS] == offline["temp"].to_list()


class Reads:
    """As much of a model as `view_frames` looks at."""

    def __init__(self, *selections: Any) -> None:
        self.selections = selections


def test_a_moment_without_a_zone_is_refused() -> None:
    """It is not taken for the machine's own; with a zone it is the same moment in UTC."""
    assert AsOf(as_of="2013-07-01T02:00:00+02:00").moment() == datetime(2013, 7, 1, tzinfo=UTC)
    assert AsOf().moment() is None
    with pytest.raises(dg.Failure, match=r"as_of is '2013-07-01T00:00:00', a time without a zone"):
        AsOf(as_of="2013-07-01T00:00:00").moment()


def test_nothing_to_serve_is_a_warning() -> None:
    """A view whose newest row is past its ttl serves nulls; the check says so by the view's name."""
    rows = pl.DataFrame(schema={"event_timestamp": pl.Datetime("us", "UTC")})
    claim = within_ttl(weather_hourly, rows, START)
    assert not claim.passed and not claim.blocking and "feature view 'flights/weather_hourly'" in claim.reason


def test_a_publication_is_whole_or_made_good(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off between Feast's store and the endpoint's: the endpoint sees the old rows, and the next run agrees again.

    An earlier moment published later takes nothing back. A view whose rows are all too old is told as a failed
    warning, one that was not materialized for the time as an error that names the days.
    """
    packed = platform.resources["feast"].packed()
    temp = asset_key(weather_hourly)

    def seen() -> Any:
        return packed.read("flights__weather_hourly", [("EWR",)])[0]

    assert platform.publish_online(START, "weather_hourly").ok
    first = seen()
    assert first[1]["temp"] == _published(platform, temp, START)
    with monkeypatch.context() as patched:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr(SqlitePackedStore, "_write", full)
        ran = platform.publish_online(START + timedelta(hours=6), "weather_hourly")
    assert not ran.ok and "No space left on device" in ran.trouble and seen() == first
    assert platform.publish_online(START + timedelta(hours=6), "weather_hourly").ok
    second = seen()
    assert second[0] > first[0] and second[1]["temp"] == _published(platform, temp, START + timedelta(hours=6))
    back = platform.publish_online(START, "weather_hourly")
    assert seen() == second and back.failed == {"newest_row_present"}, "the check tells that it did not take effect"
    lake = platform.resources["lake"]
    lake.write(lake.scan(temp).collect().clear(), temp, "2013-07-01")
    nothing = platform.publish_online(datetime(2013, 7, 1, 12, tzinfo=UTC), "weather_hourly")
    assert nothing.ok and nothing.failed == {"within_ttl"} and seen() == second
    missing = platform.publish_online(START + timedelta(days=90), "weather_hourly")
    assert (
        not missing.ok and "has no file in the lake for 2013-09-16, 2013-09-18" in missing.trouble and seen() == second
    )


def _published(platform: Platform, key: dg.AssetKey, at: datetime) -> float:
    rows = platform.resources["lake"].scan(key).filter(pl.col("origin") == "EWR", pl.col("event_timestamp") <= at)
    return float(rows.sort("event_timestamp").collect()["temp"][-1])
