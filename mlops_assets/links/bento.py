"""The Bento of the champion: an immutable package of model, feature plan, schema, drift baseline and golden rows.

It must answer its golden rows as the model did when it was trained, or nothing is released.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import spec
from mlops_assets.promotion import Promotion
from resources.bentos import BentoStore
from resources.champions import ALIAS

LINK = "bento"
CHECK = "golden_parity"


def bento_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key = spec.link_key(model, LINK)

    @dg.asset(
        key=key,
        deps=[spec.link_key(model, "champion")],
        description=f"The champion of {model.title} as an immutable Bento that serves on its own.",
        group_name=spec.model_group(model),
        owners=spec.owners(model.owners, model.team),
        kinds={"bentoml"},
        tags=spec.model_tags(model, LINK),
        code_version="1",
        automation_condition=spec.on_arrival(),
        check_specs=spec.check_specs(
            key, {CHECK: True}, {CHECK: "It answers golden requests as the model did offline"}
        ),
    )
    def bento(promotion: dg.ResourceParam[Promotion]) -> Iterator[Any]:
        version = promotion.mlflow.alias(model.registered_name, ALIAS)
        if version is None:
            raise dg.Failure(f"{model.title} has no champion. Materialize it first.", allow_retries=False)
        tag = promotion.bento_of(model, version)
        yield dg.MaterializeResult(
            metadata={
                "tag": tag,
                "version": version,
                "path": dg.MetadataValue.path(str(promotion.bentos.path(tag).parents[1])),
            },
            data_version=dg.DataVersion(tag.partition(":")[2]),
        )
        yield spec.check_result(key, golden_parity(promotion.bentos, tag))

    return bento


def golden_parity(bentos: BentoStore, tag: str) -> Claim:
    """The Bento's own bundle, loaded as the endpoint loads it, answers its golden rows."""
    from mlops_assets.serving.bundle import GOLDEN_TOLERANCE, BrokenBundleError, GoldenMismatchError, Release
    from mlops_assets.trainers import UnsafeModelFileError

    try:
        difference = Release.load(bentos.path(tag)).golden_difference()
    except (BrokenBundleError, GoldenMismatchError, FileNotFoundError, UnsafeModelFileError) as problem:
        return Claim(CHECK, False, str(problem))
    return Claim(
        CHECK,
        difference <= GOLDEN_TOLERANCE,
        f"Largest difference {difference:g}, at most {GOLDEN_TOLERANCE:g}",
        numbers={"largest_difference": difference},
    )
