"""The training set of a cutoff, joined on Spark: the same rows in the same order as `mlops_assets.links.training_set`.

What one row is made of by itself (cold starts, on-demand features) is computed by the endpoint's own expressions, batch
by batch, where the rows are. The proof compares sampled rows with a join written independently, also on Spark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.catalog import asset_key
from mlops_assets.claims import Claim
from mlops_assets.declarations import EVENT_TIMESTAMP, KNOWN_AT, ModelPipeline
from mlops_assets.fields import Field
from mlops_assets.links import spec
from mlops_assets.links.training_set import (
    LINK,
    PROOF_ROWS,
    added_columns,
    cold_start_columns,
    cold_start_used,
    completed,
    completion,
    nothing_after_of,
    nothing_known,
    null_rates_of,
    proof_of,
    told,
    view_frames,
)
from mlops_assets.on_spark.claims import TYPES
from mlops_assets.upstream import tables_read
from resources.lake import Lake

if TYPE_CHECKING:
    from datetime import datetime

    import polars as pl
    from pyspark.sql import DataFrame

    from mlops_assets.fallbacks import Shares


def published(
    context: dg.AssetExecutionContext, model: ModelPipeline, lake: Lake, address: str
) -> Iterator[list[Claim] | dg.MaterializeResult[Any]]:
    """The claims about the rows as they are staged; then, if the caller goes on, the training set as published."""
    from resources.spark import session
    from resources.spark.lake import staged

    session(address)
    cutoff, key = context.partition_time_window.start, spec.link_key(model, LINK)
    frames = _frames(context, model, lake)
    frames["spine"] = known_by(model, frames["spine"], cutoff)
    rows, by = training_rows(model, frames), [EVENT_TIMESTAMP, model.labels.key]
    partition = {context.partition_key: None}
    with staged(lake, key, rows, partition, column=None, by=by, empty=_empty(model)) as files:
        facts = files.facts()[context.partition_key]
        if not facts["dagster/row_count"]:
            raise nothing_known(model, cutoff)
        found = files.rows
        counts = _counted(model, found, cutoff)
        yield [proof(model, found, frames), _nothing_after(found, counts, cutoff), _null_rates(model, counts)]
        content = files.content()
        files.publish()
    metadata = told(content, facts["dagster/row_count"], cutoff, _shares(model, counts))
    yield dg.MaterializeResult(data_version=dg.DataVersion(content), metadata={**facts, **metadata})


def training_rows(model: ModelPipeline, frames: Mapping[str, DataFrame]) -> DataFrame:
    """The spine with every input of the model as of each event, as `links.training_set.point_in_time_rows`."""
    from resources.spark.point_in_time import point_in_time_join

    return _completed(model, point_in_time_join(frames["spine"], view_frames(model, frames)))


def known_by(model: ModelPipeline, spine: DataFrame, cutoff: datetime) -> DataFrame:
    """The events before the cutoff whose label was known by it, no older than the window of the model's split."""
    from pyspark.sql import functions as f

    known = spine.filter((f.col(EVENT_TIMESTAMP) < f.lit(cutoff)) & (f.col(KNOWN_AT) <= f.lit(cutoff)))
    window = model.split.window
    return known.filter(f.col(EVENT_TIMESTAMP) >= f.lit(cutoff - window)) if window else known


def columns_of(model: ModelPipeline) -> dict[str, Field]:
    """The training set's columns: the labels', then what the join adds."""
    stored = {name: item.view.schema[name] for item in model.chosen for name in item.features}
    added = {**stored, **cold_start_columns(model)}
    return {**model.labels.columns, **{name: added[name] for name in added_columns(model)}}


def proof(model: ModelPipeline, rows: DataFrame, frames: Mapping[str, DataFrame]) -> Claim:
    """Every event is there once; rows drawn by a hash of their key, joined anew by comparing, agree value for value."""
    from pyspark.sql import functions as f

    from resources.spark.point_in_time import naive_join, quoted

    key, features = quoted(model.labels.key), added_columns(model)
    sample = rows.orderBy(f.xxhash64(key), key).limit(PROOF_ROWS).localCheckpoint()
    joined = naive_join(sample.drop(*features), view_frames(model, frames))
    drawn, expected = _here(sample, model), completed(model, _here(joined, model).lazy()).collect()
    differing = [name for name in features if not drawn[name].equals(expected[name], null_equal=True)]
    count, content = f.count("*"), f.sum(f.xxhash64(key).cast("decimal(38,0)"))
    here, there = (list(table.agg(count, content).first() or ()) for table in (rows, frames["spine"]))
    return proof_of(drawn.height, len(features), differing, here[0], there[0], here == there)


def _frames(context: dg.AssetExecutionContext, model: ModelPipeline, lake: Lake) -> dict[str, DataFrame]:
    """What the training set is joined from, by input: the partitions that the cutoff sees, each row in its place."""
    from resources.spark.lake import read

    found = {}
    for name, table in tables_read(model).items():
        asked = sorted(context.asset_partition_keys_for_input(name)) if table.partitions else None
        found[name] = read(lake, asset_key(table), asked, ordered=name != "spine")
    return found


def _completed(model: ModelPipeline, joined: DataFrame) -> DataFrame:
    """The rows with what each makes of itself, by expressions of Polars, a batch at a time where they are."""
    from pyspark.sql.pandas.types import to_arrow_schema
    from pyspark.sql.types import StructType

    from resources.spark.point_in_time import quoted

    steps, fields = completion(model), columns_of(model)
    if not steps:
        return joined.select(*map(quoted, fields))
    schema = StructType.fromDDL(", ".join(f"{quoted(name)} {TYPES[field.dtype]}" for name, field in fields.items()))
    arrow = to_arrow_schema(schema, timezone="UTC")

    def complete(batches: Any) -> Any:
        import polars as pl

        for batch in batches:
            rows: Any = pl.from_arrow(batch)
            for step in steps:
                rows = rows.with_columns(step)
            made = rows.select(pl.col(name).cast(field.polars) for name, field in fields.items())
            yield from made.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(arrow).to_batches()

    return joined.mapInArrow(complete, schema)


def _here(rows: DataFrame, model: ModelPipeline) -> pl.DataFrame:
    """A sample's rows as a frame of Polars', ordered by key."""
    import polars as pl

    return pl.DataFrame(pl.from_arrow(rows.toArrow())).sort(model.labels.key)


def _counted(model: ModelPipeline, rows: DataFrame, cutoff: datetime) -> dict[str, Any]:
    """Everything that is said of the rows, counted in one pass."""
    from pyspark.sql import functions as f

    from resources.spark.point_in_time import quoted

    warmed = [item for item in model.selections if item.view.cold_start]
    aided = {name: cold_start_used(item.view) for item in warmed for name in item.features}
    newest = f.concat(f.max(KNOWN_AT).cast("string"), f.lit("+00:00")).alias("newest")
    late = (f.col(EVENT_TIMESTAMP) >= f.lit(cutoff)) | (f.col(KNOWN_AT) > f.lit(cutoff))
    counts = [f.count("*").alias("rows"), newest, f.count_if(late).alias("late")]
    for name in model.inputs:
        missing = f.col(quoted(name)).isNull()
        missing = missing | f.col(quoted(aided[name])) if name in aided else missing
        counts.append(f.count_if(missing).alias(f"null {name}"))
    for item in _told_of(model):
        read = [f.col(quoted(name)).isNull() for name in item.features if name in model.inputs]
        nothing = _all(read)
        cold = f.col(quoted(cold_start_used(item.view))) & ~nothing if item.view.cold_start else f.lit(False)
        named = {f"nulls {item.view.name}": nothing, f"cold {item.view.name}": cold}
        counts += [f.count_if(condition).alias(name) for name, condition in named.items()]
    found = rows.agg(*counts).first()
    return found.asDict() if found else {}


def _told_of(model: ModelPipeline) -> list[Any]:
    """The selections of which the training set has a column; on-demand views may read others."""
    return [item for item in model.selections if set(item.features) & set(model.inputs)]


def _all(columns: Sequence[Any]) -> Any:
    from functools import reduce

    return reduce(lambda one, other: one & other, columns)


def _nothing_after(rows: DataFrame, counts: Mapping[str, Any], cutoff: datetime) -> Claim:
    from pyspark.sql import functions as f

    late = (f.col(EVENT_TIMESTAMP) >= f.lit(cutoff)) | (f.col(KNOWN_AT) > f.lit(cutoff))
    examples = [row.asDict() for row in rows.filter(late).limit(1).collect()] if counts["late"] else []
    return nothing_after_of(counts["late"], examples, counts["rows"], counts["newest"], cutoff)


def _null_rates(model: ModelPipeline, counts: Mapping[str, Any]) -> Claim:
    return null_rates_of({name: counts[f"null {name}"] / max(counts["rows"], 1) for name in model.inputs})


def _shares(model: ModelPipeline, counts: Mapping[str, Any]) -> Shares:
    from mlops_assets.fallbacks import COLD, NULLS

    rows = max(counts["rows"], 1)
    return {
        item.view.name: {
            NULLS: counts[f"nulls {item.view.name}"] / rows,
            COLD: counts[f"cold {item.view.name}"] / rows,
        }
        for item in _told_of(model)
    }


def _empty(model: ModelPipeline) -> pl.DataFrame:
    import polars as pl

    return pl.DataFrame(schema={name: field.polars for name, field in columns_of(model).items()})
