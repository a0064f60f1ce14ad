"""The prediction log as a table: one row per answer an endpoint gave, by the UTC day it was asked for.

The reports and the receipts read it. No answer may be lost on the way without the check saying so.
"""

from collections.abc import Iterator, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets import fallbacks
from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.fields import Field, Float64, Int64, String, UnixTimestamp
from mlops_assets.links import spec
from mlops_assets.links.online import online_key
from mlops_assets.links.training_set import stored_views

if TYPE_CHECKING:
    import polars as pl

LINK = "predictions"
ANSWER: Mapping[str, Field] = {
    "request_id": String("The event's own id where the caller gave it"),
    "at": UnixTimestamp("The moment the features were asked for"),
    "logged_at": UnixTimestamp("When the answer was written down"),
    "release": String("Tag of the Bento that answered"),
    "version": String("Registered version of its model"),
    "variant": String("Role of the release then: champion or challenger"),
    "writer": String("The serving process"),
    "seq": Int64("Number of the answer in its writer's log, without gaps"),
    "prediction": Float64("What the model answered"),
    "latency_ms": Float64("Time taken inside the endpoint", unit="millisecond"),
    "event_times": String("Event time of the row used from each view, as JSON"),
    "fallbacks": String("Views that had no usable row, why, and what was used instead, as JSON"),
}


PROMISES = {"no_gap": "The log of every serving process is complete", fallbacks.CHECK: fallbacks.PROMISE}


def predictions_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key = spec.link_key(model, LINK)

    @dg.asset(
        key=key,
        deps=[spec.link_key(model, "endpoint"), *looked_up(model)],
        description=f"Every answer of the endpoint of {model.title}, with the features as used.",
        group_name=spec.model_group(model),
        owners=spec.owners(model.owners, model.team),
        kinds={"bentoml", "parquet"},
        tags=spec.model_tags(model, LINK),
        code_version=spec.declared_version(model),
        partitions_def=model.labels.partitions,
        metadata={"dagster/column_schema": spec.column_schema(columns(model)), "partition_column": "at"},
        freshness_policy=spec.DAILY_FRESHNESS,
        automation_condition=spec.after_midnight(),
        check_specs=spec.check_specs(key, dict.fromkeys(PROMISES, False), PROMISES),
        io_manager_key="io_manager",
    )
    def predictions(context: dg.AssetExecutionContext) -> Iterator[Any]:
        from mlops_assets.serving.prediction_log import PredictionLog

        log = PredictionLog()
        rows = logged(model, log.read(model.id, date.fromisoformat(context.partition_key)))
        shares = fallbacks.in_answers(model, rows)
        yield dg.Output(
            rows,
            data_version=spec.data_version(rows),
            metadata={"dagster/row_count": rows.height, **summary(rows), **fallbacks.numbers(shares)},
        )
        yield spec.check_result(key, no_gap(log.gaps(model.id)))
        yield spec.check_result(key, fallbacks.seldom(model.monitor, shares, rows.height))

    return predictions


def looked_up(model: ModelPipeline) -> list[dg.AssetKey]:
    """The online views that the endpoint reads features from, and what stands in for them."""
    return [online_key(view) for view in stored_views(model).values() if view.online]


def columns(model: ModelPipeline) -> dict[str, Field]:
    """How an answer is stored: about the answer itself, the keys asked for, the inputs used."""
    keys = {entity.join_key: entity.column for entity in model.labels.entities}
    return {**keys, **model.input_fields, **ANSWER}


def logged(model: ModelPipeline, rows: "pl.DataFrame") -> "pl.DataFrame":
    """The log's rows with every column of the table, so that an empty day has the same shape."""
    import polars as pl

    return rows.select(
        (pl.col(name) if name in rows.columns else pl.lit(None)).cast(field.polars).alias(name)
        for name, field in columns(model).items()
    )


def summary(rows: "pl.DataFrame") -> dict[str, Any]:
    """What the asset page plots: mean prediction, answers with fallbacks, answers by version."""
    import polars as pl

    if rows.is_empty():
        return {}
    return {
        "mean_prediction": rows["prediction"].mean(),
        "fallback_share": rows.select((pl.col("fallbacks") != "[]").mean()).item(),
        "latency_ms_p50": rows["latency_ms"].median(),
        "versions": dg.MetadataValue.json(dict(rows["version"].value_counts().iter_rows())),
    }


def no_gap(gaps: Any) -> Claim:
    """Every number of every writer is there, and none was dropped."""
    return Claim(
        "no_gap",
        not gaps.lines and not gaps.dropped,
        f"{gaps.lines} answers are missing from the log {dict(gaps.missing)}, {gaps.dropped} found the queue full",
        blocking=False,
        numbers={"missing": gaps.lines, "dropped": gaps.dropped},
    )
