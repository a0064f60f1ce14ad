"""Whose a pod is: written in its labels when it is made, read when its run may be gone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import dagster as dg

from resources.kubernetes.cluster import SECONDS, refusal

PLATFORM, RUN, TEAM, ASSET = "mlops/platform", "dagster/run-id", "mlops/team", "mlops/asset"
COMPONENT, RUN_WORKER = "app.kubernetes.io/component", "run_worker"
LABEL_LENGTH = 63
OTHER_OR_GONE = (404, 409)


@dataclass(frozen=True)
class Owned:
    """A pod of a run; `over` once nothing of it runs, `worker` where it is the run itself."""

    name: str
    uid: str
    run_id: str
    asset: str = ""
    over: bool = False
    worker: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.asset or 'a run'})"


def platform(instance: dg.DagsterInstance) -> str:
    """What tells this platform from another in the same namespace: each knows the runs of its own storage alone."""
    storage: Any = instance.run_storage
    return str(storage.get_run_storage_id())


def owner(run_id: str, of: str, key: dg.AssetKey | None) -> dict[str, str]:
    """The labels of a pod: the platform that knows the run, the run, and the team and the asset that it is for."""
    named = {TEAM: key.path[0], ASSET: ".".join(key.path)} if key else {}
    return {name: label(value) for name, value in ({PLATFORM: of, RUN: run_id} | named).items()}


def label(value: str) -> str:
    """A value that a label may have: at most 63 of letters, digits, `-`, `_` and `.`, none of these at the ends."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", value)[:LABEL_LENGTH].strip("-_.")


def owned(core: Any, namespace: str, of: str) -> list[Owned]:
    """The pods of that platform."""
    found = core.list_namespaced_pod(namespace, label_selector=f"{PLATFORM}={label(of)}", _request_timeout=SECONDS)
    return [_owned(pod) for pod in found.items]


def _owned(pod: Any) -> Owned:
    labels = pod.metadata.labels
    over, worker = pod.status.phase in ("Succeeded", "Failed"), labels.get(COMPONENT) == RUN_WORKER
    return Owned(pod.metadata.name, pod.metadata.uid, labels.get(RUN, ""), labels.get(ASSET, ""), over, worker)


def delete(core: Any, namespace: str, pod: Owned) -> bool:
    """Have that very pod go; False where it is gone, or another has its name."""
    import kubernetes

    that = kubernetes.client.V1DeleteOptions(preconditions=kubernetes.client.V1Preconditions(uid=pod.uid))
    try:
        core.delete_namespaced_pod(pod.name, namespace, body=that, _request_timeout=SECONDS)
    except kubernetes.client.ApiException as problem:
        if problem.status in OTHER_OR_GONE:
            return False
        problem.reason = refusal(problem)
        raise
    return True
