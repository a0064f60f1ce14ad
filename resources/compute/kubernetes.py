"""A pod of its own, by Dagster Pipes: it has what the declaration asks for, and its death is told with its cause.

The worker finds MLOPS_HOME at the same place (a volume), and the image's own Python. What it logs and reports arrives
in the asset's run while it works. Which cluster, image and volumes: see `resources/kubernetes/cluster.py`.
"""

from __future__ import annotations

import sys
from typing import Any

from resources.compute import NoWorkerError, Work, WorkerLostError
from resources.compute.subprocess import WORKER, answer

PYTHON = "python"  # the image's


def run(work: Work) -> dict[str, Any]:
    from resources.kubernetes.cluster import Cluster, ClusterError, told
    from resources.kubernetes.owned import owner, platform
    from resources.kubernetes.watchdog import PodLostError, WatchedPipesK8sClient

    context = work.asking
    try:
        cluster = Cluster.of(context.instance, context.run, work.address)
        metadata, spec = cluster.pod(work.resources)
        cluster.reach()
    except ClusterError as problem:
        raise NoWorkerError(f"No worker for {work.entrypoint}. {problem}") from problem
    whose = owner(context.run.run_id, platform(context.instance), context.asset_key)
    client = WatchedPipesK8sClient(cluster, work.resources.get("start_within_seconds", 600.0))
    try:
        with told(f"namespace {cluster.namespace}"):
            done = client.run(
                context=context,
                namespace=cluster.namespace,
                base_pod_meta={**metadata, "labels": metadata.get("labels", {}) | whose},
                base_pod_spec=_working(spec, work),
                extras=work.document,
                delete_pod_on_completion=False,  # the watch does
            )
    except PodLostError as problem:
        lost = WorkerLostError if problem.loss.begun else NoWorkerError
        raise lost.of(work.entrypoint, f"{problem.loss.cause} (pod {problem.pod})", problem.loss.fix) from problem
    except ClusterError as problem:
        raise NoWorkerError(f"No worker for {work.entrypoint}. {problem}") from problem
    return answer(work, done.get_custom_messages())


def _working(spec: dict[str, Any], work: Work) -> dict[str, Any]:
    """The pod's spec, its first container doing the work."""
    first, *others = spec["containers"]
    python = PYTHON if work.python == sys.executable else work.python
    return {**spec, "containers": [{**first, "command": [python, "-m", WORKER]}, *others]}
