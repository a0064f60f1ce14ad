"""What the platform does for itself: MLflow's database is kept at a size that it answers quickly, work is cleared up.

Once a month old metric history and old versions go to Parquet, where `mlops runs` still finds them. What a killed
training left is removed after a week, and its MLflow run says within the hour that it was killed.
"""

from datetime import UTC, datetime

import dagster as dg

MONTHLY = "17 3 1 * *"
JOB = "platform__tracking_archive"


class AsOf(dg.Config):
    """What counts as old is judged as of this moment (ISO 8601, with its zone); left empty, as of now."""

    as_of: str = ""


@dg.op(required_resource_keys={"mlflow"}, description="Moves old metric history and old versions to Parquet.")
def tracking_archive(context: dg.OpExecutionContext, config: AsOf) -> None:
    now = datetime.fromisoformat(config.as_of) if config.as_of else datetime.now(UTC)
    moved = context.resources.mlflow.archive(now)
    told = "%s points of %s runs and %s versions are archived in %s files."
    context.log.info(told, moved.points, moved.runs, moved.versions, moved.files)
    context.add_output_metadata(vars(moved))


@dg.job(name=JOB, description="Archive old metric history and old versions of MLflow, monthly.")
def tracking_archive_job() -> None:
    tracking_archive()


@dg.schedule(
    name=f"{JOB}_monthly",
    cron_schedule=MONTHLY,
    job=tracking_archive_job,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Archives old metric history and old versions on the first of each month.",
)
def monthly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    at = context.scheduled_execution_time.isoformat()
    return dg.RunRequest(run_key=at, run_config={"ops": {"tracking_archive": {"config": {"as_of": at}}}})


@dg.sensor(
    name="abandoned_work",
    target=None,
    minimum_interval_seconds=600,
    default_status=dg.DefaultSensorStatus.RUNNING,
    required_resource_keys={"mlflow"},
    description="Ends the MLflow runs of killed trainings that nobody takes up, and removes what they left.",
)
def abandoned_work(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    from mlops_assets.workplace import clean

    removed = clean(context.resources.mlflow.abandon)
    return dg.SkipReason(f"Removed after a week: {', '.join(removed)}" if removed else "Nothing is a week old.")


def upkeep() -> dg.Definitions:
    """The platform's own jobs, schedules and sensors."""
    from mlops_assets.artifact_care import artifacts_job, weekly
    from sensors.tracking import tracking_sensor

    return dg.Definitions(
        jobs=[tracking_archive_job, artifacts_job],
        schedules=[monthly, weekly],
        sensors=[tracking_sensor, abandoned_work],
    )
