"""What every asset of ours carries: where it belongs, who owns it, what its columns mean, when it runs.

Kept in one place so that the lineage graph reads alike everywhere: the group is the team and the stage,
the kinds are the tools, the description is the declaration's docstring.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.claims import Claim
from mlops_assets.fields import Field

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.declarations import ModelPipeline

DAILY_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=36), warn_window=timedelta(hours=26))
WEEKLY_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=9), warn_window=timedelta(days=8))


def on_arrival() -> dg.AutomationCondition[Any]:
    """Run when an input has news and its blocking checks passed; a missing older input is no obstacle.

    `eager()` would wait for every partition of every input and look past the checks of earlier runs.
    """
    return (
        dg.AutomationCondition.any_deps_updated().since_last_handled()
        & dg.AutomationCondition.all_deps_blocking_checks_passed()
        & ~dg.AutomationCondition.in_progress()
        & ~dg.AutomationCondition.any_deps_in_progress()
    ).with_label("on_arrival")


def column_schema(columns: Mapping[str, Field]) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name,
                field.dtype,
                description=field.meaning or None,
                constraints=dg.TableColumnConstraints(nullable=field.max_null_share > 0),
            )
            for name, field in columns.items()
        ]
    )


def data_version(rows: "pl.DataFrame") -> dg.DataVersion:
    """A version that depends on the content alone: equal rows in equal order, equal version."""
    digest = hashlib.sha256(repr(rows.schema).encode())
    digest.update(rows.hash_rows(seed=0).to_numpy().tobytes())
    return dg.DataVersion(digest.hexdigest()[:16])


def check_specs(
    key: dg.AssetKey, names: Mapping[str, bool], descriptions: Mapping[str, str]
) -> list[dg.AssetCheckSpec]:
    """Specs of in-asset checks; `names` says which are blocking."""
    return [
        dg.AssetCheckSpec(name, asset=key, blocking=blocking, description=descriptions[name])
        for name, blocking in names.items()
    ]


def check_result(key: dg.AssetKey, claim: Claim, **metadata: Any) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=claim.name,
        passed=claim.passed,
        severity=dg.AssetCheckSeverity.ERROR if claim.blocking else dg.AssetCheckSeverity.WARN,
        description=claim.reason,
        metadata={**claim.numbers, **metadata},
    )


def link_key(model: "ModelPipeline", link: str) -> dg.AssetKey:
    return dg.AssetKey([model.team, model.name, link])


def model_group(model: "ModelPipeline") -> str:
    return f"{model.team}_{model.name}"


def model_tags(model: "ModelPipeline", stage: str) -> dict[str, str]:
    return {"team": model.team, "model": model.name, "stage": stage}


def owners(declared: Sequence[str], team: str) -> list[str]:
    return list(declared) or [f"team:{team}"]


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> dg.MarkdownMetadataValue:
    """A small table on the asset's page; numbers to four digits, nothing for None."""
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
