"""A failed run becomes one alert that can be acted on, once until it succeeds."""

import logging

import dagster as dg
import pytest

from resources.alerts import AlertResource, outbox
from sensors.run_failure import run_failure_sensor, run_recovered_sensor

pytestmark = pytest.mark.usefixtures("home")

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


def recovery_of(result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> None:
    (succeeded,) = instance.get_records_for_run(result.run_id, of_type=dg.DagsterEventType.RUN_SUCCESS).records
    context = dg.build_run_status_sensor_context(
        sensor_name="run_recovered",
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=succeeded.event_log_entry.get_dagster_event(),
        resources={"alerts": AlertResource()},
    )
    run_recovered_sensor(context)


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


def tellings() -> int:
    return sum(len(sent.message.told) for sent in outbox.last(99))


def test_the_alert_says_what_to_do_and_leads_to_the_asset() -> None:
    """What fails of a model is told together."""
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([candidate], partition_key="2013-07-08", instance=instance, raise_on_error=False)
        alert_of(result, instance, AlertResource(dagster_url="http://ui:3000/"))
    (sent,) = outbox.last(9)
    (told,) = sent.message.told
    assert told.alert.group == "flights/late_arrival" and "re-execute" in told.alert.suggestion
    assert told.alert.links == {
        "flights/late_arrival/candidate": "http://ui:3000/assets/flights/late_arrival/candidate"
    }


def test_work_that_keeps_failing_is_told_once_until_it_succeeds() -> None:
    """Two failures are one episode; after a success the next failure is told at once."""
    state = {"broken": True}

    @dg.op
    def sometimes() -> None:
        if state["broken"]:
            raise RuntimeError("broken")

    @dg.job
    def nightly() -> None:
        sometimes()

    with dg.DagsterInstance.ephemeral() as instance:

        def run(*, broken: bool) -> None:
            state["broken"] = broken
            result = nightly.execute_in_process(instance=instance, raise_on_error=False)
            alert_of(result, instance, AlertResource()) if broken else recovery_of(result, instance)

        run(broken=True)
        run(broken=True)
        assert tellings() == 1 and outbox.open_keys()[0].times == 2
        run(broken=False)
        assert outbox.open_keys() == []
        run(broken=True)
        assert tellings() == 2


def test_a_failing_webhook_never_breaks_the_sensor(caplog: pytest.LogCaptureFixture) -> None:
    """The tick ends well; the log has the alert, and the outbox that it waits."""
    with dg.DagsterInstance.ephemeral() as instance:
        result = maintenance.execute_in_process(instance=instance, raise_on_error=False)
        alert_of(result, instance, AlertResource(channels={"webhook": "http://127.0.0.1:9/x"}))
    assert "breaks failed" in caplog.text
    assert [one.state for one in outbox.last(1)[0].deliveries] == ["waiting"]
