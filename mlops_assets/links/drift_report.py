"""Drift of a day: how far the inputs of the trailing window have moved from what the champion was trained on.

The numbers cover every answer of the window; the page is Evidently's, drawn from a stated sample.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import reports, spec
from resources.bentos import BentoStore

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.monitoring.drift import DriftResult

LINK = "drift_report"
CHECK = "drift"


def drift_report_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key = spec.link_key(model, LINK)

    @dg.asset(
        key=key,
        ins={"answers": dg.AssetIn(spec.link_key(model, "predictions"), partition_mapping=reports.trailing(model))},
        description=f"PSI of every input of {model.title} over the last {model.monitor.window.days} days.",
        group_name=spec.model_group(model),
        owners=spec.owners(model.owners, model.team),
        kinds={"evidently"},
        tags=spec.model_tags(model, LINK),
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
        rows = answers.collect()
        release = reports.judged_release(rows)
        if release is None:
            yield dg.MaterializeResult(metadata=reports.NOTHING_TO_JUDGE)
            yield spec.check_result(key, reports.nothing_to_judge(CHECK), day=context.partition_key)
            return
        result, page = _measured(model, bentos, release, rows, context)
        yield dg.MaterializeResult(
            metadata={
                **result.numbers(),
                "release": release,
                **reports.link_to(page),
                "columns": _table(result),
                **{f"psi/{column.name}": column.psi for column in result.columns if column.psi is not None},
            }
        )
        yield spec.check_result(key, no_drift(result), day=context.partition_key)

    return drift_report


def _measured(
    model: ModelPipeline, bentos: BentoStore, release: str, rows: "pl.DataFrame", context: dg.AssetExecutionContext
) -> "tuple[DriftResult, Any]":
    import polars as pl

    from mlops_assets.monitoring.drift import drift
    from mlops_assets.monitoring.evidently_report import write_drift_report

    baseline = pl.read_parquet(bentos.path(release) / "baseline.parquet")
    # A feature declared since the release was trained has nothing to be compared with yet.
    reference = baseline.select(name for name in (*model.inputs, "prediction") if name in baseline.columns)
    reference, rows = numbered(model, reference), numbered(model, rows)
    limits: dict[str, Any] = {"limit": model.monitor.psi, "share_limit": model.monitor.drifted_share}
    result = drift(reference, rows, **limits, min_rows=model.monitor.min_rows)
    page = reports.report_path(model, context.partition_time_window.start, "drift")
    if result.verdict != "not enough rows":
        write_drift_report(page, reference, rows, **limits)
    return result, page


def numbered(model: ModelPipeline, rows: "pl.DataFrame") -> "pl.DataFrame":
    """The rows with a column for each place of an array, as the model reads it."""
    import polars as pl

    sizes = {name: field.size for name, field in model.input_fields.items() if field.size and name in rows.columns}
    places = [
        pl.col(name).list.get(place, null_on_oob=True).alias(f"{name}[{place}]")
        for name, size in sizes.items()
        for place in range(size)
    ]
    return rows.with_columns(places).drop(sizes)


def no_drift(result: "DriftResult") -> Claim:
    """The dataset has not drifted; on too few rows nothing is claimed, and the reason says so."""
    named: Sequence[str] = result.drifted[:5]
    moved = f"{len(result.drifted)} of {len(result.columns)} inputs over PSI {result.limit}"
    reason = f"{result.verdict}: {moved}, {result.rows} rows"
    return Claim(
        CHECK,
        result.verdict != "drift",
        f"{reason} ({', '.join(named)})" if named else reason,
        blocking=False,
        numbers=result.numbers(),
    )


def _table(result: "DriftResult") -> dg.MarkdownMetadataValue:
    columns = ["column", "psi", "drifted", "null_share_change"]
    return spec.table(columns, result.table().select(columns).rows())
