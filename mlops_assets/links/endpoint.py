"""The endpoint: the release record that every serving process of the model follows.

Materializing it gives the champion's Bento its first share of the traffic; a canary goes on by the rollout
sensor or by `mlops promote`. The first release of a model takes all traffic.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import spec
from mlops_assets.promotion import BENTO, PARITY, REFUSED, Promotion, limits_of
from resources.champions import ALIAS
from resources.releases import ReleaseRecord, SplitRunningError

LINK = "endpoint"
CHECK = "champion_released"


def endpoint_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key = spec.link_key(model, LINK)

    @dg.asset(
        key=key,
        deps=[spec.link_key(model, "bento")],
        description=f"Who answers for {model.title}: releases and their share of the traffic.",
        group_name=spec.model_group(model),
        owners=spec.owners(model.owners, model.team),
        kinds={"bentoml"},
        tags=spec.model_tags(model, LINK),
        code_version=spec.declared_version(model, model.serve),
        pool=f"promotion_{model.team}_{model.name}",
        automation_condition=spec.on_arrival(),
        metadata={"route": f"/{model.id}/predict"},
        check_specs=spec.check_specs(
            key, {CHECK: True}, {CHECK: "The champion's Bento has traffic and all weights sum to 100"}
        ),
    )
    def endpoint(context: dg.AssetExecutionContext, promotion: dg.ResourceParam[Promotion]) -> Iterator[Any]:
        by = f"run {context.run.run_id}"
        promotion.settle(model, by=by)
        record, tag = _released(model, promotion, by)
        yield dg.MaterializeResult(metadata=told(record), data_version=dg.DataVersion(str(record.revision)))
        yield spec.check_result(key, champion_released(record, tag))

    return endpoint


def _released(model: ModelPipeline, promotion: Promotion, by: str) -> tuple[ReleaseRecord, str]:
    """The record with traffic for the champion's Bento, and that Bento's tag. dg.Failure says what is in the way."""
    with promotion.champions.turn(model.id):
        version = promotion.mlflow.alias(model.registered_name, ALIAS)
        tags = promotion.mlflow.version(model.registered_name, version).tags if version else {}
        tag = tags.get(BENTO)
        if version is None or tag is None:
            raise dg.Failure(
                f"{model.title} has no champion with a Bento. Materialize its bento first.", allow_retries=False
            )
        if tags.get(PARITY) == REFUSED:
            raise dg.Failure(
                f"{tag} of {model.title} reads features online that differ from those offline: see its check "
                "feature_parity. Mend them, then materialize the bento again.",
                allow_retries=False,
            )
        try:
            record = promotion.releases.start_canary(
                model.id,
                tag,
                version,
                list(model.serve.canary),
                by=by,
                why=f"version {version} became champion",
                limits=limits_of(model.serve),
            )
        except SplitRunningError as problem:
            raise dg.Failure(str(problem), allow_retries=False) from problem
        return record, tag


def told(record: ReleaseRecord) -> dict[str, Any]:
    """The record as metadata."""
    return {
        "revision": record.revision,
        "traffic": spec.table(
            ["role", "release", "version", "percent"],
            [(item.role, item.release, item.version, item.weight) for item in record.variants],
        ),
        "changed_by": record.by,
        "why": record.why,
    }


def moved(model: ModelPipeline, record: ReleaseRecord) -> list[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """The traffic as a command or the rollout sensor left it, so that the asset's page shows what is.

    Nothing runs because of it: what is downstream follows the clock.
    """
    key, claim = spec.link_key(model, LINK), champion_released(record, record.champion.release)
    return [
        dg.AssetMaterialization(key, metadata=told(record), tags={DATA_VERSION_TAG: str(record.revision)}),
        dg.AssetCheckEvaluation(key, CHECK, claim.passed, metadata={}, description=claim.reason, blocking=True),
    ]


def champion_released(record: ReleaseRecord, tag: str) -> Claim:
    """The Bento is one of the variants and gets requests."""
    weights = {variant.release: variant.weight for variant in record.variants}
    share = weights.get(tag, 0)
    return Claim(CHECK, share > 0 and sum(weights.values()) == 100, f"{tag} gets {share} % of {weights}")
