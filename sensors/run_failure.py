"""Run failures: each failed run becomes one alert that says which asset, which partition, why, and what to do.

The same work that fails again and again is one episode, and is told again only after a silence; when it succeeds the
episode is over. Dagster calls the sensors once for a run and moves their cursors by itself.
"""

import dagster as dg

from resources.alerts import Alert, AlertResource

LINKED = 5  # assets whose pages an alert leads to
PARTITION_TAGS = ("dagster/partition", "dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@dg.run_failure_sensor(
    name="run_failure",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends one alert for every failed run of this code location.",
)
def run_failure_sensor(context: dg.RunFailureSensorContext, alerts: AlertResource) -> None:
    """Send what `run_failure_alert` says."""
    alerts.send(run_failure_alert(context, alerts))


@dg.run_status_sensor(
    name="run_recovered",
    run_status=dg.DagsterRunStatus.SUCCESS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends the alert of work that failed before and succeeded now.",
)
def run_recovered_sensor(context: dg.RunStatusSensorContext, alerts: AlertResource) -> None:
    """The next failure of the same work is told at once."""
    alerts.resolve(work(context.dagster_run))


def run_failure_alert(context: dg.RunFailureSensorContext, alerts: AlertResource) -> Alert:
    """One alert for one run: the failed assets (or steps, or the job), the partition, the first line of the error."""
    run, failed = context.dagster_run, failed_assets(context)
    assets = [dg.AssetKey(name.split("/")) for name in failed if "/" in name]
    what = ", ".join(failed) or run.job_name
    return Alert(
        title=f"{what}{_partition(run)} failed",
        text=error_line(context),
        link=alerts.run_link(run.run_id),
        suggestion="Mend what the error names, then re-execute the run from its failure on its page.",
        group="/".join(assets[0].path[:2]) if assets else run.job_name,
        key=work(run),
        links={key.to_user_string(): alerts.asset_link(key) for key in assets[:LINKED]},
    )


def work(run: dg.DagsterRun) -> str:
    """What a run is to do, the same for each attempt at it: the key of its failure."""
    selected = sorted(key.to_user_string() for key in run.asset_selection or ())
    return f"run of {', '.join(selected) or run.job_name}{_partition(run)} failed"


def _partition(run: dg.DagsterRun) -> str:
    named = [run.tags[tag] for tag in PARTITION_TAGS if tag in run.tags]
    return f" [{'...'.join(named)}]" if named else ""


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
