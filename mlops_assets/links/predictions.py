"""The prediction log as a table: one row per answer an endpoint gave, by the UTC day it was asked for.

The reports and the receipts read it. No answer may be lost on the way without the check saying so.
"""

import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from time import time
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets import fallbacks
from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.fields import Field, Float64, Int64, String, UnixTimestamp
from mlops_assets.links import spec
from mlops_assets.links.online import online_key
from mlops_assets.links.training_set import stored_views
from resources.environment import resources_for
from resources.lake import Lake
from resources.lake_writer import row_groups
from sensors.late_answers import late_answers_sensor

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.serving.prediction_log import PredictionLog

LINK = "predictions"
KEPT_AT_HAND = timedelta(days=7)  # logs not written to for so long are compressed
SUMMED = ("prediction", "latency_ms", "version", "fallbacks")
ANSWER: Mapping[str, Field] = {
    "request_id": String("The event's own id where the caller gave it"),
    "at": UnixTimestamp("The moment the features were asked for"),
    "logged_at": UnixTimestamp("When the answer was written down"),
    "release": String("Tag of the Bento that answered"),
    "version": String("Registered version of its model"),
    "variant": String("Role of the release then: champion or challenger"),
    "instead_of": String("Tag of the challenger that failed to answer, where the champion did it"),
    "writer": String("The serving process"),
    "seq": Int64("Number of the answer in its writer's log, without gaps"),
    "prediction": Float64("What the model answered"),
    "outputs": String("What post-processing said of it, as JSON"),
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
        kinds={"bentoml", "parquet"},
        **spec.belonging(model, LINK),
        code_version=spec.declared_version(model),
        partitions_def=model.labels.partitions,
        metadata={"dagster/column_schema": spec.column_schema(columns(model)), "partition_column": "at"},
        freshness_policy=spec.DAILY_FRESHNESS,
        automation_condition=spec.after_midnight(),
        check_specs=spec.check_specs(key, dict.fromkeys(PROMISES, False), PROMISES),
        io_manager_key="io_manager",
    )
    def predictions(context: dg.AssetExecutionContext, lake: Lake) -> Iterator[Any]:
        from mlops_assets.serving.prediction_log import PredictionLog

        log, day = PredictionLog(), context.partition_key
        version = publish(model, lake, log, day)
        rows = lake.scan(key, [day]).select(*SUMMED).collect()
        shares, path = fallbacks.in_answers(model, rows), lake.path(key, day)
        yield dg.MaterializeResult(
            data_version=version,
            metadata={
                "dagster/row_count": rows.height,
                "path": dg.MetadataValue.path(str(path)),
                "bytes": path.stat().st_size,
                "logs_put_away": log.put_away(model.id, datetime.now(UTC) - KEPT_AT_HAND),
                **summary(rows),
                **fallbacks.numbers(shares),
            },
        )
        yield spec.check_result(key, no_gap(log.gaps(model.id, date.fromisoformat(day))))
        yield spec.check_result(key, fallbacks.seldom(model.monitor, shares, rows.height))

    return predictions


def publish(model: ModelPipeline, lake: Lake, log: "PredictionLog", day: str) -> dg.DataVersion:
    """Write the day's table from its log, in pieces; returns a version that depends on the rows alone.

    Each answer is there once, also where its line is in the log twice. An answer that was published and has left the
    log since (its files were put away) stays in the table.
    """
    import polars as pl

    schema = pl.Schema({name: field.polars for name, field in columns(model).items()})
    digest = hashlib.sha256(repr(schema).encode())
    with row_groups(lake, spec.link_key(model, LINK), day, schema) as table:
        for rows in _each_once(model, lake, log, day):
            table.add(rows)
            digest.update(rows.hash_rows(seed=0).to_numpy().tobytes())
    return dg.DataVersion(digest.hexdigest()[:16])


def _each_once(model: ModelPipeline, lake: Lake, log: "PredictionLog", day: str) -> "Iterator[pl.DataFrame]":
    """The answers of the log by writer and number, then those that only the published table still has."""
    key, seen = spec.link_key(model, LINK), _Seen()
    types = {name: field.polars for name, field in columns(model).items()}
    for rows in log.chunks(model.id, date.fromisoformat(day), types):
        yield logged(model, seen.fresh(rows))
    if lake.exists(key, day):
        for rows in lake.scan(key, [day]).collect_batches(maintain_order=True):
            yield logged(model, seen.fresh(rows))


def late_answers(model: ModelPipeline) -> dg.SensorDefinition:
    """The sensor that publishes a day again when its log has grown since."""
    key = spec.link_key(model, LINK)
    return late_answers_sensor(
        model.id, key, lambda: _written(model.id), lambda day: _published(resources_for()["lake"], key, day), time
    )


def _written(model: str) -> dict[str, float]:
    """By day, when its log was last written to; one that was put away has had its time."""
    from mlops_assets.serving.prediction_log import PredictionLog

    moments = [(path.parent.name, path.stat().st_mtime) for path in PredictionLog().open_files(model)]
    return dict(sorted(moments))


def _published(lake: Lake, key: dg.AssetKey, day: str) -> float | None:
    return float(lake.path(key, day).stat().st_mtime) if lake.exists(key, day) else None


class _Seen:
    """Which numbers of which writers went by; a byte each."""

    def __init__(self) -> None:
        self._by_writer: dict[str, Any] = {}

    def fresh(self, rows: "pl.DataFrame") -> "pl.DataFrame":
        """The rows that are seen for the first time."""
        import polars as pl

        rows = rows.unique(["writer", "seq"], keep="first", maintain_order=True)
        parts = [self._of(writer, part) for (writer,), part in rows.group_by("writer", maintain_order=True)]
        return pl.concat([rows.clear(), *parts])

    def _of(self, writer: Any, rows: "pl.DataFrame") -> "pl.DataFrame":
        import numpy as np

        numbers = rows["seq"].to_numpy()
        known = self._by_writer.get(writer, np.zeros(0, dtype=bool))
        if numbers.max() >= len(known):
            known = np.concatenate([known, np.zeros(int(numbers.max()) + 1 - len(known), dtype=bool)])
        fresh = ~known[numbers]
        known[numbers] = True
        self._by_writer[writer] = known
        return rows.filter(fresh)


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
