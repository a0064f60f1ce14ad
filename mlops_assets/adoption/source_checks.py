"""Claims about the rows behind a feature view: as registered, whole keys and times, no contradiction, fresh.

Files are read by Polars where they lie, without Feast, so that a check takes as long as its data; a table of another
kind is asked through the repository's own offline store. Times without a zone are UTC, as Feast takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from mlops_assets.adoption.registry import Source, View
from mlops_assets.adoption.repository import FeastRepository
from mlops_assets.claims import EXAMPLES, Claim

if TYPE_CHECKING:
    import polars as pl

TIME = "__event_timestamp"  # beside the columns of any view
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
REACHABLE = "The source can be read and has its time column"
PROMISES = {
    "schema_as_registered": "Every registered column is in the source, with a type that fits",
    "keys_and_time_present": "No key and no time is null",
    "unique_key_and_time": "Rows of one key and time do not contradict each other",
    "newest_row_within_ttl": "The newest row is young enough to be served",
}
WARNINGS = frozenset({"newest_row_within_ttl"})


class UnreadableSourceError(ValueError):
    """A source's rows cannot be read."""

    @classmethod
    def of(cls, source: Source, why: str) -> Self:
        return cls(
            f"Data source {source.name!r} ({source.kind} {source.location}) cannot be read: {why}. "
            "Restore it, or register where it is now: feast apply."
        )


def rows_of(repository: FeastRepository, view: View, source: Source) -> pl.LazyFrame:
    """Every row of the view's source, in the source's own columns. Raises UnreadableSourceError."""
    return file_rows(repository, source) if source.kind == "file" else _asked_rows(repository, view, source)


def file_rows(repository: FeastRepository, source: Source) -> pl.LazyFrame:
    import polars as pl

    options = {"aws_endpoint_url": source.endpoint} if source.endpoint else None
    scan = pl.scan_delta if source.format == "delta" else pl.scan_parquet
    with reading(source):
        frame = scan(place_of(repository, source), storage_options=options)
        frame.collect_schema()
        return frame


def place_of(repository: FeastRepository, source: Source) -> str:
    """A file's path as the repository means it: relative ones are below its root."""
    address = urlsplit(source.location)
    if address.scheme and address.netloc:
        return source.location
    return str(repository.root / (address.path if address.scheme == "file" else source.location))


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """What Polars says of rows that are not there, or are something else, as UnreadableSourceError."""
    import polars as pl

    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UnreadableSourceError.of(source, str(error)) from error


def _asked_rows(repository: FeastRepository, view: View, source: Source) -> pl.LazyFrame:
    """Through Feast's offline store; rows without a time are not among its answers."""
    import polars as pl

    with repository.store() as store:
        job = store._get_provider().offline_store.pull_all_from_table_or_query(  # noqa: SLF001  Feast has no other way
            config=store.config,
            data_source=store.get_data_source(source.name),
            join_key_columns=[source.column(key.name) for key in view.keys],
            feature_name_columns=[source.column(feature.name) for feature in view.features],
            timestamp_field=source.timestamp,
            created_timestamp_column=source.created or None,
            start_date=BEGINNING,
            end_date=datetime.now(UTC),
        )
        return pl.DataFrame(job.to_arrow()).lazy()


def reachable(repository: FeastRepository, source: Source) -> Claim:
    """The claim about a file by itself."""
    try:
        frame = file_rows(repository, source)
        with reading(source):
            columns, rows = frame.collect_schema().names(), _count(frame)
    except UnreadableSourceError as error:
        return Claim("reachable", False, str(error))
    there = source.timestamp in columns
    lacking = f"there is no time column {source.timestamp!r} (it has: {', '.join(columns)})"
    return Claim("reachable", there, f"{rows} rows" if there else lacking, numbers={"rows": rows})


def _count(frame: pl.LazyFrame) -> int:
    import polars as pl

    return int(frame.select(pl.len()).collect().item())


def view_claims(frame: pl.LazyFrame, view: View, source: Source, now: datetime) -> list[Claim]:
    """Every claim about a view's rows; where its key or time is missing, the others say so."""
    columns = frame.collect_schema()
    schema = schema_as_registered(columns, view, source)
    key = [source.column(column.name) for column in view.keys]
    if lacking := [name for name in (*key, source.timestamp) if name not in columns]:
        return [schema, *(_unjudged(name, f"column {lacking} is missing") for name in list(PROMISES)[1:])]
    with reading(source):
        timed = frame.with_columns(in_utc(columns[source.timestamp], source.timestamp))
        return [
            schema,
            keys_and_time_present(timed, key, source),
            unique_key_and_time(timed, key, source),
            newest_row_within_ttl(timed, view, source, now),
        ]


def unread_claims(error: UnreadableSourceError) -> list[Claim]:
    """Of rows that cannot be read nothing is true."""
    return [_unjudged(name, str(error)) for name in PROMISES]


def _unjudged(name: str, why: str) -> Claim:
    return Claim(name, False, why, blocking=name not in WARNINGS)


def schema_as_registered(schema: Mapping[str, pl.DataType], view: View, source: Source) -> Claim:
    """Names and types; a view that transforms its source promises only keys and time."""
    columns = view.keys if view.transformed else view.columns
    named = {source.column(column.name): column for column in columns}
    missing = [name for name in (*named, source.timestamp) if name not in schema]
    unfit = [
        f"{name} is {schema[name]}, registered as {column.type}"
        for name, column in named.items()
        if name in schema and not fits(schema[name], column.type)
    ]
    told = [f"missing: {', '.join(missing)}"] if missing else []
    return Claim("schema_as_registered", not (missing or unfit), "; ".join([*told, *unfit]) or "as registered")


def fits(given: pl.DataType, registered: str) -> bool:
    """Whether Feast can take a column for the registered type without guessing; an unknown type fits anything."""
    import polars as pl

    if given == pl.Null():
        return True
    base, shape = shape_of(registered)
    if shape:
        inner = getattr(given, "inner", None)
        return inner is not None and fits(inner, base)
    text, nested = given == pl.String(), given.is_nested()
    tests = {
        "INT32": given.is_integer(),
        "INT64": given.is_integer(),
        "FLOAT": given.is_numeric(),
        "DOUBLE": given.is_numeric(),
        "DECIMAL": given.is_numeric() or text,
        "BOOL": given == pl.Boolean(),
        "STRING": isinstance(given, pl.String | pl.Categorical | pl.Enum),
        "BYTES": given == pl.Binary(),
        "UNIX_TIMESTAMP": given.is_temporal(),
        "MAP": nested or text,
        "STRUCT": nested or text,
        "JSON": nested or text,
    }
    return tests.get(base, True)


def shape_of(kind: str) -> tuple[str, str]:
    """A Feast type as what it is of, and `LIST`, `SET` or nothing."""
    base, _, last = kind.rpartition("_")
    return (base, last) if last in ("LIST", "SET") else (kind, "")


def in_utc(given: pl.DataType, name: str) -> pl.Expr:
    """A time column in UTC, of a date, a text, or a time with or without a zone; null where it is none."""
    import polars as pl

    column = pl.col(name)
    if isinstance(given, pl.Datetime) and given.time_zone is not None:
        return column.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    if given == pl.String():
        return column.str.to_datetime(time_zone="UTC", time_unit="us", strict=False)
    return column.cast(pl.Datetime("us"), strict=False).dt.replace_time_zone("UTC")


def keys_and_time_present(frame: pl.LazyFrame, key: Sequence[str], source: Source) -> Claim:
    import polars as pl

    counts = frame.select(pl.col(name).null_count() for name in (*key, source.timestamp)).collect().row(0, named=True)
    said = "; ".join(f"{name}: {count} nulls" for name, count in counts.items() if count)
    numbers = {f"nulls/{name}": count for name, count in counts.items()}
    return Claim("keys_and_time_present", not said, said or "no nulls", numbers=numbers)


def unique_key_and_time(frame: pl.LazyFrame, key: Sequence[str], source: Source) -> Claim:
    """Versions of one key and time are told apart by their created time; the same row twice says nothing new."""
    import polars as pl

    by = [*key, source.timestamp, *_created(frame, source)]
    repeated = frame.filter(pl.len().over(by) > 1).collect()
    versions = repeated.unique().group_by(by, maintain_order=True).len().filter(pl.col("len") > 1)
    examples = [list(map(str, row)) for row in versions.select(by).head(EXAMPLES).rows()]
    said = f"{versions.height} of {tuple(by)} have rows that differ{f', e.g. {examples}' if examples else ''}"
    numbers = {"contradictions": versions.height, "rows_repeated": repeated.height}
    return Claim("unique_key_and_time", versions.is_empty(), said, numbers=numbers)


def _created(frame: pl.LazyFrame, source: Source) -> list[str]:
    return [source.created] if source.created and source.created in frame.collect_schema() else []


def newest_row_within_ttl(frame: pl.LazyFrame, view: View, source: Source, now: datetime) -> Claim:
    import polars as pl

    newest: Any = frame.select(pl.col(source.timestamp).max()).collect().item()
    fresh = newest is not None and (view.ttl is None or newest >= now - view.ttl)
    said = f"the newest row is of {newest}, the ttl {view.ttl or 'endless'}" if newest else "there is no row"
    return Claim("newest_row_within_ttl", fresh, said, blocking=False)


def newest_rows(frame: pl.LazyFrame, view: View, source: Source, end: datetime) -> pl.DataFrame:
    """The newest row per key up to `end` whose ttl is not over by then, in the view's columns and `TIME`."""
    import polars as pl

    keys, moment = [key.name for key in view.keys], pl.col(TIME)
    columns = [pl.col(source.column(column.name)).alias(column.name) for column in view.columns]
    given = frame.collect_schema()[source.timestamp]
    timed = frame.with_columns(in_utc(given, source.timestamp).alias(TIME)).filter(moment <= end)
    alive = timed.filter(moment >= end - view.ttl) if view.ttl else timed
    rows = alive.sort([TIME, *_created(frame, source)], maintain_order=True).select(*columns, TIME).drop_nulls(keys)
    with reading(source):
        return (rows.unique(keys, keep="last", maintain_order=True) if keys else rows.tail(1)).collect()
