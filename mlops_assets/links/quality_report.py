"""Data quality of a day: whether its answers stand on features that the data pipeline delivered as it should.

Nulls against training, values out of their bounds, fallbacks, the age of the rows used, rows that came too late,
volume, requests asked for twice, and how long answers took; against the release's baseline and the days before. Where
the pipeline is at fault, people must be told and nothing may be retrained because of it.
"""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.catalog import asset_key
from mlops_assets.claims import Claim
from mlops_assets.declarations import EVENT_TIMESTAMP, ModelPipeline, StoredSelection
from mlops_assets.links import reports, spec
from mlops_assets.links.reports import Window
from resources.bentos import BentoStore
from resources.lake import Lake, NotMaterializedError

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.monitoring.quality import QualityResult

LINK = "quality_report"
CHECK = "pipeline_healthy"
DAYS = 8  # the day and a week before, or the monitor's window where that is longer
PROMISE = "The features of the day's answers came as they should: present, in their bounds, in time, as many as before"


def quality_report_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key, mapping = spec.link_key(model, LINK), reports.trailing(model, DAYS)

    @dg.asset(
        key=key,
        ins={"answers": dg.AssetIn(spec.link_key(model, "predictions"), partition_mapping=mapping)},
        description=f"Whether the answers of {model.title} stood on sound features, day by day.",
        kinds={"evidently"},
        **spec.belonging(model, LINK),
        code_version=spec.declared_version(model, model.monitor),
        partitions_def=model.labels.partitions,
        automation_condition=spec.on_recent_arrival(model.monitor.window),
        check_specs=spec.check_specs(key, {CHECK: False}, {CHECK: PROMISE}),
    )
    def quality_report(
        context: dg.AssetExecutionContext, answers: Any, bentos: dg.ResourceParam[BentoStore], lake: Lake
    ) -> Iterator[Any]:
        from mlops_assets.retraining import report_seen

        window = Window.of(model, bentos, answers.collect(), context.partition_time_window.start)
        if window is None:
            yield dg.MaterializeResult(metadata=reports.NOTHING_TO_JUDGE)
            yield spec.check_result(key, reports.nothing_to_judge(CHECK), day=context.partition_key)
            return
        result = judged(window, lake)
        page = reports.report_path(model, context.partition_time_window.start, "quality")
        _draw(page, window, result)
        yield dg.MaterializeResult(
            metadata={
                **result.numbers(),
                **_load(result),
                "causes": _told(result),
                "release": window.release,
                **reports.link_to(page),
                "inputs": spec.table(result.columns().columns, result.columns().rows()),
                "views": spec.table(result.views().columns, result.views().rows()),
            }
        )
        yield spec.check_result(key, pipeline_healthy(result), day=context.partition_key)
        report_seen(model, context)

    return quality_report


def judged(window: Window, lake: Lake) -> "QualityResult":
    """The day of the window, against the days before and what its release was trained on."""
    from mlops_assets.monitoring.quality import quality

    model = window.model
    late = {item.view.id: late_share(_today(window), item, lake) for item in model.selections}
    known = {view: share for view, share in late.items() if share is not None}
    return quality(window.days, window.asked, model.monitor, slower=model.serve.max_latency_ratio, late=known)


def late_share(answers: "pl.DataFrame", item: StoredSelection, lake: Lake) -> float | None:
    """The share of answers for which the offline store now holds a newer row of the view than was used then.

    None where it holds none at all.
    """
    import polars as pl

    view = item.view
    try:
        rows = lake.scan(asset_key(view)).select(*view.join_keys, EVENT_TIMESTAMP)
    except NotMaterializedError:
        return None
    if answers.is_empty():
        return None
    oldest = answers["at"].min() - (view.ttl or timedelta(0)) if view.ttl else None  # type: ignore[operator]
    due = rows if oldest is None else rows.filter(pl.col(EVENT_TIMESTAMP) >= oldest)
    used = pl.col("event_times").str.json_decode(pl.Struct({view.id: pl.String()})).struct.field(view.id)
    asked = answers.lazy().select(
        *view.join_keys, "at", used=used.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
    )
    joined = asked.sort("at").join_asof(
        due.sort(EVENT_TIMESTAMP).with_columns(due=EVENT_TIMESTAMP),
        left_on="at",
        right_on=EVENT_TIMESTAMP,
        by=list(view.join_keys) or None,
        tolerance=view.ttl,
        check_sortedness=False,
    )
    late = pl.col("due").is_not_null() & (pl.col("used").is_null() | (pl.col("used") < pl.col("due")))
    return float(joined.select(late.mean()).collect().item())


def pipeline_healthy(result: "QualityResult") -> Claim:
    """No cause of the pipeline's; on too few answers nothing is claimed."""
    from mlops_assets.monitoring.causes import sentence

    said = f"{result.verdict}: {result.figures.rows} answers in the day, {result.rows} in the window. "
    return Claim(
        CHECK,
        result.verdict != "broken pipeline",
        (said + sentence(result.causes, at_most=5)).strip(),
        blocking=False,
        numbers={**result.numbers(), "causes": _told(result)},
    )


def _today(window: Window) -> "pl.DataFrame":
    import polars as pl

    return window.answers.filter(pl.col("at").dt.date() == window.day)


def _told(result: "QualityResult") -> list[str]:
    from mlops_assets.monitoring.causes import told

    return told(result.causes)


def _load(result: "QualityResult") -> dict[str, Any]:
    """What is known of a machine that answers slowly: the load of the one that judges, which often is the same."""
    if not any(cause.of == "machine" for cause in result.causes):
        return {}
    return {"load_per_cpu": os.getloadavg()[1] / (os.cpu_count() or 1)}


def _draw(page: Path, window: Window, result: "QualityResult") -> None:
    from mlops_assets.monitoring.causes import whose
    from mlops_assets.monitoring.evidently_report import write_quality_report

    today = _today(window)
    if today.is_empty():
        return
    said = [f"{result.verdict}. {whose(result.causes)}.", *_told(result)]
    write_quality_report(page, window.drawn(window.baseline), window.drawn(today), said=said)
