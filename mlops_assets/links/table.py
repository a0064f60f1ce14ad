"""Published tables: sources, feature views (offline) and labels, as Parquet partitions in the lake.

One row is one row of the declared table. A partition is published whole or not at all: the frame must
be the declared table, and every blocking claim must hold, before a byte replaces what is there.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from math import ceil
from typing import Any

import dagster as dg

from mlops_assets import column_lineage
from mlops_assets.catalog import Catalog, Table, asset_key
from mlops_assets.claims import CLAIM_NAMES, Claim, claims, columns_of, conform, time_of
from mlops_assets.declarations import Source
from mlops_assets.links import spec
from resources.lake import Lake

STAGE = {"source": "sources", "feature view": "features", "labels": "labels"}
KINDS = {"source": {"polars", "parquet"}, "feature view": {"polars", "feast"}, "labels": {"polars", "parquet"}}
PROMISES = {
    "unique_key": "No two rows share a key and no key is null",
    "in_bounds": "Every number is finite and within its declared bounds",
    "null_share": "No column has more nulls than declared",
    "not_empty": "There are rows",
}


def table_asset(table: Table, catalog: Catalog) -> dg.AssetsDefinition:
    """The offline asset of a table, with its claims as checks."""
    key = asset_key(table)
    declare = dg.asset(
        key=key,
        ins={name: _input(table, source) for name, source in catalog.inputs(table)},
        description=table.description,
        group_name=f"{table.team}_{STAGE[table.kind]}",
        owners=spec.owners(table.owners, table.team),
        kinds={table.engine if kind == "polars" else kind for kind in KINDS[table.kind]},
        tags={"team": table.team, "stage": STAGE[table.kind]},
        code_version=table.code_version,
        partitions_def=table.partitions,
        backfill_policy=dg.BackfillPolicy.single_run() if table.partitions else None,
        metadata={
            "dagster/column_schema": spec.column_schema(columns_of(table)),
            "dagster/uri": "/".join(key.path),
            "dagster/code_references": _code_reference(table),
            "partition_column": time_of(table),
        },
        freshness_policy=spec.DAILY_FRESHNESS if table.partitions else None,
        automation_condition=_automation(table),
        check_specs=spec.check_specs(key, CLAIM_NAMES, PROMISES),
        io_manager_key="io_manager",
    )

    def publish(context: dg.AssetExecutionContext, **inputs: Any) -> Iterator[Any]:
        rows = conform(computed(table, inputs, _window(context)), table)
        yield from _judged(table, key, claims(rows, table))
        _tell_lineage(context, key, column_lineage.told(table, catalog, inputs))
        yield dg.Output(rows, data_version=spec.data_version(rows), metadata={"dagster/row_count": rows.height})

    def publish_from_spark(context: dg.AssetExecutionContext, lake: Lake) -> Iterator[Any]:
        from mlops_assets.on_spark.table import published

        for told in published(context, table, catalog, lake, _window(context)):
            if isinstance(told, dg.MaterializeResult):
                yield told
            else:
                yield from _judged(table, key, told)

    return declare(publish_from_spark if table.engine == "spark" else publish)


def _judged(table: Table, key: dg.AssetKey, judged: Sequence[Claim]) -> Iterator[dg.AssetCheckResult]:
    """The claims as results of checks; dg.Failure where one that blocks does not hold."""
    yield from (spec.check_result(key, claim) for claim in judged)
    if broken := [claim for claim in judged if claim.blocking and not claim.passed]:
        raise dg.Failure(
            f"{table.title}: {'; '.join(f'{claim.name}: {claim.reason}' for claim in broken)}. "
            "Nothing was published; what was there still stands. Mend the input and materialize again.",
            allow_retries=False,
        )


def _tell_lineage(context: dg.AssetExecutionContext, key: dg.AssetKey, metadata: Mapping[str, Any]) -> None:
    """On the newest partition of the run alone: Dagster shows the last, and a backfill has hundreds."""
    newest = max(context.partition_keys) if context.has_partition_key or context.has_partition_key_range else None
    if metadata:
        context.add_asset_metadata(metadata, key, newest)


def _automation(table: Table) -> dg.AutomationCondition[Any] | None:
    """A source is filled from outside; what is computed follows what it reads."""
    if isinstance(table, Source):
        return None
    return spec.on_whole_window() if table.partitions else spec.on_arrival()


def _code_reference(table: Table) -> dg.CodeReferencesMetadataValue:
    file, line = inspect.getsourcefile(table.compute), table.compute.__code__.co_firstlineno
    return dg.CodeReferencesMetadataValue(
        code_references=[dg.LocalFileCodeReference(file_path=str(file), line_number=line)]
    )


def _input(table: Table, source: Table) -> dg.AssetIn:
    """The partitions of `source` that one partition of `table` reads: its own and those in the lookback."""
    mapping = None
    if table.partitions and source.partitions:
        mapping = dg.TimeWindowPartitionMapping(
            start_offset=-ceil(table.lookback / timedelta(days=1)), allow_nonexistent_upstream_partitions=True
        )
    if table.engine == "spark":  # which reads for itself
        return dg.AssetIn(key=asset_key(source), partition_mapping=mapping, dagster_type=dg.Nothing)
    return dg.AssetIn(key=asset_key(source), partition_mapping=mapping)


def _window(context: dg.AssetExecutionContext) -> tuple[Any, Any] | None:
    """The time range of the run's partitions, start inclusive, end exclusive."""
    if not context.has_partition_key and not context.has_partition_key_range:
        return None
    window = context.partition_time_window
    return window.start, window.end


def computed(table: Table, inputs: Mapping[str, Any], window: tuple[Any, Any] | None) -> Any:
    """The table's rows of `window` by its own function, before they are conformed; `inputs` are frames by name."""
    import polars as pl

    if table.engine == "spark":
        from mlops_assets.on_spark.table import through

        return through(table, inputs, window)
    if isinstance(table, Source):
        return table.compute(window) if table.inputs else table.compute()
    frame, time = table.compute(*(inputs[name] for name in table.inputs)), time_of(table)
    schema = frame.collect_schema()
    if window is None or time is None or time not in schema:
        return frame
    if isinstance(moment := schema[time], pl.Datetime) and moment.time_zone is None:
        return frame  # refused by name when the frame is conformed
    return frame.filter(pl.col(time).is_between(*window, closed="left"))
