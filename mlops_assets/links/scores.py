"""Batch scores of a day: the champion's prediction for every event of the spine, features as of each event.

The release's own plan and the stages of the endpoint make them, so that a batch answer equals the online one. Rows
are read, joined and scored some at a time and published at once; a run that was killed goes on where it stopped.
A day is scored when its events arrive, and again when they or their features change; never because of a new release,
which would rewrite what was said before it.
"""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.catalog import asset_key
from mlops_assets.claims import Claim
from mlops_assets.declarations import EVENT_TIMESTAMP, FeatureView, Labels, ModelPipeline
from mlops_assets.fields import CONFIDENCE, CONFIDENT, Field, Float64, String
from mlops_assets.links import spec
from mlops_assets.links.training_set import stored_views
from mlops_assets.scoring import Chunks, Scorer, Told, UndeclaredInputError, key_of, write
from resources.bentos import BentoStore
from resources.lake import UNPARTITIONED, Lake
from resources.lake_writer import row_groups
from resources.releases import ReleaseStore, Variant

if TYPE_CHECKING:
    import polars as pl
    from upath import UPath

LINK = "scores"
SPINE = "spine"
CLAIMS = {"scored_all": True, "spread": False}
PROMISES = {
    "scored_all": "Every event of the day has one finite score",
    "spread": "The scores are not all alike",
}
SAID = {"prediction": Float64("What the champion predicts")}
BY = {"release": String("Tag of the Bento that scored"), "version": String("Registered version of its model")}


class Scoring(dg.Config):
    """`rows`: how many events, and rows of each view, are in memory at once; what a killed run repeats at most."""

    rows: int = 100_000


def scores_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key, endpoint = spec.link_key(model, LINK), spec.link_key(model, "endpoint")

    @dg.asset(
        key=key,
        ins=_inputs(model),
        deps=[endpoint],
        description=f"The champion's prediction of {model.title} for every event of the day.",
        kinds={"polars", "parquet"},
        **spec.belonging(model, LINK),
        code_version=spec.declared_version(model, *spec.post_processing(model)),
        partitions_def=model.labels.partitions,
        metadata={"dagster/column_schema": spec.column_schema(columns(model))},
        automation_condition=spec.on_recent_arrival(model.monitor.window, endpoint),
        check_specs=spec.check_specs(key, CLAIMS, PROMISES),
        io_manager_key="io_manager",
    )
    def scores(
        context: dg.AssetExecutionContext,
        config: Scoring,
        releases: dg.ResourceParam[ReleaseStore],
        bentos: dg.ResourceParam[BentoStore],
        lake: Lake,
        **inputs: Any,
    ) -> Iterator[Any]:
        record = releases.read(model.id)
        if record is None:
            raise dg.Failure(
                f"{model.title} has no release to score with. Materialize its endpoint first.", allow_retries=False
            )
        told, kept = published(model, record.champion, bentos, lake, context, inputs, config.rows)
        path = lake.path(key, context.partition_key)
        yield dg.MaterializeResult(
            data_version=dg.DataVersion(told.version),
            metadata={
                "dagster/row_count": told.rows,
                "path": dg.MetadataValue.path(str(path)),
                "bytes": path.stat().st_size,
                "release": record.champion.release,
                "kept_from_a_run_that_broke_off": kept,
            },
        )
        yield from (spec.check_result(key, claim) for claim in (scored_all(told), spread(told)))

    return scores


def columns(model: ModelPipeline) -> dict[str, Field]:
    """Who and when, what is predicted, what post-processing makes of it, and by which release."""
    spine = _spine(model)
    kept = {name: field for name, field in model.labels.columns.items() if name in spine}
    return {**kept, **SAID, **_outputs(model), **BY}


def published(
    model: ModelPipeline,
    variant: Variant,
    bentos: BentoStore,
    lake: Lake,
    context: dg.AssetExecutionContext,
    inputs: Mapping[str, "pl.LazyFrame"],
    rows: int,
) -> tuple[Told, int]:
    """Score the partition and publish its table; also how many chunks an earlier run had left."""
    from mlops_assets.serving.bundle import Release

    scorer = Scorer(
        Release.load(bentos.path(variant.release)), variant, model.labels.key, _spine(model), _outputs(model)
    )
    made_of = key_of(
        [variant.release, variant.version, repr(scorer.schema(inputs[SPINE])), str(rows)],
        [file for name in inputs for file in _files(context, lake, model, name)],
    )
    tables = {f"{view.team}__{view.name}": inputs[name] for name, view in stored_views(model).items()}
    key, schema = spec.link_key(model, LINK), scorer.schema(inputs[SPINE])
    with Chunks.of(model.id, context.partition_key, made_of) as chunks:
        kept = len(chunks.finished)
        try:
            for frame in scorer.scores(inputs[SPINE], tables, rows, chunks.until):
                chunks.keep(frame)
        except UndeclaredInputError as problem:
            raise dg.Failure(str(problem), allow_retries=False) from problem
        with row_groups(lake, key, context.partition_key, schema) as table:
            return write(chunks, table, rows), kept


def _files(context: dg.AssetExecutionContext, lake: Lake, model: ModelPipeline, name: str) -> "list[UPath]":
    """The files that an input is read from."""
    table: Labels | FeatureView = model.labels if name == SPINE else stored_views(model)[name]
    key = asset_key(table)
    if table.partitions is None:
        return [lake.path(key, UNPARTITIONED)]
    asked = set(context.asset_partition_keys_for_input(name))
    return [lake.path(key, partition) for partition in lake.partitions(key) if partition in asked]


def scored_all(told: Told) -> Claim:
    """One finite score per event."""
    missing = told.rows - told.finite
    return Claim(
        "scored_all",
        not missing,
        f"{missing} of {told.rows} events have no finite score",
        numbers={"rows": told.rows},
    )


def spread(told: Told) -> Claim:
    """More than one distinct score; a model that answers all alike has lost its inputs."""
    return Claim(
        "spread",
        told.rows < 2 or told.highest > told.lowest,
        f"Scores from {told.lowest:.4g} to {told.highest:.4g}" if told.finite else "no score",
        blocking=False,
    )


def _spine(model: ModelPipeline) -> list[str]:
    return [model.labels.key, *model.labels.join_keys, EVENT_TIMESTAMP]


def _outputs(model: ModelPipeline) -> Mapping[str, Field]:
    made = model.postprocess.schema if model.postprocess else {}
    return {CONFIDENCE: CONFIDENT, **made} if model.task == "multiclass" else made


def _inputs(model: ModelPipeline) -> dict[str, dg.AssetIn]:
    """The day's events, and each view as far back as its ttl reaches."""

    def back(ttl: timedelta | None) -> dg.TimeWindowPartitionMapping:
        days = ceil((ttl or timedelta(days=3650)) / timedelta(days=1))
        return dg.TimeWindowPartitionMapping(start_offset=-days, allow_nonexistent_upstream_partitions=True)

    return {
        SPINE: dg.AssetIn(asset_key(model.labels)),
        **{
            name: dg.AssetIn(asset_key(view), partition_mapping=back(view.ttl))
            for name, view in stored_views(model).items()
        },
    }
