"""Weather events through the whole ingestor, against bare Polars that only puts the same rows into the same files.

Ours reads the spool, judges every event, adds the rows to the lake's days, computes the feature view anew, writes
its newest rows online in both formats and commits the offsets. The peer is what somebody would write by hand for
the files alone: NDJSON in, `unique`, Parquet out by day; no check, no lock, no online store, no offsets. Both
leave the very same rows. Dagster is told outside the time, as it is told now and then only.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
from rich.table import Table

from benchmarks.harness import Figure, Measurement, fresh_home, in_turn, require_equal, seconds
from feature_assets.flights.sources import all_weather, raw_weather
from feature_assets.flights.weather import weather_hourly
from mlops_assets.catalog import Catalog, asset_key
from mlops_assets.streaming.ingestor import Ingestor, produce, stream_of
from resources.environment import resources_for
from resources.streams import encode

CATALOG = Catalog.of([raw_weather, weather_hourly])
TIME = "observed_at"
KEY = [TIME, "origin"]
DAY = 72  # events: three airports, every hour
Lines = Sequence[bytes]


def measure(rounds: int = 3, days: int = 365, live_days: int = 20) -> Measurement:
    """A backlog in large batches, and batches as small as the events of a day, one after the other."""
    events = all_weather().to_dicts()
    return Measurement(
        shown := [
            figure("streaming.backlog", events[: days * DAY], 10_000, rounds),
            figure("streaming.live", events[: live_days * DAY], DAY, rounds),
        ],
        [_rates(shown, [min(days * DAY, len(events)), live_days * DAY])],
    )


def figure(name: str, events: Sequence[dict[str, Any]], batch: int, rounds: int) -> Figure:
    """Seconds for all the events on both sides; raises UnequalResultsError when the files differ."""
    lines = [encode(event) for event in events]
    require_equal("every row", ours(events, batch)[1], bare(lines, batch)[1])
    mine, peer = in_turn(lambda: ours(events, batch)[0], lambda: bare(lines, batch)[0], rounds)
    return Figure(name, mine, peer, f"bare Polars, files alone, {len(events):,} events by {batch:,}")


def ours(events: Sequence[dict[str, Any]], batch: int) -> tuple[float, list[Any]]:
    """Seconds, and the rows of source and view. Feast is loaded and knows the view before the clock starts."""
    with fresh_home():
        stores = resources_for()
        ingestor = Ingestor(raw_weather, CATALOG, stream_of(raw_weather), stores["lake"], stores["feast"], limit=batch)
        produce(raw_weather.id, events[:1], CATALOG)
        drain(ingestor)
        produce(raw_weather.id, events, CATALOG)
        taken = seconds(lambda: drain(ingestor))
        ingestor.stream.close()
        return taken, [
            stores["lake"].scan(asset_key(table)).collect().rows() for table in (raw_weather, weather_hourly)
        ]


def drain(ingestor: Ingestor) -> None:
    while messages := ingestor.read(0.0):
        ingestor.commit(messages, ingestor.apply(messages))


def bare(lines: Lines, batch: int) -> tuple[float, list[Any]]:
    with TemporaryDirectory(prefix="mlops-benchmark-") as name:
        source, view = Path(name, "source"), Path(name, "view")
        for directory in (source, view):
            directory.mkdir()
        taken = seconds(lambda: fill(lines, batch, source, view))
        return taken, [pl.read_parquet(f"{directory}/*.parquet").rows() for directory in (source, view)]


def fill(lines: Lines, batch: int, source: Path, view: Path) -> None:
    for start in range(0, len(lines), batch):
        add(lines[start : start + batch], source, view)


def add(lines: Lines, source: Path, view: Path) -> None:
    """A batch into the files of its days, and the view's files computed from these."""
    moment = pl.col(TIME).str.to_datetime("%Y-%m-%dT%H:%M:%S%z", time_unit="us", time_zone="UTC")
    read = pl.read_ndjson(BytesIO(b"\n".join(lines)), schema=_schema()).with_columns(moment)
    days = read.with_columns(day=pl.col(TIME).dt.date()).partition_by("day", as_dict=True, include_key=False)
    for (day,), rows in days.items():
        file = source / f"{day}.parquet"
        old = pl.read_parquet(file) if file.exists() else rows.clear()
        merged = pl.concat([old, rows]).unique(KEY, keep="last").sort(KEY)
        merged.write_parquet(file)
        weather_hourly(merged.lazy()).collect().sort("event_timestamp", "origin").write_parquet(view / file.name)


def _schema() -> dict[str, Any]:
    return {name: pl.String() if name == TIME else field.polars for name, field in raw_weather.schema.items()}


def _rates(figures: Sequence[Figure], counts: Sequence[int]) -> Table:
    shown = Table("figure", "ours, events/s", "peer, events/s", title="Rates", title_justify="left")
    for item, count in zip(figures, counts, strict=True):
        shown.add_row(item.name, f"{count / item.ours:,.0f}", f"{count / item.peer:,.0f}")
    return shown
