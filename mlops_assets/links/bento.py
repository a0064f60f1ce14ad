"""The Bento of the champion: an immutable package of model, feature plan, schema, drift baseline and golden rows.

It must answer its golden rows as the model did when it was trained, and read online the features that training
would read offline, or nothing is released: the verdict is kept on the registered version, and the endpoint and a
promotion by hand go by it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import dagster as dg

from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import spec
from mlops_assets.parity import report as parity
from mlops_assets.parity.replay import published_as_of
from mlops_assets.parity.report import Report
from mlops_assets.promotion import PARITY, PASSED, REFUSED, Promotion
from resources.bentos import BentoStore
from resources.champions import ALIAS
from resources.feast import FeastResource
from resources.lake import Lake

LINK = "bento"
CHECK = "golden_parity"
SHOWN = 50  # differences on the asset's page
PROMISES = {
    CHECK: "It answers golden requests as the model did offline",
    parity.CHECK: "The features used online are those that offline retrieval gives for the same keys and moments",
    parity.IN_TIME: "What offline retrieval takes for known at a moment had reached the online store by then",
}


class Replay(dg.Config):
    """`now_only`: look sampled events up now, though answers are logged; to judge a skew that was mended since."""

    now_only: bool = False


def bento_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    key = spec.link_key(model, LINK)

    @dg.asset(
        key=key,
        deps=[spec.link_key(model, "champion")],
        description=f"The champion of {model.title} as an immutable Bento that serves on its own.",
        kinds={"bentoml"},
        **spec.belonging(model, LINK),
        code_version="1",
        automation_condition=spec.on_arrival(),
        check_specs=spec.check_specs(key, {CHECK: True, parity.CHECK: True, parity.IN_TIME: False}, PROMISES),
    )
    def bento(
        context: dg.AssetExecutionContext,
        config: Replay,
        promotion: dg.ResourceParam[Promotion],
        feast: FeastResource,
        lake: Lake,
    ) -> Iterator[Any]:
        version = promotion.mlflow.alias(model.registered_name, ALIAS)
        if version is None:
            raise dg.Failure(f"{model.title} has no champion. Materialize it first.", allow_retries=False)
        tag = promotion.bento_of(model, version)
        published = published_as_of(context.instance, model)
        replay = partial(parity.differences, lake=lake, store=feast.packed(), now_only=config.now_only)
        same, in_time, tables = judged(model, promotion.bentos, tag, partial(replay, published=published))
        promotion.mlflow.tag_version(model.registered_name, version, {PARITY: PASSED if same.passed else REFUSED})
        yield dg.MaterializeResult(
            metadata={
                "tag": tag,
                "version": version,
                "path": dg.MetadataValue.path(str(promotion.bentos.path(tag).parents[1])),
                **tables,
            },
            data_version=dg.DataVersion(tag.partition(":")[2]),
        )
        yield spec.check_result(key, golden_parity(promotion.bentos, tag))
        yield spec.check_result(key, same, **tables)
        yield spec.check_result(key, in_time)

    return bento


def golden_parity(bentos: BentoStore, tag: str) -> Claim:
    """The Bento's own bundle, loaded as the endpoint loads it, answers its golden rows."""
    from mlops_assets.serving.bundle import GOLDEN_TOLERANCE, BrokenBundleError, GoldenMismatchError, Release
    from mlops_assets.trainers import UnsafeModelFileError
    from resources.artifacts.manifest import DamagedArtifactError

    try:
        difference = Release.load(bentos.path(tag)).golden_difference()
    except (
        BrokenBundleError,
        DamagedArtifactError,
        GoldenMismatchError,
        FileNotFoundError,
        UnsafeModelFileError,
    ) as problem:
        return Claim(CHECK, False, str(problem))
    return Claim(
        CHECK,
        difference <= GOLDEN_TOLERANCE,
        f"Largest difference {difference:g}, at most {GOLDEN_TOLERANCE:g}",
        numbers={"largest_difference": difference},
    )


def judged(
    model: ModelPipeline, bentos: BentoStore, tag: str, replay: Callable[..., Report]
) -> tuple[Claim, Claim, dict[str, Any]]:
    """What the Bento reads online against what training reads offline: parity, lateness, and tables of what differs."""
    from mlops_assets.serving.bundle import BrokenBundleError, plan_of
    from mlops_assets.serving.prediction_log import PredictionLog
    from resources.lake import NotMaterializedError, SchemaDriftError, UnreadableFileError

    try:
        report = replay(model, plan_of(bentos.path(tag)), bentos=bentos, log=PredictionLog())
    except (BrokenBundleError, NotMaterializedError, SchemaDriftError, UnreadableFileError) as problem:
        return *parity.unjudged(problem), {}
    return parity.feature_parity(report, model.parity.at_most), parity.features_in_time(report), _tables(report)


def _tables(report: Report) -> dict[str, Any]:
    """The features that differ and the first differences, those that count before late ones."""
    if not report.differences:
        return {}
    first = [*report.skewed, *report.late][:SHOWN]
    return {
        "differing_features": spec.table(parity.FEATURE_COLUMNS, report.by_feature),
        "differences": spec.table(parity.COLUMNS, [one.cells for one in first]),
    }
