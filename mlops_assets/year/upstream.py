"""The upstream of the year: it delivers a day's raw files when the day is over, and the raw tables read only those.

A day that was not delivered is an error, never an empty table: an outage must look like one. A delivery is told to the
platform as any upstream would tell it: an event in the inbox, one per delivery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mlops_assets.declarations import Source
from resources.environment import home
from resources.events import Event, Inbox

if TYPE_CHECKING:
    import polars as pl

RAW = ("raw_flights", "raw_weather")
TEAM = "flights"
CORRECTED_BY = 60.0  # minutes that a late correction adds to the flights it touches


class NotDeliveredError(LookupError):
    """A raw table was asked for a day whose file the upstream has not delivered."""

    @classmethod
    def of(cls, table: str, missing: list[str]) -> Self:
        return cls(f"{table} was not delivered for {', '.join(missing)}. Materialize it when it has come.")


@dataclass(frozen=True)
class Upstream:
    """The delivered files, `<root>/<table>/<day>.parquet`; each verb publishes by rename."""

    root: Path

    @classmethod
    def here(cls) -> Self:
        return cls(home() / "upstream")

    def deliver(self, day: date, what: str = "new data") -> None:
        """Lay the day's files down and tell the platform; a day delivered again lies there unchanged."""
        self.lay_down(day)
        self._tell(day, what)

    def lay_down(self, day: date) -> None:
        """The day's files, of which nobody is told."""
        for table in RAW:
            if not self._file(table, day).exists():
                self._write(table, day, _truth(table, day))

    def correct(self, day: date) -> int:
        """Deliver a day again with other outcomes for one carrier; the flights that changed."""
        import polars as pl

        before = pl.read_parquet(self._file("raw_flights", day))
        theirs = (pl.col("carrier") == "UA") & pl.col("arr_delay").is_not_null()
        later = pl.duration(minutes=CORRECTED_BY)
        after = before.with_columns(
            arrival=pl.when(theirs).then(pl.col("arrival") + later).otherwise("arrival"),
            arr_delay=pl.when(theirs).then(pl.col("arr_delay") + CORRECTED_BY).otherwise("arr_delay"),
        )
        self._write("raw_flights", day, after)
        self._tell(day, "correction")
        return before.filter(theirs).height

    def read(self, table: str, first: date, end: date) -> pl.LazyFrame:
        """The rows of the days in [first, end). Raises NotDeliveredError."""
        import polars as pl

        days = [first + timedelta(days=i) for i in range((end - first).days)]
        if missing := [str(day) for day in days if not self._file(table, day).exists()]:
            raise NotDeliveredError.of(table, missing)
        return pl.scan_parquet([self._file(table, day) for day in days])

    def _write(self, table: str, day: date, rows: pl.DataFrame) -> None:
        path = self._file(table, day)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        rows.write_parquet(beside)
        beside.rename(path)

    def _tell(self, day: date, what: str) -> None:
        assets = tuple(f"{TEAM}/{table}" for table in RAW)
        Inbox().news(Event("", what, assets, partition=str(day), subject=f"{what} {TEAM} {day}"))

    def _file(self, table: str, day: date) -> Path:
        return self.root / table / f"{day}.parquet"


def delivered(source: Source) -> Source:
    """The same source, reading what the upstream delivered."""

    def compute(window: tuple[datetime, datetime]) -> pl.LazyFrame:
        return Upstream.here().read(source.name, window[0].date(), window[1].date())

    return replace(source, compute=compute)


def _truth(table: str, day: date) -> pl.DataFrame:
    """What really happened on a day, by the raw table's own function."""
    from feature_assets.flights import sources

    read: Callable[..., pl.LazyFrame] = getattr(sources, table).compute
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return read((start, start + timedelta(days=1))).collect()
