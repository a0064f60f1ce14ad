"""The lake: every table of every asset as Parquet, one file per partition.

    <root>/<asset key path>/<partition>.parquet       an unpartitioned asset's table is `all.parquet`

The root is a directory or `s3://bucket/prefix` (endpoint and credentials come from the AWS_*
variables). Any Parquet reader can read a file as it lies. A file is published whole or not at all: it is
written beside its place under a hidden name and renamed, or put to S3 in one request; a run that
fails while it splits its rows into partitions has published none of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, unquote

import dagster as dg

from resources.beside import beside
from resources.environment import home

if TYPE_CHECKING:
    import polars as pl
    from filelock import FileLock
    from upath import UPath

Result = TypeVar("Result")
Key = dg.AssetKey | Sequence[str] | str
UNPARTITIONED = "all"
PARTITION_COLUMN = "partition_column"
EVENT_TIMESTAMP = "event_timestamp"
_THREADS = 16


class NotMaterializedError(LookupError):
    """A table was read before any of the asked partitions was published."""

    @classmethod
    def of(cls, key: dg.AssetKey, asked: Sequence[str], exists: Sequence[str]) -> Self:
        name = key.to_user_string()
        return cls(
            f"Asset '{name}' has no file in the lake for {_few(asked)} (exists: {_few(exists)}). "
            f"Materialize '{name}' first."
        )


class UnreadableFileError(ValueError):
    """A file of the lake is truncated, corrupt, or no Parquet file at all."""

    @classmethod
    def of(cls, key: dg.AssetKey, partition: str, path: object, why: Exception) -> Self:
        name = key.to_user_string()
        return cls(
            f"{path} of asset '{name}' is no readable Parquet file ({why}). "
            f"Delete it and materialize partition {partition!r} of '{name}' again."
        )


class SchemaDriftError(ValueError):
    """Partitions of one table disagree about its columns."""

    @classmethod
    def of(cls, key: dg.AssetKey, one: tuple[str, pl.Schema], other: tuple[str, pl.Schema]) -> Self:
        name = key.to_user_string()
        drift = [
            f"{column} is {one[1].get(column, 'missing')} and {other[1].get(column, 'missing')}"
            for column in {**one[1], **other[1]}
            if one[1].get(column) != other[1].get(column)
        ]
        return cls(
            f"Partitions {one[0]!r} and {other[0]!r} of asset '{name}' have different columns: {'; '.join(drift)}. "
            f"Materialize the older one again, so that '{name}' has one schema."
        )


class PartitionColumnError(ValueError):
    """A run's rows cannot be told apart by the time of their partition."""

    @classmethod
    def of(cls, key: dg.AssetKey, column: str, found: object) -> Self:
        return cls(
            f"Asset '{key.to_user_string()}' is split into partitions by column '{column}', which is {found} "
            f"(needed: Datetime('us', 'UTC')). Return such a column, name another one in the asset's metadata "
            f"as '{PARTITION_COLUMN}', or set that to None where a partition is no slice of time."
        )


class RowsOutsidePartitionsError(ValueError):
    """A run returned rows of partitions that it was not asked for."""

    @classmethod
    def of(cls, key: dg.AssetKey, column: str, count: int, example: object, asked: Sequence[str]) -> Self:
        return cls(
            f"Asset '{key.to_user_string()}' returned {count} rows outside of {_few(asked)}; one has "
            f"{column}={example}. Filter them to the run's window, or set '{PARTITION_COLUMN}': None in the "
            f"asset's metadata where a partition is no slice of time."
        )


class SeveralPartitionsError(ValueError):
    """A run took several partitions of an asset whose rows name no partition."""

    @classmethod
    def of(cls, key: dg.AssetKey, asked: Sequence[str]) -> Self:
        return cls(
            f"Asset '{key.to_user_string()}' cannot be split into {_few(asked)}: its partitions are no slices of "
            f"time by a column. Run one partition at a time (dg.BackfillPolicy.multi_run())."
        )


class NotATableError(TypeError):
    """An asset returned something that is no table."""

    @classmethod
    def of(cls, key: dg.AssetKey, returned: object) -> Self:
        return cls(
            f"Asset '{key.to_user_string()}' returned {type(returned).__name__} (stored: polars.LazyFrame, "
            f"polars.DataFrame). Return a frame, or dg.MaterializeResult for an asset that is no table."
        )


def _together(work: Callable[[str], Result], names: Iterable[str]) -> list[Result]:
    """One result per name, in order; files are handled side by side, since S3 answers each one slowly."""
    asked = list(names)
    if len(asked) == 1:
        return [work(asked[0])]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, asked))


def _few(names: Sequence[str]) -> str:
    if len(names) > 5:
        return f"{names[0]}, {names[1]} ... {names[-1]} ({len(names)} partitions)"
    return ", ".join(names) or "none"


def _asset_key(key: Key) -> dg.AssetKey:
    return dg.AssetKey.from_user_string(key) if isinstance(key, str) else dg.AssetKey.from_coercible(key)


class Lake(dg.ConfigurableResource["Lake"]):
    """Tables as Parquet files, found by asset key and partition key.

    `root` is a directory or an `s3://` URL; None is `lake/` under MLOPS_HOME.
    """

    root: str | None = None

    def path(self, key: Key, partition: str | None = None) -> UPath:
        """Where the file is or would be; a key's odd characters are percent-encoded."""
        return self._directory(key) / f"{quote(partition or UNPARTITIONED, safe=' ')}.parquet"

    def exists(self, key: Key, partition: str | None = None) -> bool:
        return self.path(key, partition).exists()

    def partitions(self, key: Key) -> list[str]:
        """The published partition keys, sorted; none for an unpartitioned table."""
        return [name for name in self._published(key) if name != UNPARTITIONED]

    def write(self, frame: pl.DataFrame | pl.LazyFrame, key: Key, partition: str | None = None) -> UPath:
        """Publish a table, replacing what was there at once; readers see the old rows or the new."""
        rows = frame.lazy().collect()
        with self.alone(key):
            return self._write(rows, key, partition)

    def write_partitions(self, frames: Mapping[str, pl.DataFrame], key: Key) -> dict[str, UPath]:
        """Publish many partitions at once; returns the path of each."""
        with self.alone(key):
            return dict(zip(frames, _together(lambda name: self._write(frames[name], key, name), frames), strict=True))

    def upsert(self, frames: Mapping[str, pl.DataFrame], key: Key, unique: Sequence[str]) -> dict[str, pl.DataFrame]:
        """Add rows to partitions; a row replaces the one of equal `unique` columns, the last of several stays.

        Returns each partition as it now lies, sorted by `unique`. Repeating it changes nothing, and what would not
        change is not written. Raises SchemaDriftError, naming the columns, before anything of that partition changes.
        """
        with self.alone(key):
            merged = _together(lambda name: self._upsert(frames[name], key, name, unique), frames)
        return dict(zip(frames, merged, strict=True))

    def _upsert(self, frame: pl.DataFrame, key: Key, partition: str, unique: Sequence[str]) -> pl.DataFrame:
        import polars as pl

        if not self.exists(key, partition):
            merged = frame.unique(unique, keep="last", maintain_order=True).sort(unique)
            self._write(merged, key, partition)
            return merged
        old_schema = self._schema(_asset_key(key), partition)
        if dict(old_schema) != dict(frame.schema):
            raise SchemaDriftError.of(_asset_key(key), (partition, old_schema), ("what is added", frame.schema))
        old = self._scan([self.path(key, partition)]).collect()
        merged = (
            pl.concat([old, frame.select(old.columns)]).unique(unique, keep="last", maintain_order=True).sort(unique)
        )
        if not merged.equals(old):
            self._write(merged, key, partition)
        return merged

    def _write(self, rows: pl.DataFrame, key: Key, partition: str | None) -> UPath:
        path = self.path(key, partition)
        path.parent.mkdir(parents=True, exist_ok=True)
        _publish(rows, path)
        return path

    def alone(self, key: Key) -> FileLock:
        """The writers of a table take turns, so that none replaces what it has not seen."""
        from filelock import FileLock

        on_disk = self.root is not None and not self.root.startswith("s3://")
        locks = Path(str(self.root), ".locks") if on_disk else home() / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{'.'.join(quote(part, safe='') for part in _asset_key(key).path)}.lock")

    def scan(self, key: Key, partitions: Iterable[str] | None = None) -> pl.LazyFrame:
        """The table's rows, in partition order: those of `partitions` that exist, or all. Raises what `files` does."""
        return self._scan(list(self.files(key, partitions).values()))

    def files(self, key: Key, partitions: Iterable[str] | None = None) -> dict[str, UPath]:
        """The table's files by partition, in order: those of `partitions` that exist, or all.

        Raises NotMaterializedError when there is nothing to read, UnreadableFileError and
        SchemaDriftError, which name the file or the columns, before any row is read.
        """
        exists = self._published(key)
        asked = list(exists if partitions is None else partitions)
        found = sorted(set(asked) & set(exists))
        if not found:
            raise NotMaterializedError.of(_asset_key(key), asked, exists)
        self._require_one_schema(_asset_key(key), found)
        return {name: self.path(key, name) for name in found}

    def _published(self, key: Key) -> list[str]:
        directory = self._directory(key)
        names = (path.name for path in directory.iterdir()) if directory.exists() else ()
        return sorted(unquote(name.removesuffix(".parquet")) for name in names if name.endswith(".parquet"))

    def _directory(self, key: Key) -> UPath:
        root = str(self.root or home() / "lake")
        from upath import UPath  # loads fsspec, which loading definitions does not need

        # s3fs remembers listings for ever, and would not see what another process published
        base = UPath(root, use_listings_cache=False) if root.startswith("s3://") else UPath(root)
        return base.joinpath(*_asset_key(key).path)

    def _scan(self, paths: Sequence[UPath]) -> pl.LazyFrame:
        import polars as pl

        options = s3_options() if str(paths[0]).startswith("s3://") else None
        # glob=False: a directory may be called [x]
        return pl.scan_parquet([str(path) for path in paths], glob=False, storage_options=options)

    def _schema(self, key: dg.AssetKey, partition: str) -> pl.Schema:
        import polars as pl

        path = self.path(key, partition)
        try:
            return self._scan([path]).collect_schema()
        except pl.exceptions.ComputeError as error:
            raise UnreadableFileError.of(key, partition, path, error) from error

    def _require_one_schema(self, key: dg.AssetKey, partitions: Sequence[str]) -> None:
        schemas = _together(partial(self._schema, key), partitions)
        newest = schemas[-1]
        for partition, schema in zip(partitions, schemas, strict=True):
            if dict(schema) != dict(newest):
                raise SchemaDriftError.of(key, (partition, schema), (partitions[-1], newest))


def _publish(frame: pl.DataFrame, path: UPath) -> None:
    if path.protocol == "s3":
        content = BytesIO()
        frame.write_parquet(content)
        path.write_bytes(content.getvalue())
        return
    with beside(Path(str(path))) as place:
        frame.write_parquet(place)


def s3_options() -> dict[str, str]:
    """What Polars and other Rust readers must be told about S3 that boto3 finds by itself."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint is None:
        return {}
    return {"aws_endpoint_url": endpoint, "aws_allow_http": str(endpoint.startswith("http://")).lower()}


class ParquetIOManager(dg.ConfigurableIOManager):
    """Stores an asset's frame in the lake and hands it to readers as one lazy frame.

    A run over several time partitions returns the rows of all of them, which are told apart by the
    column named in the asset's metadata as `partition_column` (default `event_timestamp`). Every
    partition of the run gets a file, an empty one too: empty is a result, missing is not. Where a
    partition is no slice of time (a training set as of a cutoff), `partition_column` is None and
    a run takes one partition. `root` is the lake's.
    """

    root: str | None = None

    @property
    def lake(self) -> Lake:
        return Lake(root=self.root)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        import polars as pl

        if not isinstance(obj, pl.LazyFrame | pl.DataFrame):
            raise NotATableError.of(context.asset_key, obj)
        frame = obj.lazy().collect()
        frames = _by_partition(context, frame) if context.has_asset_partitions else {UNPARTITIONED: frame}
        paths = self.lake.write_partitions(frames, context.asset_key)
        _report(context, frames, paths)

    def load_input(self, context: dg.InputContext) -> pl.LazyFrame:
        asked = list(context.asset_partition_keys) if context.has_asset_partitions else [UNPARTITIONED]
        if missing := holes(asked, self.lake.partitions(context.asset_key)):
            context.log.warning(
                "Read '%s' without %s: not materialized.", context.asset_key.to_user_string(), _few(missing)
            )
        return self.lake.scan(context.asset_key, asked)


def holes(asked: Sequence[str], exists: Sequence[str]) -> list[str]:
    """Missing partitions after the first one that exists: before it, a lookback reaches past the beginning."""
    known = set(exists)
    first = next((place for place, name in enumerate(asked) if name in known), len(asked))
    return [name for name in asked[first:] if name not in known]


def _by_partition(context: dg.OutputContext, frame: pl.DataFrame) -> dict[str, pl.DataFrame]:
    keys = list(context.asset_partition_keys)
    column = _partition_column(context)
    definition = context.asset_partitions_def
    if column is not None and isinstance(definition, dg.TimeWindowPartitionsDefinition):
        windows = {key: definition.time_window_for_partition_key(key) for key in keys}
        return split_by_window(frame, column, windows, context.asset_key)
    if len(keys) > 1:
        raise SeveralPartitionsError.of(context.asset_key, keys)
    return {keys[0]: frame}


def _partition_column(context: dg.OutputContext) -> str | None:
    column = context.definition_metadata.get(PARTITION_COLUMN, EVENT_TIMESTAMP)
    return column.value if isinstance(column, dg.MetadataValue) else column


def split_by_window(
    frame: pl.DataFrame, column: str, windows: Mapping[str, dg.TimeWindow], key: dg.AssetKey
) -> dict[str, pl.DataFrame]:
    """The rows of each window (start inclusive, end exclusive), in their order; empty ones included.

    Raises PartitionColumnError unless `column` is Datetime("us", "UTC"), and
    RowsOutsidePartitionsError when a row's time is null or in no window.
    """
    import polars as pl

    if frame.schema.get(column) != pl.Datetime("us", "UTC"):
        raise PartitionColumnError.of(key, column, frame.schema.get(column, "missing"))
    names = sorted(windows, key=lambda name: windows[name].start)
    starts = pl.Series([_utc(windows[name].start) for name in names], dtype=pl.Datetime("us", "UTC"))
    ends = pl.Series([_utc(windows[name].end) for name in names], dtype=pl.Datetime("us", "UTC"))
    place = starts.search_sorted(frame[column], side="right").cast(pl.Int64) - 1
    inside = frame[column].is_not_null() & (place >= 0) & (frame[column] < ends.gather(place.clip(0)))
    if (outside := frame.filter(~inside.fill_null(False))).height:
        raise RowsOutsidePartitionsError.of(key, column, outside.height, outside[column][0], list(windows))
    parts = frame.with_columns(place.alias("__place")).partition_by("__place", as_dict=True, include_key=False)
    return {name: parts.get((index,), frame.clear()) for index, name in enumerate(names)}


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def _report(context: dg.OutputContext, frames: Mapping[str, pl.DataFrame], paths: Mapping[str, UPath]) -> None:
    facts = dict(zip(frames, _together(lambda name: _facts(frames[name], paths[name]), frames), strict=True))
    declared = "dagster/column_schema" in context.definition_metadata
    schema = {} if declared else _column_schema(next(iter(frames.values())))
    if len(facts) == 1:
        context.add_output_metadata({**schema, **next(iter(facts.values()))})
        return
    context.add_output_metadata(schema)
    for name, metadata in facts.items():
        context.step_context.add_asset_metadata(metadata, context.asset_key, name)


def _facts(frame: pl.DataFrame, path: UPath) -> dict[str, Any]:
    return {
        "dagster/row_count": frame.height,
        "path": dg.MetadataValue.path(str(path)),
        "bytes": path.stat().st_size,
    }


def _column_schema(frame: pl.DataFrame) -> dict[str, Any]:
    columns = [dg.TableColumn(name, str(dtype)) for name, dtype in frame.schema.items()]
    return {"dagster/column_schema": dg.TableSchema(columns)}
