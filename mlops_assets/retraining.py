"""Retraining of a declared model: which checks are read, which job is asked, and who decides when.

A report decides when it ends and pushes what is asked for, so that a training starts within a second of the drift that
was seen; the model's sensor does the same every half minute, for what push left.
"""

from __future__ import annotations

import dagster as dg

from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import drift_report, performance_report, quality_report, spec
from sensors.retraining import Retraining

TRAINING_LINKS = ("training_set", "candidate", "champion", "bento", "endpoint")


def training_job_name(model: ModelPipeline) -> str:
    return f"{model.team}__{model.name}__train"


def retraining(model: ModelPipeline) -> Retraining:
    """What decides about this model."""

    def check(link: str, name: str) -> dg.AssetCheckKey:
        return dg.AssetCheckKey(spec.link_key(model, link), name)

    return Retraining(
        model.id,
        training_job_name(model),
        checks=[
            check(drift_report.LINK, drift_report.CHECK),
            check(performance_report.LINK, performance_report.CHECK),
        ],
        candidate=spec.link_key(model, "candidate"),
        training=[spec.link_key(model, link) for link in TRAINING_LINKS],
        cutoffs=model.cutoffs,
        limits=model.monitor,
        healthy=check(quality_report.LINK, quality_report.CHECK),
    )


def report_seen(model: ModelPipeline, context: dg.AssetExecutionContext) -> None:
    """Decide, now that a report has said what it saw. A failure here is logged: the sensor decides in its time."""
    try:
        decision = retraining(model).push(context.instance)
    except Exception:
        context.log.exception("The decision to retrain %s is left to the sensor", model.id)
    else:
        context.log.info("Retraining of %s: %s (%s)", model.id, decision.outcome, "; ".join(decision.reasons))
