"""What killed trainings logged reaches MLflow by a sensor, and what is old leaves its database by a schedule."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
from mlflow.entities import Metric

from mlops_assets.upkeep import monthly, tracking_archive_job
from resources.mlflow import MlflowResource
from resources.tracking import spool
from resources.tracking.spool import Spool
from sensors.tracking import tracking_sensor


def tick(mlflow: MlflowResource) -> str:
    with dg.build_sensor_context(resources={"mlflow": mlflow}) as context:
        told = tracking_sensor.evaluate_tick(context)
    assert told.run_requests == [] and told.skip_message
    return told.skip_message


def test_the_sensor_delivers_what_was_left(home: Path) -> None:
    """Once; it says so, and says of points that nobody can take that they are set aside."""
    mlflow = MlflowResource()
    assert tick(mlflow) == "Every point that was logged is in MLflow."
    with mlflow.run("flights/late", "training") as run_id:
        pass
    for run in (run_id, "0" * 32):
        with Spool(spool.new_path(run)) as left:
            left.log(3, {"loss": 0.5})
    assert tick(mlflow) == (
        "1 points of ended processes are in MLflow now; 1 spools are set aside: their runs are gone."
    )
    assert [(point.step, point.value) for point in mlflow.metric_history(run_id, "loss")] == [(3, 0.5)]
    assert tick(mlflow) == "Every point that was logged is in MLflow."


def test_the_schedule_archives_as_of_its_tick(home: Path) -> None:
    """The first of a month: its job moves what was old then, and its run key is that moment."""
    mlflow, at = MlflowResource(), datetime(2013, 12, 1, 3, 17, tzinfo=UTC)
    for month in (5, 11):
        ended = round(datetime(2013, month, 1, tzinfo=UTC).timestamp() * 1000)
        run = mlflow.client().create_run(mlflow.experiment("flights/late"), start_time=ended).info.run_id
        mlflow.client().log_batch(run, [Metric("loss", 1 / (step + 1), ended + step, step) for step in range(4)])
        mlflow.client().set_terminated(run, end_time=ended)
    request = monthly(dg.build_schedule_context(scheduled_execution_time=at))
    assert isinstance(request, dg.RunRequest) and request.run_key == at.isoformat()
    ran = tracking_archive_job.execute_in_process(request.run_config, resources={"mlflow": mlflow})
    assert ran.success
    (told,) = (event for event in ran.all_node_events if event.event_type_value == "STEP_OUTPUT")
    assert {name: value.value for name, value in told.step_output_data.metadata.items()} == {
        "points": 3, "runs": 1, "versions": 0, "files": 1,
    }  # fmt: skip
