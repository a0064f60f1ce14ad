"""Orphans: a pod whose run has ended, or of which no run is known, is deleted; it would hold a machine for nobody.

A run deletes the pods that it asked for, unless it is killed before it can. Whose a pod is stands in its labels: pods
of another platform in the namespace, and of other programs, are never looked at. A pod that is a run itself and is
over stays for those who read its log; the cluster removes it with its Job.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

import dagster as dg

from resources.kubernetes.owned import Owned, delete, owned, platform

GRACE_SECONDS = 120.0  # a run that has just ended is deleting its pods itself
EVERY_SECONDS = 60
USED = ("KUBERNETES_SERVICE_HOST", "MLOPS_KUBERNETES")  # in a cluster; told of one


def orphans(pods: Iterable[Owned], ended: Mapping[str, float | None], now: float) -> dict[Owned, str]:
    """Which pods nobody waits for, and why. `ended` says of each known run when it ended (Unix), None if it has not."""
    found = {}
    for pod in pods:
        if pod.worker and pod.over:
            continue
        at = ended.get(pod.run_id)
        if pod.run_id not in ended:
            found[pod] = f"no run {pod.run_id or 'at all'} is known"
        elif at is not None and now - at >= GRACE_SECONDS:
            found[pod] = f"run {pod.run_id} ended {now - at:.0f} s ago"
    return found


def orphans_sensors(clock: Callable[[], float]) -> list[dg.SensorDefinition]:
    """The sensor that deletes them, where there is a cluster to look at."""
    return [_orphans_sensor(clock)] if any(os.environ.get(name) for name in USED) else []


def _orphans_sensor(clock: Callable[[], float]) -> dg.SensorDefinition:
    @dg.sensor(
        name="orphans",
        minimum_interval_seconds=EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Deletes the pods of runs that have ended or are unknown; each with its reason in the log.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        from resources.kubernetes.cluster import Cluster, told

        cluster = Cluster.of(context.instance)
        core = cluster.reach()
        with told(f"namespace {cluster.namespace}"):
            pods = owned(core, cluster.namespace, platform(context.instance))
            gone = []
            for pod, why in orphans(pods, _ended(context.instance, pods), clock()).items():
                if delete(core, cluster.namespace, pod):
                    context.log.warning("Pod %s was deleted: %s", pod, why)
                    gone.append(f"{pod}: {why}")
        return dg.SkipReason("; ".join(gone) or f"None of {len(pods)} pods is an orphan.")

    return sensor


def _ended(instance: dg.DagsterInstance, pods: Iterable[Owned]) -> dict[str, float | None]:
    runs = sorted({pod.run_id for pod in pods})
    records = instance.get_run_records(dg.RunsFilter(run_ids=runs)) if runs else []
    return {record.dagster_run.run_id: _end(record) for record in records}


def _end(record: dg.RunRecord) -> float | None:
    if not record.dagster_run.is_finished:
        return None
    return record.end_time or record.update_timestamp.timestamp()
