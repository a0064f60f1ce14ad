"""The champion: the registry alias that says which version is the model, moved to the newest that passed its gate.

A version that was rolled back is not moved to again by itself. Every move is appended to the history.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import spec
from mlops_assets.promotion import Promotion
from resources.champions import ALIAS

LINK = "champion"


def champion_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key = spec.link_key(model, LINK)

    @dg.asset(
        key=key,
        deps=[spec.link_key(model, "candidate")],
        description=f"The registered version of {model.title} that is its champion.",
        group_name=spec.model_group(model),
        owners=spec.owners(model.owners, model.team),
        kinds={"mlflow"},
        tags=spec.model_tags(model, LINK),
        code_version="1",
        pool=f"promotion_{model.team}_{model.name}",
        automation_condition=spec.on_arrival(),
        check_specs=spec.check_specs(
            key,
            {"alias_is_newest_passed": True},
            {"alias_is_newest_passed": "The alias is the newest version that passed its gate"},
        ),
    )
    def champion(context: dg.AssetExecutionContext, promotion: dg.ResourceParam[Promotion]) -> Iterator[Any]:
        crowned = promotion.crown_newest(model, by=f"run {context.run.run_id}")
        if crowned is None:
            raise dg.Failure(
                f"No version of {model.title} passed its gate. Look at the checks of its candidates.",
                allow_retries=False,
            )
        newest, move = crowned
        yield dg.MaterializeResult(
            metadata={
                "version": newest.version,
                "moved_from": str(move.before if move else newest.version),
                "moved": move is not None,
                "mlflow_run_id": newest.run_id,
                "history": dg.MetadataValue.json(
                    [vars(entry) for entry in promotion.champions.history(model.id)[-10:]]
                ),
            },
            data_version=dg.DataVersion(newest.version),
        )
        yield spec.check_result(key, alias_is_newest(promotion, model, newest.version))

    return champion


def alias_is_newest(promotion: Promotion, model: ModelPipeline, version: str) -> Claim:
    """Read back from the registry, not from what was just written."""
    alias = promotion.mlflow.alias(model.registered_name, ALIAS)
    return Claim(
        "alias_is_newest_passed", alias == version, f"The alias is at {alias}, the newest that passed is {version}"
    )
