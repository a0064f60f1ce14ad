"""Performance of a day: the champion's live metric over the trailing window, by labels known by then.

What is not yet known is not counted; what will never be known (a cancelled flight) is counted apart.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.catalog import asset_key
from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import reports, spec
from resources.bentos import BentoStore

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.monitoring.performance import PerformanceResult

LINK = "performance_report"
CHECK = "metric_drop"
MATURITY = timedelta(days=2)  # an event whose label is not known two days later has none


def performance_report_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key, mapping = spec.link_key(model, LINK), reports.trailing(model)

    @dg.asset(
        key=key,
        ins={
            "answers": dg.AssetIn(spec.link_key(model, "predictions"), partition_mapping=mapping),
            "truth": dg.AssetIn(asset_key(model.labels), partition_mapping=mapping),
        },
        description=f"Live {model.gate.metric} of {model.title} over the last {model.monitor.window.days} days.",
        group_name=spec.model_group(model),
        owners=spec.owners(model.owners, model.team),
        kinds={"evidently"},
        tags=spec.model_tags(model, LINK),
        code_version=spec.declared_version(model, model.monitor, model.gate),
        partitions_def=model.labels.partitions,
        automation_condition=spec.on_recent_arrival(model.monitor.window),
        check_specs=spec.check_specs(
            key, {CHECK: False}, {CHECK: f"{model.gate.metric} is within {model.monitor.metric_drop} of the holdout's"}
        ),
    )
    def performance_report(
        context: dg.AssetExecutionContext, answers: Any, truth: Any, bentos: dg.ResourceParam[BentoStore]
    ) -> Iterator[Any]:
        rows = answers.collect()
        release = reports.judged_release(rows)
        if release is None:
            yield dg.MaterializeResult(metadata=reports.NOTHING_TO_JUDGE)
            yield spec.check_result(key, reports.nothing_to_judge(CHECK), day=context.partition_key)
            return
        as_of = context.partition_time_window.end
        matched = matched_answers(model, rows, truth.collect(), release, as_of)
        result = judged(model, matched, reports.manifest(bentos, release)["metric"]["holdout"])
        page = reports.report_path(model, context.partition_time_window.start, "performance")
        if result.rows >= model.monitor.min_rows:
            _draw(page, model, matched)
        yield dg.MaterializeResult(
            metadata={
                **result.numbers(),
                "release": release,
                "as_of": as_of.isoformat(),
                **reports.link_to(page),
                "scores": _table(result),
            }
        )
        yield spec.check_result(key, no_drop(result), day=context.partition_key)

    return performance_report


def matched_answers(
    model: ModelPipeline, answers: "pl.DataFrame", truth: "pl.DataFrame", release: str, as_of: datetime
) -> "pl.DataFrame":
    """The answers of one release with the truth known by `as_of`."""
    import polars as pl

    from mlops_assets.monitoring.performance import match

    own = answers.filter(pl.col("release") == release).rename({"request_id": model.labels.key})
    latest = own.unique(model.labels.key, keep="last", maintain_order=True)  # an event asked twice is judged once
    return match(
        latest,
        truth,
        key=model.labels.key,
        label=model.label,
        as_of=as_of,
        window=model.monitor.window,
        maturity=MATURITY,
    )


def judged(model: ModelPipeline, matched: "pl.DataFrame", reference: float) -> "PerformanceResult":
    from mlops_assets.monitoring.performance import performance

    return performance(
        matched,
        model.gate.metric,
        reference,
        limit=model.monitor.metric_drop,
        min_rows=model.monitor.min_rows,
        slices=model.gate.slices,
        slice_min_rows=model.gate.slice_min_rows,
    )


def no_drop(result: "PerformanceResult") -> Claim:
    """The live metric holds what the holdout promised; on too few known labels nothing is claimed."""
    measured = "no metric yet" if result.metric is None else f"{result.metric_name} {result.metric:.4f}"
    losing = ", ".join(f"{loss.score.group}={loss.score.value}" for loss in result.losses[:3])
    return Claim(
        CHECK,
        result.verdict != "metric drop",
        f"{result.verdict}: {measured} against {result.reference:.4f} on the holdout, {result.rows} labels known, "
        f"{result.maturity.pending} pending" + (f"; worst in {losing}" if losing else ""),
        blocking=False,
        numbers=result.numbers(),
    )


def _draw(page: Path, model: ModelPipeline, matched: "pl.DataFrame") -> None:
    import polars as pl

    from mlops_assets.monitoring.evidently_report import write_performance_report

    known = matched.filter(pl.col("truth").is_not_null())
    write_performance_report(page, known["truth"], known["prediction"], model.task)


def _table(result: "PerformanceResult") -> dg.MarkdownMetadataValue:
    return spec.table(["by", "value", "rows", result.metric_name], result.table().rows())
