"""Drift of a day: how far the inputs of the trailing window have moved from what the champion was trained on.

The numbers cover every answer of the window but those of days on which the data pipeline was broken; the page is
Evidently's, drawn from a stated sample.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import reports, spec
from mlops_assets.links.reports import Window
from resources.bentos import BentoStore

if TYPE_CHECKING:
    from mlops_assets.monitoring.causes import Cause
    from mlops_assets.monitoring.drift import DriftResult

LINK = "drift_report"
CHECK = "drift"
SHOWN = ["column", "psi", "usual", "drifted", "how", "null_share_change"]


def drift_report_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key = spec.link_key(model, LINK)

    @dg.asset(
        key=key,
        ins={"answers": dg.AssetIn(spec.link_key(model, "predictions"), partition_mapping=reports.trailing(model))},
        description=f"PSI of every input of {model.title} over the last {model.monitor.window.days} days.",
        kinds={"evidently"},
        **spec.belonging(model, LINK),
        code_version=spec.declared_version(model, model.monitor),
        partitions_def=model.labels.partitions,
        automation_condition=spec.on_recent_arrival(model.monitor.window),
        check_specs=spec.check_specs(
            key,
            {CHECK: False},
            {CHECK: f"Fewer than {model.monitor.drifted_share:.0%} of the inputs have PSI over {model.monitor.psi}"},
        ),
    )
    def drift_report(
        context: dg.AssetExecutionContext, answers: Any, bentos: dg.ResourceParam[BentoStore]
    ) -> Iterator[Any]:
        from mlops_assets.retraining import report_seen

        window = Window.of(model, bentos, answers.collect(), context.partition_time_window.start)
        if window is None:
            yield dg.MaterializeResult(metadata=reports.NOTHING_TO_JUDGE)
            yield spec.check_result(key, reports.nothing_to_judge(CHECK), day=context.partition_key)
            return
        result, causes = window.drift, causes_of(window)
        page = reports.report_path(model, context.partition_time_window.start, "drift")
        if result.verdict != "not enough rows":
            _draw(page, window, causes)
        yield dg.MaterializeResult(metadata={**_facts(window, causes), **reports.link_to(page)})
        yield spec.check_result(key, no_drift(result, causes), day=context.partition_key)
        report_seen(model, context)

    return drift_report


def causes_of(window: Window) -> "list[Cause]":
    """What the pipeline spoilt, then what moved in the rest."""
    from mlops_assets.monitoring.causes import moved

    return [*window.pipeline, *moved(window.drift)]


def no_drift(result: "DriftResult", causes: "list[Cause]") -> Claim:
    """The dataset has not drifted; on too few rows nothing is claimed, and the reason says so."""
    from mlops_assets.monitoring.causes import sentence, told

    moved = f"{len(result.drifted)} of {len(result.columns)} inputs drifted, the prediction is {_said(result)}"
    return Claim(
        CHECK,
        result.verdict != "drift",
        f"{result.verdict}: {moved}, {result.rows} rows. {sentence(causes)}".strip(),
        blocking=False,
        numbers={**result.numbers(), "causes": told(causes)},
    )


def _said(result: "DriftResult") -> str:
    verdict = result.prediction_verdict
    return "drifted too" if verdict == "drift" else "stable" if verdict == "stable" else "not judged"


def _facts(window: Window, causes: "list[Cause]") -> dict[str, Any]:
    from mlops_assets.monitoring.causes import told

    result = window.drift
    return {
        **result.numbers(),
        "rows_left_out": window.left_out,
        "rule": result.rule,
        "causes": told(causes),
        "release": window.release,
        "columns": spec.table(SHOWN, result.table().select(SHOWN).rows()),
        **{f"psi/{column.name}": column.psi for column in result.columns if column.psi is not None},
    }


def _draw(page: Any, window: Window, causes: "list[Cause]") -> None:
    from mlops_assets.monitoring.causes import told, whose
    from mlops_assets.monitoring.evidently_report import write_drift_report

    said = [f"{window.drift.verdict}. {whose(causes)}.", *told(causes), window.drift.rule]
    monitor = window.model.monitor
    limits: dict[str, Any] = {"limit": monitor.psi, "share_limit": monitor.drifted_share, "said": said}
    write_drift_report(page, window.drawn(window.baseline), window.drawn(window.sound), **limits)
