"""Feast's file sources as Polars reads and writes them: Parquet files, directories, globs, Delta tables; local or S3.

A source is one table, however many files hold it. A path below a directory may say values (`day=2013-01-01/`).
Names that begin with a dot or an underscore are hidden: somebody is still writing them. The rule that must never
break: a reader sees all of a write or nothing of it.

Imported by `resources.polars_offline_store`, which Feast imports; hence Feast at the top.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self
from uuid import uuid4

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig
from filelock import FileLock


class SourceError(LookupError):
    """A feature view's data cannot be found or read, or is of a kind that this store does not read."""

    @classmethod
    def kind(cls, source: DataSource | None) -> Self:
        return cls(
            f"Data source {getattr(source, 'name', None)!r} is a {type(source).__name__} (readable: FileSource). "
            "Give the feature view a FileSource on Parquet or Delta files."
        )

    @classmethod
    def missing(cls, source: DataSource, location: str) -> Self:
        return cls(
            f"Data source {source.name!r} has no table at {location}. Materialize the asset that writes it, "
            "or correct the source's path."
        )

    @classmethod
    def unreadable(cls, source: DataSource, path: str, reason: object) -> Self:
        return cls(
            f"Data source {source.name!r}: {path} is no whole Parquet file ({reason}). A writer was probably cut off: "
            "write the file again, or remove it."
        )

    @classmethod
    def changed(cls, source: DataSource, path: str, differences: Sequence[str], first: str) -> Self:
        return cls(
            f"Data source {source.name!r}: {path} has another schema than {first} ({'; '.join(differences)}). "
            "All files of a source have the same columns: write the older ones again with the new schema."
        )


def file_source(source: DataSource | None) -> FileSource:
    """Raises SourceError for another kind of source."""
    if not isinstance(source, FileSource):
        raise SourceError.kind(source)
    return source


def location(source: DataSource, config: RepoConfig) -> str:
    """Where the source's files are; a relative path begins at the feature repository."""
    place = FileSource.get_uri_for_file_path(config.repo_path, file_source(source).path)
    return str(place).removeprefix("file://")


def scan(source: FileSource, config: RepoConfig) -> pl.LazyFrame:
    """The source's rows, lazily, under their own column names. Raises SourceError."""
    place = location(source, config)
    if _is_delta(source):
        return _scan_delta(source, place)
    if "://" in place:
        return _scan_remote(source, place)
    if not (paths := local_files(place)):
        raise SourceError.missing(source, place)
    frame = pl.scan_parquet(paths, glob=False, hive_partitioning=_says_values(place, paths))
    with explained([source], config):
        frame.collect_schema()
    return frame


def local_files(place: str) -> list[str]:
    """The files of a table on this machine, in the order of their names: of a file, a directory, or a glob."""
    path = Path(place)
    if path.is_file():
        return [place]
    if path.is_dir():
        root, pattern = path, "**/*.parquet"
    else:
        root, pattern = _root(path)
    below = (found for found in root.glob(pattern) if not _hidden(found.relative_to(root).parts))
    return sorted(str(found) for found in below if found.is_file())


@contextmanager
def explained(sources: Iterable[FileSource], config: RepoConfig) -> Iterator[None]:
    """Polars' trouble with a file of these sources becomes a SourceError that names the file."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        for source in sources:
            _blame(source, config, error)
        raise


def append(source: FileSource, config: RepoConfig, rows: pl.DataFrame) -> None:
    """Add rows to the table: a new file in a directory, a new version of a single file or a Delta table."""
    place = location(source, config)
    if _is_delta(source):
        rows.write_delta(place, mode="append", storage_options=storage_options(source))
    elif not place.endswith(".parquet") and not Path(place).is_file():
        append_to_directory(rows, place, partition_columns(source, config), storage_options(source))
    elif "://" in place:
        write([pl.concat([scan(source, config).collect(), rows])], place, storage_options(source))
    else:
        with FileLock(
            Path(place).with_name(f".{Path(place).name}.lock")
        ):  # two writers would each lose the other's rows
            write([pl.concat([scan(source, config).collect(), rows])], place)


def append_to_directory(
    rows: pl.DataFrame, place: str, by: Sequence[str] = (), options: dict[str, str] | None = None
) -> None:
    """A new file in the directory, one in each directory of values where the table is partitioned."""
    parts = rows.partition_by(by, as_dict=True, include_key=False) if by else {(): rows}
    for values, part in parts.items():
        below = "".join(f"{name}={value}/" for name, value in zip(by, values, strict=True))
        write([part], f"{place.rstrip('/')}/{below}{uuid4().hex}.parquet", options)


def partition_columns(source: FileSource, config: RepoConfig) -> list[str]:
    """The columns that the table's paths say, not its files."""
    place = location(source, config)
    if "://" in place or not (paths := local_files(place)):
        return []
    below = Path(paths[0]).parent.relative_to(place).parts
    return [part.split("=")[0] for part in below if "=" in part]


def replace(source: FileSource, config: RepoConfig, batches: Iterable[pl.DataFrame]) -> None:
    """Make the batches, at least one, the table's only rows; a directory keeps no other Parquet file."""
    place, options = location(source, config), storage_options(source)
    if _is_delta(source):
        _write_delta(batches, place, options)
    elif place.endswith(".parquet") or Path(place).is_file():
        write(batches, place, options)
    else:
        before = [] if "://" in place else local_files(place)
        target = f"{place.rstrip('/')}/part-0.parquet"
        write(batches, target, options)
        for path in before:
            if path != target:
                Path(path).unlink()


def exists(source: FileSource, config: RepoConfig) -> bool:
    """Whether anything lies where the table would."""
    place = location(source, config)
    if "://" not in place:
        return Path(place).exists()
    try:
        scan(source, config)
    except SourceError:
        return False
    return True


def write(batches: Iterable[pl.DataFrame], target: str, options: dict[str, str] | None = None) -> None:
    """Write one Parquet file, a row group or more a batch, so that a reader sees all of it or nothing."""
    if "://" in target:
        with TemporaryDirectory(prefix="feature-files-") as directory:
            whole = Path(directory, "whole.parquet")
            _write_groups(batches, whole)
            # An object store shows an object when it is whole.
            pl.scan_parquet(whole).sink_parquet(target, storage_options=options)
        return
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        _write_groups(batches, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def storage_options(source: FileSource) -> dict[str, str] | None:
    """How the source's S3 is reached; what is not said here stands in the environment."""
    given = {name.lower(): value for name, value in (source.resolve_credentials() or {}).items()}
    endpoint = source.s3_endpoint_override or os.environ.get("AWS_ENDPOINT_URL", "")
    if endpoint:
        given |= {"aws_endpoint_url": endpoint, "aws_allow_http": str(endpoint.startswith("http://")).lower()}
    return given or None


def _is_delta(source: FileSource) -> bool:
    return isinstance(source.file_format, DeltaFormat)


def _scan_delta(source: FileSource, place: str) -> pl.LazyFrame:
    from deltalake.exceptions import TableNotFoundError

    frame = pl.scan_delta(place, storage_options=storage_options(source))
    try:
        frame.collect_schema()
    except TableNotFoundError as error:
        raise SourceError.missing(source, place) from error
    return frame


def _scan_remote(source: FileSource, place: str) -> pl.LazyFrame:
    whole = place.endswith(".parquet") or "*" in place
    files = place if whole else f"{place.rstrip('/')}/**/*.parquet"
    try:
        frame = pl.scan_parquet(
            files,
            hidden_file_prefix=[".", "_"],
            hive_partitioning=not whole or "=" in place,
            storage_options=storage_options(source),
        )
        frame.collect_schema()
    except (FileNotFoundError, pl.exceptions.ComputeError) as error:
        if isinstance(error, FileNotFoundError) or "expanded paths were empty" in str(error):
            raise SourceError.missing(source, files) from error
        raise SourceError.unreadable(source, files, error) from error
    return frame


def _root(path: Path) -> tuple[Path, str]:
    """The part of a glob before its first wildcard, and the rest."""
    fixed = next((place for place, part in enumerate(path.parts) if re.search(r"[*?\[]", part)), len(path.parts) - 1)
    return Path(*path.parts[:fixed]), str(Path(*path.parts[fixed:]))


def _hidden(parts: Iterable[str]) -> bool:
    """`__log_date=2013-01-01` is a value of a column, not a hidden directory."""
    return any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in parts)


def _says_values(place: str, paths: Sequence[str]) -> bool:
    """Whether the paths below the table's root say values; a directory above it may have any name."""
    root = Path(place) if Path(place).is_dir() else _root(Path(place))[0]
    return any("=" in part for part in Path(paths[0]).parent.relative_to(root).parts) if paths != [place] else False


def _blame(source: FileSource, config: RepoConfig, error: Exception) -> None:
    """Raises SourceError where a file of the source is the reason."""
    if _is_delta(source) or "://" in (place := location(source, config)):
        return
    first: tuple[str, dict[str, str]] | None = None
    for path in local_files(place):
        try:
            schema = {field.name: str(field.type) for field in pq.read_schema(path)}
        except (pa.ArrowException, OSError) as reason:
            raise SourceError.unreadable(source, path, reason) from error
        if first and (differences := _differences(first[1], schema)):
            raise SourceError.changed(source, path, differences, first[0]) from error
        first = first or (path, schema)


def _differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [
        f"{name!r} is {after.get(name, 'missing')}, was {before.get(name, 'missing')}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _write_groups(batches: Iterable[pl.DataFrame], path: Path) -> None:
    """Every batch is written before the next one is computed."""
    remaining = iter(batches)
    first = next(remaining)
    schema = first.to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in chain([first], remaining):
            writer.write_table(batch.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema))
            del batch  # not held while the next one is computed


def _write_delta(batches: Iterable[pl.DataFrame], place: str, options: dict[str, str] | None) -> None:
    """One commit: a reader sees the old rows, then the new ones."""
    with TemporaryDirectory(prefix="feature-files-") as directory:
        whole = Path(directory, "whole.parquet")
        _write_groups(batches, whole)
        schema = {"schema_mode": "overwrite"}
        pl.scan_parquet(whole).sink_delta(place, mode="overwrite", storage_options=options, delta_write_options=schema)
