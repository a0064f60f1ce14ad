"""The endpoint: the release record that every serving process of the model follows.

Materializing it gives the champion's Bento its first share of the traffic; a canary goes on by the rollout
sensor or by `mlops promote`. The first release of a model takes all traffic. It waits a moment for the serving
processes to follow: what they refuse at once has no traffic any more, nor the alias, when it is over.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import spec
from mlops_assets.promotion import BENTO, PARITY, REFUSED, Promotion, limits_of
from resources.champions import ALIAS
from resources.releases import ReleaseRecord, ReleaseStore, SplitRunningError
from resources.serving_status import ServingStatus, statuses

LINK = "endpoint"
FOLLOW_SECONDS = 5.0
CHECK = "champion_released"


def endpoint_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key = spec.link_key(model, LINK)

    @dg.asset(
        key=key,
        deps=[spec.link_key(model, "bento")],
        description=f"Who answers for {model.title}: releases and their share of the traffic.",
        kinds={"bentoml"},
        **spec.belonging(model, LINK),
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
        now, serving = followed(promotion.releases, record)
        promotion.settle(model, by=by)
        metadata = {**told(now), "serving": reported(serving)}
        yield dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(str(now.revision)))
        yield spec.check_result(key, champion_released(now, tag))

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


def followed(
    releases: ReleaseStore, record: ReleaseRecord, seconds: float = FOLLOW_SECONDS
) -> tuple[ReleaseRecord, list[ServingStatus]]:
    """The record, and what the serving processes report once all of them follow it or some time has passed.

    It may be another record by then: one that a process cannot follow is tried again by it, then refused. Where none
    reports there is nothing to wait for: they are elsewhere, or not started yet.
    """
    deadline = time.monotonic() + seconds
    while True:
        now, found = releases.current(record.model), statuses(releases.path(record.model))
        if all(follows(one, now) for one in found) or time.monotonic() > deadline:
            return now, found
        time.sleep(0.05)


def follows(status: ServingStatus, record: ReleaseRecord) -> bool:
    """A process is at the record, with every release that it names."""
    refused = {one["release"] for one in status.refused}
    return (status.revision or 0) >= record.revision and refused.isdisjoint(one.release for one in record.variants)


def reported(serving: Sequence[ServingStatus]) -> Any:
    """What each serving process makes of the record, as metadata."""
    if not serving:
        return "no serving process reports; one that starts follows the record"
    return spec.table(
        ["process", "revision", "answers", "refused"],
        [(one.process, one.revision, answers(one), refuses(one)) for one in serving],
    )


def answers(status: ServingStatus) -> str:
    """Who answers in a process."""
    return ", ".join(f"{one['role']} version {one['version']} {one['weight']} %" for one in status.serving) or "nothing"


def refuses(status: ServingStatus) -> str:
    """What a process refuses, and why."""
    return "; ".join(f"{one['release']}: {one['reason']}" for one in status.refused)


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
    share, change = weights.get(tag, 0), record.change
    out = "".join(f"; {one.release} was taken out by {change.by}: {change.why}" for one in change.refused)
    return Claim(CHECK, share > 0 and sum(weights.values()) == 100, f"{tag} gets {share} % of {weights}{out}")
