"""Tables whose function is written on Spark (`engine="spark"`): it is given frames of Spark's, and returns one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.catalog import Catalog, Table, asset_key
from mlops_assets.claims import Claim, columns_of, key_of, time_of
from mlops_assets.declarations import Source
from resources.lake import UNPARTITIONED, Lake, holes

if TYPE_CHECKING:
    import polars as pl
    from pyspark.sql import DataFrame

Window = tuple[Any, Any] | None


def inputs(context: dg.AssetExecutionContext, table: Table, catalog: Catalog, lake: Lake) -> dict[str, DataFrame]:
    """What the table reads, by parameter, of the partitions that the run asks for."""
    from resources.spark.lake import read

    found = {}
    for name, source in catalog.inputs(table):
        asked = sorted(context.asset_partition_keys_for_input(name)) if source.partitions else None
        if asked and (missing := holes(asked, lake.partitions(asset_key(source)))):
            context.log.warning("Read '%s' without %s partitions: not materialized.", source.id, len(missing))
        found[name] = read(lake, asset_key(source), asked)
    return found


def computed(table: Table, given: Mapping[str, DataFrame], window: Window) -> DataFrame:
    """The table's rows of `window` by its own function, before they are conformed."""
    from pyspark.sql import functions as f

    from resources.spark.point_in_time import quoted

    if isinstance(table, Source):
        made: Any = table.compute(window) if table.inputs else table.compute()
        return made
    frame: Any = table.compute(*(given[name] for name in table.inputs))
    time = time_of(table)
    if window is None or time is None or dict(frame.dtypes).get(time) != "timestamp":
        return frame  # a time of another type is refused by name when the frame is conformed
    start, end = window
    return frame.filter((f.col(quoted(time)) >= f.lit(start)) & (f.col(quoted(time)) < f.lit(end)))


def published(
    context: dg.AssetExecutionContext, table: Table, catalog: Catalog, lake: Lake, window: Window
) -> Iterator[list[Claim] | dg.MaterializeResult[Any]]:
    """The claims about the table's rows as they are staged; then, if the caller goes on, the table as published."""
    from mlops_assets.on_spark.claims import claims, conform
    from resources.spark.lake import staged

    key, time = asset_key(table), time_of(table)
    frame = conform(computed(table, inputs(context, table, catalog, lake), window), table)
    windows = partitions_of(context, table.partitions)
    by = list(dict.fromkeys([*([time] if time else []), *key_of(table)]))
    column = time if table.partitions else None
    with staged(lake, key, frame, windows, column=column, by=by, empty=empty(table)) as files:
        yield claims(files.rows, table)
        version, facts = files.content(), files.facts()
        files.publish()
    rows = sum(fact["dagster/row_count"] for fact in facts.values())
    metadata: dict[str, Any] = {"dagster/row_count": rows}
    if len(facts) == 1:
        metadata = next(iter(facts.values()))
    else:
        for name, fact in facts.items():
            context.add_asset_metadata(fact, key, name)
    yield dg.MaterializeResult(data_version=dg.DataVersion(version), metadata=metadata)


def partitions_of(
    context: dg.AssetExecutionContext, partitions: dg.PartitionsDefinition[Any] | None
) -> dict[str, dg.TimeWindow | None]:
    """The run's partitions, and the windows of those that are slices of time."""
    if partitions is None:
        return {UNPARTITIONED: None}
    keys: Sequence[str] = context.partition_keys
    if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        return {key: partitions.time_window_for_partition_key(key) for key in keys}
    return dict.fromkeys(keys)


def empty(table: Table) -> pl.DataFrame:
    """The table without rows."""
    import polars as pl

    return pl.DataFrame(schema={name: declared.polars for name, declared in columns_of(table).items()})


def through(table: Table, given: Mapping[str, pl.LazyFrame], window: Window) -> pl.LazyFrame:
    """The same by and for callers on Polars (events as they come, a recomputation): of so much as they have here."""
    import polars as pl

    from resources.spark import session

    plain = pl.CompatLevel.oldest()
    frames = (
        {name: session().createDataFrame(given[name].collect().to_arrow(compat_level=plain)) for name in table.inputs}
        if not isinstance(table, Source)
        else {}
    )
    made = pl.from_arrow(computed(table, frames, window).toArrow())
    return pl.DataFrame(made).lazy()
