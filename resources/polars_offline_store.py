"""Feast's offline store on Polars: `type: resources.polars_offline_store.PolarsOfflineStore` in any feature_store.yaml.

    offline_store:
      type: resources.polars_offline_store.PolarsOfflineStore
      batch_rows: 500000  # optional: join and write in slices of about so many rows, however large the tables are

Reads Parquet and Delta (`resources.feature_files`) and joins by `resources.point_in_time`, whose rules hold here. One
output row per entity row, in the order given; in batches in the order of time.

Imported by Feast, when a configuration names it; hence Feast at the top.
"""
# ruff: noqa: ARG002, ARG004  the signatures are Feast's

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
import polars as pl
import pyarrow as pa
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import compute_non_entity_date_range
from pydantic import PositiveInt

from resources import feature_files
from resources.feature_files import SourceError, explained, file_source, scan
from resources.point_in_time import MissingColumnError, ViewFrame, between, point_in_time_join, utc
from resources.time_slices import join_in_slices

ROW = "__entity_row"
EVENT_TIMESTAMP = "event_timestamp"


class EntityFrameError(TypeError):
    """The entity rows are of a form that cannot be joined."""

    @classmethod
    def of(cls, given: object) -> Self:
        return cls(
            f"entity_df is a {type(given).__name__} (possible: a pandas or Polars DataFrame, a LazyFrame, an Arrow "
            "table, a SQL query, or None with start_date and end_date). Pass the entity rows as one of them."
        )

    @classmethod
    def query(cls, reason: object, tables: Sequence[str]) -> Self:
        return cls(
            f"The entity_df query cannot be run: {reason} (tables: {', '.join(tables) or 'none'}). Select from "
            "feature views or data sources of the registry, in the SQL of Polars."
        )

    @classmethod
    def timeless(cls, times: Sequence[str], columns: Sequence[str]) -> Self:
        return cls(
            f"The entity rows have no column {EVENT_TIMESTAMP!r}, and not one time but {', '.join(times) or 'none'} "
            f"(columns: {', '.join(columns)}). Name the time of each row {EVENT_TIMESTAMP!r}."
        )


class PolarsOfflineStoreConfig(FeastConfigBaseModel):
    """`batch_rows`: about how many rows of a table are in memory at one time (None: all of them)."""

    type: Literal["resources.polars_offline_store.PolarsOfflineStore"] = (
        "resources.polars_offline_store.PolarsOfflineStore"
    )
    batch_rows: PositiveInt | None = None


class Rows:
    """The rows of a query, lazily: all at once, or in batches."""

    def __init__(self, frame: pl.LazyFrame, batch_rows: int | None) -> None:
        self.frame, self.batch_rows = frame, batch_rows

    def collect(self) -> pl.DataFrame:
        return self.frame.collect().rechunk()  # of rows to materialize, Feast converts only the first chunk

    def batches(self) -> Iterator[pl.DataFrame]:
        """At least one frame, of at most `batch_rows` rows."""
        if self.batch_rows is None:
            yield self.collect()
            return
        batch = self.frame.clear().collect()
        for batch in self.frame.collect_batches(chunk_size=self.batch_rows):
            if batch.height:
                yield batch
        if not batch.height:
            yield batch


@dataclass(frozen=True)
class JoinedRows:
    """Entity rows with the features of views, lazily: all at once in their order, or in slices of time."""

    spine: pl.LazyFrame
    views: Sequence[ViewFrame]
    batch_rows: int | None
    event_timestamp: str
    as_known: bool

    @cached_property
    def joined(self) -> pl.LazyFrame:
        return point_in_time_join(self.spine, self.views, event_timestamp=self.event_timestamp, as_known=self.as_known)

    def collect(self) -> pl.DataFrame:
        if self.batch_rows is None:
            return self.joined.collect()
        numbered = replace(self, spine=self.spine.with_row_index(ROW))
        return pl.concat(numbered.batches()).sort(ROW).drop(ROW)

    def batches(self) -> Iterator[pl.DataFrame]:
        if self.batch_rows is None:
            yield self.joined.collect()
            return
        yield from join_in_slices(
            self.spine, self.views, self.batch_rows, event_timestamp=self.event_timestamp, as_known=self.as_known
        )


class PolarsRetrievalJob(RetrievalJob):
    """Rows that are read at `to_df`, `to_arrow`, `to_arrow_batches` or `persist`, and not before."""

    def __init__(
        self,
        rows: Rows | JoinedRows,
        config: RepoConfig,
        sources: Sequence[FileSource],
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        super().__init__()
        self._rows = rows
        self._config = config
        self._sources = list(sources)
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._full_feature_names = full_feature_names
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal().to_pandas()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with explained(self._sources, self._config):
            return _plain_table(self._rows.collect())

    def to_arrow_batches(self) -> Iterator[pa.Table]:
        """The rows in tables of about the setting `batch_rows`, on-demand features included; at least one table."""
        with explained(self._sources, self._config):
            for batch in self._rows.batches():
                yield self._of(batch).to_arrow()

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result, on-demand features included: as one Parquet file, a directory with one, or Delta."""
        if not isinstance(storage, SavedDatasetFileStorage):
            raise SourceError.kind(storage.to_data_source())
        target = file_source(storage.to_data_source())
        if not allow_overwrite and feature_files.exists(target, self._config):
            raise SavedDatasetLocationAlreadyExists(location=feature_files.location(target, self._config))
        feature_files.replace(target, self._config, map(pl.DataFrame, self.to_arrow_batches()))

    def _of(self, batch: pl.DataFrame) -> PolarsRetrievalJob:
        """The same job for rows that were read."""
        views = self._on_demand_feature_views
        return PolarsRetrievalJob(
            Rows(batch.lazy(), None), self._config, [], views, self._full_feature_names, self._metadata
        )


class PolarsOfflineStore(OfflineStore):
    """See the module. Corrections that came later can be left out (`filter_by_created_timestamp`)."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pl.DataFrame | pl.LazyFrame | pa.Table | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """The entity rows with the features of `feature_refs` as of each row's event timestamp.

        Without entity rows: each key and event time of the views from `start_date` to `end_date`, by time.
        Raises SourceError, EntityFrameError, and the errors of `point_in_time_join`.
        """
        views = [_view_frame(view, feature_refs, full_feature_names, config) for view in feature_views]
        if entity_df is None:
            first, last = compute_non_entity_date_range(feature_views, start_date, end_date)
            spine = _every_moment(views, first, last)
        else:
            spine = _spine(entity_df, config, registry, project)
            first = last = None
        moment = _event_timestamp(spine.collect_schema())
        if entity_df is not None:
            first, last = _extent(spine, moment)
        rows = JoinedRows(
            spine,
            [_within(view, first, last) for view in views],
            config.offline_store.batch_rows,
            moment,
            filter_by_created_timestamp,
        )
        _ = rows.joined  # what does not fit together is said now
        return PolarsRetrievalJob(
            rows,
            config,
            [file_source(view.batch_source) for view in feature_views],
            OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_feature_names,
            RetrievalMetadata(
                features=feature_refs,
                keys=[column for column in spine.collect_schema().names() if column != moment],
                min_event_timestamp=first,
                max_event_timestamp=last,
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """The newest row per key of those from `start_date` to `end_date`, both included."""
        source, columns = file_source(data_source), _asked(join_key_columns, feature_name_columns)
        times = [name for name in (timestamp_field, created_timestamp_column) if name]
        rows = _pulled(scan(source, config), source, columns, times, (start_date, end_date))
        rows = _with_someone(rows, join_key_columns)
        newest = rows.sort(times, maintain_order=True).unique(
            join_key_columns or [DUMMY_ENTITY_ID], keep="last", maintain_order=True
        )
        return PolarsRetrievalJob(Rows(newest, config.offline_store.batch_rows), config, [source])

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row from `start_date` to `end_date`, both included."""
        source, columns = file_source(data_source), _asked(join_key_columns, feature_name_columns)
        times = [name for name in (timestamp_field, created_timestamp_column) if name]
        rows = _pulled(scan(source, config), source, columns, times, (start_date, end_date))
        rows = _with_someone(rows, join_key_columns)
        return PolarsRetrievalJob(Rows(rows, config.offline_store.batch_rows), config, [source])

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append rows to the view's source: a new file in a directory, a new version of a single file or of Delta."""
        source, rows = file_source(feature_view.batch_source), pl.DataFrame(table)
        held = scan(source, config).collect_schema()
        if held.names() != rows.columns:
            raise ValueError(
                f"Rows for {feature_view.name!r} have the columns {rows.columns} "
                f"(needed, in this order: {held.names()})."
            )
        feature_files.append(source, config, rows.cast(held))
        if progress:
            progress(rows.height)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Append logged rows, of a table or a directory of Parquet files, to the destination's directory."""
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise SourceError.kind(destination.to_data_source())
        target = file_source(destination.to_data_source())
        rows = pl.read_parquet(data) if isinstance(data, Path) else pl.DataFrame(data)
        place, options = feature_files.location(target, config), feature_files.storage_options(target)
        feature_files.append_to_directory(rows, place, destination.partition_by or [], options)

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Only the kind counts: a view may be registered before its first partition is published."""
        file_source(data_source)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        schema = arrow(pl.DataFrame(schema=scan(file_source(data_source), config).collect_schema())).schema
        return zip(schema.names, map(str, schema.types), strict=True)


def arrow(frame: pl.DataFrame) -> pa.Table:
    """The frame as Feast expects it: one batch (it converts only the first), plain texts and lists."""
    return _plain_table(frame.rechunk())


def _plain_table(frame: pl.DataFrame) -> pa.Table:
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    fields = [
        # What is larger than a plain type can count stays as it is.
        field.with_type(_plain(field.type)) if table[field.name].nbytes < 2**31 else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that Feast knows, for one that only says how the same values are stored."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}.get(kind, kind)


def _spine(given: object, config: RepoConfig, registry: BaseRegistry, project: str) -> pl.LazyFrame:
    """The entity rows in any form that Feast's callers have them in."""
    if isinstance(given, str):
        return _query(given, config, registry, project)
    if isinstance(given, pd.DataFrame):
        return _of_pandas(given).lazy()
    if isinstance(given, pl.DataFrame | pl.LazyFrame):
        return given.lazy()
    if isinstance(given, pa.Table):
        return pl.DataFrame(given).lazy()
    raise EntityFrameError.of(given)


def _of_pandas(entity_df: pd.DataFrame) -> pl.DataFrame:
    """A timestamp written as text, or kept as objects, is parsed, as in Feast's own stores."""
    if EVENT_TIMESTAMP in entity_df and not pd.api.types.is_datetime64_any_dtype(entity_df[EVENT_TIMESTAMP]):
        entity_df = entity_df.assign(**{EVENT_TIMESTAMP: pd.to_datetime(entity_df[EVENT_TIMESTAMP], utc=True)})
    texts = [name for name in entity_df if pd.api.types.infer_dtype(entity_df[name], skipna=False) == "string"]
    table = pl.DataFrame(pa.Table.from_pandas(entity_df.drop(columns=texts), preserve_index=False))
    # Arrow would take twice as long for a column of nothing but texts.
    quick = [pl.Series(str(name), entity_df[name].to_numpy(dtype=object), dtype=pl.String) for name in texts]
    return table.with_columns(quick).select(entity_df.columns)


def _query(query: str, config: RepoConfig, registry: BaseRegistry, project: str) -> pl.LazyFrame:
    """The query's rows; its tables are the registry's feature views and data sources, under their own names."""
    known = {source.name: source for source in registry.list_data_sources(project, allow_cache=True)}
    known |= {view.name: view.batch_source for view in registry.list_feature_views(project, allow_cache=True)}
    asked = {name: source for name, source in known.items() if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", query)}
    frames = {name: _mapped(file_source(source), config) for name, source in asked.items()}
    try:
        rows = pl.SQLContext(frames).execute(query)
        rows.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise EntityFrameError.query(error, sorted(known)) from error
    return rows


def _every_moment(views: Sequence[ViewFrame], first: datetime, last: datetime) -> pl.LazyFrame:
    """Each key and event time of the views' rows from `first` to `last`, once; views for everyone count alone only."""
    keyed = [view for view in views if view.keys] or views
    start, end = _epoch(first), _epoch(last)
    moments = []
    for view in keyed:
        schema = view.frame.collect_schema()
        _require(schema.names(), view.name, [view.event_timestamp, *view.keys])
        inside = view.frame.filter(between(view.event_timestamp, schema, start, end)).drop_nulls(list(view.keys))
        keys = [pl.col(key).alias(column) for key, column in view.keys.items()]
        moments.append(inside.select(utc(view.event_timestamp, schema).alias(EVENT_TIMESTAMP), *keys))
    columns = dict.fromkeys([EVENT_TIMESTAMP, *(column for view in keyed for column in view.keys.values())])
    return pl.concat(moments, how="diagonal_relaxed").select(*columns).unique().sort(*columns)


def _event_timestamp(schema: pl.Schema) -> str:
    """The entity rows' time: the column of Feast's name, else the only time that there is."""
    times = [name for name, dtype in schema.items() if isinstance(dtype, pl.Datetime)]
    if EVENT_TIMESTAMP in schema:
        return EVENT_TIMESTAMP
    if len(times) != 1:
        raise EntityFrameError.timeless(times, schema.names())
    return times[0]


def _extent(spine: pl.LazyFrame, moment: str) -> tuple[datetime | None, datetime | None]:
    """The first and the last moment of the entity rows."""
    times = spine.select(at=utc(moment, spine.collect_schema()))
    first, last = times.select(first=pl.min("at"), last=pl.max("at")).collect(engine="streaming").row(0)
    return first, last


def _mapped(source: FileSource, config: RepoConfig) -> pl.LazyFrame:
    """The source's rows under the names that its field mapping gives the columns."""
    rows = scan(source, config)
    held = rows.collect_schema()
    return rows.rename({old: new for old, new in source.field_mapping.items() if old in held})


def _view_frame(view: FeatureView, feature_refs: Sequence[str], full_names: bool, config: RepoConfig) -> ViewFrame:
    """The view's mapped source, and which of its columns are asked for under which names."""
    source = file_source(view.batch_source)
    mapping, created = source.field_mapping, source.created_timestamp_column
    prefix, asked = f"{view.projection.name_to_use()}:", f"{view.projection.name_alias or view.name}__"
    features = [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]
    keys = [entity.name for entity in view.entity_columns if entity.name != DUMMY_ENTITY_ID]
    return ViewFrame(
        _mapped(source, config),
        keys={key: view.projection.join_key_map.get(key, key) for key in keys},
        features={name: f"{asked}{name}" if full_names else name for name in features},
        ttl=view.ttl or None,
        event_timestamp=mapping.get(source.timestamp_field, source.timestamp_field),
        created_timestamp=mapping.get(created, created) if created else None,
        name=f"the data source {source.name!r} of feature view {view.name!r}",
    )


def _within(view: ViewFrame, first: datetime | None, last: datetime | None) -> ViewFrame:
    """The view without the rows that no moment from `first` to `last` can see: their files are not read."""
    schema = view.frame.collect_schema()
    if view.event_timestamp not in schema or (first is None and last is None):
        return view
    earliest = _epoch(first - view.ttl) if first and view.ttl else None
    seen = between(view.event_timestamp, schema, earliest, _epoch(last) if last else None)
    return replace(view, frame=view.frame.filter(seen))


def _epoch(moment: datetime) -> int:
    """Microseconds since 1970; a moment without a zone is UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _asked(join_keys: Sequence[str], features: Sequence[str]) -> list[str] | None:
    return [*join_keys, *features] if features else None


def _pulled(
    rows: pl.LazyFrame,
    source: FileSource,
    columns: Sequence[str] | None,
    times: Sequence[str],
    window: tuple[datetime | None, datetime | None],
) -> pl.LazyFrame:
    """The asked columns (None: all) of the rows in the window; names are the source's own, as Feast passes them."""
    schema = rows.collect_schema()
    _require(schema.names(), f"the data source {source.name!r}", [*(columns or []), *times])
    first, last = (None if moment is None else _epoch(moment) for moment in window)
    rows = rows.filter(between(times[0], schema, first, last))
    if columns is not None:
        rows = rows.select(list(dict.fromkeys([*columns, *times])))
    return rows.with_columns(utc(name, schema) for name in times)


def _require(held: Sequence[str], table: str, columns: Sequence[str]) -> None:
    if missing := [column for column in dict.fromkeys(columns) if column not in held]:
        raise MissingColumnError.of(table, missing, held)


def _with_someone(rows: pl.LazyFrame, join_keys: Sequence[str]) -> pl.LazyFrame:
    """Rows of a view without entities belong to Feast's dummy entity."""
    return rows if join_keys else rows.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))
