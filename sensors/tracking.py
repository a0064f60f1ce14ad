"""Tracking: what a killed training logged and MLflow was never told, delivered by the sensor within a minute.

A spool whose process lives is left to it. Starts no run; MLflow takes each point once, however often it is told.
"""

from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from resources.tracking.delivery import Delivered

SECONDS = 60


@dg.sensor(
    name="tracking",
    target=None,
    minimum_interval_seconds=SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"mlflow"},
    description="Brings to MLflow what trainings logged whose processes are gone.",
)
def tracking_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    from resources.tracking.delivery import deliver_left, left

    if not left():
        return dg.SkipReason("Every point that was logged is in MLflow.")
    told = deliver_left(context.resources.mlflow)
    for name, problem in {**told.waiting, **told.refused}.items():
        context.log.warning("%s: %s", name, problem)
    return dg.SkipReason(told_as_text(told))


def told_as_text(told: "Delivered") -> str:
    parts = [f"{told.points} points of ended processes are in MLflow now"]
    parts += [f"{len(told.waiting)} spools wait: MLflow cannot be reached"] if told.waiting else []
    parts += [f"{len(told.refused)} spools are set aside: their runs are gone"] if told.refused else []
    return "; ".join(parts) + "."
