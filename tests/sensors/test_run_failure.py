"""A failed run becomes one alert that can be acted on."""

import logging

import dagster as dg
import pytest

from resources.alerts import AlertResource
from sensors.run_failure import run_failure_sensor

KEY = dg.AssetKey(["flights", "late_arrival", "candidate"])


@dg.asset(key=KEY, partitions_def=dg.StaticPartitionsDefinition(["2013-07-08"]))
def candidate() -> None:
    try:
        {}["tailnum"]
    except KeyError as error:
        raise ValueError("the training set has no rows\nsecond line") from error


@dg.asset(key=["flights", "late_arrival", "training_set"])
def training_set() -> None: ...


@dg.op
def breaks() -> None:
    raise RuntimeError("no asset here")


@dg.job
def maintenance() -> None:
    breaks()


def alert_of(result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance, alerts: AlertResource) -> None:
    (failed,) = instance.get_records_for_run(result.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
    context = dg.build_run_status_sensor_context(
        sensor_name="run_failure",
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=failed.event_log_entry.get_dagster_event(),
        resources={"alerts": alerts},
    ).for_run_failure()
    run_failure_sensor(context)


def test_the_alert_names_asset_partition_cause_and_run(caplog: pytest.LogCaptureFixture) -> None:
    """Of the assets of a run only those that failed; of the error what the code said of it; of the run its page."""
    with dg.DagsterInstance.ephemeral() as instance, caplog.at_level(logging.ERROR, logger="resources.alerts"):
        result = dg.materialize(
            [candidate, training_set], partition_key="2013-07-08", instance=instance, raise_on_error=False
        )
        alert_of(result, instance, AlertResource(dagster_url="http://ui:3000/"))
    (said,) = [record.getMessage() for record in caplog.records if record.name == "resources.alerts"]
    assert said.startswith("flights/late_arrival/candidate [2013-07-08] failed: ")
    assert "the training set has no rows" in said and "second line" not in said
    assert said.endswith(f"(http://ui:3000/runs/{result.run_id})")


def test_a_run_without_assets_names_its_step(caplog: pytest.LogCaptureFixture) -> None:
    """An op of a plain job stands for itself."""
    with dg.DagsterInstance.ephemeral() as instance:
        result = maintenance.execute_in_process(instance=instance, raise_on_error=False)
        alert_of(result, instance, AlertResource())
    assert "breaks failed: RuntimeError: no asset here" in caplog.text


def test_a_failing_webhook_never_breaks_the_sensor(caplog: pytest.LogCaptureFixture) -> None:
    """The tick ends well; the log has the alert and that it was not delivered."""
    with dg.DagsterInstance.ephemeral() as instance:
        result = maintenance.execute_in_process(instance=instance, raise_on_error=False)
        alert_of(result, instance, AlertResource(webhook_url="http://127.0.0.1:9/x", attempts=1))
    assert "breaks failed" in caplog.text and "was not delivered" in caplog.text
