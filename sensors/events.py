"""Events that push did not start: nobody claimed them, or who claimed them is not heard of any more.

The web server was away, the pusher died, or an event was put in without a push. Each tick first notes which events
have their runs, then asks for what is due. An event that no run could be made of is refused, with an alert, so that it
holds up no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import dagster as dg
from dagster import DagsterRunStatus

from resources.alerts import Alert, AlertResource
from resources.events import EVENT_TAG, REFUSED, SENSOR, STARTED, Event, Inbox, Received

if TYPE_CHECKING:
    from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph

BY = "sensors.events"


@dg.sensor(
    name=SENSOR,
    asset_selection=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts the runs of events (new data, an approval) that were not started by push.",
)
def events_sensor(context: dg.SensorEvaluationContext, alerts: AlertResource) -> dg.SensorResult:
    """Ask for the runs of what is due."""
    graph = cast("dg.RepositoryDefinition", context.repository_def).asset_graph
    inbox, fit = Inbox(), list[Event]()
    for event in due_events(inbox, context.instance, SENSOR):
        if why := misfit(event, graph):
            inbox.close(event.id, REFUSED, why)
            alerts.send(refusal(event, why))
        else:
            fit.append(event)
    if not fit:
        return dg.SensorResult(skip_reason="every event has its run")
    return dg.SensorResult(run_requests=[request_of(event) for event in fit])


def due_events(inbox: Inbox, instance: dg.DagsterInstance, sensor: str) -> list[Event]:
    """Note what has its run by now; claim what has none."""
    for received in inbox.open(sensor):
        run = _run_of(received, instance)
        if run and run.status != DagsterRunStatus.NOT_STARTED:
            inbox.close(received.event.id, STARTED)
        elif received.run_id and received.stale:  # created and never queued, or not of this instance
            inbox.release(received.event.id)
    return inbox.due(sensor, BY)


def _run_of(received: Received, instance: dg.DagsterInstance) -> dg.DagsterRun | None:
    if received.run_id:
        return instance.get_run_by_id(received.run_id)
    tagged = instance.get_runs(dg.RunsFilter(tags={EVENT_TAG: received.event.id}), limit=1)
    return tagged[0] if tagged else None


def misfit(event: Event, graph: BaseAssetGraph) -> str | None:  # type: ignore[type-arg]
    """Why no run can be made of it; Dagster would refuse the whole tick for one of these."""
    if not event.assets:
        return "it names no asset"
    for key in map(dg.AssetKey.from_user_string, event.assets):
        if not graph.has(key) or not graph.get(key).is_executable:
            return f"there is no asset {key.to_user_string()!r} that could be materialized"
        partitions = graph.get(key).partitions_def
        if event.partition and (partitions is None or not partitions.has_partition_key(event.partition)):
            return f"asset {key.to_user_string()!r} has no partition {event.partition!r}"
        if partitions and not event.partition:
            return f"asset {key.to_user_string()!r} is partitioned, and the event names no partition"
    return None


def refusal(event: Event, why: str) -> Alert:
    return Alert(
        f"Event {event.id} starts no run",
        why,
        suggestion="Push it again under another id, with assets and a partition that exist.",
        key=f"event {event.id}",
    )


def request_of(event: Event) -> dg.RunRequest:
    """What a sensor returns to start the run of an event."""
    return dg.RunRequest(
        run_key=event.id,
        run_config=dict(event.config),
        partition_key=event.partition,
        tags=event.run_tags,
        asset_selection=[dg.AssetKey.from_user_string(asset) for asset in event.assets] or None,
    )
