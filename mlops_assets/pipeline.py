"""A frozen declaration goes in, Dagster definitions come out; each link is in a file of its own.

`ModelPipeline` -> training_set -> candidate -> champion -> bento -> endpoint -> predictions -> reports,
and batch scores beside them; one job trains and releases, one sensor asks for it when reports fail.
"""

from __future__ import annotations

import dagster as dg

from mlops_assets.catalog import Catalog, asset_key
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import spec
from mlops_assets.links.bento import bento_asset
from mlops_assets.links.candidate import candidate_asset
from mlops_assets.links.champion import champion_asset
from mlops_assets.links.drift_report import drift_report_asset
from mlops_assets.links.endpoint import endpoint_asset
from mlops_assets.links.online import online_asset
from mlops_assets.links.performance_report import performance_report_asset
from mlops_assets.links.predictions import predictions_asset
from mlops_assets.links.scores import scores_asset
from mlops_assets.links.table import table_asset
from mlops_assets.links.training_set import training_set_asset

TRAINING_LINKS = ("training_set", "candidate", "champion", "bento", "endpoint")
DAILY_LINKS = ("predictions", "drift_report", "performance_report")


def training_job_name(model: ModelPipeline) -> str:
    return f"{model.team}__{model.name}__train"


def model_assets(model: ModelPipeline) -> list[dg.AssetsDefinition]:
    """The assets of one model, in the order of the chain."""
    links = (
        training_set_asset,
        candidate_asset,
        champion_asset,
        bento_asset,
        endpoint_asset,
        predictions_asset,
        scores_asset,
        drift_report_asset,
        performance_report_asset,
    )
    return [link(model) for link in links]


def model_definitions(model: ModelPipeline) -> dg.Definitions:
    """Everything one declared model becomes."""
    from sensors.retraining import retraining_sensor
    from sensors.rollout import rollout_sensor

    job = dg.define_asset_job(
        training_job_name(model),
        selection=dg.AssetSelection.assets(*(spec.link_key(model, link) for link in TRAINING_LINKS)),
        partitions_def=model.cutoffs,
        description=f"Train {model.title} as of a cutoff and release it if it passes its gate.",
        tags={"team": model.team, "model": model.name},
    )
    return dg.Definitions(
        assets=model_assets(model), jobs=[job], sensors=[retraining_sensor(model, job), rollout_sensor(model)]
    )


def table_definitions(catalog: Catalog) -> dg.Definitions:
    """The sources, feature views (offline and online) and labels of every team, and a job a team to fill them."""
    assets = [table_asset(table, catalog) for table in catalog.tables.values()]
    online = [online_asset(view) for view in catalog.views if view.online]
    return dg.Definitions(assets=[*assets, *online], jobs=_table_jobs(catalog))


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


