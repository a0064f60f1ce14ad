"""The training set of a cutoff: one row per labelled event, with the features as they were at its time.

Every candidate is fitted and judged on it. No row may use anything that became known after its event,
and no label that became known after the cutoff, or training would see the future.
"""

from collections.abc import Iterator, Mapping, Sequence
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
from resources.compute import ComputeResource
from resources.lake import Lake

if TYPE_CHECKING:
    import polars as pl

    from resources.point_in_time import ViewFrame

LINK = "training_set"
SPARK = "spark"  # the kind of compute that joins too, not only trains
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
    def training_set(
        context: dg.AssetExecutionContext, lake: Lake, compute: ComputeResource, **inputs: Any
    ) -> Iterator[Any]:
        if (model.compute or compute.kind) == SPARK:
            yield from _joined_on_spark(context, model, lake, compute.address)
            return
        cutoff = context.partition_time_window.start
        spine = known_by(inputs["spine"], cutoff, model.split.window)
        rows = point_in_time_rows(model, spine, inputs)
        if rows.is_empty():
            raise nothing_known(model, cutoff)
        found = fallbacks.unaided(model, rows)
        judged = [proof(model, rows, spine, inputs), nothing_after(rows, cutoff), null_rates(found, model.inputs)]
        yield from _results(model, judged)
        version = spec.data_version(rows)
        facts = told(version.value, rows.height, cutoff, fallbacks.in_training(model, rows))
        yield dg.Output(rows, data_version=version, metadata=facts)

    return training_set


def _joined_on_spark(
    context: dg.AssetExecutionContext, model: ModelPipeline, lake: Lake, address: str
) -> Iterator[Any]:
    from mlops_assets.on_spark.training_set import published

    for given in published(context, model, lake, address):
        if isinstance(given, dg.MaterializeResult):
            yield given
        else:
            yield from _results(model, given)


def _results(model: ModelPipeline, judged: Sequence[Claim]) -> Iterator[dg.AssetCheckResult]:
    """The claims as results of checks; dg.Failure where one that blocks does not hold."""
    yield from (spec.check_result(spec.link_key(model, LINK), claim) for claim in judged)
    if broken := [claim for claim in judged if claim.blocking and not claim.passed]:
        raise dg.Failure(f"{model.title}: {'; '.join(claim.reason for claim in broken)}", allow_retries=False)


def told(content: str, rows: int, cutoff: datetime, shares: fallbacks.Shares) -> dict[str, Any]:
    """What the asset says of a training set."""
    facts = {"dagster/row_count": rows, "content_hash": content, "cutoff": cutoff.isoformat()}
    return {**facts, **fallbacks.numbers(shares)}


def nothing_known(model: ModelPipeline, cutoff: datetime) -> dg.Failure:
    return dg.Failure(
        f"{model.title} has no labelled event known by {cutoff:%Y-%m-%d}. "
        f"Materialize {model.labels.title} and its features for the days before the cutoff.",
        allow_retries=False,
    )


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
    for step in completion(model):
        joined = joined.with_columns(step)
    return joined


def completion(model: ModelPipeline) -> "list[list[pl.Expr]]":
    """What completes joined rows, each by itself: columns made side by side, step after step."""
    warmed = [step for item in model.selections if item.view.cold_start for step in _warmed(item)]
    computed = [
        [expressions[name] for name in selection.features]
        for selection in model.on_demand
        if (expressions := selection.view.expressions())
    ]
    return [step for step in (*warmed, *computed) if step]


def _warmed(item: StoredSelection) -> "list[list[pl.Expr]]":
    """Where the view showed no row, its stand-in's features; one that is null in a row that is there stays null."""
    import polars as pl

    constant, fields = constant_values(item.view), item.view.schema
    constants = [
        pl.lit(constant.get(name), fields[name].polars).alias(cold_start_name(name))
        for name in (item.features if constant is not None else ())
        if constant is not None
    ]
    cold = pl.col(_seen(item.view)).is_null()
    filled = [pl.when(cold).then(cold_start_name(name)).otherwise(name).alias(name) for name in item.features]
    return [constants, [cold.alias(cold_start_used(item.view)), *filled]]


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
    return proof_of(sample.height, len(features), differing, rows.height, events.len(), whole)


def proof_of(sampled: int, features: int, differing: Sequence[str], rows: int, events: int, whole: bool) -> Claim:
    """The claim, counted; `whole`: the rows are those of the events."""
    return Claim(
        "point_in_time_proof",
        whole and not differing,
        f"{sampled} sampled rows, {features} features: "
        + (f"{', '.join(differing)} differ from the naive join" if differing else "all equal to the naive join")
        + f"; {rows} rows of {events} events"
        + ("" if whole else ", which are not the same ones"),
        numbers={"rows": sampled, "features": features},
    )


def _sample(rows: "pl.DataFrame", model: ModelPipeline) -> "pl.DataFrame":
    import polars as pl

    return rows.sort(pl.col(model.labels.key).hash(seed=1)).head(PROOF_ROWS)


def nothing_after(rows: "pl.DataFrame", cutoff: datetime) -> Claim:
    """No event at or after the cutoff, no label that became known after it."""
    import polars as pl

    late = rows.filter((pl.col(EVENT_TIMESTAMP) >= cutoff) | (pl.col(KNOWN_AT) > cutoff))
    return nothing_after_of(late.height, late.head(1).to_dicts(), rows.height, rows[KNOWN_AT].max(), cutoff)


def nothing_after_of(late: int, examples: Sequence[Any], rows: int, newest: object, cutoff: datetime) -> Claim:
    """The claim, counted: `late` rows of `rows`."""
    example = f", e.g. {examples}" if examples else ""
    return Claim(
        "nothing_after_the_cutoff",
        not late,
        f"{late} of {rows} rows were not known by {cutoff.astimezone(UTC):%Y-%m-%d %H:%M} UTC{example}",
        numbers={"newest_label": str(newest)},
    )


def null_rates(rows: "pl.DataFrame", inputs: tuple[str, ...]) -> Claim:
    """No input is null in nearly all rows; a view that is empty shows here, also where its cold start hides it."""
    return null_rates_of({name: rows[name].null_count() / max(rows.height, 1) for name in inputs})


def null_rates_of(shares: Mapping[str, float]) -> Claim:
    """The claim, counted: the share of nulls of each input."""
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
