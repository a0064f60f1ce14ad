"""Batch scores of a day: the champion's prediction for every event of the spine, features as of each event.

The same bundle, encoding and features as the endpoint's, so that a batch answer equals the online one.
"""

from collections.abc import Iterator
from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.catalog import asset_key
from mlops_assets.claims import Claim
from mlops_assets.declarations import EVENT_TIMESTAMP, ModelPipeline
from mlops_assets.fields import Float64, String
from mlops_assets.links import spec
from mlops_assets.links.training_set import point_in_time_rows, stored_views
from resources.bentos import BentoStore
from resources.releases import ReleaseStore

if TYPE_CHECKING:
    import polars as pl

LINK = "scores"
CLAIMS = {"scored_all": True, "spread": False}
PROMISES = {
    "scored_all": "Every event of the day has one finite score",
    "spread": "The scores are not all alike",
}
SCORE = {
    "prediction": Float64("What the champion predicts"),
    "release": String("Tag of the Bento that scored"),
    "version": String("Registered version of its model"),
}


def scores_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key = spec.link_key(model, LINK)
    spine = [model.labels.key, *model.labels.join_keys, EVENT_TIMESTAMP]

    @dg.asset(
        key=key,
        ins=_inputs(model),
        deps=[spec.link_key(model, "endpoint")],
        description=f"The champion's prediction of {model.title} for every event of the day.",
        group_name=spec.model_group(model),
        owners=spec.owners(model.owners, model.team),
        kinds={"polars", "parquet"},
        tags=spec.model_tags(model, LINK),
        code_version=spec.declared_version(model),
        partitions_def=model.labels.partitions,
        metadata={
            "dagster/column_schema": spec.column_schema(
                {**{name: field for name, field in model.labels.columns.items() if name in spine}, **SCORE}
            )
        },
        check_specs=spec.check_specs(key, CLAIMS, PROMISES),
        io_manager_key="io_manager",
    )
    def scores(
        releases: dg.ResourceParam[ReleaseStore],
        bentos: dg.ResourceParam[BentoStore],
        **inputs: Any,
    ) -> Iterator[Any]:
        record = releases.read(model.id)
        if record is None:
            raise dg.Failure(
                f"{model.title} has no release to score with. Materialize its endpoint first.", allow_retries=False
            )
        rows = point_in_time_rows(model, inputs["spine"], inputs)
        scored = score(rows, bentos, record.champion.release, record.champion.version).select(*spine, *SCORE)
        yield dg.Output(
            scored,
            data_version=spec.data_version(scored),
            metadata={"dagster/row_count": scored.height, "release": record.champion.release},
        )
        yield from (spec.check_result(key, claim) for claim in (scored_all(scored), spread(scored)))

    return scores


def score(rows: "pl.DataFrame", bentos: BentoStore, release: str, version: str) -> "pl.DataFrame":
    """The rows with the release's prediction for each."""
    import polars as pl

    from mlops_assets.serving.bundle import Release

    loaded = Release.load(bentos.path(release))
    if missing := [name for name in loaded.schema.names if name not in rows.columns]:
        raise dg.Failure(
            f"{release} reads {', '.join(missing)}, which its model does not declare any more. "
            "Train and release a candidate of the new declaration first.",
            allow_retries=False,
        )
    predicted: Any = loaded.predictor(loaded.schema.encode_frame(rows)) if rows.height else []
    return rows.with_columns(
        pl.Series("prediction", predicted, dtype=pl.Float64), release=pl.lit(release), version=pl.lit(version)
    )


def scored_all(scored: "pl.DataFrame") -> Claim:
    """One finite score per event."""
    missing = scored.height - int(scored["prediction"].is_finite().sum() or 0)
    return Claim(
        "scored_all",
        not missing,
        f"{missing} of {scored.height} events have no finite score",
        numbers={"rows": scored.height},
    )


def spread(scored: "pl.DataFrame") -> Claim:
    """More than one distinct score; a model that answers all alike has lost its inputs."""
    distinct = scored["prediction"].n_unique()
    return Claim("spread", scored.height < 2 or distinct > 1, f"{distinct} distinct scores", blocking=False)


def _inputs(model: ModelPipeline) -> dict[str, dg.AssetIn]:
    """The day's events, and each view as far back as its ttl reaches."""

    def back(ttl: timedelta | None) -> dg.TimeWindowPartitionMapping:
        days = ceil((ttl or timedelta(days=3650)) / timedelta(days=1))
        return dg.TimeWindowPartitionMapping(start_offset=-days, allow_nonexistent_upstream_partitions=True)

    return {
        "spine": dg.AssetIn(asset_key(model.labels)),
        **{
            name: dg.AssetIn(asset_key(view), partition_mapping=back(view.ttl))
            for name, view in stored_views(model).items()
        },
    }
