"""Feast's offline store on Polars: `type: resources.polars_offline_store.PolarsOfflineStore` in any feature_store.yaml.

Reads Parquet (a file, a directory of files, a glob; local or S3) and Delta through Feast's `FileSource`, and
joins by `resources.point_in_time`, whose rules hold here. One output row per entity row, in the order given.

Imported by Feast, when a configuration names it; hence Feast at the top.
"""
# ruff: noqa: ARG002  the signatures are Feast's

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self
from uuid import uuid4
from zoneinfo import ZoneInfo

import pandas as pd
import polars as pl
import pyarrow as pa
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.file_source import FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage

from resources.point_in_time import ViewFrame, point_in_time_join, utc


class SourceError(LookupError):
    """A feature view's data cannot be found, or is of a kind that this store does not read."""

    @classmethod
    def kind(cls, source: DataSource | None) -> Self:
        return cls(
            f"Data source {getattr(source, 'name', None)!r} is a {type(source).__name__} (readable: FileSource). "
            "Give the feature view a FileSource on Parquet or Delta files."
        )

    @classmethod
    def missing(cls, source: DataSource, location: str) -> Self:
        return cls(
            f"Data source {source.name!r} has no Parquet file at {location}. Materialize the asset that writes it, "
            "or correct the source's path."
        )


class EntityFrameError(TypeError):
    """The entity rows are of a form that cannot be joined."""

    @classmethod
    def of(cls, given: object) -> Self:
        return cls(
            f"entity_df is a {type(given).__name__} (possible: a pandas DataFrame with an event timestamp). "
            "Pass the entity rows as a DataFrame."
        )


class PolarsOfflineStoreConfig(FeastConfigBaseModel):
    """The store has no settings of its own."""

    type: Literal["resources.polars_offline_store.PolarsOfflineStore"] = (
        "resources.polars_offline_store.PolarsOfflineStore"
    )


class PolarsRetrievalJob(RetrievalJob):
    """A lazy table; nothing is read before `to_df`, `to_arrow` or `persist`."""

    def __init__(
        self,
        frame: pl.LazyFrame,
        config: RepoConfig,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        super().__init__()
        self.frame = frame
        self._config = config
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
        return self.frame.collect().to_pandas()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return arrow(self.frame.collect())

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result, on-demand features included, as one Parquet file or a directory with one."""
        if not isinstance(storage, SavedDatasetFileStorage):
            raise SourceError.kind(storage.to_data_source())
        place = location(storage.to_data_source(), self._config)
        if not allow_overwrite and Path(place).exists():
            raise SavedDatasetLocationAlreadyExists(location=place)
        target = place if place.endswith(".parquet") else f"{place}/part-0.parquet"
        publish(pl.DataFrame(self.to_arrow()), target, storage.file_options.s3_endpoint_override)


class PolarsOfflineStore(OfflineStore):
    """See the module. Corrections that came later can be left out (`filter_by_created_timestamp`)."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """The entity rows with the features of `feature_refs` as of each row's event timestamp."""
        if not isinstance(entity_df, pd.DataFrame):
            raise EntityFrameError.of(entity_df)
        moment = infer_event_timestamp_from_entity_df(dict(entity_df.dtypes))
        spine = _spine(entity_df, moment)
        first, last = spine.select(at=utc(moment, spine.schema)).select(pl.min("at"), first=pl.max("at")).row(0)
        return PolarsRetrievalJob(
            point_in_time_join(
                spine.lazy(),
                [
                    _within(_view_frame(view, feature_refs, full_feature_names, config), first, last)
                    for view in feature_views
                ],
                event_timestamp=moment,
                as_known=filter_by_created_timestamp,
            ),
            config,
            OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_feature_names,
            RetrievalMetadata(
                features=feature_refs,
                keys=[column for column in spine.columns if column != moment],
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
        rows = _pulled(
            scan(_file_source(data_source), config),
            [*join_key_columns, *feature_name_columns] if feature_name_columns else None,
            timestamp_field,
            created_timestamp_column,
            (start_date, end_date),
        )
        rows = _with_someone(rows, join_key_columns)
        order = [name for name in (timestamp_field, created_timestamp_column) if name]
        newest = rows.sort(order, maintain_order=True).unique(
            join_key_columns or [DUMMY_ENTITY_ID], keep="last", maintain_order=True
        )
        return PolarsRetrievalJob(newest, config)

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
        rows = _pulled(
            scan(_file_source(data_source), config),
            [*join_key_columns, *feature_name_columns] if feature_name_columns else None,
            timestamp_field,
            created_timestamp_column,
            (start_date, end_date),
        )
        return PolarsRetrievalJob(_with_someone(rows, join_key_columns), config)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append rows: a new file in a directory, a new version of a single file."""
        source = _file_source(feature_view.batch_source)
        held, rows = scan(source, config), pl.DataFrame(table)
        if (expected := held.collect_schema().names()) != rows.columns:
            raise ValueError(
                f"Rows for {feature_view.name!r} have the columns {rows.columns} (needed, in this order: {expected})."
            )
        rows = rows.cast(held.collect_schema())
        place, endpoint = location(source, config), source.s3_endpoint_override
        if place.endswith(".parquet"):
            publish(pl.concat([held.collect(), rows]), place, endpoint)
        else:
            publish(rows, f"{place.rstrip('/')}/{uuid4().hex}.parquet", endpoint)
        if progress:
            progress(rows.height)

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Only the kind counts: a view may be registered before its first partition is published."""
        _file_source(data_source)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        schema = arrow(pl.DataFrame(schema=scan(_file_source(data_source), config).collect_schema())).schema
        return zip(schema.names, map(str, schema.types), strict=True)


def arrow(frame: pl.DataFrame) -> pa.Table:
    """The frame as Feast expects it: one batch (it converts only the first), plain strings."""
    table = frame.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    plain = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
    return table.cast(pa.schema([field.with_type(plain.get(field.type, field.type)) for field in table.schema]))


def location(source: DataSource, config: RepoConfig) -> str:
    """Where the source's files are; a relative path begins at the feature repository."""
    return FileSource.get_uri_for_file_path(config.repo_path, _file_source(source).path)


def scan(source: FileSource, config: RepoConfig) -> pl.LazyFrame:
    """The source's rows, lazily, under their own column names."""
    place, options = location(source, config), _storage_options(source.s3_endpoint_override)
    if isinstance(source.file_format, DeltaFormat):
        return pl.scan_delta(place, storage_options=options)
    files = place if place.endswith(".parquet") or "*" in place else f"{place.rstrip('/')}/**/*.parquet"
    try:
        frame = pl.scan_parquet(files, hidden_file_prefix=".", storage_options=options)
        frame.collect_schema()
    except (FileNotFoundError, pl.exceptions.ComputeError) as error:
        if isinstance(error, FileNotFoundError) or "expanded paths were empty" in str(error):
            raise SourceError.missing(source, files) from error
        raise
    return frame


def publish(frame: pl.DataFrame, target: str, s3_endpoint: str | None = None) -> None:
    """Write one Parquet file so that a reader sees all of it or nothing."""
    if "://" in target:  # an object store shows an object when it is whole
        frame.write_parquet(target, storage_options=_storage_options(s3_endpoint))
        return
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        frame.write_parquet(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _file_source(source: DataSource | None) -> FileSource:
    if not isinstance(source, FileSource):
        raise SourceError.kind(source)
    return source


def _storage_options(s3_endpoint: str | None) -> dict[str, str] | None:
    return {"aws_endpoint_url": s3_endpoint, "aws_allow_http": "true"} if s3_endpoint else None


def _spine(entity_df: pd.DataFrame, moment: str) -> pl.DataFrame:
    """The entity rows; a timestamp written as text is parsed, as in Feast's own stores."""
    if not pd.api.types.is_datetime64_any_dtype(entity_df[moment]):
        entity_df = entity_df.assign(**{moment: pd.to_datetime(entity_df[moment], utc=True)})
    return pl.DataFrame(pa.Table.from_pandas(entity_df, preserve_index=False))


def _view_frame(view: FeatureView, feature_refs: Sequence[str], full_names: bool, config: RepoConfig) -> ViewFrame:
    """The view's mapped source, and which of its columns are asked for under which names."""
    source = _file_source(view.batch_source)
    held = scan(source, config)
    mapping = {old: new for old, new in source.field_mapping.items() if old in held.collect_schema()}
    prefix, asked = f"{view.projection.name_to_use()}:", f"{view.projection.name_alias or view.name}__"
    features = [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]
    keys = [entity.name for entity in view.entity_columns if entity.name != DUMMY_ENTITY_ID]
    created = source.created_timestamp_column
    return ViewFrame(
        held.rename(mapping),
        keys={key: view.projection.join_key_map.get(key, key) for key in keys},
        features={name: f"{asked}{name}" if full_names else name for name in features},
        ttl=view.ttl or None,
        event_timestamp=mapping.get(source.timestamp_field, source.timestamp_field),
        created_timestamp=mapping.get(created, created) if created else None,
    )


def _within(view: ViewFrame, first: datetime | None, last: datetime | None) -> ViewFrame:
    """The view without the rows that no moment from `first` to `last` can see: their files are not read."""
    earliest = first - view.ttl if first and view.ttl else None
    return replace(view, frame=_between(view.frame, view.event_timestamp, earliest, last))


def _between(frame: pl.LazyFrame, column: str, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
    """Rows with `start <= column <= end` (None: no limit), in the column's own type so that files are skipped."""
    dtype = frame.collect_schema()[column]
    for limit, keep in ((start, pl.Expr.ge), (end, pl.Expr.le)):
        if limit is not None:
            frame = frame.filter(keep(pl.col(column), _literal(limit, dtype)))
    return frame


def _literal(moment: datetime, dtype: pl.DataType) -> pl.Expr:
    """The moment in the type of a time column; a zoneless moment or column is UTC."""
    aware = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    zone = getattr(dtype, "time_zone", None)
    return pl.lit(aware.replace(tzinfo=None) if zone is None else aware.astimezone(ZoneInfo(zone)))


def _pulled(
    rows: pl.LazyFrame,
    columns: Sequence[str] | None,
    timestamp: str,
    created: str | None,
    window: tuple[datetime | None, datetime | None],
) -> pl.LazyFrame:
    """The asked columns (None: all) of the rows in the window; names are the source's own, as Feast passes them."""
    times = [name for name in (timestamp, created) if name]
    rows = _between(rows, timestamp, *window)
    if columns is not None:
        rows = rows.select(list(dict.fromkeys([*columns, *times])))
    schema = rows.collect_schema()
    return rows.with_columns(utc(name, schema) for name in times)


def _with_someone(rows: pl.LazyFrame, join_keys: Sequence[str]) -> pl.LazyFrame:
    """Rows of a view without entities belong to Feast's dummy entity."""
    return rows if join_keys else rows.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))
