"""What a training set was joined from: the partitions of its tables, and the version that each had at the time.

Read from Dagster's events, in a query a table. It is what a reproduction explains a difference by.
"""

from __future__ import annotations

import warnings
from datetime import datetime
from typing import TYPE_CHECKING

import dagster as dg
from dagster import DagsterEventType

from mlops_assets.catalog import asset_key
from mlops_assets.links import spec
from mlops_assets.links.training_set import inputs_of, stored_views

if TYPE_CHECKING:
    from mlops_assets.declarations import FeatureView, Labels, ModelPipeline

# Commands read the mappings without loading the definitions, which say the same.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
DATA_VERSION = "dagster/data_version"
WHOLE = "all"
Versions = dict[str, dict[str, str]]


def tables_read(model: ModelPipeline) -> dict[str, FeatureView | Labels]:
    """The tables that a training set is joined from, by the name of the asset's input."""
    return {"spine": model.labels, **stored_views(model)}


def partitions_read(model: ModelPipeline, cutoff: str) -> dict[str, list[str] | None]:
    """By input: the partitions that the training set of a cutoff reads; None for a table without partitions."""
    return {name: _mapped(model, name, table, cutoff) for name, table in tables_read(model).items()}


def versions_read(
    model: ModelPipeline, cutoff: str, instance: dg.DagsterInstance, before: int | None = None
) -> Versions:
    """By table and partition: the version of what lies there, or lay there before the event with that storage id."""
    wanted = partitions_read(model, cutoff)
    return {
        asset_key(table).to_user_string(): _versions(asset_key(table), wanted[name], instance, before)
        for name, table in tables_read(model).items()
    }


def training_set_event(
    model: ModelPipeline, cutoff: str, instance: dg.DagsterInstance, content_hash: str | None = None
) -> dg.EventLogRecord | None:
    """The newest publication of the training set of a cutoff, or the newest with that content."""
    wanted = dg.AssetRecordsFilter(asset_key=spec.link_key(model, "training_set"), asset_partitions=[cutoff])
    for record in instance.fetch_materializations(wanted, limit=100 if content_hash else 1).records:
        if content_hash is None or hash_of(record) == content_hash:
            return record
    return None


def hash_of(record: dg.EventLogRecord | None) -> str | None:
    """The content hash that a training set was published with."""
    materialization = record.asset_materialization if record else None
    found = materialization.metadata.get("content_hash") if materialization else None
    return str(found.value) if found else None


def _mapped(model: ModelPipeline, name: str, table: FeatureView | Labels, cutoff: str) -> list[str] | None:
    mapping = inputs_of(model)[name].partition_mapping
    if table.partitions is None or not isinstance(mapping, dg.TimeWindowPartitionMapping):
        return None
    subset = model.cutoffs.subset_with_partition_keys([cutoff])
    found = mapping.get_upstream_mapped_partitions_result_for_partitions(subset, model.cutoffs, table.partitions)
    return sorted(found.partitions_subset.get_partition_keys())


def _versions(
    key: dg.AssetKey, partitions: list[str] | None, instance: dg.DagsterInstance, before: int | None
) -> dict[str, str]:
    if partitions is None:
        wanted = dg.AssetRecordsFilter(asset_key=key, before_storage_id=before)
        records = instance.fetch_materializations(wanted, limit=1).records
        tags = records[0].asset_materialization.tags or {} if records and records[0].asset_materialization else {}
        return {WHOLE: tags[DATA_VERSION]} if DATA_VERSION in tags else {}
    found = instance.event_log_storage.get_latest_tags_by_partition(
        key, DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION], partitions, before_cursor=before
    )
    return {partition: tags[DATA_VERSION] for partition, tags in sorted(found.items()) if DATA_VERSION in tags}


def cutoff_time(model: ModelPipeline, cutoff: str) -> datetime:
    """The instant that a cutoff's partition begins with."""
    return model.cutoffs.time_window_for_partition_key(cutoff).start
