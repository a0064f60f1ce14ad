"""The champion: the registry alias that says which version is the model, moved to the newest that passed its gate.

A version that was rolled back is not moved to again by itself. Every move is appended to the history. Where a person
has to be asked first, the run that finds a new candidate asks and ends: nothing is materialized, so nothing downstream
of it runs, until a word was given.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from mlops_assets.approval import approval_key, tell
from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import spec
from mlops_assets.promotion import Promotion
from resources.alerts import AlertResource
from resources.approvals import Approval
from resources.champions import ALIAS

LINK = "champion"


def champion_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key = spec.link_key(model, LINK)
    approval = [approval_key(model)] if model.approval else []

    @dg.asset(
        key=key,
        deps=[spec.link_key(model, "candidate"), *approval],
        description=f"The registered version of {model.title} that is its champion.",
        kinds={"mlflow"},
        **spec.belonging(model, LINK),
        code_version="1",
        pool=f"promotion_{model.team}_{model.name}",
        automation_condition=spec.on_arrival(*approval),  # a word given starts its own run
        check_specs=spec.check_specs(
            key,
            {"alias_is_newest_passed": True},
            {"alias_is_newest_passed": "The alias is the newest version that passed its gate"},
        ),
        output_required=False,
    )
    def champion(
        context: dg.AssetExecutionContext, promotion: dg.ResourceParam[Promotion], alerts: AlertResource
    ) -> Iterator[Any]:
        crowned = promotion.crown_newest(model, by=f"run {context.run.run_id}")
        tell(model, promotion, alerts)
        if crowned.waiting and crowned.move is None:
            yield dg.AssetObservation(key, metadata=waits(crowned.waiting))
            yield spec.check_result(key, unmoved(promotion, model, crowned.waiting))
            return
        newest = crowned.champion
        if newest is None:
            raise dg.Failure(_nothing_to_crown(model), allow_retries=False)
        yield dg.MaterializeResult(
            metadata={
                "version": newest.version,
                "moved_from": str(crowned.move.before if crowned.move else newest.version),
                "moved": crowned.move is not None,
                "mlflow_run_id": newest.run_id,
                "history": dg.MetadataValue.json(
                    [vars(entry) for entry in promotion.champions.history(model.id)[-10:]]
                ),
                **(waits(crowned.waiting) if crowned.waiting else {}),
            },
            data_version=dg.DataVersion(newest.version),
        )
        yield spec.check_result(key, alias_is_newest(promotion, model, newest.version))

    return champion


def waits(approval: Approval) -> dict[str, Any]:
    """What is waited for, as metadata."""
    return {"waits_for_approval_of": approval.version, "expires_at": approval.expires_at}


def alias_is_newest(promotion: Promotion, model: ModelPipeline, version: str) -> Claim:
    """Read back from the registry, not from what was just written."""
    alias = promotion.mlflow.alias(model.registered_name, ALIAS)
    return Claim(
        "alias_is_newest_passed", alias == version, f"The alias is at {alias}, the newest that passed is {version}"
    )


def unmoved(promotion: Promotion, model: ModelPipeline, waiting: Approval) -> Claim:
    """While a person is asked, the alias is at another version than the one that they are asked about."""
    alias = promotion.mlflow.alias(model.registered_name, ALIAS)
    told = f"The alias stays at {alias}: version {waiting.version} waits for approval until {waiting.expires_at}"
    return Claim("alias_is_newest_passed", alias != waiting.version, told)


def _nothing_to_crown(model: ModelPipeline) -> str:
    if model.approval is None:
        return f"No version of {model.title} passed its gate. Look at the checks of its candidates."
    return (
        f"No version of {model.title} passed its gate and was approved. Look at the checks of its candidates, "
        "and at `mlops approvals`."
    )
