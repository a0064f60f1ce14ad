"""A Ray cluster that the KubeRay operator starts for one work, and ends with it: a RayJob, written from the same spec.

Its pods are those of the kind `kubernetes` (see `resources/kubernetes`): image, volumes, rights, spot and limits are
said once. The job's process runs in the head pod; `machines` beyond the first are workers of that size, which work
that hands out more of it (Ray Train, a search) finds. The image has Ray besides what the platform needs.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from resources.compute import NoWorkerError, Work, WorkerLostError
from resources.compute.subprocess import WORKER, answer, death

if TYPE_CHECKING:
    from resources.kubernetes.cluster import Cluster

API, KIND = "ray.io/v1", "RayJob"
GROUP = "workers"
EVERYWHERE = "0.0.0.0"  # noqa: S104  in a pod: the operator and Dagster ask it from theirs; see the NetworkPolicy
KEPT_SECONDS = 300  # a job that ended is kept so long where nobody is left to delete it


def run(work: Work, namespace: str) -> dict[str, Any]:
    """The work as a RayJob, by dagster-ray's client; the RayJob and its pods are deleted, whatever came of it."""
    from dagster_ray.kuberay import PipesKubeRayJobClient
    from dagster_ray.kuberay.client import RayJobClient

    from resources.kubernetes.cluster import ClusterError, told
    from resources.kubernetes.owned import owner, platform

    cluster = _reached(work)
    namespace = namespace or cluster.namespace
    job = ray_job(cluster, work.resources, name=f"mlops-{secrets.token_hex(6)}", namespace=namespace)
    job["spec"]["runtimeEnvYAML"] = _yaml({"env_vars": work.environment})
    job["metadata"]["labels"] = owner(work.asking.run.run_id, platform(work.asking.instance), work.asking.asset_key)
    client = RayJobClient(kube_config=cluster.kubeconfig, kube_context=cluster.context)
    patience = work.resources.get("start_within_seconds", 600.0)
    pipes = PipesKubeRayJobClient(
        client=client, timeout=patience, forward_termination=False, port_forward=not cluster.in_cluster
    )
    try:
        with told(f"namespace {namespace}"):
            done = pipes.run(context=work.asking, ray_job=job, extras=work.document)
    except ClusterError as problem:
        raise NoWorkerError.of(work.entrypoint, str(problem), "See whether the KubeRay operator runs.") from problem
    except TimeoutError as problem:
        raise NoWorkerError.of(
            work.entrypoint, str(problem), "Ask for less, or declare a longer start_within."
        ) from None
    except RuntimeError as problem:
        raise _loss(work, str(problem)) from problem
    finally:
        _delete(client, job)
    return answer(work, done.get_custom_messages())


def ray_job(
    cluster: Cluster, resources: Mapping[str, Any], name: str, namespace: str, entrypoint: str = f"python -m {WORKER}"
) -> dict[str, Any]:
    """The manifest: a cluster of `machines` equal pods, and what is started in its head."""
    metadata, spec = cluster.pod(resources)
    others = int(resources.get("machines", 1)) - 1
    size = {"replicas": others, "minReplicas": others, "maxReplicas": others}
    worker = {"groupName": GROUP, **size, "rayStartParams": {}, "template": _template(metadata, spec, "ray-worker")}
    return {
        "apiVersion": API,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "entrypoint": entrypoint,
            "submissionMode": "HTTPMode",  # by the operator: no pod of an image of its own submits it
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "preRunningDeadlineSeconds": max(1, int(resources.get("start_within_seconds", 600))),
            "backoffLimit": 0,  # retries are the compute resource's, alike for every kind
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "headGroupSpec": {
                    "rayStartParams": {"dashboard-host": EVERYWHERE},
                    "template": _template(metadata, spec, "ray-head"),
                },
                "workerGroupSpecs": [worker] if others else [],
            },
        },
    }


def _template(metadata: Mapping[str, Any], spec: Mapping[str, Any], container: str) -> dict[str, Any]:
    """A pod template in Kubernetes' own words. The operator writes its containers' commands."""
    import kubernetes
    from dagster_k8s.models import k8s_model_from_dict

    first, *others = spec["containers"]
    # the operator ends a cluster, not a pod of it: Ray itself replaces what it lost
    whole = {**spec, "restart_policy": "Never", "containers": [{**first, "name": container}, *others]}
    template = k8s_model_from_dict(kubernetes.client.V1PodTemplateSpec, {"metadata": dict(metadata), "spec": whole})
    plain: dict[str, Any] = kubernetes.client.ApiClient().sanitize_for_serialization(template)
    return plain


def _reached(work: Work) -> Cluster:
    from resources.kubernetes.cluster import Cluster, ClusterError

    try:
        cluster = Cluster.of(work.asking.instance, work.asking.run)
        cluster.reach()
    except ClusterError as problem:
        raise NoWorkerError.of(work.entrypoint, str(problem), "Nothing was begun.") from problem
    return cluster


def _loss(work: Work, said: str) -> Exception:
    first = said.partition(", last available logs")[0]
    if code := re.search(r"exit code (-?[0-9]+)", first):
        return WorkerLostError.of(work.entrypoint, *death(int(code[1])))
    if "deployment failed" in first or "rejected" in first:
        return NoWorkerError.of(work.entrypoint, first, "See the RayJob's events.")
    return WorkerLostError.of(work.entrypoint, f"was lost with its cluster ({first})", "See the RayJob's events.")


def _delete(client: Any, job: Mapping[str, Any]) -> None:
    import kubernetes

    try:
        client.delete(job["metadata"]["name"], job["metadata"]["namespace"])
    except kubernetes.client.ApiException as problem:
        if problem.status != 404:  # it may never have been there
            raise


def _yaml(document: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(document))
