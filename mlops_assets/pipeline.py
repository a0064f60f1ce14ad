"""A frozen declaration goes in, Dagster definitions come out; each link is in a file of its own.

`ModelPipeline` -> training_set -> candidate (-> approval) -> champion -> bento -> endpoint -> predictions -> reports,
and batch scores beside them; one job trains and releases, one sensor asks for it when reports fail.
"""

from __future__ import annotations

import dagster as dg

from mlops_assets.approval import approvals
from mlops_assets.catalog import Catalog, asset_key
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import drift_report, performance_report, quality_report, spec
from mlops_assets.links.approval import approval_asset
from mlops_assets.links.bento import bento_asset
from mlops_assets.links.candidate import candidate_asset
from mlops_assets.links.champion import champion_asset
from mlops_assets.links.endpoint import endpoint_asset
from mlops_assets.links.online import online_asset
from mlops_assets.links.predictions import late_answers, predictions_asset
from mlops_assets.links.scores import scores_asset
from mlops_assets.links.snapshot import snapshot_asset
from mlops_assets.links.table import table_asset
from mlops_assets.links.training_set import training_set_asset
from mlops_assets.retraining import TRAINING_LINKS, retraining, training_job_name
from mlops_assets.rollout import rollout
from sensors.retraining import retraining_sensor


def model_assets(model: ModelPipeline) -> list[dg.AssetsDefinition]:
    """The assets of one model, in the order of the chain."""
    links = (
        training_set_asset,
        candidate_asset,
        *([approval_asset] if model.approval else []),
        champion_asset,
        bento_asset,
        endpoint_asset,
        predictions_asset,
        scores_asset,
        quality_report.quality_report_asset,
        drift_report.drift_report_asset,
        performance_report.performance_report_asset,
    )
    return [link(model) for link in links]


def model_definitions(model: ModelPipeline) -> dg.Definitions:
    """Everything one declared model becomes."""
    job = dg.define_asset_job(
        training_job_name(model),
        selection=dg.AssetSelection.assets(*(spec.link_key(model, link) for link in TRAINING_LINKS)),
        description=f"Train {model.title} as of a cutoff and release it if it passes its gate.",
        tags={"team": model.team, "model": model.name},
    )
    sensors = [retraining_sensor(retraining(model), job), rollout(model), late_answers(model)]
    sensors += [approvals(model)] if model.approval else []
    return dg.Definitions(assets=model_assets(model), jobs=[job], sensors=sensors)


def table_definitions(catalog: Catalog) -> dg.Definitions:
    """The sources, feature views (offline and online) and labels of every team, and a job a team to fill them."""
    assets = [table_asset(table, catalog) for table in catalog.tables.values()]
    online = [online_asset(view, catalog) for view in catalog.views if view.online]
    snapshots = [snapshot_asset(view) for view in catalog.views if view.online]
    return dg.Definitions(assets=[*assets, *online, *snapshots], jobs=_table_jobs(catalog))


def _table_jobs(catalog: Catalog) -> list[dg.UnresolvedAssetJobDefinition]:
    """One job per team that fills its partitioned tables for a day or, in one run, for a range of days."""
    teams = sorted({table.team for table in catalog.tables.values()})
    return [
        dg.define_asset_job(
            f"{team}__tables",
            selection=dg.AssetSelection.assets(
                *(asset_key(table) for table in catalog.tables.values() if table.team == team)
            ),
            description=f"Fill the sources, feature views and labels of team {team} for a range of days.",
            tags={"team": team},
        )
        for team in teams
    ]
