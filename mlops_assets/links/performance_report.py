"""Performance of a day: the champion's live metric over the trailing window, by labels known by then.

What is not yet known is not counted; what will never be known (a cancelled flight) is counted apart. The verdict is
about answers whose features were sound: those of a day on which the data pipeline was broken are left out of it, and
beside it stands the metric with them (`metric_with_left_out`).
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.catalog import asset_key
from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import reports, spec
from mlops_assets.links.reports import Window
from resources.bentos import BentoStore

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.monitoring.causes import Cause
    from mlops_assets.monitoring.performance import PerformanceResult

LINK = "performance_report"
CHECK = "metric_drop"


def performance_report_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key, mapping = spec.link_key(model, LINK), reports.trailing(model)

    @dg.asset(
        key=key,
        ins={
            "answers": dg.AssetIn(spec.link_key(model, "predictions"), partition_mapping=mapping),
            "truth": dg.AssetIn(asset_key(model.labels), partition_mapping=mapping),
        },
        description=f"Live {model.gate.metric} of {model.title} over the last {model.monitor.window.days} days.",
        kinds={"evidently"},
        **spec.belonging(model, LINK),
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
        from mlops_assets.retraining import report_seen

        window = Window.of(model, bentos, answers.collect(), context.partition_time_window.start)
        if window is None:
            yield dg.MaterializeResult(metadata=reports.NOTHING_TO_JUDGE)
            yield spec.check_result(key, reports.nothing_to_judge(CHECK), day=context.partition_key)
            return
        known, as_of = truth.collect(), context.partition_time_window.end
        matched = matched_answers(model, window.sound, known, window.release, as_of)
        result = judged(window, matched)
        causes = causes_of(window, result)
        page = reports.report_path(model, context.partition_time_window.start, "performance")
        if result.verdict != "not enough rows":
            _draw(page, model, matched, result, causes)
        yield dg.MaterializeResult(
            metadata={
                **_facts(window, result, causes),
                **_with_left_out(window, known, as_of),
                "as_of": as_of.isoformat(),
                **reports.link_to(page),
            }
        )
        yield spec.check_result(key, no_drop(result, causes), day=context.partition_key)
        report_seen(model, context)

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
        maturity=model.monitor.maturity,
    )


def judged(window: Window, matched: "pl.DataFrame") -> "PerformanceResult":
    """Held against what the release's own holdout promised, as a whole and slice by slice."""
    from mlops_assets.monitoring.performance import performance

    model = window.model
    return performance(
        matched,
        model.gate.metric,
        window.manifest["metric"]["holdout"],
        limit=model.monitor.metric_drop,
        min_rows=model.monitor.min_rows,
        slices=model.gate.slices,
        slice_min_rows=model.gate.slice_min_rows,
        slice_references=window.usual.slices,
    )


def causes_of(window: Window, result: "PerformanceResult") -> "list[Cause]":
    """What the pipeline spoilt; where the metric fell also what of the world moved, and which slices lost."""
    from mlops_assets.monitoring.causes import lost, moved

    fell = result.verdict == "metric drop"
    return [*window.pipeline, *(moved(window.drift) if fell else []), *lost(result)]


def no_drop(result: "PerformanceResult", causes: "list[Cause]") -> Claim:
    """The live metric holds what the holdout promised; on too few known labels nothing is claimed."""
    from mlops_assets.monitoring.causes import sentence, told

    measured = "no metric yet" if result.metric is None else f"{result.metric_name} {result.metric:.4f}"
    reason = (
        f"{result.verdict}: {measured} against {result.reference:.4f} on the holdout, {result.rows} labels known, "
        f"{result.maturity.pending} pending. {sentence(causes)}"
    )
    return Claim(
        CHECK,
        result.verdict != "metric drop",
        reason.strip(),
        blocking=False,
        numbers={**result.numbers(), "causes": told(causes)},
    )


def _facts(window: Window, result: "PerformanceResult", causes: "list[Cause]") -> dict[str, Any]:
    from mlops_assets.monitoring.causes import told

    cells = [(cell.low, cell.high, cell.rows, cell.predicted, cell.observed) for cell in result.calibration]
    calibration = {"calibration": spec.table(["from", "to", "rows", "predicted", "observed"], cells)} if cells else {}
    return {
        **result.numbers(),
        "rows_left_out": window.left_out,
        "causes": told(causes),
        "release": window.release,
        "scores": spec.table(["by", "value", "rows", result.metric_name], result.table().rows()),
        **calibration,
    }


def _with_left_out(window: Window, truth: "pl.DataFrame", as_of: datetime) -> dict[str, float]:
    """The metric over all answers, as users met it, where some are left out of the verdict."""
    if not window.left_out:
        return {}
    everything = judged(window, matched_answers(window.model, window.answers, truth, window.release, as_of))
    return {} if everything.metric is None else {"metric_with_left_out": everything.metric}


def _draw(
    page: Path, model: ModelPipeline, matched: "pl.DataFrame", result: "PerformanceResult", causes: "list[Cause]"
) -> None:
    import polars as pl

    from mlops_assets.monitoring.causes import told, whose
    from mlops_assets.monitoring.evidently_report import write_performance_report

    known = matched.filter(pl.col("truth").is_not_null())
    said = [f"{result.verdict}. {whose(causes)}.", *told(causes)]
    write_performance_report(page, known["truth"], known["prediction"], model.task, said=said)
