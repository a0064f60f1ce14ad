"""Run failures: each failed run becomes one alert that says which asset, which partition and why.

Dagster calls the sensor once for a failed run and moves its cursor by itself; a webhook that fails is
logged by the resource and costs the tick nothing.
"""

import dagster as dg

from resources.alerts import Alert, AlertResource

PARTITION_TAG = "dagster/partition"


@dg.run_failure_sensor(
    name="run_failure",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends one alert for every failed run of this code location.",
)
def run_failure_sensor(context: dg.RunFailureSensorContext, alerts: AlertResource) -> None:
    """Send what `run_failure_alert` says."""
    alerts.send(run_failure_alert(context, alerts.run_link(context.dagster_run.run_id)))


def run_failure_alert(context: dg.RunFailureSensorContext, link: str) -> Alert:
    """One alert for one run: the failed assets (or steps, or the job), the partition, the first line of the error."""
    run = context.dagster_run
    partition = run.tags.get(PARTITION_TAG)
    what = ", ".join(failed_assets(context)) or run.job_name
    return Alert(title=f"{what}{f' [{partition}]' if partition else ''} failed", text=error_line(context), link=link)


def failed_assets(context: dg.RunFailureSensorContext) -> list[str]:
    """The assets that the failed steps were to materialize; a step without assets stands for itself."""
    steps = [event.step_key for event in context.get_step_failure_events() if event.step_key]
    planned = context.instance.get_records_for_run(
        context.dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    )
    assets = {(r.event_log_entry.step_key, r.asset_key.to_user_string()) for r in planned.records if r.asset_key}
    unnamed = [step for step in steps if step not in {key for key, _ in assets}]
    return sorted({asset for key, asset in assets if key in steps} | set(unnamed))


def error_line(context: dg.RunFailureSensorContext) -> str:
    """The first line of what the code raised, inside Dagster's wrappers; Dagster's message where no step failed."""
    errors = [event.step_failure_data.error for event in context.get_step_failure_events()]
    error = next((error for error in errors if error), None)
    while error and error.cause and (error.cls_name or "").startswith("Dagster"):
        error = error.cause
    message = error.message if error else context.failure_event.message
    return (message or "").strip().partition("\n")[0] or "no message"
