"""A small team with a stream: readings of sensors, and what is computed from them.

As a program it is an ingestor that can be killed: it imports everything once, and each line of its input starts
a fresh process of `ingest` that dies of SIGKILL at the asked step (0: never). It answers with the exit status.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from typing import Any

import dagster as dg
import polars as pl

from mlops_assets import Entity, Float64, Int64, String, UnixTimestamp, feature_view, source
from mlops_assets.catalog import Catalog

READINGS = "sensors/readings"
daily = dg.DailyPartitionsDefinition("2024-01-01")
sensor = Entity("sensor", "sensor")


@source(
    team="sensors",
    key=["sensor", "at"],
    event_timestamp="at",
    partitions=daily,
    stream="readings",
    schema={
        "sensor": String("Which", max_null_share=0),
        "at": UnixTimestamp("When"),
        "value": Float64("Measured", minimum=-100, maximum=100),
        "count": Int64("Of how many"),
    },
)
def readings() -> pl.LazyFrame:
    """Readings as they happen."""
    raise AssertionError("The stream is where they come from")


@feature_view(
    team="sensors",
    entities=[sensor],
    partitions=daily,
    ttl=timedelta(days=1),
    lookback=timedelta(hours=6),
    schema={"mean_6h": Float64("Mean"), "n_6h": Float64("Readings")},
)
def recent(readings: pl.LazyFrame) -> pl.LazyFrame:
    """The six hours before each reading."""
    timed = readings.rename({"at": "event_timestamp"}).sort("event_timestamp")
    windows = timed.rolling("event_timestamp", period="6h", group_by="sensor")
    # a sum of few small integers is exact, whatever the order
    return windows.agg(mean_6h=pl.col("value").mean(), n_6h=pl.len().cast(pl.Float64))


@feature_view(
    team="sensors",
    entities=[sensor],
    partitions=daily,
    lookback=timedelta(days=2),
    schema={"total_2d": Float64("Sum")},
)
def totals(readings: pl.LazyFrame) -> pl.LazyFrame:
    """The two days before each midnight; a midnight has a row when there was a reading in them."""
    midnight = pl.col("at").dt.truncate("1d")
    midnights = pl.concat_list(midnight + timedelta(days=1), midnight + timedelta(days=2))
    spread = readings.with_columns(event_timestamp=midnights).explode("event_timestamp")
    return spread.group_by("sensor", "event_timestamp").agg(total_2d=pl.col("value").sum())


@feature_view(
    team="sensors",
    entities=[sensor],
    partitions=daily,
    lookback=timedelta(days=1),
    schema={"highest_mean_1d": Float64("Highest")},
)
def peaks(recent: pl.LazyFrame) -> pl.LazyFrame:
    """A view of a view: the highest mean of the last day."""
    windows = recent.sort("event_timestamp").rolling("event_timestamp", period="1d", group_by="sensor")
    return windows.agg(highest_mean_1d=pl.col("mean_6h").max())


VIEWS = (recent, totals, peaks)
CATALOG = Catalog.of([peaks, readings, *VIEWS])


class Killer:
    """Counts what an ingestor does to the world, before and after each deed, and kills it at one of them."""

    def __init__(self, step: int) -> None:
        self.left = step

    def passed(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str) -> None:
        deed: Callable[..., Any] = getattr(owner, name)

        def watched(*given: Any, **named: Any) -> Any:
            self.passed()
            result = deed(*given, **named)
            self.passed()
            return result

        setattr(owner, name, watched)

    def watch(self) -> None:
        import resources.lake
        from mlops_assets.streaming import ingestor
        from mlops_assets.streaming.telling import Telling
        from resources.feast import FeastResource
        from resources.streams.spool import Spool

        self.around(Spool, "read")
        self.around(ingestor, "bury")
        self.around(resources.lake, "_publish")
        self.around(FeastResource, "write_online")
        self.around(Telling, "_write")
        self.around(Spool, "commit")


def ingest_in_a_child(step: int) -> int:
    """A process of its own; returns its id."""
    if child := os.fork():
        return child
    from mlops_assets.streaming import ingest

    try:
        Killer(step).watch()
        ingest(READINGS, once=True, max_wait=0.0, limit=60, tell_every=1e9, say=lambda _line: None, catalog=CATALOG)
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    for name in (
        "feast.infra.offline_stores.file_source",
        "feast.infra.online_stores.sqlite",
        "mlops_assets.streaming",
    ):
        import_module(name)  # what takes long is imported once
    for line in sys.stdin:
        children = [ingest_in_a_child(int(step)) for step in line.split()]
        ended = (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        sys.stdout.write(f"{' '.join(map(str, ended))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
