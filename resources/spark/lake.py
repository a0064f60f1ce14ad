"""The lake on Spark: its files as one frame, and a table published from a frame, by the lake's own laws.

Rows go from the executors to files under a hidden directory beside their places, one file for each partition, sorted;
there they are looked at, and renamed when they are found good. So what is judged is what is published, it is computed
once, and the driver sees numbers and names alone. A file is written by one task: a partition is as large as a task can
sort, which spills to disk. On S3 Spark needs its own connector (hadoop-aws).
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import dagster as dg

from resources.beside import FORGOTTEN_SECONDS
from resources.content import content_of_files
from resources.lake import (
    Key,
    Lake,
    PartitionColumnError,
    RowsOutsidePartitionsError,
    SeveralPartitionsError,
)
from resources.spark import one_task, session
from resources.spark.point_in_time import ORDER, quoted

if TYPE_CHECKING:
    import polars as pl
    from pyspark.sql import Column, DataFrame
    from upath import UPath

PLACE, OUTSIDE = "__place", -1


class NotSharedError(RuntimeError):
    """The executors wrote somewhere else than where this process looks."""

    @classmethod
    def of(cls, key: dg.AssetKey, written: int, found: int, place: object) -> Self:
        return cls(
            f"Spark wrote {written} rows of asset '{key.to_user_string()}' and {found} are in {place}; nothing was "
            "published. The cluster's machines must share the lake: mount MLOPS_HOME on each, or keep the lake on S3."
        )


def read(lake: Lake, key: Key, partitions: Sequence[str] | None = None, *, ordered: bool = False) -> DataFrame:
    """The rows of those partitions, or of all; `ordered` adds each row's place in the table as the column `ORDER`.

    Raises what `Lake.files` does.
    """
    from pyspark.sql import functions as f

    files = lake.files(key, partitions)
    rows: DataFrame = session().read.parquet(*(_for_spark(str(path)) for path in files.values()))
    if not ordered:
        return rows
    place = f.struct(f.col("_metadata.file_path").alias("file"), f.col("_metadata.row_index").alias("row"))
    return rows.withColumn(ORDER, place)


@dataclass(frozen=True)
class Staged:
    """A table's files by partition, written and not yet shown to anybody."""

    lake: Lake
    key: dg.AssetKey
    files: Mapping[str, UPath]

    @property
    def rows(self) -> DataFrame:
        return session().read.parquet(*(_for_spark(str(path)) for path in self.files.values()))

    def content(self) -> str:
        """What its content is called, in the order of its partitions; one of the cluster's machines reads it."""
        found: str = one_task(content_of_files, [str(path) for path in self.files.values()])
        return found

    def facts(self) -> dict[str, dict[str, Any]]:
        """By partition, its number of rows and bytes and where it is to be."""
        return {name: self._facts(name, path) for name, path in self.files.items()}

    def _facts(self, name: str, path: UPath) -> dict[str, Any]:
        return {
            "dagster/row_count": _count(path),
            "path": dg.MetadataValue.path(str(self.lake.path(self.key, name))),
            "bytes": path.stat().st_size,
        }

    def publish(self) -> None:
        """Each partition is replaced at once; readers see its old rows or the new ones."""
        with self.lake.alone(self.key):
            for name, path in self.files.items():
                place = self.lake.path(self.key, name)
                if place.protocol == "s3":
                    path.fs.mv(path.path, place.path)
                else:
                    Path(str(path)).replace(str(place))


@contextmanager
def staged(
    lake: Lake,
    key: Key,
    frame: DataFrame,
    windows: Mapping[str, dg.TimeWindow | None],
    *,
    column: str | None,
    by: Sequence[str],
    empty: pl.DataFrame,
) -> Iterator[Staged]:
    """The frame's rows as files, a partition each, sorted by the columns `by`; they are removed unless published.

    `windows` are the partitions, told apart by the time in `column`, which may be None for one that has no window.
    A partition without rows gets the file of `empty`. Raises PartitionColumnError, SeveralPartitionsError,
    RowsOutsidePartitionsError.
    """
    name = dg.AssetKey.from_coercible(key) if not isinstance(key, dg.AssetKey) else key
    above = lake.path(name).parent
    place = above / f".spark-{uuid4().hex}.tmp"
    try:
        yield Staged(lake, name, _written(name, place, frame, windows, column, by, empty))
    finally:
        if place.exists():
            place.fs.rm(place.path, recursive=True)
        _forget(above)


def _written(
    key: dg.AssetKey,
    place: UPath,
    frame: DataFrame,
    windows: Mapping[str, dg.TimeWindow | None],
    column: str | None,
    by: Sequence[str],
    empty: pl.DataFrame,
) -> dict[str, UPath]:
    from pyspark.sql import Observation
    from pyspark.sql import functions as f

    names = sorted(windows, key=lambda name: window.start if (window := windows[name]) else name)
    if column is None and len(names) > 1:
        raise SeveralPartitionsError.of(key, names)
    number = f.lit(0) if column is None else _number(key, frame, column, [windows[name] for name in names])
    seen = Observation()
    counted = frame.withColumn(PLACE, number).observe(seen, f.count("*").alias("rows"))
    placed = counted.repartition(PLACE).sortWithinPartitions(PLACE, *map(quoted, by))
    placed.write.partitionBy(PLACE).parquet(_named(str(place)))
    if (outside := place / f"{PLACE}={OUTSIDE}").exists():
        rows = session().read.parquet(_for_spark(str(outside)))
        example = rows.select(f.col(quoted(column or "")).cast("string")).first()
        raise RowsOutsidePartitionsError.of(key, column or "", rows.count(), example and example[0], names)
    files = {name: _file(place / f"{PLACE}={index}", empty) for index, name in enumerate(names)}
    found = sum(map(_count, files.values()))
    written = seen.get["rows"] if found else frame.limit(1).count()  # of no rows Spark may count none
    if found != written:
        raise NotSharedError.of(key, written, found, place.parent)
    return files


def _file(directory: UPath, empty: pl.DataFrame) -> UPath:
    """The one file that a partition's task wrote; where there were no rows to write, one without any."""
    if directory.exists():
        (written,) = [path for path in directory.iterdir() if path.name.endswith(".parquet")]
        return written
    directory.mkdir(parents=True)
    path = directory / "empty.parquet"
    with path.open("wb") as file:
        empty.write_parquet(file)
    return path


def _number(key: dg.AssetKey, frame: DataFrame, column: str, windows: Sequence[dg.TimeWindow | None]) -> Column:
    """The number of the window that a row's time is in (start inclusive, end exclusive), else OUTSIDE."""
    from pyspark.sql import functions as f

    given = dict(frame.dtypes).get(column, "missing")
    if given != "timestamp" or None in windows:
        raise PartitionColumnError.of(key, column, given)
    whole = [window for window in windows if window]
    starts, ends = [_micros(window.start) for window in whole], [_micros(window.end) for window in whole]
    time, width = f.unix_micros(quoted(column)), ends[0] - starts[0]
    even = [(starts[0] + place * width, starts[0] + (place + 1) * width) for place in range(len(whole))]
    if even == list(zip(starts, ends, strict=True)):
        inside = (time >= starts[0]) & (time < ends[-1])
        number = f.floor((time - starts[0]) / f.lit(width)).cast("int")
    else:  # months, or days with holes between them: few enough to look through
        number = f.size(f.filter(f.array(*map(f.lit, starts)), lambda start: start <= time)) - 1
        inside = (number >= 0) & (time < f.get(f.array(*map(f.lit, ends)), number))
    return f.when(inside, number).otherwise(OUTSIDE)


def _micros(moment: Any) -> int:
    from datetime import UTC, datetime

    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _count(path: UPath) -> int:
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        return int(pq.read_metadata(file).num_rows)


def _for_spark(path: str) -> str:
    """A file to read, of whose name every character is meant, also [ and *."""
    return re.sub(r"([\\\[\]{}*?])", r"\\\1", _named(path))


def _named(path: str) -> str:
    """S3 goes by the name of Hadoop's connector."""
    return f"s3a{path.removeprefix('s3')}" if path.startswith("s3://") else path


def _forget(above: UPath) -> None:
    """Remove what killed writers left a day ago; a younger one may be another's, still at work."""
    if above.protocol == "s3" or not above.exists():
        return
    for left in Path(str(above)).glob(".spark-*.tmp"):
        if time.time() - left.stat().st_mtime > FORGOTTEN_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
