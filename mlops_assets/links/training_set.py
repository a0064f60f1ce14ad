"""The training set of a cutoff: one row per labelled event, with the features as they were at its time.

Every candidate is fitted and judged on it. No row may use anything that became known after its event,
and no label that became known after the cutoff, or training would see the future.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets import fallbacks
from mlops_assets.catalog import asset_key
from mlops_assets.claims import Claim
from mlops_assets.cold_start import constant_values
from mlops_assets.declarations import EVENT_TIMESTAMP, KNOWN_AT, FeatureView, ModelPipeline, StoredSelection
from mlops_assets.fields import Bool, Field
from mlops_assets.links import spec

if TYPE_CHECKING:
    import polars as pl

    from resources.point_in_time import ViewFrame

LINK = "training_set"
PROOF_ROWS = 100
ALL_HISTORY = timedelta(weeks=520)
CLAIMS = {"point_in_time_proof": True, "nothing_after_the_cutoff": True, "null_rates": False}
PROMISES = {
    "point_in_time_proof": "Every event is there once, and a naive join, written independently, agrees on sampled rows",
    "nothing_after_the_cutoff": "No event and no label is younger than it may be",
    "null_rates": "No feature is missing from nearly all rows",
}


def training_set_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key, at_each_cutoff = spec.link_key(model, LINK), model.trained == "at each cutoff"

    @dg.asset(
        key=key,
        ins=inputs_of(model),
        description=f"Labelled events known by each cutoff, with the features of {model.title} as of each event.",
        kinds={"polars", "parquet"},
        **spec.belonging(model, LINK),
        code_version=spec.declared_version(model, model.split.window),
        partitions_def=model.cutoffs,
        metadata={
            "dagster/column_schema": spec.column_schema(
                {
                    **model.labels.columns,
                    **model.input_fields,
                    **cold_start_columns(model),
                    model.label: model.labels.schema[model.label],
                }
            ),
            "dagster/column_lineage": column_lineage(model),
            "partition_column": None,  # a cutoff is a point of view on all earlier rows, not a slice of time
        },
        freshness_policy=spec.WEEKLY_FRESHNESS if at_each_cutoff else None,
        automation_condition=spec.at_each_cutoff() if at_each_cutoff else None,
        check_specs=spec.check_specs(key, CLAIMS, PROMISES),
        io_manager_key="io_manager",
    )
    def training_set(context: dg.AssetExecutionContext, **inputs: Any) -> Iterator[Any]:
        cutoff = context.partition_time_window.start
        spine = known_by(inputs["spine"], cutoff, model.split.window)
        rows = point_in_time_rows(model, spine, inputs)
        if rows.is_empty():
            raise dg.Failure(
                f"{model.title} has no labelled event known by {cutoff:%Y-%m-%d}. "
                f"Materialize {model.labels.title} and its features for the days before the cutoff.",
                allow_retries=False,
            )
        found = fallbacks.unaided(model, rows)
        judged = [proof(model, rows, spine, inputs), nothing_after(rows, cutoff), null_rates(found, model.inputs)]
        yield from (spec.check_result(key, claim) for claim in judged)
        if broken := [claim for claim in judged if claim.blocking and not claim.passed]:
            raise dg.Failure(f"{model.title}: {'; '.join(claim.reason for claim in broken)}", allow_retries=False)
        version = spec.data_version(rows)
        facts = {"dagster/row_count": rows.height, "content_hash": version.value, "cutoff": cutoff.isoformat()}
        shares = fallbacks.numbers(fallbacks.in_training(model, rows))
        yield dg.Output(rows, data_version=version, metadata={**facts, **shares})

    return training_set


def known_by(spine: "pl.LazyFrame", cutoff: datetime, window: timedelta | None) -> "pl.LazyFrame":
    """The events before the cutoff whose label was known by it, no older than `window`."""
    import polars as pl

    known = spine.filter(pl.col(EVENT_TIMESTAMP) < cutoff, pl.col(KNOWN_AT) <= cutoff)
    return known.filter(pl.col(EVENT_TIMESTAMP) >= cutoff - window) if window else known


def stored_views(model: ModelPipeline) -> dict[str, FeatureView]:
    """The views that the model's rows are joined from, stand-ins included, by the name of the asset's input."""
    views = [item.view for item in model.selections]
    stand_ins = [view.stand_in for view in views if view.stand_in]
    return {f"view_{view.name}": view for view in (*views, *stand_ins)}


def view_frames(model: ModelPipeline, frames: Mapping[str, "pl.LazyFrame"]) -> "list[ViewFrame]":
    """The model's selections over the views' published rows; beside each view with a cold start, what stands in."""
    from resources.point_in_time import ViewFrame

    found = []
    for item in model.selections:
        view, stand_in = item.view, item.view.stand_in
        found.append(
            ViewFrame(
                frame=frames[f"view_{view.name}"],
                keys={name: name for name in view.join_keys},
                features={name: name for name in item.features},
                ttl=view.ttl,
                matched_at=_seen(view) if view.cold_start else None,
            )
        )
        if stand_in:
            features = {name: cold_start_name(name) for name in item.features}
            found.append(ViewFrame(frames[f"view_{stand_in.name}"], keys={}, features=features))
    return found


def point_in_time_rows(
    model: ModelPipeline, spine: "pl.LazyFrame", frames: Mapping[str, "pl.LazyFrame"]
) -> "pl.DataFrame":
    """The spine with every input of the model as of each event, ordered by time and key.

    Of a view with a cold start there is also, by feature, what stands in (`cold_start_name`), and whether it
    was used (`cold_start_used`).
    """
    from resources.point_in_time import point_in_time_join

    ordered = spine.map_batches(lambda rows: _ordered(rows, model.labels.key))
    joined = point_in_time_join(ordered, view_frames(model, frames))
    return completed(model, joined).select(*spine.collect_schema(), *added_columns(model)).collect()


def completed(model: ModelPipeline, joined: "pl.LazyFrame") -> "pl.LazyFrame":
    """The joined rows with cold starts filled in and on-demand features computed, by the endpoint's own rules."""
    for item in model.selections:
        if item.view.cold_start:
            joined = _warmed(joined, item)
    for selection in model.on_demand:
        expressions = selection.view.expressions()
        joined = joined.with_columns(expressions[name] for name in selection.features)
    return joined


def _warmed(joined: "pl.LazyFrame", item: StoredSelection) -> "pl.LazyFrame":
    """Where the view showed no row, its stand-in's features; one that is null in a row that is there stays null."""
    import polars as pl

    constant = constant_values(item.view)
    if constant is not None:
        fields = item.view.schema
        joined = joined.with_columns(
            pl.lit(constant.get(name), fields[name].polars).alias(cold_start_name(name)) for name in item.features
        )
    cold = pl.col(_seen(item.view)).is_null()
    return joined.with_columns(
        cold.alias(cold_start_used(item.view)),
        *(pl.when(cold).then(cold_start_name(name)).otherwise(name).alias(name) for name in item.features),
    )


def added_columns(model: ModelPipeline) -> list[str]:
    """What the join adds to the spine: inputs that the caller does not give, then what tells of cold starts."""
    looked_up = [name for item in model.chosen for name in item.features]
    return [*looked_up, *cold_start_columns(model)]


def cold_start_columns(model: ModelPipeline) -> dict[str, Field]:
    """By view with a cold start: was it used, and what stands in for each of its inputs."""
    found: dict[str, Field] = {}
    for item in model.selections:
        if item.view.cold_start:
            found[cold_start_used(item.view)] = Bool(f"No row of {item.view.id} was usable: its cold start was used")
            found.update({cold_start_name(name): item.view.schema[name] for name in item.features})
    return found


def cold_start_name(feature: str) -> str:
    return f"{feature}__cold_start"


def cold_start_used(view: FeatureView) -> str:
    return f"{view.name}__cold_start_used"


def _seen(view: FeatureView) -> str:
    return f"__seen_{view.name}"


def _ordered(rows: "pl.DataFrame", key: str) -> "pl.DataFrame":
    """Sorted by time and key; labels are published so, and looking is a tenth of sorting."""
    import polars as pl

    time, tied = rows[EVENT_TIMESTAMP], pl.col(EVENT_TIMESTAMP) == pl.col(EVENT_TIMESTAMP).shift()
    if time.is_sorted() and not rows.select((tied & (pl.col(key) < pl.col(key).shift())).any()).item():
        return rows
    return rows.sort(EVENT_TIMESTAMP, key)


def proof(
    model: ModelPipeline, rows: "pl.DataFrame", spine: "pl.LazyFrame", frames: Mapping[str, "pl.LazyFrame"]
) -> Claim:
    """Every event of the spine is there once; rows drawn by a hash of their key, joined anew, agree value for value."""
    from resources.point_in_time import naive_join

    events = spine.select(model.labels.key).collect()[model.labels.key]
    sample = _sample(rows, model)
    features = added_columns(model)
    joined = naive_join(sample.drop(features), view_frames(model, frames))
    expected = completed(model, joined.lazy()).collect()
    differing = [name for name in features if not sample[name].equals(expected[name], null_equal=True)]
    whole = events.sort().equals(rows[model.labels.key].sort())
    return Claim(
        "point_in_time_proof",
        whole and not differing,
        f"{sample.height} sampled rows, {len(features)} features: "
        + (f"{', '.join(differing)} differ from the naive join" if differing else "all equal to the naive join")
        + f"; {rows.height} rows of {events.len()} events"
        + ("" if whole else ", which are not the same ones"),
        numbers={"rows": sample.height, "features": len(features)},
    )


def _sample(rows: "pl.DataFrame", model: ModelPipeline) -> "pl.DataFrame":
    import polars as pl

    return rows.sort(pl.col(model.labels.key).hash(seed=1)).head(PROOF_ROWS)


def nothing_after(rows: "pl.DataFrame", cutoff: datetime) -> Claim:
    """No event at or after the cutoff, no label that became known after it."""
    import polars as pl

    late = rows.filter((pl.col(EVENT_TIMESTAMP) >= cutoff) | (pl.col(KNOWN_AT) > cutoff))
    example = f", e.g. {late.head(1).to_dicts()}" if late.height else ""
    newest = rows[KNOWN_AT].max()
    return Claim(
        "nothing_after_the_cutoff",
        late.is_empty(),
        f"{late.height} of {rows.height} rows were not known by {cutoff.astimezone(UTC):%Y-%m-%d %H:%M} UTC{example}",
        numbers={"newest_label": str(newest)},
    )


def null_rates(rows: "pl.DataFrame", inputs: tuple[str, ...]) -> Claim:
    """No input is null in nearly all rows; a view that is empty shows here, also where its cold start hides it."""
    shares = {name: rows[name].null_count() / max(rows.height, 1) for name in inputs}
    missing = {name: f"{share:.0%}" for name, share in shares.items() if share > 0.9}
    return Claim(
        "null_rates",
        not missing,
        f"Nearly always null: {missing}" if missing else "every input is there in a fair share of rows",
        blocking=False,
        numbers={f"null_share/{name}": round(share, 6) for name, share in shares.items() if share},
    )


def column_lineage(model: ModelPipeline) -> dg.TableColumnLineage:
    """Which column of which table each input comes from."""
    from_labels = {
        name: [dg.TableColumnDep(asset_key(model.labels), name)] for name in (*model.labels.request, model.label)
    }
    stored = {
        name: [dg.TableColumnDep(asset_key(view), name) for view in (item.view, item.view.stand_in) if view]
        for item in model.selections
        for name in item.features
    }
    known = {**from_labels, **stored, EVENT_TIMESTAMP: [dg.TableColumnDep(asset_key(model.labels), EVENT_TIMESTAMP)]}
    computed = {
        name: [dep for given in item.view.inputs for dep in known[given]]
        for item in model.on_demand
        for name in item.features
    }
    inputs = {name: deps for name, deps in {**known, **computed}.items() if name in model.inputs}
    return dg.TableColumnLineage({**from_labels, **inputs})


def inputs_of(model: ModelPipeline) -> dict[str, dg.AssetIn]:
    history = ceil((model.split.window or ALL_HISTORY) / timedelta(weeks=1))
    return {
        "spine": dg.AssetIn(asset_key(model.labels), partition_mapping=before_cutoff(history)),
        # A view's newest row may be older than the oldest event by its ttl.
        **{
            name: dg.AssetIn(asset_key(view), partition_mapping=before_cutoff(history + _weeks(view.ttl)))
            for name, view in stored_views(model).items()
        },
    }


def _weeks(ttl: timedelta | None) -> int:
    return ceil((ttl or ALL_HISTORY) / timedelta(weeks=1))


def before_cutoff(weeks: int) -> dg.TimeWindowPartitionMapping:
    """The days before a cutoff, which is the START of its weekly partition."""
    return dg.TimeWindowPartitionMapping(start_offset=-weeks, end_offset=-1, allow_nonexistent_upstream_partitions=True)
