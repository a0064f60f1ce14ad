"""What every asset of ours carries: where it belongs, who owns it, what its columns mean, when it runs.

Kept in one place so that the lineage graph reads alike everywhere: the group is the team and the stage,
the kinds are the tools, the description is the declaration's docstring.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.claims import Claim
from mlops_assets.fields import Field
from resources.content import content

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.declarations import ModelPipeline

DAILY_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=36), warn_window=timedelta(hours=26))
AFTER_MIDNIGHT = "5 0 * * *"  # UTC; the endpoints have written down their last answers of the day by then
WEEKLY_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=9), warn_window=timedelta(days=8))


def on_arrival(*but: dg.AssetKey) -> dg.AutomationCondition[Any]:
    """Run when an input holds something new and its blocking checks passed, also those of an earlier run.

    `eager()` looks past earlier runs' checks, knows only the newest partition, and runs again for an input that
    was published anew with the same content. What is new of the inputs in `but` is no reason.
    """
    news: Any = dg.AutomationCondition.any_deps_updated().replace(
        "newly_updated", dg.AutomationCondition.data_version_changed()
    )
    if but:
        news = news.ignore(dg.AssetSelection.assets(*but))
    return (
        news.since_last_handled()
        & dg.AutomationCondition.all_deps_blocking_checks_passed()
        & ~dg.AutomationCondition.in_progress()
        & ~dg.AutomationCondition.any_deps_in_progress()
    ).with_label("on_arrival")


def on_whole_window() -> dg.AutomationCondition[Any]:
    """`on_arrival` for a table by partitions: one that is not there yet waits for every partition that it reads.

    A day is news to every later window that reaches back to it, also of days that have not come; and a
    window with a hole would say less than it promises, without saying so.
    """
    whole = ~dg.AutomationCondition.missing() | ~dg.AutomationCondition.any_deps_missing()
    return (on_arrival() & whole).with_label("on_whole_window")


def on_recent_arrival(window: timedelta, *but: dg.AssetKey) -> dg.AutomationCondition[Any]:
    """`on_arrival` of the newest days alone, those of a trailing `window`, from the first one on.

    It waits for no whole window, only for every input to have something in it.
    """
    there = dg.AutomationCondition.all_deps_match(
        ~dg.AutomationCondition.missing() | dg.AutomationCondition.will_be_requested()
    )
    return (on_arrival(*but) & dg.AutomationCondition.in_latest_time_window(window) & there).with_label(
        "on_recent_arrival"
    )


def at_each_cutoff() -> dg.AutomationCondition[Any]:
    """Once for a cutoff that has come, when every day before it is there; never for those that went by."""
    return dg.AutomationCondition.on_missing().with_label("at_each_cutoff")


def after_midnight() -> dg.AutomationCondition[Any]:
    """Once for the day that has just ended, whenever its inputs changed last."""
    tick: Any = dg.AutomationCondition.cron_tick_passed(AFTER_MIDNIGHT)
    passed = tick.since_last_handled()
    newest = dg.AutomationCondition.in_latest_time_window() & dg.AutomationCondition.missing()
    return (newest & passed & ~dg.AutomationCondition.in_progress()).with_label("after_midnight")


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
    return dg.DataVersion(content([rows]))


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


def declared_version(model: "ModelPipeline", *parts: object) -> str:
    """The code version of a link: another one as soon as the model's inputs, or `parts` of its declaration, change."""
    stored = [
        (item.view.id, item.view.code_version, item.view.ttl, item.view.cold_start, item.features)
        for item in model.selections
    ]
    computed = [(item.view.id, item.view.code_version, item.features) for item in model.on_demand]
    told = repr((model.labels.id, model.labels.code_version, model.label, stored, computed, parts))
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def post_processing(model: "ModelPipeline") -> list[str]:
    """What of a model's post-processing makes a link another one; nothing where it declares none."""
    from mlops_assets.serving.postprocess import Postprocess

    post = Postprocess.of(model)
    return [json.dumps(post.to_json(), sort_keys=True)] if post else []


def model_group(model: "ModelPipeline") -> str:
    return f"{model.team}_{model.name}"


def model_tags(model: "ModelPipeline", stage: str) -> dict[str, str]:
    return {"team": model.team, "model": model.name, "stage": stage}


def belonging(model: "ModelPipeline", link: str) -> dict[str, Any]:
    """Where a link of a model stands and whose it is: what every one of its assets says alike."""
    return {
        "group_name": model_group(model),
        "owners": owners(model.owners, model.team),
        "tags": model_tags(model, link),
    }


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
